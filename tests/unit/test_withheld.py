"""Weights for items nobody liked: fitted on items whose likes are hidden, so none of those may be seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from nightjar.kernels import fitting, fusion, relations, withheld
from nightjar.kernels.als import Factorisation
from nightjar.kernels.fitting import Chosen, Fit
from nightjar.kernels.likes import Likes
from nightjar.kernels.relations import Learning
from nightjar.kernels.signals import Fading

N_USERS, N_ITEMS, N_TOPICS = 300, 120, 12
HOW = Learning(n_neighbours=N_ITEMS, ease_ridge=5.0, ease_neighbours=N_ITEMS)
"""Every neighbour is kept: which of them a cut drops may depend on what is hidden."""


def random_likes(seed: int) -> Likes:
    rng = np.random.default_rng(seed)
    keys = np.unique(rng.integers(N_USERS * N_ITEMS, size=8 * N_USERS))
    ages = rng.uniform(1, 90, len(keys))
    strength = rng.uniform(0.5, 3, len(keys)).astype(np.float32)
    return Likes(keys // N_ITEMS, keys % N_ITEMS, strength, ages, ages, N_USERS, N_ITEMS)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def renamed(likes: Likes, cold: np.ndarray) -> Likes:
    """The same log, but the hidden items have changed places: each user likes as many of them as before."""
    numbers = np.flatnonzero(cold)
    other = np.arange(N_ITEMS)
    other[numbers] = np.roll(numbers, 7)
    item = other[likes.item]
    order = np.lexsort((item, likes.user))
    columns = likes.user, item, likes.strength, likes.first, likes.last
    return Likes(*(one[order] for one in columns), N_USERS, N_ITEMS)


def test_withheld_items_leave_the_log_and_become_the_truth() -> None:
    likes = random_likes(0)
    held = withheld.withhold(likes, 0.25, Fit(users=10_000))
    liked = np.unique(likes.item)
    assert held.cold.sum() == len(liked) // 4 and set(np.flatnonzero(held.cold)) <= set(liked)
    pairs = set(zip(likes.user.tolist(), likes.item.tolist(), strict=True))
    left = set(zip(held.known.user.tolist(), held.known.item.tolist(), strict=True))
    assert left == {(user, item) for user, item in pairs if not held.cold[item]}
    rows, columns = held.truth.nonzero()
    found = set(zip(held.users[rows].tolist(), np.flatnonzero(held.cold)[columns].tolist(), strict=True))
    assert found == {(user, item) for user, item in pairs - left if user in {who for who, _ in left}}


def test_few_users_are_drawn_and_each_has_truth() -> None:
    held = withheld.withhold(random_likes(1), 0.2, Fit(users=50))
    assert len(held.users) == 50 and (np.diff(held.truth.indptr) > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_relations_tell_nothing_of_who_likes_a_withheld_item(seed: int) -> None:
    rng = np.random.default_rng(seed)
    V = unit(rng.standard_normal((N_ITEMS, 8)))
    likes = random_likes(seed)
    held = withheld.withhold(likes, 0.2, Fit())
    cold = held.cold
    text = relations.from_text(V, HOW)
    seen = []
    for log in (likes, renamed(likes, cold)):
        learnt = {"text": text, **relations.from_behaviour(log, V, V, text, HOW)}
        found = withheld.without(learnt, held, V, V, HOW)
        assert list(found) == list(learnt)
        # EASE of warm pairs inverts the Gram of all items; what counts is how withheld ones are found.
        seen.append({name: one[~cold][:, cold].toarray() for name, one in found.items()})
    for name, mine in seen[0].items():
        np.testing.assert_array_equal(mine, seen[1][name], err_msg=name)
    assert not seen[0]["ease"].any() and not seen[0]["followers"].any()
    assert all(seen[0][name].any() for name in ("co_occurrence", "smoothed_text", "als"))


@pytest.mark.parametrize("m", [2, 5])
def test_alike_in_text_and_taste_is_as_it_would_be_had_nobody_liked_the_withheld(m: int) -> None:
    V = unit(np.random.default_rng(7).standard_normal((N_ITEMS, 8)))
    likes = random_likes(3)
    held = withheld.withhold(likes, 0.2, Fit())
    how = replace(HOW, n_neighbours=m)
    text = relations.from_text(V, how)
    served, before = (
        relations.with_unliked(
            {"text": text, **relations.from_behaviour(log, V, V, text, how)}, log.unliked(), how
        )
        for log in (likes, held.known)
    )
    found = withheld.without(served, held, V, V, how)
    for name in relations.OF_COSINES:
        assert (found[name] != before[name]).nnz == 0, name
        assert found[name][~held.cold][:, held.cold].nnz > served[name][~held.cold][:, held.cold].nnz, name


def planted(which: str) -> tuple[Likes, dict[str, sparse.csr_matrix], np.ndarray]:
    """Everyone likes items of one topic; the relation `which` leads from item to items of its topic, the
    other one and the vectors anywhere."""
    rng = np.random.default_rng(5)
    topic = np.arange(N_ITEMS) % N_TOPICS
    mine = rng.integers(N_TOPICS, size=N_USERS)
    liked = (topic[None, :] == mine[:, None]) & (rng.random((N_USERS, N_ITEMS)) < 0.6)
    user, item = np.nonzero(liked)
    ages = rng.uniform(1, 90, len(user))
    likes = Likes(user, item, np.ones(len(user), np.float32), ages, ages, N_USERS, N_ITEMS)
    same = (topic[:, None] == topic[None, :]).astype(np.float32)
    noise = sparse.csr_matrix(rng.random((N_ITEMS, N_ITEMS)).astype(np.float32))
    both = {name: sparse.csr_matrix(same) if name == which else noise for name in ("text", "other")}
    return likes, both, unit(rng.standard_normal((N_ITEMS, 8)))


@pytest.mark.parametrize(("which", "best"), [("text", 0), ("other", 1)])
def test_the_source_that_finds_new_items_gets_the_weight(which: str, best: int) -> None:
    likes, both, V = planted(which)
    held = withheld.withhold(likes, 0.5, Fit())
    chosen = Chosen(30.0, Fading(), fusion.Recipe((1.0, 1.0, 1.0), 0.3, 0.5))
    found = withheld.fit(held, both, V, (1.0, 1.0, 1.0), chosen, Fit(pool_depth=40))
    assert found[best] == max(found) and found[best] > 2 * found[1 - best]
    assert sum(found) == pytest.approx(3.0)


def test_the_length_of_a_source_is_that_over_the_whole_catalogue() -> None:
    """A source whose scores lie on warm items counts as little for the withheld as it does in a night."""
    likes, both, V = planted("text")
    held = withheld.withhold(likes, 0.5, Fit())
    chosen = Chosen(30.0, Fading(), fusion.Recipe((1.0, 1.0, 1.0), 0.3, 0.5))
    _, fresh = fitting.by_recency(held.known, 30.0)
    scores = fitting.by_history(held.known, held.users, both, V, Fading(), 2000)
    for one in scores:
        whole = one.toarray() * fresh**chosen.recipe.exponent
        wanted = one.toarray()[:, held.cold] / np.linalg.norm(whole, axis=1, keepdims=True)
        got = withheld._of_length_one(one, fresh**chosen.recipe.exponent, held.cold).toarray()
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-7)


def test_a_fit_in_doubt_leaves_the_weights() -> None:
    likes, both, V = planted("text")
    held = withheld.withhold(likes, 0.5, Fit(users=60))
    nothing = {name: sparse.csr_matrix(one.shape, dtype=np.float32) for name, one in both.items()}
    begun = 0.5, 2.0, 0.0
    chosen = Chosen(30.0, Fading(), fusion.Recipe(begun, 0.3, 0.5))
    assert withheld.fit(held, nothing, V, begun, chosen, Fit()) == begun


def test_relations_that_are_not_wanted_are_not_learnt() -> None:
    V = unit(np.random.default_rng(0).standard_normal((N_ITEMS, 8)))
    none = Learning(ease_items=0, als=Factorisation(n_factors=0), bm25_items=0)
    text = relations.from_text(V, none)
    learnt = relations.from_behaviour(random_likes(0), V, V, text, none)
    assert set(learnt) == {"co_occurrence", "smoothed_text", "followers"}
    assert relations.from_words(["a tie", "a tie"], none) == {}
    nobody = random_likes(0).kept(np.zeros(len(random_likes(0)), bool))
    assert {"als", "ease"}.isdisjoint(relations.from_behaviour(nobody, V, V, text, HOW))
