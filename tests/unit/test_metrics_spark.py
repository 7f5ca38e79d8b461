"""Accuracy of ranked lists held equal to Spark's RankingMetrics, where the two define a name alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from nightjar.kernels.metrics import accuracy, eligible
from tests.unit.ranked_cases import csr, padded

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def test_spark_agrees_on_the_means(spark: SparkSession) -> None:
    from pyspark.mllib.evaluation import RankingMetrics

    rng = np.random.default_rng(12)
    n_items, n_users, width = 40, 120, 12
    ranked = [rng.permutation(n_items)[: rng.integers(0, width + 1)].tolist() for _ in range(n_users)]
    relevant = [sorted(rng.permutation(n_items)[: rng.integers(0, 10)].tolist()) for _ in range(n_users)]
    # Spark counts a user without truth as 0 and logs a warning; here such users are not eligible.
    pairs = [(shown, chosen) for shown, chosen in zip(ranked, relevant, strict=True) if chosen]
    assert sum(not shown for shown, _ in pairs) > 0
    assert len(pairs) < n_users
    theirs = RankingMetrics(spark.sparkContext.parallelize(pairs, 2))
    ks = [1, 5, 12, 20]
    ours = {
        name: eligible(values).mean()
        for name, values in accuracy(padded(ranked, width), csr(relevant), ks).items()
    }
    for k in ks:
        assert ours[f"Precision@{k}"] == pytest.approx(theirs.precisionAt(k))
        assert ours[f"Recall@{k}"] == pytest.approx(theirs.recallAt(k))
        assert ours[f"nDCG@{k}"] == pytest.approx(theirs.ndcgAt(k))
        # Spark's MAP@k divides by min(k, |Rel|); its MAP without a k is trec_eval's.
        assert ours[f"MAP@{k}(min)"] == pytest.approx(theirs.meanAveragePrecisionAt(k))
    assert ours["MAP@20"] == pytest.approx(theirs.meanAveragePrecision)
