"""Says how sure a mean over users is, and whether one method really beats another for the same users.

Users are the unit of resampling. Every figure depends on the values and the seed alone, never on the order
of the users or on how they were split into partitions.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nightjar.errors import ConfigError, ContractError
from nightjar.kernels.ranked_lists import FloatArray, IntArray

# Draws made at once: 2^20 int64 counts or indices are 8 MiB.
CHUNK_DRAWS = 1 << 20
# A binomial draw costs about as much as this many uniform draws with look-up (110-200 ns to 10 ns).
BINOMIAL_COST = 16


class Interval(NamedTuple):
    """A mean with the bounds of its confidence interval, in the unit of the values."""

    mean: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """The mean of a - b over users, its confidence interval, effect size and p-value."""

    difference: float
    low: float
    high: float
    effect_size: float
    p_value: float


def bootstrap_mean(
    values: npt.NDArray[np.floating], n_resamples: int, seed: int, level: float = 0.95
) -> Interval:
    """Bounds the mean over users by the percentile bootstrap (Efron & Tibshirani 1993, chapter 13).

    values: (n,) floats, a user each; NaN marks a user the metric does not apply to, and is left out. level:
    share of intervals that hold the true mean, in the long run. Returns (mean, low, high).
    Raises ContractError when no user is left, ConfigError for bad n_resamples or level.
    """
    used = _checked(values, "values")
    if len(used) == 0:
        raise ContractError("no user to take a mean over: every value is NaN or there is none")
    means = resampled_means(used[:, None], n_resamples, seed)[:, 0]
    return Interval(_mean(used), *_percentiles(means, level))


def paired_difference(
    a: npt.NDArray[np.floating],
    b: npt.NDArray[np.floating],
    n_resamples: int,
    seed: int,
    level: float = 0.95,
) -> PairedDifference:
    """Compares two methods on the same users: the mean of a - b by the percentile bootstrap over users.

    a, b: (n,) floats, row r the same user in both; a user is left out when NaN in both. Returns
      difference, low, high: the mean of a - b and its interval
      effect_size: Cohen's d_z, the mean over the standard deviation (n - 1) of the differences; 0 when all
        are 0, and infinite when all are the same other number
      p_value: two-sided, twice the share of resampled means on the far side of 0 (those at 0 included), one
        added to both counts (Davison & Hinkley 1997, 4.2), so it agrees with the interval and is never 0
    Raises ContractError when fewer than two users are left or NaN stands in one of a and b only,
    ConfigError for bad n_resamples or level.
    """
    first, second = _paired(a, b)
    differences = first - second
    if len(differences) < 2:
        raise ContractError(f"a paired difference needs at least two users, not {len(differences)}")
    means = resampled_means(differences[:, None], n_resamples, seed)[:, 0]
    mean, deviation = _mean(differences), float(np.std(np.sort(differences), ddof=1))
    if differences.min() == differences.max():
        effect = float(np.sign(mean)) * float("inf") if mean else 0.0
    else:
        effect = mean / deviation
    beyond = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    p_value = min(1.0, 2.0 * (beyond + 1) / (n_resamples + 1))
    return PairedDifference(mean, *_percentiles(means, level), effect, p_value)


def paired_ratio(
    a: npt.NDArray[np.floating],
    b: npt.NDArray[np.floating],
    n_resamples: int,
    seed: int,
    level: float = 0.95,
) -> Interval:
    """Bounds the lift mean(a) / mean(b) of one method over another on the same users, resampled together.

    a, b as in `paired_difference`, from 0 up. Returns (ratio, low, high); high is infinite where resamples
    have mean(b) = 0. Raises ContractError when the mean of b is 0 or a value is below 0.
    """
    both = np.stack(_paired(a, b), axis=1)
    if len(both) == 0 or both.min() < 0:
        raise ContractError("a ratio of means needs at least one user and no value below 0")
    if both[:, 1].max() == 0:
        raise ContractError("the method compared with scores 0 for every user, so a ratio to it has no value")
    means = resampled_means(both, n_resamples, seed)
    ratios = np.divide(means[:, 0], means[:, 1], out=np.full(len(means), np.inf), where=means[:, 1] > 0)
    return Interval(_mean(both[:, 0]) / _mean(both[:, 1]), *_percentiles(ratios, level))


def resampled_means(values: FloatArray, n_resamples: int, seed: int) -> FloatArray:
    """Draws the means of bootstrap samples of users, (n_resamples, c) float64.

    values: (n, c) float64, a user a row; all c figures of a user are drawn together. A sample is n users
    drawn with replacement, so how often each distinct row is drawn is multinomial: with few distinct rows
    (HitRate has two) a sample costs their number instead of n. Memory is bounded whatever n; 1M users take
    seconds for 1,000 samples.
    """
    if n_resamples < 1:
        raise ConfigError(f"a bootstrap needs at least one resample, not {n_resamples}")
    rows, counts = _distinct_rows(values)
    rng = np.random.default_rng(seed)
    if len(rows) * BINOMIAL_COST <= len(values):
        return _means_by_counts(rows, counts, n_resamples, rng)
    return _means_by_index(np.repeat(rows, counts, axis=0), n_resamples, rng)


def _distinct_rows(values: FloatArray) -> tuple[FloatArray, IntArray]:
    # Sorted rows make the result independent of the order in which users arrive.
    ordered = values[np.lexsort(values.T[::-1])]
    new = np.ones(len(ordered), dtype=np.bool_)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    starts = np.flatnonzero(new)
    return ordered[starts], np.diff(np.append(starts, len(ordered)))


def _means_by_counts(
    rows: FloatArray, counts: IntArray, n_resamples: int, rng: np.random.Generator
) -> FloatArray:
    n = int(counts.sum())
    step = max(1, CHUNK_DRAWS // len(rows))
    means = np.empty((n_resamples, rows.shape[1]))
    for start in range(0, n_resamples, step):
        size = min(step, n_resamples - start)
        drawn = rng.multinomial(n, counts / n, size=size)
        # einsum adds in one order on every machine; the order of a BLAS product depends on threads.
        means[start : start + size] = np.einsum("br,rc->bc", drawn, rows) / n
    return means


def _means_by_index(ordered: FloatArray, n_resamples: int, rng: np.random.Generator) -> FloatArray:
    n = len(ordered)
    totals = np.zeros((n_resamples, ordered.shape[1]))
    for resample in range(n_resamples):
        for start in range(0, n, CHUNK_DRAWS):
            drawn = rng.integers(0, n, size=min(CHUNK_DRAWS, n - start), dtype=np.int64)
            totals[resample] += ordered[drawn].sum(axis=0)
    return totals / n


def _percentiles(means: FloatArray, level: float) -> tuple[float, float]:
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level of an interval must lie between 0 and 1, not {level}")
    # Outward to the next resample: no interpolation, which would turn an infinite ratio into NaN.
    tail = (1.0 - level) / 2
    low = np.quantile(means, tail, method="lower")
    return float(low), float(np.quantile(means, 1.0 - tail, method="higher"))


def _mean(values: FloatArray) -> float:
    return float(np.mean(np.sort(values)))


def _checked(values: npt.NDArray[np.floating], name: str) -> FloatArray:
    wide = np.asarray(values, dtype=np.float64)
    if wide.ndim != 1 or np.isinf(wide).any():
        raise ContractError(f"{name} must be one finite number (or NaN) a user, in one dimension")
    return wide[~np.isnan(wide)]


def _paired(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> tuple[FloatArray, FloatArray]:
    if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
        raise ContractError(
            "paired values must be of the same users: equal shapes, and NaN for the same users"
        )
    return _checked(a, "a"), _checked(b, "b")
