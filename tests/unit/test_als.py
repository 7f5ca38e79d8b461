"""User factors folded in equal the minimum of the loss, found by another way."""

import numpy as np
from scipy import sparse
from scipy.optimize import minimize

from nightjar.kernels.als import fold_in

ALPHA, RIDGE = 4.0, 0.2


def test_factors_minimise_the_loss_of_implicit_als() -> None:
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
