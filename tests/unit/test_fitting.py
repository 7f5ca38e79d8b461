"""A fit on a planted log: users of short histories follow what is popular, those of long ones a relation."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from nightjar.kernels import fitting, fusion
from nightjar.kernels.fitting import Chosen, Fit
from nightjar.kernels.likes import Likes
from nightjar.kernels.signals import Fading
from nightjar.stages.blending.recipe import blend_rows, choice_of, cold_weights, read_blend
from nightjar.store import Dataset, Store
from nightjar.tables import BLEND
from tests.unit.committed_rows import commit

N_USERS, N_ITEMS, PAIRED = 600, 120, 110
START = Chosen(7.0, Fading(), fusion.Recipe((1.0, 1.0), 0.5, 0.0))


def log() -> Likes:
    """The last ten items are what short-lived users come for; the others come in pairs (0, 1), (2, 3), …, of
    which long-lived users take the second after the first."""
    rng = np.random.default_rng(3)
    pairs: list[tuple[int, int, float]] = []
    for user in range(N_USERS):
        if user % 6 == 5:  # who makes the second of each pair known
            likes = [(int(item), 60.0) for item in rng.choice(np.arange(1, PAIRED, 2), 10, replace=False)]
        elif user % 2:
            known = rng.choice(np.arange(0, PAIRED, 2), 8, replace=False)
            likes = [(int(item), 40.0 + at) for at, item in enumerate(known)]
            likes.append((int(known[rng.integers(8)]) + 1, 1.0))
        else:
            hits = rng.choice(np.arange(PAIRED, N_ITEMS), 2, replace=False)
            likes = [
                (int(rng.integers(PAIRED // 2)) * 2, 50.0),
                (int(hits[0]), 12.0),
                (int(hits[1]), 1.0),
            ]
        pairs += [(user, item, age) for item, age in sorted(dict(likes).items())]
    user_of, item_of, age = (np.array(column) for column in zip(*pairs, strict=True))
    ages = age.astype(np.float64)
    return Likes(user_of, item_of, np.ones(len(ages), np.float32), ages, ages, N_USERS, N_ITEMS)


def fitted(
    segments: tuple[int, ...], segment_users: int = 100
) -> tuple[fitting.HeldBack, Chosen, fusion.Pool]:
    likes = log()
    follows = np.zeros((N_ITEMS, N_ITEMS), np.float32)
    follows[np.arange(0, PAIRED, 2), np.arange(1, PAIRED, 2)] = 1.0
    how = Fit(pool_depth=40, segments=segments, segment_users=segment_users)
    held = fitting.hold_back(likes, 5.0, how)
    rng = np.random.default_rng(0)
    V = rng.standard_normal((N_ITEMS, 6)).astype(np.float32)
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    relations = {"follows": sparse.csr_matrix(follows)}
    chosen = fitting.fit(held, relations, V, START, how)
    truth = held.truth.indptr.astype(np.int64), held.truth.indices.astype(np.int64)
    scores = fitting.by_history(held.known, held.users, relations, V, chosen.history, how.history_cap)
    sources = fusion.Sources(scores, *fitting.by_recency(held.known, chosen.recency_days))
    return held, chosen, fusion.make_pool(sources, truth, held.barred, how.pool_depth)


def test_each_segment_has_the_weights_that_serve_it() -> None:
    held, chosen, pool = fitted((5,))
    ((begin, long),) = chosen.by_activity
    assert begin == 5 and long.exponent == chosen.recipe.exponent
    share = [one.popularity / (one.popularity + one.weights[0]) for one in (chosen.recipe, long)]
    assert share[0] > share[1]
    short = np.diff(held.known.matrix().indptr)[held.users] < 5
    assert chosen.segments(np.array([0, 1, 4, 5, 500])).tolist() == [0, 0, 0, 1, 1]
    assert short.sum() > 200 and (~short).sum() > 150
    _, same, _ = fitted(())
    assert not same.by_activity
    for users, own in ((short, chosen.recipe), (~short, long)):
        part = fusion.part_of(pool, users)
        k = fitting.fitted_length(N_ITEMS)
        theirs = fusion.quality(part, own, k).mean()
        assert theirs >= fusion.quality(part, same.recipe, k).mean()


def test_small_segments_have_the_weights_of_all() -> None:
    assert fitted((5,), segment_users=1000)[1] == fitted(())[1]
    assert fitted((500,))[1] == fitted(())[1]


def test_a_choice_comes_back_as_it_was_written(tmp_path: Path) -> None:
    begun = replace(START, recipe=fusion.Recipe((1.0, 0.5), 0.25, 0.5))
    cold_ones = (0.25, 0.5)
    own = fusion.Recipe((0.0, 2.0), 0.0, 0.5), fusion.Recipe((4.0, 0.25), 1.5, 0.5)
    for by_activity in ((), ((5, own[0]),), ((5, own[0]), (20, own[1]))):
        chosen = replace(begun, history=Fading(None if by_activity else 30.0, 0.25), by_activity=by_activity)
        store, ds = Store(str(tmp_path / str(len(by_activity)))), date(2026, 1, 1)
        commit(store, BLEND, ds, [blend_rows(choice_of(cold_ones, chosen, ("text",)))])
        found, cold = read_blend(Dataset(store, BLEND, str(ds)).require("it"), ("text",))
        assert found == chosen
        assert cold == tuple(cold_weights(cold_ones, recipe) for _, recipe in chosen.recipes())
        assert [sum(one) for one in cold] == pytest.approx([sum(r.weights) for _, r in chosen.recipes()])


def test_the_longest_half_life_holds_unless_users_decide_against_it() -> None:
    rng = np.random.default_rng(5)
    best = rng.random(1600)
    noise = rng.standard_normal(1600)
    noise = (noise - noise.mean()) / noise.std()  # a standard error of 1/40
    errors_worse = [1.2, 0.0, 0.8, 0.3, 0.9]
    values = [best - noise * bool(one) - one / 40 for one in errors_worse]
    assert fitting._last_undecided(values, 1.0) == 4
    assert fitting._last_undecided(values, 0.5) == 3
    assert fitting._last_undecided(values, 0.0) == 1
    for n_users, at in ((1600, 1), (30, 0)):  # 0.4 standard errors of so many users
        loss = noise[:n_users] - noise[:n_users].mean()
        loss += 0.4 * loss.std() / n_users**0.5
        assert fitting._last_undecided([best[:n_users], best[:n_users] - loss], 0.5) == at


def test_a_fit_starts_from_histories_as_short_as_they_are_served() -> None:
    """Against a walk over each user's newest items, ties of time to the lower number."""
    rng = np.random.default_rng(8)
    n_users, n_items, cap = 40, 60, 7
    pairs = sorted({(int(u), int(i)) for u, i in rng.integers(0, (n_users, n_items), (900, 2))})
    user, item = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    ages = rng.integers(1, 30, len(user)).astype(np.float64)
    likes = Likes(user, item, np.ones(len(user), np.float32), ages, ages, n_users, n_items)
    S = sparse.csr_matrix(rng.random((n_items, n_items)).astype(np.float32))
    V = rng.standard_normal((n_items, 5)).astype(np.float32)
    asked = np.array([3, 4, 9, 30])
    relation, profile = fitting.by_history(likes, asked, {"any": S}, V, Fading(), cap)
    for row, one in enumerate(asked.tolist()):
        newest = sorted((age, int(its)) for who, its, age in zip(user, item, ages, strict=True) if who == one)
        assert len(newest) > cap
        mine = [its for _, its in newest[:cap]]
        expected = np.asarray(S[mine].sum(axis=0)).ravel()
        np.testing.assert_allclose(relation[row].toarray().ravel(), expected, rtol=1e-5)
        direction = V[mine].sum(axis=0)
        np.testing.assert_allclose(
            profile[row].toarray().ravel(), V @ (direction / np.linalg.norm(direction)), rtol=1e-4, atol=1e-5
        )


