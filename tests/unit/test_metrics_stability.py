"""Change between two nights: rank-biased overlap and Jaccard, by hand and against slow oracles."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.errors import ConfigError, ContractError
from nightjar.kernels import stability as stability_kernel
from nightjar.kernels.stability import stability
from tests.unit.ranked_cases import cutoffs, padded

Nights = list[tuple[list[int], list[int]]]
ranked_items = st.lists(st.integers(0, 9), unique=True, max_size=7)
nights = st.lists(st.tuples(ranked_items, ranked_items), max_size=6)


def webber_equation_32(first: list[int], second: list[int], p: float) -> float:
    """Extrapolated rank-biased overlap, term by term as printed in the paper."""
    short, long = sorted((first, second), key=len)
    s, n = len(short), len(long)
    if n == 0:
        return math.nan
    if s == 0:
        return 0.0

    def overlap(d: int) -> int:
        return len(set(first[:d]) & set(second[:d]))

    total = sum(overlap(d) / d * p**d for d in range(1, n + 1))
    total += sum(overlap(s) * (d - s) / (s * d) * p**d for d in range(s + 1, n + 1))
    return (1 - p) / p * total + ((overlap(n) - overlap(s)) / n + overlap(s) / s) * p**n


@given(nights, cutoffs, st.sampled_from([0.5, 0.9, 0.98]))
def test_both_measures_equal_the_oracle(users: Nights, ks: list[int], p: float) -> None:
    now, before = ([user[night] for user in users] for night in (0, 1))
    metrics = stability(padded(now, 7), padded(before, 9), ks, p)
    for k in ks:
        for row, (first, second) in enumerate(users):
            expected = webber_equation_32(first[:k], second[:k], p)
            assert metrics[f"RBO@{k}"][row] == pytest.approx(expected, nan_ok=True, abs=1e-12)
            union = set(first[:k]) | set(second[:k])
            jaccard = len(set(first[:k]) & set(second[:k])) / len(union) if union else math.nan
            assert metrics[f"Jaccard@{k}"][row] == pytest.approx(jaccard, nan_ok=True)


@given(nights, cutoffs)
def test_overlap_is_symmetric_and_between_nothing_and_all(users: Nights, ks: list[int]) -> None:
    now, before = (padded([user[night] for user in users], 7) for night in (0, 1))
    there, back = stability(now, before, ks), stability(before, now, ks)
    for name, values in there.items():
        np.testing.assert_allclose(back[name], values, rtol=1e-12, err_msg=name)
        assert np.all(np.isnan(values) | ((values >= 0) & (values <= 1 + 1e-12)))


def test_a_list_agrees_wholly_with_itself_and_not_with_a_stranger() -> None:
    same = stability(padded([[3, 1, 2], [5]], 3), padded([[3, 1, 2], [5]], 3), [2, 3, 9])
    for name, values in same.items():
        assert values == pytest.approx([1.0, 1.0]), name
    other = stability(padded([[3, 1, 2], []], 3), padded([[4, 5, 6], [1]], 3), [3])
    for name, values in other.items():
        assert values == pytest.approx([0.0, 0.0]), name


def test_a_swap_at_the_top_costs_more_than_one_at_the_end() -> None:
    before = padded([[0, 1, 2, 3, 4]] * 2, 5)
    now = padded([[1, 0, 2, 3, 4], [0, 1, 2, 4, 3]], 5)
    metrics = stability(now, before, [5])
    assert metrics["RBO@5"][0] < metrics["RBO@5"][1] < 1
    assert metrics["Jaccard@5"].tolist() == [1.0, 1.0]


def test_a_hand_worked_overlap_of_two_even_lists() -> None:
    # Overlaps 0, 2 at depths 1, 2 with p = 0.5: 0.5·(0·1 + 1·0.5) + 1·0.25.
    assert stability(padded([[0, 1]], 2), padded([[1, 0]], 2), [2], 0.5)["RBO@2"] == pytest.approx([0.5])


def test_blocks_of_rows_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    now, before = (
        padded([list(rng.permutation(9)[: rng.integers(0, 6)]) for _ in range(30)], 5) for _ in "ab"
    )
    whole = stability(now, before, [3, 5])
    monkeypatch.setattr(stability_kernel, "PAIR_SLOTS", 60)
    for name, values in stability(now, before, [3, 5]).items():
        np.testing.assert_array_equal(values, whole[name], err_msg=name)


def test_nights_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ContractError, match="align the users"):
        stability(padded([[1]], 1), padded([[1], [1]], 1), [1])
    with pytest.raises(ContractError, match="row 0 names an item twice"):
        stability(padded([[1]], 1), padded([[1, 1]], 2), [1])
    with pytest.raises(ConfigError, match="persistence"):
        stability(padded([[1]], 1), padded([[1]], 1), [1], 1.0)
