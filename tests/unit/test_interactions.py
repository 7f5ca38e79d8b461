"""Histories as sparse rows, against dictionaries of one user at a time."""

from __future__ import annotations

from itertools import groupby, pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nightjar.kernels.interactions import Columns, Histories, histories, joined, whole_users

N_ITEMS = 6
Row = tuple[str, int, float, bool]
"""user, item, weight, whether it is in the profile."""
USERS = ["", "a", "ab", "b", "é", "z", "日本", "\U0001f600"]
PAIR = st.tuples(st.sampled_from(USERS), st.integers(0, N_ITEMS - 1))
ROWS = st.dictionaries(
    PAIR, st.tuples(st.integers(-8, 8).map(lambda n: n / 4), st.booleans()), max_size=14
).map(lambda found: sorted((user, item, *rest) for (user, item), rest in found.items()))


def _columns(rows: list[Row]) -> Columns:
    return (
        np.array([row[0] for row in rows], object),
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.float32),
        np.array([row[2] for row in rows], np.float32),
        np.array([row[3] for row in rows], bool),
        np.arange(len(rows), dtype=np.int64),
    )


def _by_user(rows: list[Row]) -> dict[str, list[Row]]:
    return {user: list(group) for user, group in groupby(rows, key=lambda row: row[0])}


def _rows(found: Histories) -> list[Row]:
    return [
        (str(user), int(found.item_nums[at]), float(found.weights[at]), bool(found.in_profile[at]))
        for row, user in enumerate(found.user_ids)
        for at in range(found.indptr[row], found.indptr[row + 1])
    ]


@given(ROWS)
def test_histories_hold_every_row(rows: list[Row]) -> None:
    found = histories(_columns(rows))
    assert _rows(found) == rows
    assert list(found.user_ids) == sorted({row[0] for row in rows})
    assert len(found) == len(_by_user(rows))


@given(ROWS, st.lists(st.sampled_from(USERS), unique=True))
def test_profiles_hold_what_is_inside_the_cap(rows: list[Row], wanted: list[str]) -> None:
    """Also for users without a history and for users all of whose rows lie outside the cap."""
    for found in (histories(_columns(rows)), histories(_columns(rows)).aligned(np.array(wanted, object))):
        dense = np.zeros((len(found), N_ITEMS), np.float32)
        for at, user in enumerate(found.user_ids):
            for _, item, weight, inside in _by_user(rows).get(str(user), []):
                dense[at, item] = weight if inside else 0
        profile = found.profile(N_ITEMS)
        assert profile.shape == dense.shape
        np.testing.assert_array_equal(profile.toarray(), dense)


@given(ROWS, st.lists(st.sampled_from([*USERS, "nobody"])))
def test_liked_items_are_counted_within_the_cap(rows: list[Row], wanted: list[str]) -> None:
    expected = [sum(weight > 0 and kept for user, _, weight, kept in rows if user == one) for one in wanted]
    found = histories(_columns(rows)).aligned(np.array(wanted, object))
    assert found.n_liked().tolist() == expected


@given(ROWS, st.lists(st.sampled_from([*USERS, "nobody"])))
def test_aligned_follows_the_order_asked_for(rows: list[Row], wanted: list[str]) -> None:
    found = histories(_columns(rows)).aligned(np.array(wanted, object))
    assert list(found.user_ids) == wanted
    assert found.indptr.dtype == np.int64
    expected = [row for user in wanted for row in _by_user(rows).get(user, [])]
    assert _rows(found) == expected


@given(ROWS, st.lists(st.integers(0, 14), max_size=6))
def test_users_stay_whole_over_any_batches(rows: list[Row], cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    batches = [_columns(rows[start:stop]) for start, stop in pairwise(edges)]
    streamed = list(whole_users(batches))
    assert [row for one in streamed for row in _rows(one)] == rows
    users = [str(user) for one in streamed for user in one.user_ids]
    assert users == sorted(_by_user(rows))  # none twice
    assert all(len(one) for one in streamed)


def test_no_batches_no_users() -> None:
    assert list(whole_users([])) == []
    assert list(whole_users([_columns([]), _columns([])])) == []


@given(ROWS, st.lists(st.integers(0, 14), max_size=4))
def test_histories_joined_are_those_of_all_rows(rows: list[Row], cuts: list[int]) -> None:
    edges = sorted({0, len(rows), *(min(cut, len(rows)) for cut in cuts)})
    parts = list(whole_users(_columns(rows[a:b]) for a, b in pairwise(edges)))
    whole, found = histories(_columns(rows)), joined(parts)
    assert _rows(found) == _rows(whole)
    assert found.indptr.tolist() == whole.indptr.tolist()
    assert _rows(found.aligned(np.array(USERS, object))) == _rows(whole.aligned(np.array(USERS, object)))