TOPICS, OF_EACH = 8, 40


def moved_on(share: float) -> Likes:
    """Everyone has 20 old likes of one topic and four recent ones of another, to which this share of users
    comes back for what they like last; the others do for the first."""
    rng = np.random.default_rng(4)
    pairs = []
    for user in range(N_USERS):
        old, new = rng.choice(TOPICS, 2, replace=False) * OF_EACH
        olds, news = old + rng.permutation(OF_EACH), new + rng.permutation(OF_EACH)
        last = news[4] if rng.random() < share else olds[20]
        of_user = [*((item, 300.0) for item in olds[:20]), *((item, 20.0) for item in news[:4]), (last, 1.0)]
        pairs += sorted((user, int(item), age) for item, age in of_user)
    user_of, item_of, ages = (np.array(column) for column in zip(*pairs, strict=True))
    ones = np.ones(len(ages), np.float32)
    return Likes(user_of, item_of, ones, ages, ages, N_USERS, TOPICS * OF_EACH)


@pytest.mark.parametrize(("share", "forgotten"), [(0.95, True), (0.5, False), (0.05, False)])
def test_what_is_old_is_forgotten_only_where_users_have_moved_on(share: float, forgotten: bool) -> None:
    likes, how = moved_on(share), Fit(pool_depth=40)
    held = fitting.hold_back(likes, 5.0, how)
    topic = np.arange(likes.n_items) // OF_EACH
    alike = {"alike": sparse.csr_matrix((topic[:, None] == topic).astype(np.float32))}
    V = np.random.default_rng(0).standard_normal((likes.n_items, 6)).astype(np.float32)
    start = Chosen(30.0, Fading(120.0, 0.5), fusion.Recipe((1.0, 0.0), 0.1, 0.0))
    history = fitting.fit(held, alike, V, start, how).history
    assert (history.half_life_days is not None and history.floor == 0.0) == forgotten
