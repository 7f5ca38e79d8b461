"""Draws small worlds of ranked lists and truth that hold every awkward case at once, for tests of metrics."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from nightjar.kernels.ranked_lists import Csr, IntArray


class Case(NamedTuple):
    """Lists of users as plain Python beside the arrays the kernels take."""

    ranked: list[list[int]]
    relevant: list[list[int]]
    n_items: int
    width: int

    @property
    def lists(self) -> IntArray:
        return padded(self.ranked, self.width)

    @property
    def truth(self) -> Csr:
        return csr(self.relevant)


def padded(ranked: Sequence[Sequence[int]], width: int) -> IntArray:
    lists = np.full((len(ranked), width), -1, dtype=np.int64)
    for row, items in enumerate(ranked):
        lists[row, : len(items)] = items
    return lists


def csr(rows: Sequence[Sequence[int]]) -> Csr:
    indptr = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
    return indptr, np.array([value for row in rows for value in sorted(row)], dtype=np.int64)


@st.composite
def cases(draw: st.DrawFn, min_users: int = 0) -> Case:
    """Few items for many slots, so that lists and truth overlap: empty, short and full ones among both."""
    n_items = draw(st.integers(1, 12))
    width = draw(st.integers(0, 8))
    items = st.integers(0, n_items - 1)
    user = st.tuples(
        st.lists(items, unique=True, max_size=width), st.lists(items, unique=True, max_size=n_items)
    )
    users = draw(st.lists(user, min_size=min_users, max_size=8))
    return Case([ranked for ranked, _ in users], [sorted(chosen) for _, chosen in users], n_items, width)


cutoffs = st.lists(st.integers(1, 12), min_size=1, max_size=3, unique=True)
