"""What users choose soon after an item: a relation with a direction, and the histories it starts from.

Co-occurrence forgets the order in which things were chosen; where one leads to the next (sessions, series,
equipment) the order tells more than the company.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from nightjar.kernels.likes import Likes
from nightjar.kernels.signals import on_grid, top_entries

SHARES = (60, 30, 20, 15, 12, 10)
"""What the next item counts, the one after it, …: 60/d as whole numbers, whose sums know no order."""


def followers(likes: Likes, n_neighbours: int, shrinkage: float = 0.3) -> sparse.csr_matrix:
    """T[h, i] = c_hi / (√(out_h · in_i) + shrinkage · mean out): how often i was first liked soon after h.

    c adds up 60/d for the d-th item after h in the order in which a user came to like them, d up to 6; what
    was liked at the same moment counts both ways, in the order of item numbers. out and in are the sums of
    c's rows and columns. (n_items, n_items) float32, `n_neighbours` a row, ties by item number.
    """
    order = np.lexsort((likes.item, -likes.first, likes.user))
    user, item, first = likes.user[order], likes.item[order], likes.first[order]
    shape = likes.n_items, likes.n_items
    counts = sparse.csr_matrix(shape)
    for distance, share in enumerate(SHARES, start=1):
        same = user[distance:] == user[:-distance]
        before, after = item[:-distance][same], item[distance:][same]
        tie = first[distance:][same] == first[:-distance][same]
        row, column = np.r_[before, after[tie]], np.r_[after, before[tie]]
        shares = np.full(len(row), float(share))
        counts = counts + sparse.coo_matrix((shares, (row, column)), shape).tocsr()
    out, into = (np.asarray(counts.sum(axis=axis)).ravel() for axis in (1, 0))
    shrunk = shrinkage * float(out[out > 0].mean()) if out.any() else 1.0
    found = counts.tocoo()
    value = on_grid(found.data / (np.sqrt(out[found.row] * into[found.col]) + shrunk))
    apart = found.row != found.col
    entries = found.row[apart].astype(np.int64), found.col[apart].astype(np.int64), value[apart]
    return top_entries(entries, shape, n_neighbours)
