"""From text embeddings to item vectors: centre, whiten, and take on what behaviour says.

Raw mean-pooled sentence embeddings share one large common direction, and a user's mean of them is close to
everybody else's; centring and whitening alone doubled nDCG@20 on one real log (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

BLOCK = 8192
"""Rows of a matrix product; fixed, because the rounding of a BLAS depends on the shape of its blocks."""

TINY = 1e-6


@dataclass(frozen=True)
class Whitening:
    """x ↦ (x − mean) @ matrix. mean: (d,), matrix: (d, d), both float32."""

    mean: np.ndarray
    matrix: np.ndarray


def blocks(n_rows: int) -> Iterator[slice]:
    """Row ranges of BLOCK rows."""
    for start in range(0, n_rows, BLOCK):
        yield slice(start, min(start + BLOCK, n_rows))


def fit_whitening(X: np.ndarray, power: float, shrinkage: float) -> Whitening:
    """PCA whitening of rows X (n, d) float32, in two passes over blocks and float64 sums.

    Each principal direction is divided by its standard deviation to the given power (1: unit variance, 0:
    centring and rotation only). `shrinkage` mixes the eigenvalues with their mean, which keeps directions
    that a small catalogue hardly fills from being blown up. Su et al. 2021, arXiv 2103.15316.
    """
    n, d = X.shape
    mean = sum((np.asarray(X[b], np.float64).sum(axis=0) for b in blocks(n)), np.zeros(d)) / max(n, 1)
    covariance = np.zeros((d, d))
    for b in blocks(n):
        centred = np.asarray(X[b], np.float64) - mean
        covariance += centred.T @ centred
    values, directions = np.linalg.eigh(covariance / max(n, 1))
    values = np.maximum(values, 0)
    shrunk = (1 - shrinkage) * values + shrinkage * max(values.mean(), TINY)
    scale = np.maximum(shrunk, TINY * max(shrunk.max(), TINY)) ** (-power / 2)
    # An eigenvector's sign is arbitrary: fix it, so that equal input gives equal vectors on any machine.
    signs = np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(d)])
    return Whitening(mean.astype(np.float32), (directions * signs * scale).astype(np.float32))


def whiten(X: np.ndarray, whitening: Whitening) -> np.ndarray:
    """Unit rows (n, d) float32 of X under a whitening; a row at the very mean keeps its own direction."""
    out = np.empty(X.shape, np.float32)
    for b in blocks(len(X)):
        rows = np.asarray(X[b], np.float32)
        out[b] = unit_rows((rows - whitening.mean) @ whitening.matrix, rows)
    return out


def unit_rows(X: np.ndarray, instead: np.ndarray | None = None) -> np.ndarray:
    """X (n, d) with rows of length 1; a row shorter than TINY becomes the row of `instead`, or 0."""
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    unit: np.ndarray = (X / np.maximum(norms, TINY)).astype(np.float32)
    nothing = norms[:, 0] < TINY
    if nothing.any():
        unit[nothing] = 0 if instead is None else instead[nothing]
    return unit


def propagate(V: np.ndarray, buckets: Iterable[sparse.csr_matrix]) -> np.ndarray:
    """One step over the user–item graph: for each item the sum of its users' mean vectors, as unit rows.

    V: (n, d) float32 unit rows. buckets: (q, n) non-negative weights, some users each. A user counts for
    an item by weight/√(the sum of their weights), so that busy users do not speak loudest; items untouched
    get 0. This is LightGCN's propagation (He et al. 2020, arXiv 2002.02126) without the layer average, and
    equals smoothing over the co-occurrence graph without building it: time and memory linear in the pairs.
    """
    total = np.zeros(V.shape, np.float32)
    for weights in buckets:
        lengths = np.asarray(weights.sum(axis=1)).ravel()
        per_user = sparse.diags(1.0 / np.sqrt(np.maximum(lengths, TINY)), dtype=np.float32)
        means = unit_rows(weights @ V)
        total += (per_user @ weights).T.tocsr() @ means
    return unit_rows(total)


def smooth(V: np.ndarray, neighbours: np.ndarray, weight: float) -> np.ndarray:
    """unit(V + weight · neighbours), (n, d) float32; an item without neighbours keeps its own vector."""
    out = np.empty(V.shape, np.float32)
    for b in blocks(len(V)):
        out[b] = unit_rows(V[b] + np.float32(weight) * neighbours[b], V[b])
    return out
