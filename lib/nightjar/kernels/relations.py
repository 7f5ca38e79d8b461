"""Learns the relations that a night blends, each a sparse item–item matrix (signals.py has the builders)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from nightjar.kernels import als, signals
from nightjar.kernels.bm25 import bm25, word_counts
from nightjar.kernels.followers import followers
from nightjar.kernels.likes import Likes
from nightjar.kernels.signals import F32, I64

OF_TEXTS = ("text", "bm25")
"""Relations that no log changes."""
OF_COSINES = ("text", "smoothed_text", "als")
"""Relations to the nearest items in a space where those that nobody liked have a place too."""
DENSE = 100.0
"""Likes an item from which on the ridge of EASE grows."""
FROM_NEWEST = ("followers",)
"""Relations that start from how new the items of a history are; the others from how strong and how old."""


@dataclass(frozen=True)
class Learning:
    """n_neighbours: kept for each item. text_power, smoothed_power: how much one near neighbour counts for
    more than many far ones. degree_power: how much these two and words are divided by how many near ones an
    item has (`signals.degree_normalised`). ease_items: as many of the most liked items have EASE among them,
    which inverts a matrix of that size; ease_ridge: in users, more in a dense log (`denser`);
    ease_neighbours: kept for each item. als: how its factors are found, of 0 there are none. bm25_items:
    texts at most that a word is in to be looked up; 0: no word is. together: how co-occurrence is counted,
    of the newest `user_likes` of each user, for its work grows with their square."""

    n_neighbours: int = 200
    text_power: float = 2.0
    smoothed_power: float = 3.0
    degree_power: float = 0.5
    ease_items: int = 8192
    ease_ridge: float = 200.0
    ease_neighbours: int = 400
    als: als.Factorisation = field(default_factory=als.Factorisation)
    bm25_items: int = 1000
    together: signals.Neighbourhood = field(default_factory=signals.Neighbourhood)
    user_likes: int = 2000


def from_text(V: F32, how: Learning, nearest: signals.Nearest | None = None) -> sparse.csr_matrix:
    """The relation of the texts alone; V: (n_items, d) float32 whitened unit vectors."""
    return _normalised(V, how.text_power, how, nearest)


def from_smoothed(smoothed: F32, how: Learning, nearest: signals.Nearest | None = None) -> sparse.csr_matrix:
    """The relation of the texts bent by a log; smoothed: (n_items, d) float32 unit vectors."""
    return _normalised(smoothed, how.smoothed_power, how, nearest)


def _normalised(V: F32, power: float, how: Learning, nearest: signals.Nearest | None) -> sparse.csr_matrix:
    near = signals.cosine_neighbours(V, how.n_neighbours, power, nearest)
    return signals.degree_normalised(near, how.degree_power)


def from_words(texts: Iterable[str], how: Learning) -> dict[str, sparse.csr_matrix]:
    """The relation `bm25` of the items' texts, in their order; nothing where none is wanted."""
    if not how.bm25_items:
        return {}
    by_words = bm25(word_counts(texts), how.n_neighbours, how.bm25_items)
    return {"bm25": signals.degree_normalised(by_words, how.degree_power)}


def from_behaviour(
    likes: Likes,
    V: F32,
    smoothed: F32,
    text: sparse.csr_matrix,
    how: Learning,
    nearest: signals.Nearest | None = None,
    threads: int = 1,
    together: sparse.csr_matrix | None = None,
) -> dict[str, sparse.csr_matrix]:
    """The relations that a log teaches, by name; `als` and `ease` unless nothing was liked or none is wanted.

    V: (n_items, d) float32 unit vectors of the texts; smoothed: the same bent by the log; text: the relation
    of the texts, by which items that nobody liked yet borrow their co-occurrence; nearest: how neighbours are
    found; threads: relations learnt side by side, each by a BLAS of one thread or not as the process has it;
    together: co-occurrence where it has been counted, (n_items, n_items), perhaps of more users.
    """
    liked = likes.matrix()
    m = how.n_neighbours
    with ThreadPoolExecutor(threads) as pool:
        # EASE takes longest and so begins; its entry comes last, as it may be missing.
        ease = pool.submit(_ease, liked, how) if liked.nnz and how.ease_items else None
        found = {
            "co_occurrence": pool.submit(_co_occurrence, likes, text, how, together),
            "smoothed_text": pool.submit(from_smoothed, smoothed, how, nearest),
            "followers": pool.submit(followers, likes, m),
        }
        if liked.nnz and how.als.n_factors:
            found["als"] = pool.submit(factored, liked, V, how, nearest)
        if ease is not None:
            found["ease"] = ease
        return {name: one.result() for name, one in found.items()}


