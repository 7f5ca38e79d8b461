"""Who liked what: the newest likes of a user, and what is learnt from them alone."""

from __future__ import annotations

import numpy as np
import pytest

from nightjar.kernels import relations
from nightjar.kernels.als import Factorisation
from nightjar.kernels.likes import Likes
from nightjar.kernels.relations import Learning

N_USERS, N_ITEMS = 25, 60


def log(seed: int = 0) -> Likes:
    """Users who liked some three items, days apart and some on one day; the last of them nearly all items."""
    rng = np.random.default_rng(seed)
    density = np.r_[np.full(N_USERS - 1, 0.05), 0.9]
    user, item = np.nonzero(rng.random((N_USERS, N_ITEMS)) < density[:, None])
    last = rng.integers(0, 20, len(user)).astype(np.float64)
    return Likes(user, item, np.ones(len(user), np.float32), last + 1, last, N_USERS, N_ITEMS)


@pytest.mark.parametrize("most", [1, 3, 7, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_the_newest_of_each_user(seed: int, most: int) -> None:
    likes = log(seed)
    wanted = []
    for user in range(N_USERS):
        mine = np.flatnonzero(likes.user == user)
        wanted += sorted(sorted(mine, key=lambda at: (likes.last[at], likes.item[at]))[:most])
    found = likes.newest(most)
    for column in ("user", "item", "first", "last"):
        assert np.array_equal(getattr(found, column), getattr(likes, column)[wanted])


def test_who_liked_nearly_everything_joins_no_more_pairs_than_their_newest_likes() -> None:
    likes, V = log(), np.eye(N_ITEMS, dtype=np.float32)
    how = Learning(N_ITEMS, ease_items=0, als=Factorisation(4), user_likes=5)
    text = relations.from_text(V, how)
    found = relations.from_behaviour(likes, V, V, text, how)
    busy = likes.item[likes.user == N_USERS - 1]
    newest = likes.newest(5)
    together = found["co_occurrence"].toarray() > 0
    assert together[np.ix_(busy, busy)].sum() < 200 < len(busy) * (len(busy) - 1)
    for user in range(N_USERS):
        mine = newest.item[newest.user == user]
        assert (together[np.ix_(mine, mine)] | np.eye(len(mine), dtype=bool)).all()
    whole = relations.from_behaviour(likes, V, V, text, Learning(N_ITEMS, ease_items=0, als=Factorisation(4)))
    assert (whole["co_occurrence"].toarray() > 0)[np.ix_(busy, busy)].sum() == len(busy) * (len(busy) - 1)
    for name in ("als", "followers"):
        assert (found[name] != whole[name]).nnz == 0


def test_nothing_liked_has_no_newest() -> None:
    none = log().kept(np.zeros(len(log()), bool))
    assert len(none.newest(3)) == 0
