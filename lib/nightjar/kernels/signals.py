"""The item–item relations behind a recommendation, and what time says about items.

A relation S gives user u the score Σ_h x_uh · S[h, i] for item i, x being the user's weighted history. So
every relation splits exactly into reasons, any weighted sum of relations does too, and one sparse product
scores all users. Relations are CSR (n_items, n_items) float32, row h the neighbours of item h, at most
`n_neighbours` of them, ties by item number ascending, nothing on the diagonal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import lapack

from nightjar.errors import ConfigError, ContractError
from nightjar.kernels.topk import TopK

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

BLOCK = 512
"""Items whose neighbours are found at once: 512 rows of 100,000 similarities are 200 MB."""

TINY = 1e-9
HALF_LIFE_PLACES = 2.0
"""Steps back at which an item of the history counts half of the newest, for what follows it."""


@dataclass(frozen=True)
class Neighbourhood:
    """How co-occurrence becomes similarity.

    n_neighbours: kept for each item. user_power: a user of n items counts 1/n^user_power, so that busy users
    do not speak loudest (0: everyone alike). shrinkage: added to the denominator, as a share of the mean
    item's weight, against similarities that rest on one user. history_power, target_power: how much the item
    of the history and the item proposed are divided by their weights (½ and ½: cosine).
    """

    n_neighbours: int = 200
    user_power: float = 0.5
    shrinkage: float = 0.3
    history_power: float = 0.5
    target_power: float = 0.5


def co_occurrence(X: sparse.csr_matrix, how: Neighbourhood) -> sparse.csr_matrix:
    """The relation of items that the same users chose; what item-kNN and RP3β have in common.

    X: (n_users, n_items) float32 of weights from 0 up. S[h, i] = c_hi / (w_h^history_power ·
    w_i^target_power + shrinkage · mean w), with c = Xᵀ·diag(n_u^−user_power)·X and w its diagonal. Cosine
    with shrinkage: Sarwar et al. 2001; user and target powers: Paudel et al. 2017 (RP3β). Raises
    ContractError for a weight below 0.
    """
    weight = np.zeros(X.shape[1])
    add_weights(weight, X, how)
    return co_occurrence_rows(X, weight, range(X.shape[1]), how)


def add_weights(weight: F64, X: sparse.csr_matrix, how: Neighbourhood) -> None:
    """Adds to w (n_items,), the diagonal of `co_occurrence`, what the users of X (q, n_items) have in it: in
    their order, so that a log read part by part gives the same sums as the whole.
    """
    if X.nnz and X.data.min() < 0:
        raise ContractError("co-occurrence needs weights from 0 up; leave disliked items out")
    np.add.at(weight, X.indices, _scaled(X, how).data * X.data)


def co_occurrence_rows(
    X: sparse.csr_matrix, weight: F64, items: range, how: Neighbourhood
) -> sparse.csr_matrix:
    """Some rows of `co_occurrence`, (len(items), n_items): those of the items numbered `items`.

    X: (q, n_items) float32, whole rows of all users who chose one of them, others or not; weight: (n_items,)
    as `add_weights` makes it of everybody.
    """
    scaled = _scaled(X, how)
    by_item = X[:, items.start : items.stop].T.tocsr().astype(np.float64)
    present = weight > 0
    shrunk = how.shrinkage * float(weight[present].mean()) if present.any() else 1.0
    left = np.maximum(weight, TINY) ** how.history_power
    right = np.maximum(weight, TINY) ** how.target_power
    rows = [sparse.csr_matrix((0, X.shape[1]), dtype=np.float32)]
    for start in range(0, len(items), BLOCK):
        block = (by_item[start : start + BLOCK] @ scaled).tocsr()
        first = items.start + start
        h = np.repeat(np.arange(first, first + block.shape[0]), np.diff(block.indptr))
        block.data = block.data / (left[h] * right[block.indices] + shrunk)
        rows.append(strongest_others(block, first, how.n_neighbours))
    return sparse.vstack(rows, "csr")


def _scaled(X: sparse.csr_matrix, how: Neighbourhood) -> sparse.csr_matrix:
    lengths = np.maximum(np.diff(X.indptr), 1).astype(np.float64)
    return (sparse.diags(lengths**-how.user_power) @ X.astype(np.float64)).tocsr()


Nearest = Callable[[F32, int], TopK]
"""Unit vectors (n, d) and m -> the m nearest of each row but itself, as `engines.nearest` finds them."""


def cosine_neighbours(
    V: F32, n_neighbours: int, power: float, nearest: Nearest | None = None
) -> sparse.csr_matrix:
    """The relation relu(cos)^power to the nearest items in a space of unit vectors V (n_items, d) float32.

    A power above 1 sharpens: one near neighbour counts for more than many far ones. Without `nearest` they
    are found by a blocked product of n_items² · d multiplications, for small catalogues and as the reference.
    """
    if nearest is not None:
        return _relation(nearest(V, n_neighbours), power)
    rows = []
    for start in range(0, len(V), BLOCK):
        cosines = np.asarray(V[start : start + BLOCK]) @ np.asarray(V).T
        cosines[np.arange(len(cosines)), np.arange(start, start + len(cosines))] = 0
        near = _strongest(np.maximum(cosines, 0), n_neighbours)
        rows.append(top_entries((*near, sharpened(cosines[near], power)), cosines.shape, n_neighbours))
    return sparse.vstack(rows, "csr") if rows else sparse.csr_matrix((0, 0), dtype=np.float32)


def degree_normalised(S: sparse.csr_matrix, power: float = 0.5) -> sparse.csr_matrix:
    """S_hi / (row_h · column_i)^power, times the mean row to the power 2 · power, so that values stay about
    where they were; row_h and column_i are the sums of S.

    S: a relation from 0 up. Of items that are much alike each gets a share of the interest in them, and an
    item of the history that has many near ones divides what it says among them. With ½ the symmetric
    normalisation of Zhou et al. 2004, "Learning with Local and Global Consistency", and of LightGCN.
    """
    if not power or not S.data.any():
        return S
    sums = S.astype(np.float64)
    row, column = np.asarray(sums.sum(axis=1)).ravel(), np.asarray(sums.sum(axis=0)).ravel()
    unit = float(row[row > 0].mean()) ** (2 * power)
    h = np.repeat(np.arange(S.shape[0]), np.diff(S.indptr))
    # A power of a cosine may be too small for float32 and stand as 0, alone in its row: no 0 by 0.
    both = np.maximum(row[h] * column[S.indices], np.finfo(np.float64).tiny)
    values = on_grid(unit * sums.data / both**power)
    return sparse.csr_matrix((values.astype(np.float32), S.indices, S.indptr), S.shape)


def _relation(nearest: TopK, power: float) -> sparse.csr_matrix:
    near = nearest.scores > 0  # nothing is -inf
    indptr = np.concatenate([[0], np.cumsum(near.sum(axis=1))])
    values = sharpened(nearest.scores[near], power).astype(np.float32)
    n_items = len(near)
    out = sparse.csr_matrix((values, nearest.item_nums[near], indptr), (n_items, n_items))
    out.sort_indices()
    return out


def _strongest(strength: NDArray[np.floating], m: int) -> tuple[I64, I64]:
    """Row and column of the entries above 0 that reach the m-th largest of their row, all ties included."""
    width = min(m, strength.shape[1])
    least = -np.partition(-strength, width - 1, axis=1)[:, width - 1 : width]
    row, column = np.nonzero((strength >= least) & (strength > 0))
    return row.astype(np.int64), column.astype(np.int64)


def sharpened(cosines: NDArray[np.floating], power: float) -> F64:
    """relu(cos)^power in float64, on a grid coarse enough that equal pairs get equal values."""
    return on_grid(np.maximum(cosines.astype(np.float64), 0.0) ** power)


def strongest_others(rows: sparse.csr_matrix, start: int, m: int) -> sparse.csr_matrix:
    """The m largest entries above 0 of each row, its own item left out, as float32 CSR; ties by column.

    rows: (b, n_items) float64 CSR, of the items start, start + 1, …; its data is overwritten.
    """
    row, column = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr)), rows.indices.astype(np.int64)
    # Stray multiples of the last bit would let the order of a sum decide between equals: round to a grid.
    rows.data = on_grid(rows.data)
    rows.data[row + start == column] = 0
    kept = _longest(rows, m)
    return top_entries((row[kept], column[kept], rows.data[kept]), rows.shape, m)


def _longest(rows: sparse.csr_matrix, m: int) -> NDArray[np.bool_]:
    """Which entries are above 0 and reach the m-th largest of their row, ties included: (nnz,) bool.

    A partition of each long row costs a tenth of sorting all entries of a block.
    """
    kept: NDArray[np.bool_] = rows.data > 0
    for row in np.flatnonzero(np.diff(rows.indptr) > m):
        part = slice(rows.indptr[row], rows.indptr[row + 1])
        kept[part] &= rows.data[part] >= -np.partition(-rows.data[part], m - 1)[m - 1]
    return kept


def ease(X: sparse.csr_matrix, ridge: float, n_neighbours: int) -> sparse.csr_matrix:
    """The closed-form linear autoencoder of Steck 2019 (arXiv 1905.03375), its strongest weights of each row.

    X: (n_users, n_items) float32. ridge: λ added to the diagonal of XᵀX, in users. Needs 8 bytes · n_items²
    and n_items³ multiplications: for catalogues of some 10,000 items. Items nobody chose get neither row nor
    column. Weights below 0 are kept where they are among the strongest: they say what does not go together.
    """
    used, inverse = inverse_gram(X, ridge)
    if not len(used):
        return sparse.csr_matrix((X.shape[1], X.shape[1]), dtype=np.float32)
    scale = -1.0 / np.diag(inverse).astype(np.float64)
    rows = []
    for start in range(0, len(used), BLOCK):
        weights = inverse[start : start + BLOCK] * scale
        weights[np.arange(len(weights)), np.arange(start, start + len(weights))] = 0
        row, column = _strongest(np.abs(weights), n_neighbours)
        entries = row, used[column], on_grid(weights[row, column])
        rows.append(top_entries(entries, (len(weights), X.shape[1]), n_neighbours))
    small = sparse.vstack(rows, "csr")
    indptr = np.zeros(X.shape[1] + 1, np.int64)
    indptr[used + 1] = np.diff(small.indptr)
    return sparse.csr_matrix((small.data, small.indices, np.cumsum(indptr)), (X.shape[1], X.shape[1]))


def inverse_gram(X: sparse.csr_matrix, ridge: float) -> tuple[I64, F32]:
    """What EASE is read off: the m items somebody chose, and (XᵀX + λI)⁻¹ among them, (m, m) float32.

    The weight from item i to j ≠ i is −P_ij / P_jj. Raises ConfigError for a ridge that gives no inverse.
    """
    if ridge <= 0:
        raise ConfigError(
            f"the ridge of EASE must be above 0, not {ridge}; without it the inverse may not exist"
        )
    used = np.flatnonzero(np.asarray((X != 0).sum(axis=0)).ravel())
    if not len(used):
        return used, np.zeros((0, 0), np.float32)
    gram = (X[:, used].T @ X[:, used]).toarray().astype(np.float32, order="F")
    gram[np.diag_indices_from(gram)] += np.float32(ridge)
    return used, _inverse(gram)


def _inverse(gram: F32) -> F32:
    """The inverse of a symmetric positive definite matrix (Fortran order, overwritten), by Cholesky in
    float32.
    """
    factor, fault = lapack.spotrf(gram, lower=0, overwrite_a=1, clean=0)
    if fault == 0:
        inverse, fault = lapack.spotri(factor, lower=0, overwrite_c=1)
    if fault:
        raise ConfigError("the ridge of EASE is too small for float32; raise it")
    upper = np.triu(inverse)
    upper += np.triu(inverse, 1).T
    return np.ascontiguousarray(upper)


def borrowed(
    S: sparse.csr_matrix, near: sparse.csr_matrix, cold: NDArray[np.bool_], m: int
) -> sparse.csr_matrix:
    """Columns for items nobody chose yet, borrowed from their text neighbours among those somebody did.

    S: a relation learnt from behaviour; near: a text relation; cold: (n_items,) bool. The column of a cold
    item is the mean of its warm neighbours' columns, weighted by `near`; of each row the m strongest of these
    are kept. Warm columns stay as they are.
    """
    give = near[cold].copy().tocsr()
    give.data = np.where(cold[give.indices], 0.0, give.data).astype(np.float64)
    give.eliminate_zeros()
    totals = np.asarray(give.sum(axis=1)).ravel()
    mean = (sparse.diags(1.0 / np.maximum(totals, TINY)) @ give).T.tocsr()
    numbers = np.flatnonzero(cold)
    rows = []
    for start in range(0, S.shape[0], BLOCK):
        lent = (S[start : start + BLOCK].astype(np.float64) @ mean).tocsr()
        row = np.repeat(np.arange(lent.shape[0]), np.diff(lent.indptr))
        other = (row + start != numbers[lent.indices]) & _longest(lent, m)
        entries = row[other], numbers[lent.indices[other]], on_grid(lent.data[other])
        rows.append(top_entries(entries, (lent.shape[0], S.shape[1]), m))
    out = (S + sparse.vstack(rows, "csr")).astype(np.float32).tocsr() if rows else S
    out.sort_indices()
    return out


def both_ways(S: sparse.csr_matrix, cold: NDArray[np.bool_], m: int) -> sparse.csr_matrix:
    """Columns for items nobody chose yet, completed from their own rows.

    S: a relation of cosines; cold: (n_items,) bool. A warm row has an item only if it is among the m nearest
    of that row, so an item that is nobody's near neighbour is found by nobody, however near some are to it. A
    cold one is therefore also in the rows of its own m nearest that are warm; of each row the m strongest of
    what is added are kept.
    """
    numbers = np.flatnonzero(cold)
    own = S[numbers].tocoo()
    warm = ~cold[own.col]
    lent = sparse.csr_matrix((own.data[warm], (own.col[warm], numbers[own.row[warm]])), S.shape)
    rows = [sparse.csr_matrix((0, S.shape[1]), dtype=np.float32)]
    for start in range(0, S.shape[0], BLOCK):
        block = lent[start : start + BLOCK].astype(np.float64)
        added = block - block.multiply(S[start : start + BLOCK] != 0)
        rows.append(strongest_others(added.tocsr(), start, m))
    out = (S + sparse.vstack(rows, "csr")).astype(np.float32).tocsr()
    out.sort_indices()
    return out


Entries = tuple[I64, I64, F64]
"""row, column, value of the entries of a sparse matrix, in any order, no pair twice."""


def top_entries(entries: Entries, shape: tuple[int, int], m: int) -> sparse.csr_matrix:
    """The m entries of each row that are largest in absolute value, ties by column ascending, as float32
    CSR.
    """
    row, column, value = entries
    order = np.lexsort((column, -np.abs(value), row))
    row, column, value = row[order], column[order], value[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    kept = place < m
    out = sparse.csr_matrix((value[kept].astype(np.float32), (row[kept], column[kept])), shape)
    out.sort_indices()
    return out


def on_grid(values: NDArray[np.floating]) -> F64:
    """float64 rounded to 20 bits of mantissa, so that sums added in another order come out equal."""
    mantissa, exponent = np.frexp(np.asarray(values, np.float64))
    rounded: F64 = np.ldexp(np.round(mantissa * 2.0**20), exponent - 20)
    return rounded


def decay(age_days: NDArray[np.floating], half_life_days: float | None) -> F64:
    """2^(−age / half-life) of ages in days, float64; 1 everywhere for a half-life of None."""
    if half_life_days is None:
        return np.ones(len(age_days))
    return np.exp2(-np.asarray(age_days, np.float64) / half_life_days)


class Fading(NamedTuple):
    """How what a user did counts by its age: floor + (1 − floor) · 2^(−age / half-life).

    half_life_days: None counts everything alike; floor: 0 to 1, what is left however long ago it was.
    """

    half_life_days: float | None = None
    floor: float = 0.0

    def left(self, age_days: NDArray[np.floating]) -> F64:
        """What is left at ages in days, float64; more than 1 at an age below 0."""
        return self.floor + (1 - self.floor) * decay(age_days, self.half_life_days)


def newness(user: I64, age: F64) -> F64:
    """2^(−places / 2) of a user's items, (n,) float64: places counts their distinct newer times.

    user: (n,) codes in any order; age: (n,), smaller is newer. Steps, not days: what matters is what came
    last, whether an hour or a year ago.
    """
    order = np.lexsort((age, user))
    who, when = user[order], age[order]
    again = np.r_[False, who[1:] == who[:-1]][: len(who)]
    steps = np.cumsum(again & np.r_[False, when[1:] != when[:-1]][: len(who)])
    starts = np.maximum.accumulate(np.where(again, 0, steps))
    places = np.empty(len(who))
    places[order] = steps - starts
    found: F64 = np.exp2(-places / HALF_LIFE_PLACES)
    return found


def freshness(recent: F64, ever: F64, prior: float = 5.0) -> F64:
    """How much of an item's following is recent, (n_items,) float64, relative to the catalogue's average.

    recent: for each item the decayed count of the users who chose it; ever: the count itself. The ratio is
    pulled towards the catalogue's by `prior` users, so that 1 is an item neither rising nor falling, an item
    nobody chose is 1, and one that went out of fashion (or of stock) tends to 0.
    """
    total = float(ever.sum())
    if total <= 0 or recent.sum() <= 0:
        return np.ones(len(ever))
    share = float(recent.sum()) / total
    return (recent + prior * share) / (share * (ever + prior))
