"""Relations against slow loops, and what time does to items."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from nightjar.errors import ConfigError, ContractError
from nightjar.kernels import signals
from nightjar.kernels.signals import Neighbourhood


def log(seed: int, n_users: int = 12, n_items: int = 9, density: float = 0.4) -> sparse.csr_matrix:
    rng = np.random.default_rng(seed)
    return sparse.csr_matrix((rng.random((n_users, n_items)) < density).astype(np.float32))


def unit(seed: int, n: int, d: int) -> np.ndarray:
    V = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return V / np.linalg.norm(V, axis=1, keepdims=True)


def slow_co_occurrence(X: np.ndarray, how: Neighbourhood) -> np.ndarray:
    """The definition, a pair and a user at a time."""
    n = X.shape[1]
    c = np.zeros((n, n))
    for row in X:
        weight = 1.0 / max(np.count_nonzero(row), 1) ** how.user_power
        for h in range(n):
            for i in range(n):
                c[h, i] += weight * row[h] * row[i]
    w = np.diag(c)
    mean = w[w > 0].mean() if (w > 0).any() else 0.0
    out = np.zeros((n, n))
    for h in range(n):
        for i in range(n):
            if h != i and c[h, i] > 0:
                out[h, i] = c[h, i] / (
                    w[h] ** how.history_power * w[i] ** how.target_power + how.shrinkage * mean
                )
    return out


def cut(S: np.ndarray, m: int) -> np.ndarray:
    """The m entries of each row largest in absolute value, ties to the lower column."""
    out = np.zeros_like(S)
    for h, row in enumerate(S):
        for i in sorted(range(len(row)), key=lambda i: (-abs(row[i]), i))[:m]:
            out[h, i] = row[i]
    return out


@settings(max_examples=40)
@given(
    st.integers(0, 10_000), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.3]), st.integers(1, 9)
)
def test_co_occurrence_is_its_definition(seed: int, power: float, shrinkage: float, m: int) -> None:
    X = log(seed)
    how = Neighbourhood(m, power, shrinkage, 0.5, 0.5)
    found = signals.co_occurrence(X, how).toarray()
    # On the grid first: values that the formula makes equal must stay equal, so that ties cut alike.
    wanted = cut(np.round(slow_co_occurrence(X.toarray(), how), 9), m)
    assert np.allclose(found, wanted, atol=2e-6)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    X, V = log(1, 40, 23), unit(1, 23, 5)
    made = [
        signals.co_occurrence(X, Neighbourhood(4)),
        signals.cosine_neighbours(V, 4, 2.0),
        signals.ease(X, 5.0, 4),
    ]
    monkeypatch.setattr(signals, "BLOCK", 7)
    again = [
        signals.co_occurrence(X, Neighbourhood(4)),
        signals.cosine_neighbours(V, 4, 2.0),
        signals.ease(X, 5.0, 4),
    ]
    for one, other in zip(made, again, strict=True):
        assert np.array_equal(one.indices, other.indices)
        assert np.allclose(one.data, other.data, rtol=1e-5)


def test_co_occurrence_refuses_dislikes() -> None:
    with pytest.raises(ContractError, match="disliked"):
        signals.co_occurrence(sparse.csr_matrix(np.array([[1.0, -1.0]], np.float32)), Neighbourhood())


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 14), st.sampled_from([1.0, 2.0, 3.0]))
def test_text_neighbours_are_the_nearest(seed: int, m: int, power: float) -> None:
    V = unit(seed, 14, 4)
    cosines = np.maximum(V @ V.T, 0)
    np.fill_diagonal(cosines, 0)
    wanted = cut(cosines, m).astype(np.float64) ** power
    assert np.allclose(signals.cosine_neighbours(V, m, power).toarray(), wanted, atol=1e-5)


@pytest.mark.parametrize(("seed", "m", "power"), [(0, 1, 0.5), (1, 4, 0.5), (2, 14, 1.0), (3, 4, 0.0)])
def test_degrees_are_divided_out_and_the_size_of_values_stays(seed: int, m: int, power: float) -> None:
    S = signals.cosine_neighbours(unit(seed, 14, 4), m, 2.0)
    dense, found = S.toarray().astype(np.float64), signals.degree_normalised(S, power).toarray()
    says, heard = dense.sum(axis=1), dense.sum(axis=0)
    for h, i in zip(*np.nonzero(dense), strict=True):
        shared = dense[h, i] / (says[h] * heard[i]) ** power
        assert found[h, i] == pytest.approx(shared * says[says > 0].mean() ** (2 * power), rel=1e-5)
    assert np.array_equal(found != 0, dense != 0)


def test_a_cosine_too_small_for_its_power_stays_nothing() -> None:
    S = sparse.csr_matrix((np.array([0, 0.5, 0.5], np.float32), [1, 3, 2], [0, 1, 1, 2, 3]), (4, 4))
    assert np.allclose(
        signals.degree_normalised(S).toarray(), [[0] * 4, [0] * 4, [0, 0, 0, 0.5], [0, 0, 0.5, 0]]
    )
    assert not signals.degree_normalised(S * 0).toarray().any()


def test_of_a_text_on_many_items_each_gets_a_share_of_the_interest() -> None:
    """The item of the history is as near to one item as to each of eight that have the same text."""
    V = np.zeros((11, 4), np.float32)
    V[:8] = [0.6, 0.8, 0, 0]  # eight items of one text
    V[8] = [0.6, 0, 0.8, 0]  # the only one of its text
    V[9] = [1, 0, 0, 0]  # the history
    V[10] = [0, 0, 0, 1]
    plain = signals.cosine_neighbours(V, 10, 2.0)
    found = signals.degree_normalised(plain)
    assert np.ptp(plain[9, :9].toarray()) < 1e-6
    assert (found[9, 8] > 2 * found[9, :8].toarray()).all()
    assert np.ptp(found[9, :8].toarray()) == 0, "equals stay equal"


def test_ties_go_to_the_lower_number() -> None:
    V = np.tile(np.array([[1.0, 0.0]], np.float32), (6, 1))
    found = signals.cosine_neighbours(V, 2, 3.0)
    assert [sorted(row) for row in np.split(found.indices, found.indptr[1:-1])] == [
        [1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1],
    ]  # fmt: skip


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([1.0, 20.0]))
def test_ease_solves_its_least_squares(seed: int, ridge: float) -> None:
    """Column i minimises ‖X b − x_i‖² + λ‖b‖² over the other items: solved one by one."""
    X = log(seed, 30, 8)
    dense = X.toarray().astype(np.float64)
    found = signals.ease(X, ridge, 8).toarray()
    for i in range(8):
        others = [h for h in range(8) if h != i]
        A = dense[:, others]
        wanted = np.linalg.solve(A.T @ A + ridge * np.eye(7), A.T @ dense[:, i])
        assert np.allclose(found[others, i], wanted, atol=1e-4)
        assert found[i, i] == 0


def test_ease_leaves_unused_items_alone_and_wants_a_ridge() -> None:
    X = sparse.csr_matrix(np.array([[1, 0, 1, 0], [1, 0, 0, 1], [0, 0, 1, 1]], np.float32))
    S = signals.ease(X, 1.0, 3).toarray()
    assert not S[1].any() and not S[:, 1].any() and S[0].any()
    assert signals.ease(sparse.csr_matrix((3, 4), dtype=np.float32), 1.0, 3).nnz == 0
    with pytest.raises(ConfigError, match="ridge"):
        signals.ease(X, 0.0, 3)


def test_borrowed_columns_are_the_mean_of_warm_neighbours() -> None:
    S = sparse.csr_matrix(
        np.array([[0, 0.4, 0.2, 0], [0.4, 0, 0.6, 0], [0.2, 0.6, 0, 0], [0, 0, 0, 0]], np.float32)
    )
    near = sparse.csr_matrix(
        np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0.3, 0.1, 0, 0]], np.float32)
    )
    cold = np.array([False, False, False, True])
    found = signals.borrowed(S, near, cold, 4).toarray()
    assert np.allclose(found[:, :3], S.toarray()[:, :3])
    assert np.allclose(found[:3, 3], [0.25 * 0.4, 0.75 * 0.4, 0.75 * 0.2 + 0.25 * 0.6])
    assert found[3, 3] == 0


def test_of_a_row_the_strongest_borrowed_are_kept() -> None:
    S = sparse.csr_matrix(np.array([[0, 0.8, 0, 0, 0], [0.8, 0, 0, 0, 0], *[[0] * 5] * 3], np.float32))
    near = np.zeros((5, 5), np.float32)
    near[2, 1], near[3, :2], near[4, :2] = 0.5, (0.1, 0.3), (0.2, 0.2)
    found = signals.borrowed(S, sparse.csr_matrix(near), np.array([False, False, True, True, True]), 2)
    assert np.allclose(found.toarray()[0], [0, 0.8, 0.8, 0.6, 0])
    assert np.allclose(found.toarray()[1], [0.8, 0, 0, 0.2, 0.4])


def test_cold_items_do_not_lend_to_cold_items() -> None:
    S = sparse.csr_matrix(np.array([[0, 0.5, 0, 0], [0.5, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.float32))
    near = sparse.csr_matrix(np.array([[0] * 4, [0] * 4, [0, 0, 0, 0.9], [0, 0.2, 0.9, 0]], np.float32))
    found = signals.borrowed(S, near, np.array([False, False, True, True]), 4).toarray()
    assert not found[:, 2].any()
    assert np.allclose(found[0, 3], 0.5)


@pytest.mark.parametrize(("seed", "m"), [(0, 1), (1, 3), (2, 8)])
def test_cold_items_are_in_the_rows_of_their_own_nearest_too(seed: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    V = rng.normal(size=(40, 5)).astype(np.float32)
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    cold = rng.random(40) < 0.4
    S = signals.cosine_neighbours(V, m, 2.0)
    own, found = S.toarray(), signals.both_ways(S, cold, m).toarray()
    for h in range(40):
        may = [c for c in np.flatnonzero(cold) if not cold[h] and own[c, h] > 0 and own[h, c] == 0]
        added = sorted(may, key=lambda c: (-own[c, h], c))[:m]
        wanted = own[h].copy()
        wanted[added] = own[added, h]
        assert np.array_equal(found[h], wanted)


def test_a_cold_item_among_many_that_are_nearer_to_each_other_is_found() -> None:
    """Twenty liked items lie closer to each other than to the new one beside them: in no row without help."""
    rng = np.random.default_rng(0)
    V = np.r_[rng.normal(0, 0.02, (20, 6)), rng.normal(0, 0.02, (20, 6)), [[0.3, 0.2, 0, 0, 0, 0]]]
    V[:20, 0] += 1
    V[20:40, 1] += 1
    V = (V / np.linalg.norm(V, axis=1, keepdims=True)).astype(np.float32)
    cold = np.arange(41) == 40
    S = signals.cosine_neighbours(V, 5, 2.0)
    assert not S[:, cold].nnz
    found = signals.both_ways(S, cold, 5)
    assert set(found[:, [40]].nonzero()[0]) <= set(range(20)) and found[:, [40]].nnz == 5
    assert (found[:, :40] != S[:, :40]).nnz == 0


def test_planted_communities() -> None:
    """Users keep to one of three groups of items: every relation of behaviour must find the groups."""
    rng = np.random.default_rng(3)
    group = np.arange(30) % 3
    X = sparse.csr_matrix(
        ((rng.random((200, 30)) < 0.5) & (group == (np.arange(200) % 3)[:, None])).astype(np.float32)
    )
    for S in (signals.co_occurrence(X, Neighbourhood(9)), signals.ease(X, 10.0, 9)):
        positive = S.tocoo()
        assert (group[positive.row] == group[positive.col])[positive.data > 0].mean() > 0.99


def test_decay_halves() -> None:
    assert np.allclose(signals.decay(np.array([0.0, 30.0, 60.0]), 30.0), [1, 0.5, 0.25])
    assert np.array_equal(signals.decay(np.array([0.0, 1e9]), None), [1, 1])


def test_freshness_is_relative_to_the_catalogue() -> None:
    ever = np.array([100.0, 100.0, 100.0, 0.0])
    recent = np.array([50.0, 5.0, 20.0, 0.0])
    g = signals.freshness(recent, ever)
    assert g[0] > g[2] > g[1] > 0
    assert g[3] == pytest.approx(1.0)
    assert np.allclose(signals.freshness(ever * 0.3, ever), 1.0)
    assert np.array_equal(signals.freshness(np.zeros(4), ever), np.ones(4))
