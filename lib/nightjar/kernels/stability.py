"""Says how much each user's list changed since the previous night."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nightjar.errors import ConfigError, ContractError
from nightjar.kernels.ranked_lists import (
    FloatArray,
    IntArray,
    check_ks,
    check_lists,
    check_no_repeats,
    lengths_at,
    row_blocks,
)

# Webber et al.'s usual p: the first ten ranks carry 86% of the weight.
PERSISTENCE = 0.9
# Pairs of slots compared at once: 2^22 bool are 4 MiB.
PAIR_SLOTS = 1 << 22


def stability(
    lists: npt.NDArray[np.integer],
    previous: npt.NDArray[np.integer],
    ks: Sequence[int],
    persistence: float = PERSISTENCE,
) -> dict[str, FloatArray]:
    """Compares each user's list with the same user's list of another night.

    lists, previous: (n, w) and (n, w') integers, -1 padding at the end; row r is the same user in both and
    item numbers mean the same items (numbers are valid for one night only, so map the old list to the new
    ones first).
    Returns {name: (n,) float64}, 1 for the same list, 0 for nothing in common or one list empty, NaN for
    both empty:
      RBO@k      rank-biased overlap of the first k, extrapolated beyond the end (Webber, Moffat & Zobel 2010,
                 doi:10.1145/1852102.1852106, equation 32, which also holds for lists of unequal length)
      Jaccard@k  items in both / items in either, within the first k
    Raises ContractError for malformed lists, repeats or unequal row counts, ConfigError for p outside (0, 1).
    """
    if not 0.0 < persistence < 1.0:
        raise ConfigError(f"persistence of RBO must lie between 0 and 1, not {persistence}")
    now, before = check_lists(lists), check_lists(previous)
    if len(now) != len(before):
        raise ContractError(
            f"cannot compare {len(now)} lists with {len(before)} of another night; align the users"
        )
    check_no_repeats(now)
    check_no_repeats(before)
    metrics: dict[str, FloatArray] = {}
    for k in check_ks(ks):
        shared = shared_by_depth(now, before, k)
        lengths = lengths_at(now, k), lengths_at(before, k)
        metrics[f"RBO@{k}"] = rank_biased_overlap(shared, *lengths, persistence)
        union = lengths[0] + lengths[1] - shared[:, -1]
        metrics[f"Jaccard@{k}"] = np.divide(
            shared[:, -1], union, out=np.full(len(now), np.nan), where=union > 0
        )
    return metrics


def shared_by_depth(first: IntArray, second: IntArray, k: int) -> IntArray:
    """Items that stand among the first d of both checked rows, (n, k) int64 for d = 1…k."""
    shared = np.zeros((len(first), k), dtype=np.int64)
    width = min(k, first.shape[1]) * min(k, second.shape[1])
    for start, stop in row_blocks(len(first), width, PAIR_SLOTS):
        a, b = first[start:stop, :k, None], second[start:stop, None, :k]
        row, at_first, at_second = np.nonzero((a == b) & (a >= 0))
        depth = np.maximum(at_first, at_second)
        new = np.bincount(row * k + depth, minlength=(stop - start) * k).reshape(stop - start, k)
        shared[start:stop] = np.cumsum(new, axis=1)
    return shared


def rank_biased_overlap(
    shared: IntArray, n_first: IntArray, n_second: IntArray, persistence: float
) -> FloatArray:
    """Extrapolates rank-biased overlap from the overlap at each depth.

    shared: (n, k) int64 of `shared_by_depth`; n_first, n_second: (n,) lengths of the lists, at most k.
    Returns (n,) float64, NaN where both lists are empty.
    """
    k = shared.shape[1]
    short, long = np.minimum(n_first, n_second)[:, None], np.maximum(n_first, n_second)[:, None]
    depth = np.arange(1, k + 1, dtype=np.int64)[None, :]
    weight = persistence**depth
    at_short = _at_depth(shared, short)
    share_of_short = at_short / np.maximum(short, 1)
    seen = np.where(depth <= long, shared / depth, 0.0)
    # Beyond its end the short list is assumed to agree as it did up to there.
    assumed = np.where((depth > short) & (depth <= long), share_of_short * (depth - short) / depth, 0.0)
    body = (1 - persistence) / persistence * ((seen + assumed) * weight).sum(axis=1, keepdims=True)
    unseen = (_at_depth(shared, long) - at_short) / np.maximum(long, 1) + share_of_short
    overlap = body + unseen * persistence**long
    overlap[short == 0] = 0.0
    overlap[long == 0] = np.nan
    result: FloatArray = overlap[:, 0]
    return result


def _at_depth(shared: IntArray, depth: IntArray) -> IntArray:
    return np.where(depth > 0, np.take_along_axis(shared, np.maximum(depth - 1, 0), axis=1), 0)
