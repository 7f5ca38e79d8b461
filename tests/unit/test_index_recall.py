"""IndexRecall of sampled users, against a search whose faults are planted."""

from __future__ import annotations

import numpy as np
import pytest

from nightjar.kernels.sweep import sweep_topk
from nightjar.kernels.topk import F32, Filters, TopK
from nightjar.stages.searching.index_recall import Sample, drawn, recall_of
from tests.unit.topk_oracle import lists_of, whole_vectors


def test_recall_is_counted_before_and_after_filters() -> None:
    """A search that never finds the upper half of the items; half of the users have seen all of that half."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((200, 8)).astype(np.float32)
    users = whole_vectors(rng, 6, 8)
    lower = np.arange(200) < 100

    def blind(queries: F32, k: int, filters: Filters | None) -> TopK:
        given = filters or Filters()
        return sweep_topk(queries, matrix, k, Filters(given.seen, given.deny, lower))

    filters = Filters(lists_of([set(range(100, 200))] * 3 + [set()] * 3))
    before, after = recall_of(blind, matrix, users, filters, blind(users, 10, filters))
    best = np.argsort(-(users @ matrix.T), axis=1)[:, :10]
    assert before == pytest.approx((best < 100).mean(axis=1))
    assert (after[:3] == 1).all()
    assert after[3:] == pytest.approx(before[3:])


def test_metrics_are_means_by_activity() -> None:
    sample = Sample.together(
        [
            Sample(np.array([0, 4, 5]), np.array([1.0, 0.8, 0.5]), np.array([1.0, 1.0, 0.6])),
            Sample.none(),
            Sample(np.array([19, 5000]), np.array([0.7, 0.2]), np.array([0.8, 0.1])),
        ]
    )
    metrics = sample.metrics()
    assert metrics["recall_users"] == 5
    assert metrics["index_recall"] == pytest.approx(3.5 / 5)
    assert metrics["index_recall_before_filters"] == pytest.approx(3.2 / 5)
    by_activity = metrics["index_recall_by_activity"]
    assert list(by_activity) == ["0-4", "5-19", "100+"]
    assert by_activity["0-4"] == {"users": 2, "before_filters": pytest.approx(0.9), "after_filters": 1.0}
    assert by_activity["5-19"]["users"] == 2
    assert by_activity["100+"]["after_filters"] == pytest.approx(0.1)
    assert Sample.together([]).metrics() == Sample.none().metrics()
    assert Sample.none().metrics()["index_recall"] == 1.0


def test_a_sample_is_drawn_by_position_alone() -> None:
    everyone = np.arange(100_000)
    whole = drawn([0, 7, 1], everyone, 0.03)
    assert 2700 < len(whole) < 3300 and np.histogram(whole, 10, (0, 100_000))[0].min() > 200
    parts = [drawn([0, 7, 1], part, 0.03) + part[0] for part in np.array_split(everyone, 7)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert len(drawn([0, 7, 1], everyone, 1.0)) == 100_000 and not len(drawn([0, 7, 1], everyone, 0.0))
    assert len(np.intersect1d(drawn([0, 7, 2], everyone, 0.03), whole)) < 200
