"""Intervals over users: their coverage on known distributions, and agreement of the two ways of drawing."""

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nightjar.errors import ConfigError, ContractError
from nightjar.kernels import statistics
from nightjar.kernels.statistics import bootstrap_mean, paired_difference, paired_ratio, resampled_means


def test_the_interval_is_the_percentiles_of_the_resampled_means() -> None:
    values = np.random.default_rng(0).exponential(size=300)
    mean, low, high = bootstrap_mean(values, 2000, 7)
    drawn = np.sort(resampled_means(values[:, None], 2000, 7)[:, 0])
    assert mean == pytest.approx(values.mean())
    assert low == drawn[49]
    assert high == drawn[1950]


@pytest.mark.parametrize("name", ["binomial", "exponential"])
def test_a_95_interval_holds_the_true_mean_about_95_times_in_100(name: str) -> None:
    rng = np.random.default_rng(11)
    n_trials, n_users = 400, 200
    worlds = (
        rng.binomial(1, 0.3, (n_trials, n_users)).astype(float)
        if name == "binomial"
        else rng.exponential(0.3, (n_trials, n_users))
    )
    intervals = [bootstrap_mean(world, 400, trial) for trial, world in enumerate(worlds)]
    n_held = sum(interval.low <= 0.3 <= interval.high for interval in intervals)
    # 380 expected; the percentile interval is a little short for skewed values. Four standard errors: 17.
    assert 363 <= n_held <= 397


def test_the_spread_of_resampled_means_is_the_standard_error() -> None:
    values = np.random.default_rng(2).normal(size=500)
    for sample in (values, np.round(values)):
        means = resampled_means(sample[:, None], 4000, 3)[:, 0]
        assert means.std() == pytest.approx(sample.std() / math.sqrt(500), rel=0.06)
        assert means.mean() == pytest.approx(sample.mean(), abs=0.005)


def test_drawing_counts_of_values_and_drawing_users_follow_one_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(4).integers(0, 3, size=(200, 2)).astype(float)
    by_counts = resampled_means(values, 3000, 5)
    monkeypatch.setattr(statistics, "BINOMIAL_COST", 1000)
    by_users = resampled_means(values, 3000, 6)
    for column in range(2):
        assert stats.ks_2samp(by_counts[:, column], by_users[:, column]).pvalue > 0.001
    assert np.corrcoef(by_counts.T)[0, 1] == pytest.approx(np.corrcoef(by_users.T)[0, 1], abs=0.06)


def test_chunks_change_no_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(8).exponential(size=(130, 1))
    whole = resampled_means(values, 2000, 1)[:, 0]
    monkeypatch.setattr(statistics, "CHUNK_DRAWS", 64)
    chunked = resampled_means(values, 2000, 1)[:, 0]
    assert stats.ks_2samp(whole, chunked).pvalue > 0.001
    rounded = np.round(values)
    assert resampled_means(rounded, 300, 1).std() == pytest.approx(rounded.std() / math.sqrt(130), rel=0.15)


@settings(max_examples=30)
@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1), min_size=2, max_size=60), st.randoms()
)
def test_users_may_come_in_any_order(values: list[float], random: Random) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)
    assert bootstrap_mean(np.array(shuffled), 50, 3) == bootstrap_mean(np.array(values), 50, 3)
    pairs = list(zip(values, reversed(values), strict=True))
    mixed = random.sample(pairs, len(pairs))
    assert _compare(mixed) == _compare(pairs)


def _compare(pairs: list[tuple[float, float]]) -> tuple[float, ...]:
    a, b = np.array(pairs).T
    return paired_difference(a, b, 50, 3)


def test_users_a_metric_does_not_apply_to_change_nothing() -> None:
    values = np.random.default_rng(0).random(50)
    mixed = np.insert(values, [0, 10, 50], np.nan)
    assert bootstrap_mean(mixed, 100, 1) == bootstrap_mean(values, 100, 1)
    assert paired_difference(mixed, mixed**2, 100, 1) == paired_difference(values, values**2, 100, 1)


def test_a_seed_fixes_the_interval_and_another_moves_it() -> None:
    values = np.random.default_rng(0).random(50)
    assert bootstrap_mean(values, 100, 1) == bootstrap_mean(values, 100, 1)
    assert bootstrap_mean(values, 100, 1) != bootstrap_mean(values, 100, 2)


