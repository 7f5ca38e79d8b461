"""Says how accurate ranked lists are, user by user, against what the users went on to choose.

The same name means different numbers in different libraries, so the conventions are fixed here. On the toy
example (user 1: five relevant a-e, list [a, b]; user 2: one relevant a, list [x, a]; k = 2) this module
gives Recall 0.70, CappedRecall 1.00, nDCG 0.8155, MAP 0.45 and MAP(min) 0.75.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nightjar.errors import ContractError
from nightjar.kernels.ranked_lists import (
    Csr,
    FloatArray,
    IntArray,
    check_csr,
    check_ks,
    check_lists,
    entry_rows,
    row_blocks,
)


class Hits(NamedTuple):
    """Every hit of every list, by row and then rank: three arrays of one length.

    `row` int64; `rank` int64, counted from 1; `ordinal` int64, 1 for a row's first hit, 2 for its second …
    """

    row: IntArray
    rank: IntArray
    ordinal: IntArray


def accuracy(lists: npt.NDArray[np.integer], truth: Csr, ks: Sequence[int]) -> dict[str, FloatArray]:
    """Scores each user's ranked list against the items that the user chose afterwards.

    lists: (n, w) integers, best first, -1 padding at the end of a row. truth: CSR of the relevant items,
    ascending and unique per row. ks: cut-offs; one longer than w counts the missing slots as misses.

    Returns {name: (n,) float64}, binary relevance, log base 2 (trec_eval's conventions,
    https://trec.nist.gov):
      Precision@k     hits / k, also where the list is shorter
      Recall@k        hits / |Rel|
      CappedRecall@k  hits / min(k, |Rel|)
      HitRate@k       1 where hits > 0
      nDCG@k          sum over hits of 1/log2(rank + 1), over the same sum for ranks 1…min(k, |Rel|)
      MAP@k           sum over hits of precision at that rank, over |Rel|;  MAP@k(min) over min(k, |Rel|)
      MRR@k           1 / rank of the first hit, 0 without one
    A user with truth and no list scores 0. A user without truth is not eligible and scores NaN: leave these
    out of means (`eligible`). Raises ContractError for malformed lists or truth and for an item that hits
    twice in a row.
    """
    lists, cutoffs = check_lists(lists), check_ks(ks)
    truth = check_csr(truth, len(lists), "truth")
    n_relevant = np.diff(truth[0]).astype(np.float64)
    n_relevant[n_relevant == 0] = np.nan
    hits = find_hits(lists[:, : cutoffs[-1]], truth)
    ideal_dcg = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, cutoffs[-1] + 2)))])
    metrics: dict[str, FloatArray] = {}
    for k in cutoffs:
        metrics |= _accuracy_at(k, hits, n_relevant, ideal_dcg)
    return metrics


def _accuracy_at(k: int, hits: Hits, n_relevant: FloatArray, ideal_dcg: FloatArray) -> dict[str, FloatArray]:
    within = hits.rank <= k
    row, rank, ordinal = hits.row[within], hits.rank[within], hits.ordinal[within]

    def total(gain: FloatArray | None) -> FloatArray:
        # bincount adds in input order (row, then rank), so a user's sum never depends on other users.
        summed = np.bincount(row, weights=gain, minlength=len(n_relevant)).astype(np.float64)
        summed[np.isnan(n_relevant)] = np.nan
        return summed

    n_hits, precision = total(None), total(ordinal / rank)
    capped = np.minimum(n_relevant, k)
    best = ideal_dcg[np.nan_to_num(capped).astype(np.int64)]
    return {
        f"Precision@{k}": n_hits / k,
        f"Recall@{k}": n_hits / n_relevant,
        f"CappedRecall@{k}": n_hits / capped,
        f"HitRate@{k}": np.minimum(n_hits, 1.0),
        f"nDCG@{k}": total(1.0 / np.log2(rank + 1.0)) / np.where(best > 0, best, 1.0),
        f"MAP@{k}": precision / n_relevant,
        f"MAP@{k}(min)": precision / capped,
        f"MRR@{k}": total(np.where(ordinal == 1, 1.0 / rank, 0.0)),
    }


def find_hits(lists: IntArray, truth: Csr) -> Hits:
    """Finds where lists name a relevant item, for lists and truth already checked.

    lists: (n, w) int64 with -1 padding; truth: CSR, ascending per row. Costs one binary search a slot
    within the truth of its block of rows. Raises ContractError when a row hits the same item twice.
    """
    indptr, relevant = truth
    found: list[tuple[IntArray, IntArray]] = []
    for start, stop in row_blocks(len(lists), lists.shape[1]):
        items = relevant[indptr[start] : indptr[stop]]
        if len(items) == 0:
            continue
        n_codes = int(items.max()) + 1
        keys = entry_rows(indptr[start : stop + 1] - indptr[start]) * n_codes + items
        block = lists[start:stop]
        row, column = np.nonzero((block >= 0) & (block < n_codes))
        wanted = row * n_codes + block[row, column]
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        hit = keys[at] == wanted
        if len(np.unique(at[hit])) < np.count_nonzero(hit):
            seen, count = np.unique(at[hit], return_counts=True)
            twice = start + int(keys[seen[count > 1][0]] // n_codes)
            raise ContractError(
                f"list of row {twice} names a relevant item twice; an item may stand once in a list"
            )
        found.append((row[hit] + start, column[hit] + 1))
    if not found:
        none = np.zeros(0, dtype=np.int64)
        return Hits(none, none, none)
    rows = np.concatenate([row for row, _ in found])
    ranks = np.concatenate([rank for _, rank in found])
    first = np.searchsorted(rows, rows)
    return Hits(rows, ranks, np.arange(len(rows), dtype=np.int64) - first + 1)


def eligible(values: FloatArray) -> FloatArray:
    """The values of the users a metric can be measured on: those that are not NaN, in their order."""
    return values[~np.isnan(values)]


def rating_errors(predicted: FloatArray, actual: FloatArray) -> dict[str, float]:
    """Mean absolute and root mean squared error over ratings, in the unit of the ratings.

    predicted, actual: (n,) float, a rating each. Returns {"MAE", "RMSE"}, NaN where there is no rating.
    Raises ContractError when the shapes differ or a value is not finite.
    """
    if predicted.shape != actual.shape or predicted.ndim != 1:
        raise ContractError(
            f"predicted {predicted.shape} and actual {actual.shape} ratings must be arrays of one length"
        )
    difference = predicted.astype(np.float64) - actual.astype(np.float64)
    if not np.isfinite(difference).all():
        raise ContractError("a predicted or actual rating is not finite; drop or impute it before measuring")
    if len(difference) == 0:
        return {"MAE": float("nan"), "RMSE": float("nan")}
    return {"MAE": float(np.mean(np.abs(difference))), "RMSE": float(np.sqrt(np.mean(difference**2)))}
