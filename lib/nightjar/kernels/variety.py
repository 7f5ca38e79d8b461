"""Says what each user's list looks like inside: how varied it is, and whether it fits the user's mix.

ILD is measured on raw text embeddings and on categories, so that it is not judged only in the space that the
ranking itself optimised.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from scipy.special import rel_entr

from nightjar.errors import ConfigError, ContractError
from nightjar.kernels.ranked_lists import (
    Csr,
    FloatArray,
    IntArray,
    check_csr,
    check_ks,
    check_lists,
    check_no_repeats,
    lengths_at,
    row_blocks,
)

# A block of 2^14 slots holds at most 2^14 distinct vectors: 50 MB in float64 at 384 dimensions.
VECTOR_SLOTS = 1 << 14
# A list whose items share one category yields k^2 pairs: 2^21 pairs of three 8-byte arrays are 50 MB.
PAIR_SLOTS = 1 << 21
# Users' category mixes at once: 2^20 float64 are 8 MiB.
MIX_SLOTS = 1 << 20
# Smoothing weight of Steck 2018, section 3.2.
CALIBRATION_ALPHA = 0.01


def ild_of_vectors(
    lists: npt.NDArray[np.integer], vectors: npt.NDArray[np.floating], ks: Sequence[int]
) -> dict[str, FloatArray]:
    """Measures intra-list diversity on item vectors: the mean of 1 - cosine over all pairs of a list.

    lists: (n, w) integers, -1 padding at the end. vectors: (n_items, d) floats, of any length, an array or
    a memmap of which a block at a time is read; a zero vector is at distance 1 from every other.
    Returns {"ILD@k": (n,) float64} from 0 to 2, NaN for a list with fewer than two items (Ziegler et al.
    2005, doi:10.1145/1060745.1060754). Raises ContractError for malformed lists, repeats or a vector that
    is not finite.
    """
    lists, cutoffs = check_lists(lists, len(vectors)), check_ks(ks)
    check_no_repeats(lists)
    metrics = {f"ILD@{k}": np.full(len(lists), np.nan) for k in cutoffs}
    for start, stop in row_blocks(len(lists), min(cutoffs[-1], lists.shape[1]), VECTOR_SLOTS):
        block = lists[start:stop, : cutoffs[-1]]
        items, position = np.unique(block[block >= 0], return_inverse=True)
        local = np.full(block.shape, -1, dtype=np.int64)
        local[block >= 0] = position
        unit = _unit_rows(vectors[items], items)
        for k in cutoffs:
            similar = _cosine_of_pairs(local[:, :k], unit)
            metrics[f"ILD@{k}"][start:stop] = _mean_distance(similar, lengths_at(block, k), 2.0)
    return metrics


def _unit_rows(vectors: npt.NDArray[np.floating], items: IntArray) -> FloatArray:
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        bad = int(items[np.argmin(np.isfinite(norms[:, 0]))])
        raise ContractError(f"vector of item number {bad} is not finite; encode it again")
    unit: FloatArray = wide / np.where(norms > 0, norms, 1.0)
    return unit


def _cosine_of_pairs(local: IntArray, unit: FloatArray) -> FloatArray:
    # The pairs' cosines add up to (|sum v|^2 - sum |v|^2) / 2, so a list costs k·d instead of k^2·d.
    members = _membership(local, len(unit))
    squared_norms = np.einsum("ij,ij->i", unit, unit)
    summed = members @ unit
    similar: FloatArray = (np.einsum("ij,ij->i", summed, summed) - members @ squared_norms) / 2
    return similar


def _membership(lists: IntArray, n_items: int) -> csr_matrix:
    indptr = np.concatenate([[0], np.cumsum(np.count_nonzero(lists >= 0, axis=1))])
    items = lists[lists >= 0]
    return csr_matrix((np.ones(len(items)), items, indptr), shape=(len(lists), n_items))


def _mean_distance(similar: FloatArray, lengths: IntArray, largest: float) -> FloatArray:
    pairs = lengths * (lengths - 1) / 2
    mean = np.divide(similar, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    distance: FloatArray = np.clip(1.0 - mean, 0.0, largest)
    return distance


def ild_of_categories(
    lists: npt.NDArray[np.integer], categories: Csr, ks: Sequence[int]
) -> dict[str, FloatArray]:
    """Measures intra-list diversity on category sets: the mean Jaccard distance over all pairs of a list.

    lists: (n, w) integers, -1 padding at the end. categories: CSR with a row for every item, ascending
    category numbers. Two items without any category count as alike (distance 0), so missing metadata never
    looks diverse.
    Returns {"ILD@k(categories)": (n,) float64} from 0 to 1, NaN for a list with fewer than two items.
    Raises ContractError for malformed lists or categories, or repeats.
    """
    categories = check_csr(categories, len(categories[0]) - 1, "categories")
    lists, cutoffs = check_lists(lists, len(categories[0]) - 1), check_ks(ks)
    check_no_repeats(lists)
    metrics = {f"ILD@{k}(categories)": np.full(len(lists), np.nan) for k in cutoffs}
    for k in cutoffs:
        width = min(k, lists.shape[1])
        for start, stop in row_blocks(len(lists), width * width, PAIR_SLOTS):
            block = lists[start:stop, :k]
            similar = _jaccard_of_pairs(block, categories)
            metrics[f"ILD@{k}(categories)"][start:stop] = _mean_distance(similar, lengths_at(block, k), 1.0)
    return metrics


def _jaccard_of_pairs(block: IntArray, categories: Csr) -> FloatArray:
    indptr, values = categories
    row, _ = np.nonzero(block >= 0)
    items = block[block >= 0]
    size = indptr[items + 1] - indptr[items]
    slot = np.repeat(np.arange(len(items)), size)
    entry = np.arange(len(slot)) - np.repeat(np.cumsum(size) - size, size) + np.repeat(indptr[items], size)
    # A column is one category within one row, so only slots of the same list can meet in the product.
    column = row[slot] * (int(values.max(initial=0)) + 1) + values[entry]
    distinct, column = np.unique(column, return_inverse=True)
    sets = csr_matrix((np.ones(len(slot)), (slot, column)), shape=(len(items), len(distinct)))
    shared = (sets @ sets.T).tocoo()
    upper = shared.row < shared.col
    a, b, n_shared = shared.row[upper], shared.col[upper], shared.data[upper]
    similar = np.bincount(row[a], weights=n_shared / (size[a] + size[b] - n_shared), minlength=len(block))
    n_bare = np.bincount(row[size == 0], minlength=len(block))
    total: FloatArray = similar + n_bare * (n_bare - 1) / 2
    return total


def calibration(
    lists: npt.NDArray[np.integer],
    history: Csr,
    categories: Csr,
    ks: Sequence[int],
    weights: FloatArray | None = None,
    alpha: float = CALIBRATION_ALPHA,
) -> dict[str, FloatArray]:
    """Measures how far the category mix of each user's list is from that of the user's history.

    lists: (n, w) integers, -1 padding at the end. history: CSR of each user's items, ascending. categories:
    CSR with a row for every item; an item's weight is spread evenly over its categories, one without any
    adds nothing. weights: (n_history_entries,) above 0, of each history entry, 1 where not given; slots of
    the list weigh alike.
    Returns {"Calibration@k": (n,) float64} in nats: KL(p || (1 - alpha)·q + alpha·p), p the mix of the
    history and q of the list, 0 for the same mix and at most -ln(alpha) (Steck 2018,
    doi:10.1145/3240323.3240372). NaN where the history or the list has no item with a category.
    Raises ContractError for malformed lists or sets, ConfigError for alpha outside (0, 1].
    """
    if not 0.0 < alpha <= 1.0:
        raise ConfigError(f"alpha of Calibration must lie above 0 and at most at 1, not {alpha}")
    categories = check_csr(categories, len(categories[0]) - 1, "categories")
    history = check_csr(history, len(lists), "history")
    lists, cutoffs = check_lists(lists, len(categories[0]) - 1), check_ks(ks)
    shares = _category_shares(categories)
    weighted = _weighted_history(history, weights, shares.shape[0])
    metrics = {f"Calibration@{k}": np.full(len(lists), np.nan) for k in cutoffs}
    for start, stop in row_blocks(len(lists), shares.shape[1], MIX_SLOTS):
        wanted = _mix(weighted[start:stop] @ shares)
        for k in cutoffs:
            shown = _mix(_membership(lists[start:stop, :k], shares.shape[0]) @ shares)
            divergence = rel_entr(wanted, (1 - alpha) * shown + alpha * wanted).sum(axis=1)
            metrics[f"Calibration@{k}"][start:stop] = np.maximum(divergence, 0.0)
    return metrics


def _category_shares(categories: Csr) -> csr_matrix:
    indptr, values = categories
    n_categories = np.diff(indptr)
    share = np.repeat(1.0 / np.maximum(n_categories, 1), n_categories)
    return csr_matrix((share, values, indptr), shape=(len(n_categories), int(values.max(initial=0)) + 1))


def _weighted_history(history: Csr, weights: FloatArray | None, n_items: int) -> csr_matrix:
    indptr, items = history
    given = np.ones(len(items)) if weights is None else weights.astype(np.float64)
    if given.shape != items.shape or not (np.isfinite(given) & (given > 0)).all():
        raise ContractError(f"history needs {len(items)} weights, finite and above 0, one an entry")
    if len(items) and items.max() >= n_items:
        raise ContractError(f"history names item number {items.max()}, but categories has {n_items} rows")
    return csr_matrix((given, items, indptr), shape=(len(indptr) - 1, n_items))


def _mix(mass: csr_matrix) -> FloatArray:
    dense: FloatArray = mass.toarray()
    total = dense.sum(axis=1, keepdims=True)
    mix: FloatArray = np.divide(dense, total, out=np.full(dense.shape, np.nan), where=total > 0)
    return mix
