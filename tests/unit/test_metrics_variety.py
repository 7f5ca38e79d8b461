"""Diversity inside a list and its fit to the user's mix: by hand and against slow oracles."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.errors import ConfigError, ContractError
from nightjar.kernels import variety
from nightjar.kernels.ranked_lists import FloatArray
from nightjar.kernels.variety import calibration, ild_of_categories, ild_of_vectors
from tests.unit.ranked_cases import Case, cases, csr, cutoffs, padded

N_ITEMS = 12
seeds = st.integers(0, 2**32 - 1)
item_categories = st.lists(
    st.lists(st.integers(0, 4), unique=True, max_size=3), min_size=N_ITEMS, max_size=N_ITEMS
)


def mean_over_pairs(ranked: list[int], distance: "dict[tuple[int, int], float]") -> float:
    pairs = [distance[pair] for pair in itertools.combinations(ranked, 2)]
    return sum(pairs) / len(pairs) if pairs else math.nan


def cosine_distance(a: FloatArray, b: FloatArray) -> float:
    norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return 1 - sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 1.0


def jaccard_distance(a: list[int], b: list[int]) -> float:
    return 1 - len(set(a) & set(b)) / len(set(a) | set(b)) if a or b else 0.0


@given(cases(), cutoffs, seeds)
def test_diversity_of_vectors_equals_the_oracle(case: Case, ks: list[int], seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(N_ITEMS, 3)).astype(np.float32) * 5
    vectors[seed % N_ITEMS] = 0
    vectors[(seed + 1) % N_ITEMS] = vectors[(seed + 2) % N_ITEMS]
    distance = {
        pair: cosine_distance(*vectors[list(pair)].astype(float)) for pair in np.ndindex(N_ITEMS, N_ITEMS)
    }
    metrics = ild_of_vectors(case.lists, vectors, ks)
    for k in ks:
        expected = [mean_over_pairs(ranked[:k], distance) for ranked in case.ranked]
        np.testing.assert_allclose(metrics[f"ILD@{k}"], expected, atol=1e-12)


@given(cases(), cutoffs, item_categories)
def test_diversity_of_categories_equals_the_oracle(
    case: Case, ks: list[int], categories: list[list[int]]
) -> None:
    distance = {
        (a, b): jaccard_distance(categories[a], categories[b]) for a, b in np.ndindex(N_ITEMS, N_ITEMS)
    }
    metrics = ild_of_categories(case.lists, csr(categories), ks)
    for k in ks:
        expected = [mean_over_pairs(ranked[:k], distance) for ranked in case.ranked]
        np.testing.assert_allclose(metrics[f"ILD@{k}(categories)"], expected, atol=1e-12)


def slow_mix(weighted: list[tuple[int, float]], categories: list[list[int]]) -> list[float] | None:
    mass = [0.0] * 5
    for item, weight in weighted:
        for category in categories[item]:
            mass[category] += weight / len(categories[item])
    return [part / sum(mass) for part in mass] if sum(mass) else None


def slow_divergence(wanted: list[float] | None, shown: list[float] | None, alpha: float) -> float:
    if wanted is None or shown is None:
        return math.nan
    smoothed = [(1 - alpha) * q + alpha * p for p, q in zip(wanted, shown, strict=True)]
    return sum(p * math.log(p / q) for p, q in zip(wanted, smoothed, strict=True) if p)


@given(cases(), cutoffs, item_categories, seeds, st.booleans(), st.sampled_from([0.01, 0.3, 1.0]))
def test_calibration_equals_the_oracle(
    case: Case, ks: list[int], categories: list[list[int]], seed: int, weighted: bool, alpha: float
) -> None:
    indptr, items = case.truth
    weights = np.random.default_rng(seed).uniform(0.1, 3.0, len(items)) if weighted else np.ones(len(items))
    metrics = calibration(case.lists, case.truth, csr(categories), ks, weights if weighted else None, alpha)
    for row, ranked in enumerate(case.ranked):
        entries = range(indptr[row], indptr[row + 1])
        wanted = slow_mix([(int(items[e]), float(weights[e])) for e in entries], categories)
        for k in ks:
            shown = slow_mix([(item, 1.0) for item in ranked[:k]], categories)
            expected = slow_divergence(wanted, shown, alpha)
            assert metrics[f"Calibration@{k}"][row] == pytest.approx(expected, nan_ok=True, abs=1e-12)


def test_known_diversities() -> None:
    vectors = np.array([[1, 0], [0, 2], [-3, 0], [4, 0]], dtype=np.float32)
    metrics = ild_of_vectors(padded([[0, 1], [0, 2], [0, 3], [0, 1, 2], [0]], 3), vectors, [3])
    np.testing.assert_allclose(metrics["ILD@3"], [1.0, 2.0, 0.0, 4 / 3, np.nan], atol=1e-12)
    of_sets = ild_of_categories(
        padded([[0, 1], [0, 2], [3, 4], [0, 3]], 2), csr([[1, 2], [2, 3], [1, 2], [], []]), [2]
    )
    np.testing.assert_allclose(of_sets["ILD@2(categories)"], [2 / 3, 0.0, 0.0, 1.0])


def test_calibration_is_nothing_for_the_same_mix_and_largest_for_a_foreign_one() -> None:
    categories = csr([[0], [1], [0], [1], [2], [0, 1]])
    history = csr([[0, 1]] * 4)
    metrics = calibration(padded([[2, 3], [4], [5], []], 2), history, categories, [2])
    np.testing.assert_allclose(metrics["Calibration@2"], [0, math.log(100), 0, np.nan], atol=1e-12)


def test_a_history_three_to_one_wants_a_list_three_to_one() -> None:
    # Steck's example: 70% romance and 30% action watched; the list that shows romance only is worse.
    categories, history = csr([[0], [1], [0], [0], [0], [1]]), csr([[0, 1], [0, 1]])
    metrics = calibration(
        padded([[2, 3, 4], [2, 3, 5]], 3), history, categories, [3], np.array([0.7, 0.3, 0.7, 0.3])
    )
    romance_only, mixed = metrics["Calibration@3"]
    assert romance_only == pytest.approx(0.7 * math.log(0.7 / 0.997) + 0.3 * math.log(0.3 / 0.003))
    assert mixed < 0.01 < romance_only


def test_blocks_and_memmaps_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(30, 8)).astype(np.float32)
    lists = padded([list(rng.permutation(30)[: rng.integers(0, 7)]) for _ in range(40)], 6)
    whole = ild_of_vectors(lists, vectors, [3, 6])
    np.save(tmp_path / "vectors.npy", vectors)
    categories = csr([list(np.flatnonzero(rng.random(9) < 0.3)) for _ in range(30)])
    history = csr([list(rng.permutation(30)[:4]) for _ in range(40)])
    sets, fit = ild_of_categories(lists, categories, [3, 6]), calibration(lists, history, categories, [3, 6])
    for name in ("VECTOR_SLOTS", "PAIR_SLOTS", "MIX_SLOTS"):
        monkeypatch.setattr(variety, name, 100)
    for name, values in ild_of_categories(lists, categories, [3, 6]).items():
        np.testing.assert_array_equal(values, sets[name], err_msg=name)
    for name, values in calibration(lists, history, categories, [3, 6]).items():
        np.testing.assert_array_equal(values, fit[name], err_msg=name)
    for name, values in ild_of_vectors(
        lists, np.load(tmp_path / "vectors.npy", mmap_mode="r"), [3, 6]
    ).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-12)


def test_what_cannot_be_measured_is_refused() -> None:
    vectors = np.ones((3, 2), dtype=np.float32)
    vectors[1, 0] = np.nan
    with pytest.raises(ContractError, match="item number 1 is not finite"):
        ild_of_vectors(padded([[0, 1]], 2), vectors, [2])
    with pytest.raises(ContractError, match="row 0 holds an item number outside"):
        ild_of_categories(padded([[0, 1]], 2), csr([[0]]), [2])
    with pytest.raises(ContractError, match="above 0"):
        calibration(padded([[0]], 1), csr([[0]]), csr([[0]]), [1], np.array([-1.0]))
    with pytest.raises(ContractError, match="names item number 7"):
        calibration(padded([[0]], 1), csr([[7]]), csr([[0]]), [1])
    with pytest.raises(ConfigError, match="alpha"):
        calibration(padded([[0]], 1), csr([[0]]), csr([[0]]), [1], alpha=0.0)
