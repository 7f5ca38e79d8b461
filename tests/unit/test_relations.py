"""What a log teaches of items: relations given beside it, and a ridge that grows with it."""

from __future__ import annotations

import numpy as np
import pytest

from nightjar.kernels import relations, signals
from nightjar.kernels.als import Factorisation
from nightjar.kernels.likes import Likes
from nightjar.kernels.relations import Learning

N_ITEMS = 30


def log(seed: int, n_users: int, density: float, n_liked: int = N_ITEMS) -> Likes:
    """Users who like each of the first `n_liked` items alike."""
    rng = np.random.default_rng(seed)
    user, item = np.nonzero(rng.random((n_users, n_liked)) < density)
    days = rng.integers(0, 20, len(user)).astype(np.float64)
    return Likes(user, item, np.ones(len(user), np.float32), days + 1, days, n_users, N_ITEMS)


def texts() -> np.ndarray:
    V = np.random.default_rng(9).normal(size=(N_ITEMS, 6)).astype(np.float32)
    return V / np.linalg.norm(V, axis=1, keepdims=True)


def test_co_occurrence_counted_of_everybody_borrows_nothing_for_items_that_only_others_like() -> None:
    everybody, V = log(0, 25, 0.1, N_ITEMS - 2), texts()
    few = everybody.kept(everybody.user < 5)
    how = Learning(N_ITEMS, ease_items=0, als=Factorisation(0))
    text = relations.from_text(V, how)
    together = signals.co_occurrence(everybody.matrix(), how.together)
    found = relations.from_behaviour(few, V, V, text, how, together=together)["co_occurrence"]
    liked = np.bincount(everybody.item, minlength=N_ITEMS) > 0
    assert (np.bincount(few.item, minlength=N_ITEMS) == 0)[liked].any(), "some are liked by the others alone"
    assert (found[:, liked] != together[:, liked]).nnz == 0
    assert found[:, ~liked].nnz > 0, "nobody likes the last two: they borrow"


@pytest.mark.parametrize(("n_users", "density", "ridge"), [(60, 0.5, 200.0), (500, 0.8, 400.0)])
def test_the_ridge_of_ease_grows_with_the_root_of_likes_beyond_a_hundred(
    n_users: int, density: float, ridge: float
) -> None:
    likes, V = log(1, n_users, density), texts()
    how = Learning(N_ITEMS, ease_ridge=200.0, ease_neighbours=N_ITEMS, als=Factorisation(0))
    found = relations.from_behaviour(likes, V, V, relations.from_text(V, how), how)["ease"].toarray()
    X = likes.matrix().toarray().astype(np.float64)
    if ridge > 200:
        ridge = 200 * (X.sum() / N_ITEMS / 100) ** 0.5
        assert ridge == pytest.approx(400, rel=0.02)
    inverse = np.linalg.inv(X.T @ X + ridge * np.eye(N_ITEMS))
    wanted = -inverse / np.diag(inverse)
    np.fill_diagonal(wanted, 0)
    assert np.allclose(found, wanted, atol=2e-4)


def test_of_words_on_many_items_each_gets_a_share_of_the_interest() -> None:
    """Eight kettles of one text and one of its own share a word with the history, and nothing else."""
    texts = [*["steel kettle"] * 8, "glass kettle", "copper kettle", "a tie", "a scarf"]
    plain = relations.from_words(texts, Learning(degree_power=0.0))["bm25"].toarray()[9, :9]
    found = relations.from_words(texts, Learning())["bm25"].toarray()[9, :9]
    assert np.ptp(plain) < 1e-6 < plain.min()
    assert np.ptp(found[:8]) == 0 and found[8] > 1.5 * found[0]
