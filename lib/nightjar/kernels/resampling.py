"""Intervals for many figures of the same users at once: one draw of users serves every metric and method.

`statistics` bounds one figure; a report has hundreds over the same users, and drawing the users anew for each
costs as many times more. Here a resample is a count for each user, and all figures follow by one product.
"""

from typing import NamedTuple

import numpy as np

from nightjar.errors import ConfigError, ContractError
from nightjar.kernels.ranked_lists import FloatArray, IntArray

CHUNK_COUNTS = 1 << 22
"""Counts of users drawn at once: 32 MiB as float64."""
MANTISSA_BITS = 52


class Resampled(NamedTuple):
    """means: (c,) float64, NaN where nobody counts; drawn: (n_resamples, c) float64, the resampled means."""

    means: FloatArray
    drawn: FloatArray


class Bounds(NamedTuple):
    """A figure with its confidence interval."""

    value: float
    low: float
    high: float


def resampled(totals: FloatArray, counts: IntArray, n_resamples: int, seed: int) -> Resampled:
    """Means of c figures over n users, and the same over bootstrap samples of the users.

    totals, counts: (n, c) float64 and int64, a user a row: the sum of a figure over what it was measured on
    (windows, ratings) and how many that were, 0 and 0 where it does not apply to the user. A mean is the sum
    of totals over the sum of counts, so a user who stands in several windows is drawn with all of them.
    Rows must be in an order of their own, such as by user id; the figures then depend on nothing but the
    values and the seed: totals are rounded to a grid on which sums are exact in whatever order a product
    adds. Raises ContractError for shapes that differ or values that are not finite.
    """
    if totals.shape != counts.shape or totals.ndim != 2 or not np.isfinite(totals).all():
        raise ContractError(f"totals {totals.shape} and counts {counts.shape} must be finite and (users, c)")
    if n_resamples < 1:
        raise ConfigError(f"a bootstrap needs at least one resample, not {n_resamples}")
    n, c = totals.shape
    both = np.concatenate([_on_grid(totals, n), counts.astype(np.float64)], axis=1)
    rng = np.random.default_rng(seed)
    sums = np.empty((n_resamples, 2 * c))
    step = max(1, CHUNK_COUNTS // max(n, 1))
    for start in range(0, n_resamples, step):
        size = min(step, n_resamples - start)
        drawn = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(size)])
        sums[start : start + size] = drawn.astype(np.float64) @ both
    return Resampled(_ratio(both.sum(axis=0)[None])[0], _ratio(sums))


def _on_grid(totals: FloatArray, n: int) -> FloatArray:
    """Multiples of a power of two small enough to matter to nobody, large enough that n of them add up
    exactly."""
    largest = np.abs(totals).max(axis=0, initial=0.0)
    exponent = np.frexp(largest * max(n, 1))[1]
    step = np.ldexp(1.0, exponent - MANTISSA_BITS)
    rounded: FloatArray = np.rint(totals / step) * step
    return rounded


def _ratio(sums: FloatArray) -> FloatArray:
    c = sums.shape[1] // 2
    return np.divide(sums[:, :c], sums[:, c:], out=np.full((len(sums), c), np.nan), where=sums[:, c:] > 0)


def bounds(value: float, drawn: FloatArray, level: float = 0.95) -> Bounds:
    """The percentile interval of a figure (Efron & Tibshirani 1993, chapter 13), outward to the next draw.

    drawn: (n_resamples,) float64; a NaN is a sample in which nobody counts, and is left out. NaN bounds where
    nothing is left. Raises ConfigError for a level outside (0, 1).
    """
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level of an interval must lie between 0 and 1, not {level}")
    usable = drawn[~np.isnan(drawn)]
    if not len(usable):
        return Bounds(value, float("nan"), float("nan"))
    tail = (1.0 - level) / 2
    low = np.quantile(usable, tail, method="lower")
    return Bounds(value, float(low), float(np.quantile(usable, 1.0 - tail, method="higher")))


def effect_size(differences: FloatArray) -> float:
    """Cohen's d_z of paired differences (n,): mean over standard deviation; NaN where that has no value."""
    spread = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    return float(np.mean(differences)) / spread if spread > 0 else float("nan")
