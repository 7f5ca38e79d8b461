"""Ratings predicted additively: planted biases come back, text serves cold items, a slow oracle agrees."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from nightjar.errors import ContractError
from nightjar.kernels import ratings
from nightjar.kernels.ratings import (
    Ratings,
    Settings,
    co_rated,
    fit,
    fit_biases,
    fit_with,
    means,
    near_residuals,
)

N_USERS, N_ITEMS = 60, 40


def planted(seed: int = 0, noise: float = 0.1) -> tuple[Ratings, np.ndarray]:
    """Every user rates half of the items: 3 + what the item adds + what the user adds + noise."""
    rng = np.random.default_rng(seed)
    item_adds, user_adds = rng.normal(0, 0.7, N_ITEMS), rng.normal(0, 0.5, N_USERS)
    user, item = np.nonzero(rng.random((N_USERS, N_ITEMS)) < 0.5)
    true = 3 + item_adds[item] + user_adds[user]
    value = true + rng.normal(0, noise, len(user))
    made = Ratings(user, item, value, rng.permutation(len(user)), N_USERS, N_ITEMS)
    return made, 3 + item_adds[None, :] + user_adds[:, None]


NO_TEXT = sparse.csr_matrix((N_ITEMS, N_ITEMS))


def test_planted_biases_are_found_and_beat_means() -> None:
    known, true = planted()
    user, item = np.divmod(np.arange(N_USERS * N_ITEMS), N_ITEMS)
    error = np.sqrt(np.mean((fit(known, NO_TEXT).predict(user, item) - true.ravel()) ** 2))
    assert error < 0.1
    for name, values in means(known, user, item).items():
        assert np.sqrt(np.mean((values - true.ravel()) ** 2)) > 4 * error, name


def test_biases_equal_slow_loops() -> None:
    known, _ = planted(1)
    settings = Settings(item=5.0, user=2.0, text=0.0)
    found = fit_biases(known, NO_TEXT, settings)
    mean = sum(known.value) / len(known.value)
    item, user = [0.0] * N_ITEMS, [0.0] * N_USERS
    rows = list(zip(known.user.tolist(), known.item.tolist(), known.value.tolist(), strict=True))
    for _ in range(ratings.ROUNDS):
        for i in range(N_ITEMS):
            left = [value - mean - user[u] for u, j, value in rows if j == i]
            item[i] = sum(left) / (len(left) + 5.0)
        for u in range(N_USERS):
            left = [value - mean - item[i] for v, i, value in rows if v == u]
            user[u] = sum(left) / (len(left) + 2.0)
    np.testing.assert_allclose(found.item, item, atol=1e-12)
    np.testing.assert_allclose(found.user, user, atol=1e-12)
    expected = [value - mean - item[i] - user[u] for u, i, value in rows]
    np.testing.assert_allclose(found.residual, expected, atol=1e-12)


def test_a_cold_item_starts_where_its_text_neighbours_are() -> None:
    known, _ = planted(2)
    warm = known.kept(known.item != 7)
    twin = int(np.argmax(np.abs(fit_biases(known, NO_TEXT, Settings()).item)))
    text = sparse.csr_matrix(([1.0], ([7], [twin])), (N_ITEMS, N_ITEMS))
    with_text = fit_biases(warm, text, Settings(text=1.0)).item
    assert with_text[7] * with_text[twin] > 0
    assert abs(with_text[7]) > 0.3 * abs(with_text[twin])
    assert fit_biases(warm, text, Settings(text=0.0)).item[7] == 0.0


def test_neighbours_equal_slow_loops() -> None:
    known, _ = planted(3)
    residual = np.random.default_rng(4).normal(size=len(known.value))
    E = np.zeros((N_USERS, N_ITEMS))
    E[known.user, known.item] = residual
    squares = (E**2).sum(axis=0)
    shrunk = ratings.CO_RATED_SHRINK * squares[squares > 0].mean()
    near = co_rated(known, residual)
    for i in range(0, N_ITEMS, 7):
        for j in range(N_ITEMS):
            cosine = E[:, i] @ E[:, j] / (np.sqrt(squares[i] * squares[j]) + shrunk) if i != j else 0.0
            assert near[i, j] == pytest.approx(cosine, abs=1e-6)
    user, item = np.array([0, 5, 9]), np.array([3, 3, 0])
    found = near_residuals(near, known, residual, user, item)
    for at in range(3):
        w = near[item[at]].toarray().ravel()
        rated = known.item[known.user == user[at]]
        total, size = (w[rated] * E[user[at], rated]).sum(), np.abs(w[rated]).sum()
        assert found[at] == pytest.approx(total / (size + ratings.NEAR_SHRINK))


def test_only_the_strongest_neighbours_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    known, _ = planted(5)
    residual = np.random.default_rng(6).normal(size=len(known.value))
    whole = co_rated(known, residual).toarray()
    monkeypatch.setattr(ratings, "N_NEIGHBOURS", 4)
    cut = co_rated(known, residual)
    assert np.diff(cut.indptr).tolist() == [4] * N_ITEMS
    for i in range(N_ITEMS):
        strongest = np.sort(np.abs(whole[i]))[-4:]
        np.testing.assert_allclose(np.sort(np.abs(cut[i].data)), strongest)


def test_what_does_not_pay_gets_no_weight_and_what_does_is_found() -> None:
    """Two kinds of items, and users who love one and loathe the other: biases alone cannot say it."""
    rng = np.random.default_rng(7)
    side = np.where(np.arange(N_ITEMS) < N_ITEMS // 2, 1.0, -1.0)
    leaning = rng.choice([-1.0, 1.0], N_USERS)
    user, item = np.nonzero(rng.random((N_USERS, N_ITEMS)) < 0.5)
    value = 3 + leaning[user] * side[item] + rng.normal(0, 0.1, len(user))
    known = Ratings(user, item, value, rng.permutation(len(user)), N_USERS, N_ITEMS)
    model = fit(known, NO_TEXT)
    assert model.settings.near_log > 0
    every_user, every_item = np.divmod(np.arange(N_USERS * N_ITEMS), N_ITEMS)
    true = (3 + leaning[:, None] * side[None, :]).ravel()
    assert np.sqrt(np.mean((model.predict(every_user, every_item) - true) ** 2)) < 0.5
    assert fit(planted()[0], NO_TEXT).settings.near_text == 0.0


def test_predictions_stay_in_range_and_strangers_get_the_mean() -> None:
    known = Ratings(*(np.array(c) for c in ([0, 0], [0, 1])), np.array([1.0, 5.0]), np.array([1, 2]), 2, 3)
    model = fit_with(known, sparse.csr_matrix((3, 3)), Settings())
    found = model.predict(np.array([0, 1, 1]), np.array([0, 2, 1]))
    assert found.min() >= 1.0
    assert found.max() <= 5.0
    assert found[1] == 3.0


def test_bad_ratings_are_refused() -> None:
    none = np.zeros(0, np.int64)
    with pytest.raises(ContractError, match="none can be predicted"):
        fit(Ratings(none, none, np.zeros(0), none, 1, 1), sparse.csr_matrix((1, 1)))
    with pytest.raises(ContractError, match="finite value"):
        Ratings(none[:0], none, np.array([np.nan]), none, 1, 1)
