"""Deny and allow lists as arrays, held against Python sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightjar.kernels import limits as module
from nightjar.kernels.fallback import Fallback, fill
from nightjar.kernels.limits import Limits, best_among
from nightjar.kernels.sweep import sweep_topk
from nightjar.kernels.topk import ItemLists, TopK
from tests.unit.topk_oracle import as_answer, brute_force, lists_of, whole_vectors

N_ITEMS = 60


class Rules:
    """Random limits, and per user the plain set of items that they leave."""

    def __init__(self, seed: int, n_users: int = 12) -> None:
        rng = np.random.default_rng(seed)
        self.rng = rng

        def some(share: float, n: int = N_ITEMS) -> set[int]:
            return set(np.flatnonzero(rng.random(n) < share).tolist())

        self.denied = [some(rng.choice([0, 0.2])) for _ in range(n_users)]
        self.seen = [some(rng.choice([0, 0.1, 1.0], p=[0.4, 0.5, 0.1])) for _ in range(n_users)]
        self.available = rng.random(N_ITEMS) < 0.8
        # Item numbers beyond the catalogue stand for a set of another night: they must do no harm.
        self.sets = [some(share, N_ITEMS + 5) for share in (0.0, 0.1, 0.5, 0.9)]
        self.groups = [(), *[tuple(np.flatnonzero(rng.random(4) < 0.4).tolist()) for _ in range(4)]]
        self.group = rng.integers(0, len(self.groups), n_users)
        self.limits = Limits(
            lists_of(self.denied),
            tuple(np.array(sorted(one), np.int64) for one in self.sets),
            tuple(self.groups),
            self.group,
        )

    def open(self, user: int) -> set[int]:
        """What is left for a user, seen items and all."""
        left = set(range(N_ITEMS)) - self.denied[user]
        for number in self.groups[self.group[user]]:
            left &= self.sets[number]
        return left

    def all_open(self, user: int) -> set[int]:
        return (self.open(user) - self.seen[user]) & set(np.flatnonzero(self.available).tolist())


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 5, 2048]), st.sampled_from([1, 130, 10**9]))
def test_search_in_parts_gives_everyone_the_best_of_what_is_left(seed: int, few: int, room: int) -> None:
    rules = Rules(seed)
    matrix, users = whole_vectors(rules.rng, N_ITEMS, 6), whole_vectors(rules.rng, 12, 6)
    found, served = TopK.nothing(12, 7), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FEW", few)
        patch.setattr(module, "MASK_BYTES", room)
        for mine, filters, candidates in rules.limits.parts(lists_of(rules.seen), rules.available):
            served += mine.tolist()
            if candidates is None:
                found.put(mine, sweep_topk(users[mine], matrix, 7, filters))
            else:
                assert candidates.shape[1] <= few
                # The filters alone say the same, as the nightly recall of a sample needs.
                assert as_answer(sweep_topk(users[mine], matrix, 7, filters)) == as_answer(
                    best_among(users[mine], matrix, candidates, 7, filters)
                )
                found.put(mine, best_among(users[mine], matrix, candidates, 7, filters))
    assert sorted(served) == list(range(12))
    answer = as_answer(found)
    for user in range(12):
        expected = brute_force(users[user : user + 1], matrix, 7, [set()], rules.all_open(user))
        assert answer[user] == expected[0], user


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_permits_and_counts_agree_with_sets(seed: int) -> None:
    rules = Rules(seed)
    candidates = np.tile(np.arange(-1, N_ITEMS), (12, 1))
    permitted = rules.limits.permits(candidates, N_ITEMS)
    counts = rules.limits.with_seen(lists_of(rules.seen)).n_open(rules.available)
    for user in range(12):
        assert set(candidates[user][permitted[user]].tolist()) == rules.open(user)
        assert counts[user] == len(rules.all_open(user))
    served = []
    barred = rules.limits.barred(lists_of(rules.seen))
    for users, mask in rules.limits.by_group(rules.available):
        for user in users.tolist():
            mine = set(barred.item_nums[barred.indptr[user] : barred.indptr[user + 1]].tolist())
            assert mine == rules.seen[user] | rules.denied[user]
            assert set(np.flatnonzero(mask).tolist()) - mine == rules.all_open(user)
            served.append(user)
    assert sorted(served) == list(range(12))
    some = rules.rng.permutation(12)[:5]
    taken = rules.limits.take(some).permits(candidates[some], N_ITEMS)
    assert (taken == permitted[some]).all()


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_filling_draws_from_what_is_left_in_the_order_given(seed: int) -> None:
    rules = Rules(seed)
    popular = rules.rng.permutation(N_ITEMS)[:20]
    rest = Fallback(np.flatnonzero(rules.available), 2)
    shared = (Fallback(popular[rules.available[popular]], 1), rest)
    orders = [shared if user % 3 else (rest,) for user in range(12)]
    bars = rules.limits.with_seen(lists_of(rules.seen))
    cut = bars.for_fill(orders, np.arange(12), N_ITEMS)
    lists, _ = fill(np.full((12, 9), -1), np.zeros((12, 9), np.int8), bars.denied, cut)
    for user in range(12):
        wanted = [
            item
            for item in dict.fromkeys(i for order in orders[user] for i in order.item_nums.tolist())
            if item in rules.all_open(user)
        ]
        assert lists[user][lists[user] >= 0].tolist() == wanted[:9]


def test_users_of_one_group_share_a_cut_order() -> None:
    """`fill` makes the list of new users once for each order object."""
    limits = Limits(
        ItemLists(np.zeros(5, np.int64), np.empty(0, np.int64)),
        (np.arange(3),),
        ((), (0,)),
        np.array([1, 0, 1, 1]),
    )
    one, two = (Fallback(np.arange(9), 1),), (Fallback(np.arange(9)[::-1], 1),)
    cut = limits.for_fill([one, one, one, two], np.arange(4), 9)
    assert cut[0] is cut[2] and cut[1] is one and cut[3] is not cut[0]
    assert limits.for_fill([one, one, one, two], np.array([3]), 9)[:3] == [one, one, one]
    assert cut[3][0].item_nums.tolist() == [2, 1, 0]


def test_no_limits_leave_everything() -> None:
    limits = Limits.none(3)
    [(mine, filters, few)] = limits.parts(None, np.ones(4, bool))
    assert mine.tolist() == [0, 1, 2] and few is None and filters.seen is None and filters.deny is None
    assert limits.permits(np.array([[0], [-1], [3]]), 4).tolist() == [[True], [False], [True]]
    assert list(Limits.none(0).parts(None, np.ones(4, bool))) == []
