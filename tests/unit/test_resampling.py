"""Intervals of many figures at once: equal to drawing one by one, exact sums, users of several windows."""

import math

import numpy as np
import pytest

from nightjar.errors import ConfigError, ContractError
from nightjar.kernels import resampling
from nightjar.kernels.resampling import bounds, effect_size, resampled
from nightjar.kernels.statistics import bootstrap_mean, paired_difference

SEED, N_RESAMPLES = 5, 400


def _values(n: int = 300, c: int = 3) -> np.ndarray:
    return np.random.default_rng(1).exponential(size=(n, c))


def test_means_and_resamples_equal_a_slow_loop_over_users() -> None:
    totals = _values(40)
    counts = np.random.default_rng(2).integers(0, 3, totals.shape)
    totals[counts == 0] = 0
    made = resampled(totals, counts, 7, SEED)
    rng = np.random.default_rng(SEED)
    for sample in range(7):
        users = rng.integers(0, 40, 40)
        expected = totals[users].sum(axis=0) / counts[users].sum(axis=0)
        np.testing.assert_allclose(made.drawn[sample], expected, rtol=1e-12)
    np.testing.assert_allclose(made.means, totals.sum(axis=0) / counts.sum(axis=0), rtol=1e-12)


def test_intervals_agree_with_those_of_one_figure() -> None:
    values = _values()
    made = resampled(values, np.ones(values.shape, np.int64), 4000, SEED)
    for column in range(3):
        ours = bounds(made.means[column], made.drawn[:, column])
        theirs = bootstrap_mean(values[:, column], 4000, SEED)
        assert ours.value == pytest.approx(theirs.mean)
        assert ours.low == pytest.approx(theirs.low, abs=0.012)
        assert ours.high == pytest.approx(theirs.high, abs=0.012)


def test_paired_differences_come_from_the_same_draws() -> None:
    values = _values()
    values[:, 1] = values[:, 0] - 0.1 + 0.01 * values[:, 2]
    made = resampled(values, np.ones(values.shape, np.int64), 4000, SEED)
    ours = bounds(made.means[0] - made.means[1], made.drawn[:, 0] - made.drawn[:, 1])
    theirs = paired_difference(values[:, 0], values[:, 1], 4000, SEED)
    assert ours.value == pytest.approx(theirs.difference)
    assert ours.low == pytest.approx(theirs.low, abs=3e-4)
    assert effect_size(values[:, 0] - values[:, 1]) == pytest.approx(theirs.effect_size)


def test_a_user_of_two_windows_is_drawn_with_both() -> None:
    """Every user twice: the interval must stay as wide as that of the users, not of twice as many rows."""
    values = _values(100, 1)
    once = resampled(values, np.ones(values.shape, np.int64), 2000, SEED)
    twice = resampled(2 * values, np.full(values.shape, 2), 2000, SEED)
    np.testing.assert_allclose(twice.drawn, once.drawn, rtol=1e-12)


def test_the_order_of_adding_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = _values(200, 5) * np.array([1e-6, 1, 1e3, 1, 1e6])
    counts = np.ones(values.shape, np.int64)
    whole = resampled(values, counts, 50, SEED)
    monkeypatch.setattr(resampling, "CHUNK_COUNTS", 600)
    chunked = resampled(values, counts, 50, SEED)
    alone = resampled(np.ascontiguousarray(values[:, ::-1]), counts, 50, SEED)
    np.testing.assert_array_equal(chunked.drawn, whole.drawn)
    np.testing.assert_array_equal(alone.drawn[:, ::-1], whole.drawn)


def test_a_figure_that_applies_to_nobody_is_nan_and_rare_ones_are_bounded_by_what_was_drawn() -> None:
    totals, counts = np.zeros((30, 2)), np.zeros((30, 2), np.int64)
    totals[3, 1], counts[3, 1] = 0.5, 1
    made = resampled(totals, counts, 100, SEED)
    assert math.isnan(made.means[0])
    assert made.means[1] == 0.5
    assert math.isnan(bounds(made.means[0], made.drawn[:, 0]).low)
    assert bounds(made.means[1], made.drawn[:, 1]) == (0.5, 0.5, 0.5)
    assert np.isnan(made.drawn[:, 1]).any()


def test_bad_input_is_refused() -> None:
    ones = np.ones((2, 1), np.int64)
    with pytest.raises(ContractError, match="finite"):
        resampled(np.array([[np.nan], [1.0]]), ones, 5, 0)
    with pytest.raises(ConfigError, match="at least one resample"):
        resampled(np.ones((2, 1)), ones, 0, 0)
    with pytest.raises(ConfigError, match="level"):
        bounds(0.0, np.zeros(3), 1.0)
    assert math.isnan(effect_size(np.ones(5)))
