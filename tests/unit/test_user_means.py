"""Means by slice over hand-made per-user rows: who counts where, paired differences, several windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nightjar.config import Evaluate
from nightjar.kernels.beyond import Catalogue
from nightjar.stages.evaluation.user_means import Figure, Measured, figures, metrics_table
from nightjar.tables import METRICS, USER_METRICS

NAMES = ["Recall@2", "nDCG@2"]
ABOUT = ["ILD@2"]
PARAMS = Evaluate(ks=(2,), activity=(3,), n_resamples=200)
CATALOGUE = Catalogue(np.array([True, True, True, False]), np.array([3, 1, 0, 0]), 4)


def row(user: str, method: str, value: float, **more: Any) -> dict[str, Any]:
    """Recall is `value`, nDCG half of it."""
    given = {
        "user_id": user,
        "method": method,
        "target": "all",
        "group": "warm",
        "n_history": 1,
        "n_truth": 1,
        "accuracy": [value, value / 2],
        "about_list": [1.0],
        "item_nums": [0, 1],
        **more,
    }
    return {**given, "about_list": given["about_list"] if given["target"] == "all" else []}


def measured(*windows: list[dict[str, Any]]) -> dict[tuple[str, str], Figure]:
    tables = tuple(pa.Table.from_pylist(rows, USER_METRICS.schema) for rows in windows)
    made = figures(Measured(tables, (CATALOGUE,) * len(tables), NAMES, ABOUT), PARAMS)
    METRICS.conform(metrics_table(made), METRICS.schema, "test")
    return {(figure.name, figure.slice): figure for figure in made}


BOTH = [
    row("a", "nightjar", 1.0),
    row("a", "popular", 0.5),
    row("b", "nightjar", 0.5, n_history=4, about_list=[np.nan]),
    row("b", "popular", 0.5, n_history=4),
    row("c", "nightjar", 0.0, group="unknown", n_history=0, item_nums=[], about_list=[np.nan]),
    row("c", "popular", 0.0, group="unknown", n_history=0, item_nums=[], about_list=[np.nan]),
]


def test_means_of_the_slices() -> None:
    found = measured(BOTH)
    expected = {"all": 0.5, "warm": 0.75, "unknown": 0.0, "history 1-2": 1.0, "history 3+": 0.5}
    assert {s: found["nightjar.Recall@2", s].value for s in expected} == pytest.approx(expected)
    assert {slice_ for name, slice_ in found if name == "users"} == set(expected)
    assert found["users", "all"].value == 3
    assert found["nightjar.nDCG@2", "all"].value == pytest.approx(0.25)


def test_what_has_no_value_counts_for_nobody() -> None:
    found = measured(BOTH)
    assert found["nightjar.ILD@2", "all"].value == 1.0
    assert ("nightjar.ILD@2", "unknown") not in found


def test_differences_are_paired_with_an_effect_size() -> None:
    found = measured(BOTH)
    lift = found["nightjar-popular.Recall@2", "all"]
    assert lift.value == pytest.approx(0.5 / 3)
    assert lift.low is not None
    assert lift.high is not None
    assert 0 <= lift.low <= lift.value <= lift.high <= 0.5
    differences = np.array([0.5, 0.0, 0.0])
    effect = found["nightjar-popular.Recall@2.effect", "all"]
    assert effect.value == pytest.approx(differences.mean() / differences.std(ddof=1))
    assert ("nightjar-nightjar.Recall@2", "all") not in found


def test_cells_of_users_and_items_count_only_who_has_such_truth() -> None:
    cold = [
        row("a", "nightjar", 0.25, target="cold_items"),
        row("c", "nightjar", 0.5, target="cold_items", group="unknown", n_history=0),
        row("b", "nightjar", 1.0, target="new_scene", n_history=4),
    ]
    found = measured([*BOTH, *cold])
    assert found["nightjar.Recall@2", "warm users, cold items"].value == 0.25
    assert found["nightjar.Recall@2", "cold users, cold items"].value == 0.5
    assert found["nightjar.Recall@2", "new scene"].value == 1.0
    assert ("users", "warm users, warm items") not in found
    assert found["users", "all"].value == 3


def test_windows_are_pooled_and_a_method_may_be_missing_in_one() -> None:
    later = [row("a", "nightjar", 0.0), row("d", "nightjar", 1.0)]
    found = measured(BOTH, later)
    assert found["nightjar.Recall@2", "all"].value == pytest.approx((1.0 + 0.5 + 0.0 + 0.0 + 1.0) / 5)
    assert found["popular.Recall@2", "all"].value == pytest.approx(1 / 3)
    assert found["users", "all"].value == 4
    assert ("nightjar-popular.Recall@2", "all") not in found


def test_the_lists_use_of_the_catalogue() -> None:
    found = measured(BOTH)
    assert found["nightjar.CatalogueCoverage@2", "all"].value == pytest.approx(2 / 3)
    assert found["nightjar.UserCoverage@2", "all"].value == pytest.approx(2 / 3)
    assert found["nightjar.ColdItemShare@2", "all"].value == 0.0
