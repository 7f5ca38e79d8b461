"""Implicit ALS: factors whose products say who likes what, and how alike items are in them.

Minimises Σ_ui c_ui (p_ui − x_uᵀy_i)² + λ(Σ‖x_u‖² + Σ‖y_i‖²) over all pairs, p 1 and c 1 + α for a like, 0 and
1 for anything else (Hu, Koren & Volinsky 2008, "Collaborative filtering for implicit feedback datasets"), one
side after the other by a few steps of conjugate gradients (Takács, Pilászy & Tikk 2011).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from nightjar.kernels import taste
from nightjar.kernels.signals import F32, F64, I64

BLOCK_ENTRIES = 1 << 17
"""Likes whose factors are gathered at once, 16 MB at 32 factors; fixed, as the rounding of a BLAS depends on
the shape of its blocks."""

TINY = 1e-12


@dataclass(frozen=True)
class Factorisation:
    """n_factors: of each user and item. confidence: α, what a like counts beyond a pair without one. ridge:
    λ, in likes. sweeps: users, then items, so many times. text_ridge: added to the diagonal in the regression
    from text."""

    n_factors: int = 32
    confidence: float = 10.0
    ridge: float = 10.0
    sweeps: int = 8
    text_ridge: float = 30.0


def item_factors(X: sparse.csr_matrix, how: Factorisation) -> F32:
    """Y (n_items, n_factors) float32 from likes X (n_users, n_items) of ones; 0 for an item without any.

    A user costs some 8 · likes · n_factors multiplications a sweep, an item likewise: linear in the log.
    """
    by_item = X.T.tocsr()
    rng = np.random.default_rng(0)
    items = (rng.standard_normal((X.shape[1], how.n_factors)) * 0.01).astype(np.float32)
    items[np.diff(by_item.indptr) == 0] = 0
    users = np.zeros((X.shape[0], how.n_factors), np.float32)
    for _ in range(how.sweeps):
        users = solve(X, items, users, how)
        items = solve(by_item, users, items, how)
    return items


def solve(X: sparse.csr_matrix, fixed: F32, start: F32, how: Factorisation, n_steps: int = 3) -> F32:
    """The rows that fit X (n, m) best while the factors `fixed` (m, f) of its columns stay: (n, f) float32.

    n_steps of conjugate gradients from `start` (n, f) towards x = (FᵀF + α F_uᵀF_u + λI)⁻¹ (1 + α) F_uᵀ1, F_u
    being the rows of F that u likes.
    """
    gram = fixed.T @ fixed + np.float32(how.ridge) * np.eye(fixed.shape[1], dtype=np.float32)
    found = start.copy()
    for rows, part in _blocks(X.indptr):
        liked = fixed[X.indices[part]]
        indptr = X.indptr[rows.start : rows.stop + 1] - X.indptr[rows.start]
        _steps(found[rows], indptr, liked, gram, how.confidence, n_steps)
    return found


def _steps(found: F32, indptr: I64, liked: F32, gram: F32, confidence: float, n_steps: int) -> None:
    """Improves the rows `found` (q, f) in place; liked: (n, f), the factors of each like, row by row."""
    row = np.repeat(np.arange(len(found)), np.diff(indptr))
    alpha = np.float32(confidence)

    def summed(weights: F32) -> F32:
        """Σ over the likes of each row of weight · factors, (q, f)."""
        entries = weights, np.arange(len(liked)), indptr
        return np.asarray(sparse.csr_matrix(entries, (len(found), len(liked))) @ liked)

    def image(vectors: F32) -> F32:
        return vectors @ gram + summed(alpha * np.einsum("ij,ij->i", vectors[row], liked))

    left = summed(np.full(len(liked), 1 + alpha, np.float32)) - image(found)
    towards, size = left.copy(), np.einsum("ij,ij->i", left, left)
    for _ in range(n_steps):
        moved = image(towards)
        step = size / np.maximum(np.einsum("ij,ij->i", towards, moved), TINY)
        found += step[:, None] * towards
        left -= step[:, None] * moved
        smaller = np.einsum("ij,ij->i", left, left)
        towards = left + (smaller / np.maximum(size, TINY))[:, None] * towards
        size = smaller


def _blocks(indptr: I64) -> Iterator[tuple[slice, slice]]:
    """Runs of rows of at most BLOCK_ENTRIES entries, or of one row: the rows, and their entries."""
    start = 0
    while start < len(indptr) - 1:
        stop = int(np.searchsorted(indptr, indptr[start] + BLOCK_ENTRIES, side="right")) - 1
        stop = max(stop, start + 1)
        yield slice(start, stop), slice(int(indptr[start]), int(indptr[stop]))
        start = stop


def from_text(items: F32, V: F32, known: NDArray[np.bool_], ridge: float) -> F32:
    """Factors of all items, (n_items, f) float32: of those not `known` by ridge regression from their texts.

    V: (n_items, d) float32; the map is fitted on the known items (Gantner et al. 2010, "Learning
    attribute-to-feature mappings for cold-start recommendations").
    """
    gram, towards = ridge * np.eye(V.shape[1]), np.zeros((V.shape[1], items.shape[1]))
    for rows in taste.blocks(len(V)):
        text, mine = np.asarray(V[rows])[known[rows]], items[rows][known[rows]]
        gram += (text.T @ text).astype(np.float64)
        towards += (text.T @ mine).astype(np.float64)
    mapping = np.linalg.solve(gram, towards).astype(np.float32)
    found = items.copy()
    found[~known] = np.asarray(V[~known]) @ mapping
    return found


def alike(items: F32, ridge: float) -> F32:
    """Unit rows (n_items, f) float32 whose cosine says how much liking one item speaks for another; 0 stays.

    Hu et al. explain a score as Σ_j y_iᵀ W y_j over the history with W = (YᵀC_uY + λI)⁻¹. Here C_u is left
    out, so W is the same for all users, and products become cosines: popularity is a source of its own.
    """
    gram = (items.T @ items).astype(np.float64) + ridge * np.eye(items.shape[1])
    values, directions = np.linalg.eigh(gram)
    root = (directions / np.sqrt(np.maximum(values, TINY))).astype(np.float32)
    return taste.unit_rows(items @ root)


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
