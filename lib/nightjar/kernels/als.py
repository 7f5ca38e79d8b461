"""Gives users factors in the space of an implicit ALS model whose item factors are known."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from nightjar.kernels.signals import F32, F64


def fold_in(x: sparse.csr_matrix, Y: F32, alpha: float, ridge: float) -> F32:
    """The user factors that minimise the loss of implicit ALS for fixed item factors, (q, f) float32.

    x: (q, n_items) CSR of weights above 0; Y: (n_items, f), 0 for an item without factors. For user u with n
    items (YᵀY + alpha · Σ x_ui y_i y_iᵀ + ridge · n · I)⁻¹ Σ (1 + alpha · x_ui) y_i, the step that Spark's
    ALS alternates (Hu, Koren & Volinsky 2008, doi:10.1109/ICDM.2008.22; ridge scaled by n: Zhou et al. 2008).
    """
    wide = Y.astype(np.float64)
    gram = wide.T @ wide
    eye = np.eye(Y.shape[1])
    found: F64 = np.zeros((x.shape[0], Y.shape[1]))
    for user in range(x.shape[0]):
        part = slice(x.indptr[user], x.indptr[user + 1])
        weights, mine = x.data[part].astype(np.float64), wide[x.indices[part]]
        if len(weights):
            A = gram + alpha * (mine.T * weights) @ mine + ridge * len(weights) * eye
            found[user] = np.linalg.solve(A, (1 + alpha * weights) @ mine)
    return found.astype(np.float32)
