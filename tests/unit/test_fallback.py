"""Filling lists against one user at a time in plain Python."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nightjar.kernels.fallback import Fallback, fill
from nightjar.kernels.topk import ItemLists

N_ITEMS, PERSONAL = 12, 0
ITEMS = st.lists(st.integers(0, N_ITEMS - 1), unique=True)
User = tuple[list[int], list[int], int]
"""Their list so far, what they must not get, and which of the orders is theirs."""


def _lists(users: list[list[int]]) -> ItemLists:
    flat = np.array([item for user in users for item in user], np.int64)
    return ItemLists(np.cumsum([0, *map(len, users)]).astype(np.int64), flat)


def _oracle(
    mine: list[int], barred: list[int], orders: list[list[int]], k: int
) -> tuple[list[int], list[int]]:
    items, sources = list(mine), [PERSONAL] * len(mine)
    for source, order in enumerate(orders, start=1):
        for item in order:
            if len(items) < k and item not in items and item not in barred:
                items.append(item)
                sources.append(source)
    return items, sources


@settings(max_examples=200)
@given(
    st.integers(1, 6),
    st.lists(st.lists(ITEMS, max_size=3), min_size=1, max_size=3),
    st.lists(st.tuples(ITEMS, ITEMS, st.integers(0, 2)), max_size=6),
)
@example(3, [[[], [1]]], [([], [], 0)] * 2)
@example(2, [[[0, 1, 2], [2, 1, 0]]], [([], [0], 0), ([1], [0], 0), ([], [], 0)])
def test_filling_equals_one_user_at_a_time(k: int, orders: list[list[list[int]]], users: list[User]) -> None:
    shared = [
        tuple(Fallback(np.array(order, np.int64), source) for source, order in enumerate(mine, start=1))
        for mine in orders
    ]
    lists = np.full((len(users), k), -1, np.int64)
    barred = []
    for row, (mine, not_these, _) in enumerate(users):
        lists[row, : len(mine[:k])] = mine[:k]
        barred.append(sorted(set(not_these) - set(mine)))
    before = lists.copy()
    sources = np.zeros(lists.shape, np.int8)
    choice = [which % len(shared) for _, _, which in users]
    filled, origin = fill(lists, sources, _lists(barred), [shared[which] for which in choice])
    np.testing.assert_array_equal(lists, before)
    assert (filled.dtype, origin.dtype) == (np.int64, np.int8)
    for row, (mine, _, _) in enumerate(users):
        items, wanted = _oracle(mine[:k], barred[row], orders[choice[row]], k)
        assert filled[row].tolist() == items + [-1] * (k - len(items))
        assert origin[row, : len(items)].tolist() == wanted


def test_nobody_to_fill_for() -> None:
    filled, _ = fill(np.empty((0, 3), np.int64), np.empty((0, 3), np.int8), _lists([]), [])
    assert filled.shape == (0, 3)


def test_a_user_who_has_seen_the_head_of_a_long_order_gets_its_tail() -> None:
    order = (Fallback(np.arange(1000), 1),)
    filled, _ = fill(np.full((1, 3), -1), np.zeros((1, 3), np.int8), _lists([list(range(990))]), [order])
    assert filled.tolist() == [[990, 991, 992]]


@settings(max_examples=100)
@given(ITEMS, ITEMS)
def test_an_order_within_some_items_keeps_their_order(order: list[int], allowed: list[int]) -> None:
    cut = Fallback(np.array(order, np.int64), 1).within(np.array(sorted(allowed), np.int64))
    assert cut.item_nums.tolist() == [item for item in order if item in allowed]
