"""Whitening and propagation against their definitions, loop by loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import sparse

from nightjar.kernels import taste
from nightjar.kernels.taste import blocks, fit_whitening, propagate, smooth, unit_rows, whiten

SEEDS = st.integers(0, 10_000)


def _correlated(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    mixed = rng.normal(size=(n, d)) @ (rng.normal(size=(d, d)) + 2 * np.eye(d)) + rng.normal(size=d) * 5
    return mixed.astype(np.float32)


def _well_conditioned(X: np.ndarray) -> bool:
    """Whether no direction is so thin that the floor under variances, 1e-6 of the largest, lifts it."""
    values = np.linalg.eigvalsh(np.cov(X.astype(np.float64).T, bias=True).reshape(X.shape[1], -1))
    return bool(values.min() > 1e-5 * values.max())


def _unit(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return unit_rows(rng.normal(size=(n, d)).astype(np.float32))


@settings(max_examples=25)
@given(SEEDS, st.integers(1, 6))
def test_power_one_without_shrinkage_gives_the_identity_covariance(seed: int, d: int) -> None:
    X = _correlated(np.random.default_rng(seed), 300, d)
    assume(_well_conditioned(X))
    fitted = fit_whitening(X, power=1.0, shrinkage=0.0)
    Y = (X.astype(np.float64) - fitted.mean) @ fitted.matrix
    np.testing.assert_allclose(np.cov(Y.T, bias=True).reshape(d, d), np.eye(d), atol=2e-2)
    np.testing.assert_allclose(Y.mean(axis=0), 0, atol=1e-3)


@settings(max_examples=25)
@given(SEEDS, st.integers(1, 6))
def test_power_nought_only_turns(seed: int, d: int) -> None:
    """Centring and rotation: all distances stay."""
    X = _correlated(np.random.default_rng(seed), 40, d)
    fitted = fit_whitening(X, power=0.0, shrinkage=0.3)
    np.testing.assert_allclose(fitted.matrix.T @ fitted.matrix, np.eye(d), atol=1e-5)
    np.testing.assert_allclose(fitted.mean, X.astype(np.float64).mean(axis=0), rtol=1e-5, atol=1e-5)


@settings(max_examples=25)
@given(SEEDS, st.floats(0, 1), st.floats(0, 1))
def test_variances_follow_power_and_shrinkage(seed: int, power: float, shrinkage: float) -> None:
    """In the basis of the covariance each variance v becomes v / ((1 − s) v + s mean)^power."""
    X = _correlated(np.random.default_rng(seed), 200, 4)
    assume(_well_conditioned(X))
    values = np.linalg.eigvalsh(np.cov(X.astype(np.float64).T, bias=True))
    fitted = fit_whitening(X, power, shrinkage)
    Y = (X.astype(np.float64) - fitted.mean) @ fitted.matrix
    wanted = values / ((1 - shrinkage) * values + shrinkage * values.mean()) ** power
    np.testing.assert_allclose(np.var(Y, axis=0), wanted, rtol=2e-2)


def test_blocks_do_not_change_a_whitening(monkeypatch: pytest.MonkeyPatch) -> None:
    X = _correlated(np.random.default_rng(0), 100, 5)
    whole = fit_whitening(X, 1.0, 0.05)
    out = whiten(X, whole)
    monkeypatch.setattr(taste, "BLOCK", 7)
    cut = fit_whitening(X, 1.0, 0.05)
    np.testing.assert_allclose(cut.matrix, whole.matrix, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(whiten(X, whole), out, atol=1e-6)
    assert [(b.start, b.stop) for b in blocks(15)] == [(0, 7), (7, 14), (14, 15)]


def test_the_sign_of_a_direction_does_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(1)
    X = _correlated(rng, 300, 6)
    first, second = fit_whitening(X, 1.0, 0.05), fit_whitening(X[rng.permutation(300)], 1.0, 0.05)
    np.testing.assert_allclose(first.matrix, second.matrix, rtol=1e-3, atol=1e-4)


def test_directions_a_small_catalogue_hardly_fills_stay_finite() -> None:
    """Fewer items than dimensions, one item, one item many times, and none."""
    rng = np.random.default_rng(2)
    for X in (
        _unit(rng, 3, 8),
        _unit(rng, 1, 8),
        np.repeat(_unit(rng, 1, 8), 5, axis=0),
        np.empty((0, 8), np.float32),
    ):
        for shrinkage in (0.0, 0.05, 1.0):
            Y = whiten(X, fit_whitening(X, 1.0, shrinkage))
            assert Y.dtype == np.float32
            assert Y.shape == X.shape
            np.testing.assert_allclose(np.linalg.norm(Y, axis=1), 1, atol=1e-5)


def test_a_row_at_the_mean_keeps_its_direction() -> None:
    X = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [0.6, 0.8], [-0.6, -0.8]], np.float32)
    fitted = fit_whitening(X, 1.0, 0.0)
    mean = fitted.mean.reshape(1, -1) + np.float32(0)
    np.testing.assert_array_equal(whiten(mean, fitted), mean)


def _propagated(V: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The definition, one user and one item at a time."""
    out = np.zeros(V.shape)
    for user in weights:
        if not user.sum():
            continue
        mean = sum(w * v for w, v in zip(user, V.astype(np.float64), strict=True))
        length = np.linalg.norm(mean)
        if length < 1e-6:
            continue
        for item, weight in enumerate(user):
            out[item] += weight / np.sqrt(user.sum()) * mean / length
    norms = np.linalg.norm(out, axis=1, keepdims=True)
    return np.where(norms < 1e-6, 0, out / np.maximum(norms, 1e-6))


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 6), st.integers(0, 9), st.integers(1, 4), st.booleans())
def test_propagating_equals_the_double_loop(
    seed: int, n_items: int, n_users: int, n_buckets: int, graded: bool
) -> None:
    rng = np.random.default_rng(seed)
    V = _unit(rng, n_items, 3)
    weights = (rng.random((n_users, n_items)) < 0.4) * (
        rng.integers(1, 5, (n_users, n_items)) if graded else 1
    )
    buckets = [
        sparse.csr_matrix(rows, dtype=np.float32) for rows in np.array_split(weights.astype(float), n_buckets)
    ]
    found = propagate(V, buckets)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, _propagated(V, weights.astype(float)), atol=2e-5)
    untouched = weights.sum(axis=0) == 0
    assert not found[untouched].any()


