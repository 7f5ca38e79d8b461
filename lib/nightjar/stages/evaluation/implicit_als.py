"""The baseline `als`: item factors of Spark's implicit ALS over the likes known before t0."""

from __future__ import annotations

import numpy as np
from pyspark.ml.recommendation import ALS
from pyspark.sql import SparkSession, Window
from pyspark.sql import functions as F

from nightjar.engines import spark
from nightjar.errors import ConfigError
from nightjar.stage import Night
from nightjar.stages.evaluation.single_methods import ALS_ALPHA, ALS_RIDGE
from nightjar.tables import INTERACTIONS, ITEMS

RANK = 64
MOST_ITEMS = 500_000
"""Item factors travel with every task: 128 MB at this many."""


def item_factors(session: SparkSession, night: Night, seed: int) -> np.ndarray:
    """(n_items, RANK) float32, 0 for items that nobody likes. Raises ConfigError for over MOST_ITEMS."""
    n_items = night.read(ITEMS).manifest.rows
    if n_items > MOST_ITEMS:
        raise ConfigError(
            f"evaluate.baselines: als is for {MOST_ITEMS:,} items at most, not {n_items:,}; leave it out"
        )
    pairs = spark.read(session, night.read(INTERACTIONS)).filter(F.col("weight") > 0)
    people = pairs.select("user_id").distinct()
    numbers = people.withColumn("user_num", F.row_number().over(Window.orderBy("user_id")))
    liked = pairs.join(numbers, "user_id").select("user_num", "item_num", F.lit(1.0).alias("liked"))
    method = ALS(
        rank=RANK,
        alpha=ALS_ALPHA,
        regParam=ALS_RIDGE,
        implicitPrefs=True,
        userCol="user_num",
        itemCol="item_num",
        ratingCol="liked",
        seed=seed,
    )
    factors = np.zeros((n_items, RANK), np.float32)
    with spark.spark_errors("als"):
        for row in method.fit(liked).itemFactors.collect():
            factors[row["id"]] = row["features"]
    return factors
