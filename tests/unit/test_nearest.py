"""Neighbours by the bulk engine are those of a plain product of all pairs."""

import numpy as np
import pytest

from nightjar.engines.nearest import nearest_items
from nightjar.errors import ContractError
from nightjar.kernels import signals


def unit(n: int, d: int, seed: int = 0) -> np.ndarray:
    V = np.random.default_rng(seed).standard_normal((n, d))
    return (V / np.linalg.norm(V, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("n", "m"), [(1, 5), (2, 5), (7, 3), (300, 20), (9000, 4)])
def test_the_relation_is_that_of_the_plain_product(n: int, m: int, threads: int) -> None:
    V = unit(n, 24)
    ours = signals.cosine_neighbours(V, m, 2.0, lambda rows, k: nearest_items(rows, k, threads))
    plain = signals.cosine_neighbours(V, m, 2.0)
    assert ours.shape == plain.shape
    assert (np.diff(ours.indptr) <= m).all()
    assert np.array_equal(ours.indptr, plain.indptr)
    assert np.array_equal(ours.indices, plain.indices)
    assert np.allclose(ours.data, plain.data, atol=1e-5)


def test_equal_items_are_told_apart_by_their_number() -> None:
    V = np.tile(unit(1, 8), (6, 1))
    found = nearest_items(V, 2, 1)
    assert found.item_nums.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1]]


def test_an_item_without_a_vector_has_no_neighbours_and_is_none() -> None:
    V = unit(5, 8)
    V[2] = 0
    found = nearest_items(V, 4, 1)
    assert found.n_found.tolist() == [3, 3, 0, 3, 3]
    assert 2 not in found.item_nums


def test_bad_vectors_are_refused() -> None:
    V = unit(5, 8)
    V[1, 1] = np.nan
    with pytest.raises(ContractError):
        nearest_items(V, 2, 1)