def _co_occurrence(
    likes: Likes, text: sparse.csr_matrix, how: Learning, together: sparse.csr_matrix | None
) -> sparse.csr_matrix:
    if together is None:
        together = signals.co_occurrence(likes.newest(how.user_likes).matrix(), how.together)
    alone = np.bincount(together.indices, minlength=likes.n_items) == 0
    return signals.borrowed(together, text, likes.unliked() & alone, how.n_neighbours)


def factored(
    liked: sparse.csr_matrix, V: F32, how: Learning, nearest: signals.Nearest | None = None
) -> sparse.csr_matrix:
    """The relation of items alike in their ALS factors, which items nobody liked have from their texts."""
    known = np.bincount(liked.indices, minlength=liked.shape[1]) > 0
    items = als.from_text(als.item_factors(liked, how.als), V, known, how.als.text_ridge)
    return signals.cosine_neighbours(als.alike(items, how.als.ridge), how.n_neighbours, 1.0, nearest)


def with_unliked(
    found: Mapping[str, sparse.csr_matrix], unliked: NDArray[np.bool_], how: Learning
) -> dict[str, sparse.csr_matrix]:
    """Relations as a night serves them: those of cosines find items that nobody liked both ways.

    found: (n_items, n_items) each; unliked: (n_items,) bool. Nearest neighbours are not mutual, and a new
    item may be among the nearest of few or of nothing. The fit of liked items does without, as it has no such
    item among its truth.
    """
    return {
        name: signals.both_ways(one, unliked, how.n_neighbours) if name in OF_COSINES else one
        for name, one in found.items()
    }


def _ease(liked: sparse.csr_matrix, how: Learning) -> sparse.csr_matrix:
    mine = most_liked(liked, how.ease_items)
    return signals.ease(mine, how.ease_ridge * denser(mine), how.ease_neighbours)


def denser(liked: sparse.csr_matrix) -> float:
    """By how much the ridge of EASE grows where items have more likes than DENSE on average: by the root.

    Steck 2019 (arXiv 1905.03375) has 500 as the best of MovieLens-20M, with some 500 likes an item, and 1,000
    of Netflix, with some 3,200; logs of 10 to 75 likes an item are served by 50 to 500 alike (docs/log.md).
    """
    items = len(np.unique(liked.indices))
    return float(np.sqrt(max(1.0, liked.nnz / max(items, 1) / DENSE)))


def most_liked(liked: sparse.csr_matrix, n: int) -> sparse.csr_matrix:
    """`liked` without all but the n items that most users like, ties by item number ascending."""
    counts = np.bincount(liked.indices, minlength=liked.shape[1])
    kept = np.zeros(len(counts), np.float32)
    kept[np.argsort(-counts, kind="stable")[:n]] = 1
    narrowed = (liked @ sparse.diags(kept)).tocsr()
    narrowed.eliminate_zeros()
    return narrowed


@dataclass(frozen=True)
class Stack:
    """Relations one above the other as one CSR: row r · n_items + h has the neighbours of h in relation r.

    indptr: (R · n_items + 1,) int64; item_nums: (nnz,) int32; scores: (nnz,) float32. The arrays may be
    memory maps that all processes of a host share.
    """

    names: tuple[str, ...]
    n_items: int
    indptr: I64
    item_nums: np.ndarray
    scores: np.ndarray

    def matrices(self) -> dict[str, sparse.csr_matrix]:
        """Each relation as a CSR of its own, by name, sharing the memory."""
        found = {}
        for at, name in enumerate(self.names):
            rows = self.indptr[at * self.n_items : (at + 1) * self.n_items + 1]
            part = slice(int(rows[0]), int(rows[-1]))
            entries = self.scores[part], self.item_nums[part], rows - rows[0]
            found[name] = sparse.csr_matrix(entries, (self.n_items, self.n_items))
        return found


def stacked(relations: dict[str, sparse.csr_matrix]) -> Stack:
    """Relations in memory as a stack, in their order."""
    together = sparse.vstack(list(relations.values()), "csr")
    n_items = next(iter(relations.values())).shape[1]
    return Stack(
        tuple(relations),
        n_items,
        together.indptr.astype(np.int64),
        together.indices.astype(np.int32),
        together.data.astype(np.float32),
    )