def test_propagating_nobody_gives_noughts() -> None:
    V = _unit(np.random.default_rng(0), 4, 3)
    assert not propagate(V, []).any()
    assert not propagate(V, [sparse.csr_matrix((0, 4), dtype=np.float32)]).any()
    assert propagate(V[:0], []).shape == (0, 3)


def test_a_user_of_opposite_tastes_says_nothing() -> None:
    V = np.array([[1, 0], [-1, 0], [0, 1]], np.float32)
    found = propagate(V, [sparse.csr_matrix([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]], dtype=np.float32)])
    half = 0.5**0.5
    np.testing.assert_allclose(found, [[half, half], [0, 0], [half, half]], atol=1e-6)


@settings(max_examples=30)
@given(SEEDS, st.sampled_from([0.0, 0.5, 1.0, 3.0]))
def test_smoothing_is_the_unit_sum(seed: int, weight: float) -> None:
    rng = np.random.default_rng(seed)
    V, neighbours = _unit(rng, 7, 3), _unit(rng, 7, 3)
    neighbours[::3] = 0
    neighbours[1] = -V[1]
    found = smooth(V, neighbours, weight)
    for row in range(7):
        added = V[row].astype(np.float64) + weight * neighbours[row]
        wanted = V[row] if np.linalg.norm(added) < 1e-6 else added / np.linalg.norm(added)
        np.testing.assert_allclose(found[row], wanted, atol=1e-5)


def test_rows_of_no_length_become_nought_or_are_replaced() -> None:
    X = np.array([[3, 4], [0, 0], [1e-9, 0]], np.float32)
    np.testing.assert_allclose(unit_rows(X), [[0.6, 0.8], [0, 0], [0, 0]], atol=1e-7)
    np.testing.assert_allclose(unit_rows(X, X[:, ::-1]), [[0.6, 0.8], [0, 0], [0, 1e-9]], atol=1e-6)
