"""Implicit ALS: steps reach the minimum of its loss, found by another way, and factors say who is alike."""

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import minimize

from nightjar.kernels import als
from nightjar.kernels.als import Factorisation, fold_in
from nightjar.kernels.relations import Learning, factored

ALPHA, RIDGE = 4.0, 0.2


def random_likes(seed: int, shape: tuple[int, int] = (40, 25), density: float = 0.15) -> sparse.csr_matrix:
    rng = np.random.default_rng(seed)
    return sparse.csr_matrix((rng.random(shape) < density).astype(np.float32))


def loss(X: sparse.csr_matrix, users: np.ndarray, items: np.ndarray, how: Factorisation) -> float:
    liked = X.toarray().astype(np.float64)
    wrong = (1 + how.confidence * liked) * (liked - users.astype(np.float64) @ items.T) ** 2
    return float(wrong.sum() + how.ridge * ((users**2).sum() + (items**2).sum()))


@pytest.mark.parametrize("block", [1, 7, 1 << 17])
@pytest.mark.parametrize("seed", range(3))
def test_a_step_solves_the_normal_equations(seed: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(als, "BLOCK_ENTRIES", block)
    X, how = random_likes(seed), Factorisation(4, ALPHA, RIDGE)
    assert (np.diff(X.indptr) == 0).any()  # somebody likes nothing
    rng = np.random.default_rng(seed)
    F = rng.normal(size=(25, 4)).astype(np.float32)
    found = als.solve(X, F, rng.normal(size=(40, 4)).astype(np.float32), how, n_steps=12)
    for row, liked in enumerate(X.toarray()):
        A = F.T @ F + ALPHA * F.T @ np.diag(liked) @ F + RIDGE * np.eye(4)
        np.testing.assert_allclose(found[row], np.linalg.solve(A, (1 + ALPHA) * F.T @ liked), atol=2e-3)


def test_every_sweep_lowers_the_loss() -> None:
    X = random_likes(1, (300, 80), 0.08)
    values = []
    for sweeps in (1, 2, 4, 8, 16):
        how = Factorisation(6, ALPHA, RIDGE, sweeps)
        items = als.item_factors(X, how)
        users = als.solve(X, items, np.zeros((300, 6), np.float32), how, n_steps=30)
        values.append(loss(X, users, items, how))
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.8 * loss(X, users * 0, items * 0, how)


def test_items_of_a_group_are_alike_also_those_nobody_liked() -> None:
    """Users keep to one of four groups, which texts tell: an unseen item finds its group by them."""
    rng = np.random.default_rng(7)
    group = np.arange(60) % 4
    X = ((rng.random((400, 60)) < 0.3) & (group == (np.arange(400) % 4)[:, None])).astype(np.float32)
    X[:, 48:] = 0
    V = (np.eye(4)[group] + 0.2 * rng.normal(size=(60, 4))).astype(np.float32)
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    found = factored(sparse.csr_matrix(X), V, Learning(n_neighbours=10)).toarray()
    same = group[:, None] == group
    assert found[same].sum() > 0.97 * found.sum()
    assert (found[:48, 48:] > 0).any(axis=0).all() and found[:48, 48:][same[:48, 48:]].sum() > 0


def test_items_without_likes_are_the_ridge_regression_of_their_texts() -> None:
    rng = np.random.default_rng(3)
    V, Y = rng.normal(size=(30, 5)).astype(np.float32), rng.normal(size=(30, 2)).astype(np.float32)
    known = np.arange(30) % 3 > 0
    found = als.from_text(Y, V, known, 2.0)
    # Ridge as least squares with as many rows more: √λ in every direction, for which 0 is wanted.
    rows = np.r_[V[known], np.sqrt(2.0) * np.eye(5)]
    wanted = V[~known] @ np.linalg.lstsq(rows, np.r_[Y[known], np.zeros((5, 2))], rcond=None)[0]
    np.testing.assert_allclose(found[~known], wanted, atol=1e-5)
    assert np.array_equal(found[known], Y[known])


def test_nothing_liked_has_no_factors() -> None:
    X = random_likes(5) @ sparse.diags(np.arange(25) != 4, dtype=np.float32)
    items = als.item_factors(X, Factorisation(3))
    assert not items[4].any() and np.delete(items, 4, axis=0).any(axis=1).all()
    nobody = sparse.csr_matrix((0, 6), dtype=np.float32)
    assert not als.alike(als.item_factors(nobody, Factorisation(3)), 10.0).any()


def test_users_folded_in_minimise_the_loss() -> None:
    rng = np.random.default_rng(2)
    Y = rng.normal(size=(15, 3)).astype(np.float32)
    x = sparse.random(4, 15, 0.3, "csr", np.float32, rng=rng, data_rvs=lambda n: rng.uniform(0.5, 2, n))
    found = fold_in(x, Y, ALPHA, RIDGE)
    for user in range(4):
        w = x[user].toarray().ravel().astype(np.float64)

        def loss(u: np.ndarray, w: np.ndarray = w) -> float:
            wanted, confidence = (w > 0).astype(float), 1 + ALPHA * w
            return float((confidence * (wanted - Y @ u) ** 2).sum() + RIDGE * (w > 0).sum() * (u @ u))

        best = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-9}).x
        np.testing.assert_allclose(found[user], best, atol=1e-4)


def test_a_user_without_items_has_no_factors() -> None:
    Y = np.ones((3, 2), np.float32)
    assert not fold_in(sparse.csr_matrix((2, 3), dtype=np.float32), Y, ALPHA, RIDGE).any()