def test_a_paired_difference_sees_what_two_intervals_do_not() -> None:
    rng = np.random.default_rng(1)
    base = rng.random(400)
    better = base + rng.normal(0.02, 0.05, 400)
    compared = paired_difference(better, base, 2000, 0)
    assert bootstrap_mean(better, 2000, 0).low < bootstrap_mean(base, 2000, 0).high
    assert 0 < compared.low < compared.difference < compared.high
    assert compared.effect_size == pytest.approx((better - base).mean() / (better - base).std(ddof=1))
    t_test = stats.ttest_rel(better, base)
    assert compared.p_value < 0.01
    assert t_test.pvalue < 0.01


def test_the_p_value_is_near_the_t_tests_and_agrees_with_the_interval() -> None:
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.02, 0.05, 0.08, 0.1):
        differences = rng.normal(shift, 1 / math.sqrt(2), 300) / 1.2
        zeros = np.zeros(300)
        there = paired_difference(differences, zeros, 4000, 9)
        back = paired_difference(zeros, differences, 4000, 9)
        assert there.p_value == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.03)
        assert there.difference == pytest.approx(-back.difference)
        assert (there.p_value < 0.05) == (there.low > 0 or there.high < 0)


def test_under_no_difference_small_p_values_are_as_rare_as_they_say() -> None:
    rng = np.random.default_rng(17)
    zeros = np.zeros(100)
    p_values = [paired_difference(rng.normal(size=100), zeros, 300, trial).p_value for trial in range(300)]
    # 30 expected below 0.1; four standard errors are 21.
    assert 12 <= sum(p < 0.1 for p in p_values) <= 51


def test_no_difference_at_all() -> None:
    same = np.array([0.1, 0.2, 0.3])
    assert paired_difference(same, same, 100, 0) == (0.0, 0.0, 0.0, 0.0, 1.0)
    assert paired_difference(np.ones(3), np.zeros(3), 99, 0) == (1.0, 1.0, 1.0, math.inf, 0.02)


def test_a_ratio_is_bounded_with_both_means_drawn_together() -> None:
    rng = np.random.default_rng(6)
    base = rng.random(500)
    assert paired_ratio(base * 1.2, base, 500, 0) == pytest.approx((1.2, 1.2, 1.2))
    noisy = np.maximum(base * 1.2 + rng.normal(0, 0.2, 500), 0)
    ratio, low, high = paired_ratio(noisy, base, 2000, 0)
    assert ratio == pytest.approx(noisy.mean() / base.mean())
    log_error = np.std(noisy / noisy.mean() - base / base.mean()) / math.sqrt(500)
    assert (high - low) / 2 == pytest.approx(1.96 * ratio * log_error, rel=0.1)
    rare = np.zeros(20)
    rare[3] = 1.0
    assert paired_ratio(np.ones(20), rare, 200, 0).high == math.inf


def test_what_cannot_be_compared_is_refused() -> None:
    nobody, values = np.array([np.nan]), np.array([0.5, 0.2])
    with pytest.raises(ContractError, match="no user"):
        bootstrap_mean(nobody, 10, 0)
    with pytest.raises(ContractError, match="finite"):
        bootstrap_mean(np.array([np.inf]), 10, 0)
    with pytest.raises(ContractError, match="same users"):
        paired_difference(values, np.array([0.5, np.nan]), 10, 0)
    with pytest.raises(ContractError, match="same users"):
        paired_difference(values, np.zeros(3), 10, 0)
    with pytest.raises(ContractError, match="at least two users"):
        paired_difference(np.zeros(1), np.ones(1), 10, 0)
    with pytest.raises(ContractError, match="scores 0 for every user"):
        paired_ratio(values, np.zeros(2), 10, 0)
    with pytest.raises(ContractError, match="no value below 0"):
        paired_ratio(values, -values, 10, 0)
    with pytest.raises(ConfigError, match="at least one resample"):
        bootstrap_mean(values, 0, 0)
    with pytest.raises(ConfigError, match="level"):
        bootstrap_mean(values, 10, 0, 1.0)
