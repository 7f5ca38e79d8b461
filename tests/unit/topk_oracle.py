"""The slow, obvious answer to "the best k allowed items of every user": float64, Python sets, a full sort."""

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from nightjar.kernels.topk import F32, Filters, ItemLists, TopK

Answer = list[list[tuple[int, float]]]


def brute_force(queries: F32, matrix: F32, k: int, banned: list[set[int]], allowed: set[int]) -> Answer:
    """Per user the (item, score) pairs of the best k of allowed minus banned, ties by item number."""
    answer = []
    for query, mine in zip(queries, banned, strict=True):
        pairs = []
        for item in sorted(allowed - mine):
            pairs.append((item, float(np.dot(query.astype(np.float64), matrix[item].astype(np.float64)))))
        answer.append(sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:k])
    return answer


def as_answer(found: TopK) -> Answer:
    """A result as lists of (item, score), refusing padding inside a list or anything behind its end."""
    answer = []
    for items, scores, n in zip(*found, strict=True):
        assert (items[:n] >= 0).all() and np.isfinite(scores[:n]).all()
        assert (items[n:] == -1).all() and np.isneginf(scores[n:]).all()
        answer.append([(int(item), float(score)) for item, score in zip(items[:n], scores[:n], strict=True)])
    return answer


def lists_of(rows: list[set[int]]) -> ItemLists:
    indptr = np.cumsum([0] + [len(row) for row in rows])
    return ItemLists(
        indptr.astype(np.int64), np.array([i for row in rows for i in sorted(row)], dtype=np.int64)
    )


def whole_vectors(rng: np.random.Generator, n: int, n_dims: int, largest: int = 3) -> NDArray[np.float32]:
    """Vectors of small whole numbers: fp32 is exact on them in any order, and ties are everywhere."""
    vectors = rng.integers(-largest, largest + 1, (n, n_dims)).astype(np.float32)
    vectors[~vectors.any(axis=1), 0] = 1
    return vectors


class World:
    """A small random catalogue with users, seen and deny lists and an eligibility mask."""

    def __init__(
        self, seed: int, n_items: int, n_users: int, n_dims: int, share_seen: float, share_open: float
    ):
        rng = np.random.default_rng(seed)
        self.rng = rng
        self.matrix = whole_vectors(rng, n_items, n_dims)
        copies = rng.random(n_items) < 0.3
        self.matrix[copies] = self.matrix[0]
        self.queries = whole_vectors(rng, n_users, n_dims)
        self.seen = [set(np.flatnonzero(rng.random(n_items) < share_seen).tolist()) for _ in range(n_users)]
        self.deny = [set(np.flatnonzero(rng.random(n_items) < 0.05).tolist()) for _ in range(n_users)]
        self.eligible = rng.random(n_items) < share_open

    @property
    def filters(self) -> Filters:
        return Filters(lists_of(self.seen), lists_of(self.deny), self.eligible)

    def answer(self, k: int) -> Answer:
        banned = [seen | deny for seen, deny in zip(self.seen, self.deny, strict=True)]
        return brute_force(self.queries, self.matrix, k, banned, set(np.flatnonzero(self.eligible).tolist()))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    return World(
        seed=draw(st.integers(0, 2**32 - 1)),
        n_items=draw(st.integers(1, 120)),
        n_users=draw(st.integers(1, 12)),
        n_dims=draw(st.sampled_from([1, 3, 8, 65, 130])),
        share_seen=draw(st.sampled_from([0.0, 0.2, 0.95, 1.0])),
        share_open=draw(st.sampled_from([0.0, 0.5, 1.0])),
    )
