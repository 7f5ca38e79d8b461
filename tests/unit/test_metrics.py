"""Accuracy of ranked lists: by hand, against a slow oracle, and against ir-measures."""

import math
from random import Random

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import AP, RR, P, R, Success, nDCG

from nightjar.errors import ConfigError, ContractError
from nightjar.kernels import ranked_lists
from nightjar.kernels.metrics import accuracy, eligible, rating_errors
from tests.unit.ranked_cases import Case, cases, csr, cutoffs, padded


def oracle(ranked: list[int], relevant: list[int], k: int) -> dict[str, float]:
    """One user, spelled out from the definitions in the documentation of the metrics."""
    if not relevant:
        return dict.fromkeys(NAMES, math.nan)
    gains = [1 if j < len(ranked) and ranked[j] in relevant else 0 for j in range(k)]
    dcg = sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))
    best = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(relevant)) + 1))
    precision_at_hits = [sum(gains[:rank]) / rank for rank in range(1, k + 1) if gains[rank - 1]]
    return {
        "Precision": sum(gains) / k,
        "Recall": sum(gains) / len(relevant),
        "CappedRecall": sum(gains) / min(k, len(relevant)),
        "HitRate": float(any(gains)),
        "nDCG": dcg / best,
        "MAP": sum(precision_at_hits) / len(relevant),
        "MAP(min)": sum(precision_at_hits) / min(k, len(relevant)),
        "MRR": 1 / (gains.index(1) + 1) if any(gains) else 0.0,
    }


NAMES = ("Precision", "Recall", "CappedRecall", "HitRate", "nDCG", "MAP", "MAP(min)", "MRR")


def column(name: str, k: int) -> str:
    return f"MAP@{k}(min)" if name == "MAP(min)" else f"{name}@{k}"


def test_the_toy_example_prints_the_stated_convention() -> None:
    a, b, c, d, e, x = range(6)
    metrics = accuracy(padded([[a, b], [x, a]], 2), csr([[a, b, c, d, e], [a]]), [2])
    means = {name: float(values.mean()) for name, values in metrics.items()}
    assert means == pytest.approx(
        {
            "Precision@2": 0.75,
            "Recall@2": 0.70,
            "CappedRecall@2": 1.0,
            "HitRate@2": 1.0,
            "nDCG@2": (1 + 1 / math.log2(3)) / 2,
            "MAP@2": 0.45,
            "MAP@2(min)": 0.75,
            "MRR@2": 0.75,
        }
    )
    assert means["nDCG@2"] == pytest.approx(0.8155, abs=5e-5)


@given(cases(), cutoffs)
def test_every_metric_equals_the_oracle(case: Case, ks: list[int]) -> None:
    metrics = accuracy(case.lists, case.truth, ks)
    assert set(metrics) == {column(name, k) for name in NAMES for k in ks}
    for k in ks:
        expected = [oracle(*user, k) for user in zip(case.ranked, case.relevant, strict=True)]
        for name in NAMES:
            np.testing.assert_allclose(
                metrics[column(name, k)],
                [user[name] for user in expected],
                rtol=1e-12,
                err_msg=column(name, k),
            )


@given(cases(min_users=1), cutoffs, st.randoms(use_true_random=False))
def test_a_users_figures_depend_on_nobody_else(case: Case, ks: list[int], random: Random) -> None:
    order = list(range(len(case.ranked)))
    random.shuffle(order)
    whole = accuracy(case.lists, case.truth, ks)
    shuffled = accuracy(case.lists[order], csr([case.relevant[row] for row in order]), ks)
    for name, values in whole.items():
        np.testing.assert_array_equal(shuffled[name], values[order], err_msg=name)


