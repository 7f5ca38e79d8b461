"""Ratings of a log as one table, before t0 and to be predicted, and what Spark's ALS makes of the latter."""

from __future__ import annotations

from datetime import timedelta

from pyspark.ml.recommendation import ALS, ALSModel
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from nightjar.config import CleanEvents, Evaluate
from nightjar.engines import spark
from nightjar.stage import Night
from nightjar.store import FileEntry
from nightjar.tables import EVENTS, ITEMS, RATINGS, USERS

ALS_RIDGES = (0.05, 0.1, 0.2, 0.4)
VALIDATION_SHARE = 0.1


def rated_kinds(cleaning: CleanEvents) -> list[tuple[str, str]]:
    """Scene and event type of every kind whose value is a rating."""
    return [
        (name, kind)
        for name, scene in cleaning.scenes.items()
        for kind, how in scene.event_types.items()
        if how.rating
    ]


def write_ratings(session: SparkSession, night: Night, params: Evaluate) -> tuple[FileEntry, ...]:
    """Writes the ratings table, bucketed as users are; without rows where no kind of event is a rating."""
    attempt, n_parts = night.write(RATINGS), len(night.read(USERS).parts)
    kinds = rated_kinds(night.config.clean_events)
    if not kinds:
        return tuple(attempt.write_part(part, []) for part in range(n_parts))
    end = night.end + timedelta(days=params.test_days)
    later = spark.read_files(session, EVENTS, [raw.path for raw in night.raw["truth"]["events"]])
    later = later.filter((F.col("event_time") >= night.end) & (F.col("event_time") < end))
    known = _newest(session, night, spark.read(session, night.window(EVENTS)), kinds)
    held = _newest(session, night, later, kinds).join(known, ["user_id", "item_num"], "left_anti")
    known = known.withColumn("held", F.lit(False)).persist()
    held = held.withColumn("held", F.lit(True)).persist()
    try:
        rows = known.unionByName(held).withColumn("als", F.lit(None).cast("double"))
        with spark.spark_errors("ratings"):
            if params.als_rank and held.count() and known.count():
                rows = _with_als(known, held, params)
        columns = rows.select(*RATINGS.schema.names)
        return spark.write(columns, attempt, n_parts, ("user_id", "item_num"))
    finally:
        known.unpersist()
        held.unpersist()


def _newest(
    session: SparkSession, night: Night, events: DataFrame, kinds: list[tuple[str, str]]
) -> DataFrame:
    """The newest rating of each (user_id, item_num); of several at one instant the highest."""
    wanted = F.lit(False)
    for scene, kind in kinds:
        wanted = wanted | ((F.col("scene") == scene) & (F.col("event_type") == kind))
    items = spark.read(session, night.read(ITEMS)).select("item_id", "item_num")
    rated = events.filter(wanted & F.col("value").isNotNull()).join(items, "item_id")
    newest = F.max(F.struct("event_time", "value")).alias("newest")
    pairs = rated.groupBy("user_id", "item_num").agg(newest)
    return pairs.select(
        "user_id",
        "item_num",
        F.col("newest.value").alias("value"),
        F.col("newest.event_time").alias("rated_at"),
    )


def _with_als(known: DataFrame, held: DataFrame, params: Evaluate) -> DataFrame:
    """All ratings, the held ones with ALS's prediction, its ridge chosen on the newest tenth known."""
    people = known.select("user_id").distinct()
    numbers = people.withColumn("user_num", F.row_number().over(Window.orderBy("user_id")))
    numbered = known.join(numbers, "user_id").withColumn("at", F.unix_micros("rated_at")).persist()
    try:
        (cut,) = numbered.approxQuantile("at", [1 - VALIDATION_SHARE], 0.001)
        before, newest = numbered.filter(F.col("at") <= cut), numbered.filter(F.col("at") > cut)
        errors = {ridge: _error(before, newest, ridge, params) for ridge in ALS_RIDGES}
        best = min(ALS_RIDGES, key=lambda ridge: (errors[ridge], ridge))
        model = _als(numbered, best, params)
        asked = held.join(numbers, "user_id", "left")
        predicted = model.transform(asked.filter("user_num is not null"))
        als = F.when(~F.isnan("prediction"), F.col("prediction").cast("double"))
        found = predicted.select("user_id", "item_num", als.alias("als"))
        return known.unionByName(held).join(found, ["user_id", "item_num"], "left")
    finally:
        numbered.unpersist()


def _als(rows: DataFrame, ridge: float, params: Evaluate) -> ALSModel:
    method = ALS(
        rank=params.als_rank,
        regParam=ridge,
        userCol="user_num",
        itemCol="item_num",
        ratingCol="value",
        seed=params.seed,
    )
    return method.fit(rows)


def _error(before: DataFrame, newest: DataFrame, ridge: float, params: Evaluate) -> float:
    """RMSE on ratings whose user and item are known; infinite where there is none."""
    predicted = _als(before, ridge, params).transform(newest).filter(~F.isnan("prediction"))
    off = F.col("prediction") - F.col("value")
    found = predicted.agg(F.sqrt(F.avg(off * off)).alias("rmse")).first()
    return float("inf") if found is None or found["rmse"] is None else float(found["rmse"])
