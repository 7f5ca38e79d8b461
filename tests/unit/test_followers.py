"""What follows what, against loops over pairs, and on a world where one thing leads to the next."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightjar.kernels import signals
from nightjar.kernels.followers import followers
from nightjar.kernels.likes import Likes

N_ITEMS = 8


def likes(seed: int, n_users: int = 6, moments: int = 4) -> Likes:
    """Random pairs; few moments, so that many were liked at the same one."""
    rng = np.random.default_rng(seed)
    user, item = np.nonzero(rng.random((n_users, N_ITEMS)) < 0.6)
    first = rng.integers(1, moments, len(user)).astype(np.float64)
    one = np.ones(len(user), np.float32)
    return Likes(user, item, one, first, first, n_users, N_ITEMS)


def slow(log: Likes) -> np.ndarray:
    counts = np.zeros((N_ITEMS, N_ITEMS))
    for user in range(log.n_users):
        rows = sorted((-log.first[at], log.item[at]) for at in np.flatnonzero(log.user == user))
        for a, (when, item) in enumerate(rows):
            for b in range(a + 1, min(a + 7, len(rows))):
                counts[item, rows[b][1]] += 60 / (b - a)
                if rows[b][0] == when:
                    counts[rows[b][1], item] += 60 / (b - a)
    out, into = counts.sum(axis=1), counts.sum(axis=0)
    mean = out[out > 0].mean() if out.any() else 1.0
    return counts / (np.sqrt(np.outer(out, into)) + 0.3 * mean)


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_followers_are_their_definition(seed: int) -> None:
    log = likes(seed)
    assert followers(log, N_ITEMS).toarray() == pytest.approx(slow(log), rel=1e-5)


def test_the_order_of_users_does_not_show() -> None:
    log = likes(3)
    at = np.argsort(-log.user, kind="stable")
    back = Likes(5 - log.user[at], log.item[at], log.strength[at], log.first[at], log.last[at], 6, N_ITEMS)
    ours, theirs = followers(log, 3), followers(back, 3)
    for part in ("indptr", "indices", "data"):
        assert np.array_equal(getattr(ours, part), getattr(theirs, part))


def test_a_series_is_followed_forwards() -> None:
    user, item = np.repeat(np.arange(20), 5), np.tile(np.arange(5), 20)
    first = np.tile(np.arange(5.0, 0.0, -1), 20)
    log = Likes(user, item, np.ones(100, np.float32), first, first, 20, 6)
    found = followers(log, 6).toarray()
    assert found[:4].argmax(axis=1).tolist() == [1, 2, 3, 4]
    assert not np.tril(found).any()
    assert not found[5].any() and not found[:, 5].any()


def test_nothing_liked_is_followed_by_nothing() -> None:
    empty = np.zeros(0, np.int64)
    log = Likes(empty, empty, np.zeros(0, np.float32), np.zeros(0), np.zeros(0), 0, 3)
    assert followers(log, 2).shape == (3, 3)
    assert followers(log, 2).nnz == 0


def test_newness_counts_distinct_moments() -> None:
    user, age = np.array([1, 0, 1, 1, 1]), np.array([2.0, 9.0, 1.0, 5.0, 2.0])
    expected = 2.0 ** (-np.array([1, 0, 0, 2, 1]) / 2)
    assert signals.newness(user, age) == pytest.approx(expected)
    assert len(signals.newness(np.zeros(0, np.int64), np.zeros(0))) == 0