@pytest.mark.parametrize("seed", range(5))
def test_ir_measures_agrees_user_by_user(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_items, n_users, width = 60, 80, 25
    ranked = [list(rng.permutation(n_items)[: rng.integers(0, width + 1)]) for _ in range(n_users)]
    relevant = [sorted(rng.permutation(n_items)[: rng.integers(0, 15)]) for _ in range(n_users)]
    qrels = [ir_measures.Qrel(f"u{u}", f"i{i}", 1) for u, items in enumerate(relevant) for i in items]
    # Its measures break ties in score differently from each other, so the score falls strictly with the rank.
    run = [
        ir_measures.ScoredDoc(f"u{u}", f"i{i}", -float(rank))
        for u, items in enumerate(ranked)
        for rank, i in enumerate(items)
    ]
    ks = [1, 3, 10, 25, 40]
    ours = accuracy(padded(ranked, width), csr(relevant), ks)
    names = {P: "Precision", R: "Recall", Success: "HitRate", nDCG: "nDCG", AP: "MAP", RR: "MRR"}
    measures = {measure @ k: f"{name}@{k}" for k in ks for measure, name in names.items()}
    n_compared = 0
    for result in ir_measures.iter_calc(list(measures), qrels, run):
        user = int(result.query_id[1:])
        assert ours[measures[result.measure]][user] == pytest.approx(result.value, abs=1e-9), result
        n_compared += 1
    assert n_compared == len(measures) * sum(1 for items in relevant if items)
    theirs = ir_measures.calc_aggregate(list(measures), qrels, run)
    for measure, name in measures.items():
        assert eligible(ours[name]).mean() == pytest.approx(theirs[measure], abs=1e-9), name


def test_a_user_without_a_list_counts_zero_and_one_without_truth_not_at_all() -> None:
    metrics = accuracy(padded([[], [3], []], 2), csr([[3], [], []]), [2])
    for name, values in metrics.items():
        np.testing.assert_array_equal(values, [0.0, np.nan, np.nan], err_msg=name)
        np.testing.assert_array_equal(eligible(values), [0.0], err_msg=name)


def test_a_cutoff_beyond_the_list_divides_by_the_cutoff() -> None:
    metrics = accuracy(padded([[1, 2]], 2), csr([[1, 2, 3]]), [10])
    assert metrics["Precision@10"][0] == pytest.approx(0.2)
    assert metrics["CappedRecall@10"][0] == pytest.approx(2 / 3)


def test_blocks_of_rows_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    ranked = [list(rng.permutation(40)[:12]) for _ in range(50)]
    relevant = [sorted(rng.permutation(40)[: rng.integers(0, 9)]) for _ in range(50)]
    whole = accuracy(padded(ranked, 12), csr(relevant), [5, 12])
    monkeypatch.setattr(ranked_lists.row_blocks, "__defaults__", (30,))
    assert len(list(ranked_lists.row_blocks(50, 12))) == 25
    for name, values in accuracy(padded(ranked, 12), csr(relevant), [5, 12]).items():
        np.testing.assert_array_equal(values, whole[name], err_msg=name)


@pytest.mark.parametrize(
    ("lists", "truth", "ks", "says"),
    [
        ([[-1, 4]], ([0, 1], [4]), [1], "row 0 has an item after -1"),
        ([[1, 2], [-2, -1]], ([0, 0, 0], []), [1], "row 1 holds an item number outside"),
        ([[1, 2], [4, 4]], ([0, 0, 1], [4]), [2], "row 1 names a relevant item twice"),
        ([[1, 2]], ([0, 2], [5, 4]), [2], "row 0 is not strictly ascending"),
        ([[1, 2], [1, 2]], ([0, 1, 3], [9, 4, 4]), [2], "row 1 is not strictly ascending"),
        ([[1, 2]], ([0, 1], [4, 5]), [2], "does not run from 0 up to 2"),
        ([[1, 2]], ([0, 1, 2], [4, 5]), [2], "must have 1 rows"),
        ([[1, 2]], ([0, 1], [-3]), [2], "below 0"),
    ],
)
def test_malformed_input_is_refused(
    lists: list[list[int]], truth: tuple[list[int], list[int]], ks: list[int], says: str
) -> None:
    indptr, items = (np.array(part, dtype=np.int64) for part in truth)
    with pytest.raises(ContractError, match=says):
        accuracy(np.array(lists), (indptr, items), ks)


def test_lists_of_scores_and_bad_cutoffs_are_refused() -> None:
    with pytest.raises(ContractError, match="integer array"):
        accuracy(np.array([[0.5]]), csr([[1]]), [1])  # type: ignore[arg-type]
    for ks in ([], [0], [5, -1]):
        with pytest.raises(ConfigError, match="cut-offs"):
            accuracy(padded([[1]], 1), csr([[1]]), ks)


def test_truth_may_descend_from_one_row_to_the_next_and_rows_may_be_empty() -> None:
    metrics = accuracy(padded([[9], [8], [1], [2]], 1), csr([[9], [], [1], []]), [1])
    np.testing.assert_array_equal(metrics["Recall@1"], [1.0, np.nan, 1.0, np.nan])


def test_rating_errors_by_hand() -> None:
    errors = rating_errors(np.array([3.0, 4.0, 5.0]), np.array([3.0, 2.0, 4.0]))
    assert errors == pytest.approx({"MAE": 1.0, "RMSE": math.sqrt(5 / 3)})
    assert all(math.isnan(value) for value in rating_errors(np.zeros(0), np.zeros(0)).values())
    with pytest.raises(ContractError, match="one length"):
        rating_errors(np.zeros(2), np.zeros(1))
    with pytest.raises(ContractError, match="not finite"):
        rating_errors(np.array([np.nan]), np.zeros(1))
