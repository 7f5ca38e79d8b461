"""Spread and novelty of ranked lists: by hand and against slow oracles."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.errors import ContractError
from nightjar.kernels.beyond import Catalogue, catalogue_metrics, entropy_bits, gini, novelty
from tests.unit.ranked_cases import Case, cases, cutoffs, padded


def catalogue(available: list[bool], n_users: list[int], n_train_users: int) -> Catalogue:
    return Catalogue(np.array(available), np.array(n_users, dtype=np.int64), n_train_users)


def slow_gini(counts: list[int]) -> float:
    """Half the mean absolute difference over all ordered pairs, relative to the mean."""
    if sum(counts) == 0:
        return math.nan
    n = len(counts)
    difference = sum(abs(a - b) for a in counts for b in counts) / n**2
    return difference / (2 * sum(counts) / n)


def slow_entropy(counts: list[int]) -> float:
    if sum(counts) == 0:
        return math.nan
    shares = [count / sum(counts) for count in counts if count]
    return sum(share * math.log2(1 / share) for share in shares)


def slow_long_tail(n_users: list[int]) -> list[bool]:
    """Takes the most popular items, one by one, until they hold four fifths of all interactions."""
    tail, held = [True] * len(n_users), 0
    for item in sorted(range(len(n_users)), key=lambda item: (-n_users[item], item)):
        if Fraction(held) >= Fraction(4, 5) * sum(n_users):
            break
        tail[item] = False
        held += n_users[item]
    return tail


def share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Case, list[bool], list[int]]:
    case = draw(cases())
    flags = st.lists(st.booleans(), min_size=case.n_items, max_size=case.n_items)
    counts = st.lists(st.integers(0, 6), min_size=case.n_items, max_size=case.n_items)
    return case, draw(flags), draw(counts)


@given(worlds(), cutoffs)
def test_catalogue_metrics_equal_the_oracle(world: tuple[Case, list[bool], list[int]], ks: list[int]) -> None:
    case, available, n_users = world
    metrics = catalogue_metrics(case.lists, catalogue(available, n_users, 6), ks)
    for k in ks:
        slots = [item for ranked in case.ranked for item in ranked[:k]]
        n_available, n_listed = sum(available), sum(1 for ranked in case.ranked if ranked)
        counts = [slots.count(item) for item in range(case.n_items) if available[item]]
        expected = {
            "CatalogueCoverage": share(len({item for item in slots if available[item]}), n_available),
            "ColdItemShare": share(sum(1 for item in slots if n_users[item] == 0), len(slots)),
            "UserCoverage": share(n_listed, len(case.ranked)),
            "Fill": share(len(slots), len(case.ranked) * k),
            "Gini": slow_gini(counts),
            "Entropy": slow_entropy(counts),
        }
        measured = {name: metrics[f"{name}@{k}"] for name in expected}
        assert measured == pytest.approx(expected, nan_ok=True, abs=1e-12)
    assert len(metrics) == 6 * len(ks)


@given(worlds(), cutoffs)
def test_novelty_equals_the_oracle(world: tuple[Case, list[bool], list[int]], ks: list[int]) -> None:
    case, available, n_users = world
    metrics = novelty(case.lists, catalogue(available, n_users, 6), ks)
    tail = slow_long_tail(n_users)
    for k in ks:
        for user, ranked in enumerate(case.ranked):
            shown = ranked[:k]
            expected = {
                "ARP": share(sum(n_users[item] for item in shown), len(shown)),
                "APLT": share(sum(tail[item] for item in shown), len(shown)),
                "MIUF": share(sum(math.log2(6 / max(1, n_users[item])) for item in shown), len(shown)),
            }
            measured = {name: metrics[f"{name}@{k}"][user] for name in expected}
            assert measured == pytest.approx(expected, nan_ok=True, abs=1e-12)


def test_even_and_one_sided_exposure_have_the_known_gini_and_entropy() -> None:
    assert gini(np.array([3, 3, 3, 3])) == pytest.approx(0.0)
    assert gini(np.array([0, 0, 0, 7])) == pytest.approx(0.75)
    assert entropy_bits(np.array([3, 3, 3, 3])) == pytest.approx(2.0)
    assert entropy_bits(np.array([0, 0, 0, 7])) == 0.0
    assert math.copysign(1, entropy_bits(np.array([0, 7]))) == 1.0


def test_items_never_shown_make_exposure_less_even() -> None:
    lists = padded([[0, 1], [1, 0]], 2)
    two = catalogue_metrics(lists, catalogue([True] * 2, [1, 1], 2), [2])
    ten = catalogue_metrics(lists, catalogue([True] * 10, [1] * 10, 2), [2])
    assert two["Gini@2"] == pytest.approx(0.0)
    assert ten["Gini@2"] == pytest.approx(0.8)


def test_the_long_tail_begins_after_four_fifths_of_interactions() -> None:
    assert catalogue([True] * 4, [4, 4, 1, 1], 4).long_tail.tolist() == [False, False, True, True]
    assert catalogue([True] * 4, [1, 4, 1, 4], 4).long_tail.tolist() == [True, False, True, False]
    assert catalogue([True] * 5, [1, 1, 1, 1, 1], 4).long_tail.tolist() == [False] * 4 + [True]
    assert catalogue([True] * 2, [0, 0], 4).long_tail.tolist() == [True, True]


def test_an_item_outside_the_catalogue_or_named_twice_is_refused() -> None:
    known = catalogue([True, True], [1, 0], 1)
    with pytest.raises(ContractError, match="row 1 holds an item number outside"):
        catalogue_metrics(padded([[0], [2]], 1), known, [1])
    with pytest.raises(ContractError, match="row 0 names an item twice"):
        catalogue_metrics(padded([[1, 1]], 2), known, [1])
    with pytest.raises(ContractError, match="row 0 holds an item number outside"):
        novelty(padded([[2]], 1), known, [1])


def test_a_catalogue_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ContractError, match="must both be"):
        catalogue([True], [1, 2], 3)
    with pytest.raises(ContractError, match="between 0 and n_train_users"):
        catalogue([True], [4], 3)
