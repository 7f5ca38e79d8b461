"""Interests of a history: Ward against a slow loop, planted interests, their importance and medoids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from nightjar.errors import ConfigError, ContractError
from nightjar.kernels.clusters import Splitting, cluster, interests
from nightjar.kernels.taste import unit_rows


def slow_ward(U: np.ndarray, most: int, distance: float) -> list[set[int]]:
    """Merges the two clusters whose union adds least to the squared distances to the mean, again and again.

    The distance of two clusters is the root of twice that growth: for single points their own.
    """
    groups = [{row} for row in range(len(U))]

    def spread(group: set[int]) -> float:
        points = U[sorted(group)]
        return float(((points - points.mean(axis=0)) ** 2).sum())

    while len(groups) > 1:
        pairs = [
            (np.sqrt(2 * max(spread(a | b) - spread(a) - spread(b), 0.0)), i, j)
            for i, a in enumerate(groups)
            for j, b in enumerate(groups)
            if i < j
        ]
        nearest, i, j = min(pairs)
        if len(groups) <= most and nearest > distance:
            break
        groups[i] |= groups.pop(j)
    return groups


@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(1, 5), st.sampled_from([0.0, 0.7, 1.1, 1.6]))
def test_clusters_equal_slow_ward(seed: int, n: int, most: int, distance: float) -> None:
    U = unit_rows(np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)).astype(np.float64)
    label = cluster(U, most, distance)
    ours = {frozenset(np.flatnonzero(label == one).tolist()) for one in range(label.max() + 1)}
    assert ours == {frozenset(group) for group in slow_ward(U, most, distance)}
    assert label[0] == 0
    assert len(ours) <= most


def planted() -> tuple[sparse.csr_matrix, np.ndarray]:
    """Items of three directions, lengths from 0.5 to 2; user 0 likes two of them, user 1 one, user 2 none."""
    rng = np.random.default_rng(3)
    axes = np.eye(8)[:3]
    V = np.concatenate([axes[a] + rng.normal(0, 0.05, (6, 8)) for a in range(3)])
    V = (V / np.linalg.norm(V, axis=1, keepdims=True) * rng.uniform(0.5, 2, (18, 1))).astype(np.float32)
    profile = np.zeros((4, 18), np.float32)
    profile[0, 0:4], profile[0, 12:14] = 1.0, [5.0, 1.0]
    profile[1, 6:9] = 1.0
    profile[2, 1] = -2.0
    profile[3, [0, 1, 12]] = [1.0, 1.0, -3.0]
    return sparse.csr_matrix(profile), V


def test_planted_interests_are_found_with_their_importance() -> None:
    profile, V = planted()
    found = interests(profile, V, Splitting(most=3, distance=0.8))
    assert found.user.tolist() == [0, 0]
    np.testing.assert_allclose(found.importance, [0.6, 0.4], rtol=1e-6)
    assert found.medoid[0] == 12
    assert found.medoid[1] in range(4)
    assert (found.vector @ np.eye(8)[[2, 0]].T).diagonal().min() > 0.98
    D = unit_rows(V)
    mean = 5 * D[12] + D[13]
    np.testing.assert_allclose(found.vector[0], mean / np.linalg.norm(mean), atol=1e-6)


def test_a_medoid_can_stand_for_its_cluster() -> None:
    profile, V = planted()
    found = interests(profile, V, Splitting(3, 0.8, medoids=True))
    np.testing.assert_allclose(found.vector, unit_rows(V)[found.medoid], atol=1e-6)


def test_dislikes_and_single_interests_give_no_rows() -> None:
    profile, V = planted()
    assert not len(interests(profile[1:], V, Splitting(3, 0.8)).user)
    assert not len(interests(profile, V, Splitting(most=1)).user)
    assert interests(profile, V, Splitting(3, 0.0)).user.tolist() == [0, 0, 0, 1, 1, 1, 3, 3]


def test_only_the_weightiest_items_are_clustered() -> None:
    profile, V = planted()
    found = interests(profile, V, Splitting(3, 0.8, recent=2))
    assert found.user.tolist() == [0, 0]
    np.testing.assert_allclose(found.importance, [5 / 6, 1 / 6], rtol=1e-6)
    assert found.medoid.tolist() == [12, 0]


def test_a_users_interests_depend_on_nobody_else() -> None:
    rng = np.random.default_rng(8)
    V = rng.normal(size=(50, 6)).astype(np.float32)
    profile = sparse.csr_matrix(rng.random((20, 50)) * (rng.random((20, 50)) < 0.3), dtype=np.float32)
    whole = interests(profile, V, Splitting())
    for user in (0, 7, 19):
        alone = interests(profile[user], V, Splitting())
        mine = whole.user == user
        assert alone.vector.tobytes() == whole.vector[mine].tobytes()
        assert alone.importance.tobytes() == whole.importance[mine].tobytes()


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="most and recent"):
        Splitting(most=0)
    with pytest.raises(ContractError, match="profiles name 3 items"):
        interests(sparse.csr_matrix((1, 3)), np.ones((2, 2), np.float32), Splitting())
