"""What is popular in the segment that a user belongs to (a country, a shop): a source of scores like a
relation, only that a user starts from their segment instead of their history.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from nightjar.kernels.likes import Likes
from nightjar.kernels.signals import I64, decay, top_entries

NAME = "popular_segment"
PRIOR = 100.0
"""Likes of everybody that are added to those of a segment: the tastes of three people are no fashion."""
MOST = 1000
"""Segments with a row of their own, the largest; to users of the others applies what everybody likes."""
TINY = 1e-12


def rows_of(sizes: NDArray[np.number]) -> I64:
    """The row of each segment, int64 like `sizes` (segments,): 1, 2, … for the MOST largest, ties by number,
    and 0 for the others, for empty ones and for segment 0."""
    own = np.asarray(sizes, np.float64).copy()
    own[:1] = 0
    largest = np.sort(np.argsort(-own, kind="stable")[:MOST])
    largest = largest[own[largest] > 0]
    found = np.zeros(len(own), np.int64)
    found[largest] = np.arange(1, len(largest) + 1)
    return found


def belongs(likes: Likes) -> sparse.csr_matrix:
    """(n_users, segments) float32, 1.0 at each user's segment; without a column where nobody is in any."""
    if likes.segment is None:
        return sparse.csr_matrix((likes.n_users, 0), dtype=np.float32)
    shape = likes.n_users, int(likes.segment.max(initial=0)) + 1
    entries = np.ones(likes.n_users, np.float32), (np.arange(likes.n_users), likes.segment)
    return sparse.csr_matrix(entries, shape)


def popularity(likes: Likes, half_life_days: float, most: int) -> sparse.csr_matrix:
    """Recent popularity by segment as `scores` has it, (segments, n_items) float32; no row where there are
    none."""
    if likes.segment is None:
        return sparse.csr_matrix((0, likes.n_items), dtype=np.float32)
    shape = int(likes.segment.max(initial=0)) + 1, likes.n_items
    counted = decay(likes.last, half_life_days), (likes.segment[likes.user], likes.item)
    counts = sparse.csr_matrix(counted, shape)
    everyone = sparse.csr_matrix(likes.counts(half_life_days))
    rows = sparse.vstack([everyone, counts[1:]]).tocoo()
    return scores(top_entries((rows.row, rows.col, rows.data), shape, most))


def scores(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """What each item scores in each segment, of the same shape, float32: its count there and its share of
    PRIOR likes of everybody.

    counts: (segments, n_items) of decayed users, row 0 those of everybody, which also serves users of no
    segment.
    """
    n_segments, everyone = counts.shape[0], counts[:1].astype(np.float64)
    own = sparse.diags((np.arange(n_segments) > 0).astype(np.float64)) @ counts
    share = everyone * (PRIOR / max(float(everyone.sum()), TINY))
    found = (own + sparse.csr_matrix(np.ones((n_segments, 1))) @ share).tocsr()
    found.sort_indices()
    return found.astype(np.float32)
