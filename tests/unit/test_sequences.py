"""Kernels over a user's sequence, held against loops that read like their definitions."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nightjar.kernels import sequences as seq

Rows = list[tuple[int, int]]
rows_of_keys = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60)), max_size=40).map(sorted)


def by_loop(rows: Rows, within: int) -> list[bool]:
    last: dict[int, int] = {}
    out = []
    for key, time in rows:
        again = key in last and time - last[key] < within
        out.append(again)
        if not again:
            last[key] = time
    return out


@given(rows_of_keys, st.integers(0, 20))
def test_repeats_follow_the_last_kept_row(rows: Rows, within: int) -> None:
    keys, times = (np.array([row[at] for row in rows], np.int64) for at in (0, 1))
    assert seq.repeats(keys, times, within).tolist() == by_loop(rows, within)


@given(rows_of_keys, st.integers(1, 20))
def test_repeats_do_not_depend_on_how_keys_are_interleaved(rows: Rows, within: int) -> None:
    by_time = sorted(rows, key=lambda row: row[1])
    keys, times = (np.array([row[at] for row in by_time], np.int64) for at in (0, 1))
    found = seq.repeats(keys, times, within)
    n_dropped = {key: int(found[keys == key].sum()) for key in set(keys.tolist())}
    expected: dict[int, int] = {key: 0 for key, _ in rows}
    for (key, _), again in zip(rows, by_loop(rows, within), strict=True):
        expected[key] += again
    assert n_dropped == expected


@given(rows_of_keys, st.integers(1, 20))
def test_rows_that_are_not_near_another_are_no_repeats(rows: Rows, within: int) -> None:
    users, times = (np.array([row[at] for row in rows], np.int64) for at in (0, 1))
    changes = np.r_[True, users[1:] != users[:-1]][: len(users)]
    near = seq.near_previous(changes, times, within)
    assert not seq.repeats(users, times, within)[~near].any()


@given(rows_of_keys, st.integers(1, 20))
def test_sessions_begin_after_a_gap(rows: Rows, gap: int) -> None:
    users, times = (np.array([row[at] for row in rows], np.int64) for at in (0, 1))
    changes = np.r_[True, users[1:] != users[:-1]][: len(users)]
    expected = [
        at == 0 or rows[at - 1][0] != row[0] or row[1] - rows[at - 1][1] >= gap for at, row in enumerate(rows)
    ]
    assert seq.session_starts(changes, times, gap).tolist() == expected


def test_a_steady_stream_of_clicks_keeps_one_in_every_span() -> None:
    times = np.arange(0, 100, 3)
    kept = times[~seq.repeats(np.zeros(len(times), np.int64), times, 10)]
    assert kept.tolist() == [0, 12, 24, 36, 48, 60, 72, 84, 96]


def test_days_are_utc_and_may_lie_before_1970() -> None:
    assert seq.days(np.array([-1, 0, seq.DAY - 1, seq.DAY])).tolist() == [-1, 0, 0, 1]
