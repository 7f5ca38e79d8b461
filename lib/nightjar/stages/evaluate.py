"""Lists as of t0 against what users did afterwards: recommendations of a back-test -> metrics.

Definitions are those of kernels/metrics.py, beyond.py, variety.py and stability.py. Everything is ranked
against the full catalogue as of t0; what a user had seen before t0 is left out of truth and lists alike, or
of neither. Per-user values and the lists themselves are kept; means are made of them (user_means.py).
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from nightjar.config import Evaluate, Resources
from nightjar.engines import spark
from nightjar.errors import ContractError
from nightjar.kernels.metrics import accuracy
from nightjar.stage import Metrics, Night
from nightjar.stages.evaluation.about_lists import catalogue_of, category_sets, names_of_about
from nightjar.stages.evaluation.implicit_als import item_factors
from nightjar.stages.evaluation.part import OURS, EvaluatePart, ItemSide, UserSide, read_attempt
from nightjar.stages.evaluation.rated_events import write_ratings
from nightjar.stages.evaluation.rating_figures import predicted, rating_figures
from nightjar.stages.evaluation.single_methods import SingleInputs, methods_of
from nightjar.stages.evaluation.user_means import Figure, Measured, figures, known_user_figures, metrics_table
from nightjar.stages.weigh_events import event_weight
from nightjar.store import Committed, FileEntry
from nightjar.tables import (
    EVENTS,
    INTERACTIONS,
    ITEM_EMBEDDINGS,
    ITEMS,
    METRICS,
    NEIGHBOURS,
    PREDICTED_RATINGS,
    RATINGS,
    RECOMMENDATIONS,
    TRUTH,
    USER_METRICS,
    USERS,
)

POPULAR_KEPT = 20_000


def evaluate(night: Night, params: Evaluate, resources: Resources) -> Metrics:
    """Writes truth, per-user metrics and their means with bootstrap intervals for the lists of night.ds."""
    del resources
    session = spark.session(night.config)
    n_parts = len(night.read(USERS).parts)
    later = _liked_after(session, night, params).persist()
    try:
        kept = _truth(session, night, later)
        truth = spark.write(kept, night.write(TRUTH), n_parts, ("user_id", "item_num"))
        counts = _truth_counts(session, night, later, truth)
    finally:
        later.unpersist()
    night.wrote(TRUTH, truth)
    task = _task(session, night, params, truth)
    entries = spark.map_parts(session, task, task.attempt, n_parts)
    night.wrote(USER_METRICS, entries)
    described: Metrics = {
        "accuracy": metric_names(params),
        "about_list": names_of_about(params.ks),
        "t0": str(night.ds + timedelta(days=1)),
        "seen": "left out of lists and truth" if night.config.retrieve.exclude_seen else "part of both",
        **counts,
    }
    rated, of_ratings = _ratings(session, night, params)
    described |= rated
    rows = [*_figures(night, task, entries, described, params), *of_ratings]
    night.wrote(METRICS, [night.write(METRICS).write_part(0, [metrics_table(rows)])])
    return described


def _figures(
    night: Night, task: EvaluatePart, entries: tuple[FileEntry, ...], described: Metrics, params: Evaluate
) -> list[Figure]:
    tables = [read_attempt(task.attempt, entry) for entry in entries]
    if not sum(len(table) for table in tables):
        raise ContractError(
            f"backtest: nobody touched a known item in the {params.test_days} days after {night.ds}; "
            "choose an earlier ds or more test_days"
        )
    catalogue = task.shelf.catalogue
    measured = Measured(
        (pa.concat_tables(tables),), (catalogue,), described["accuracy"], described["about_list"]
    )
    lists, ids = night.read(RECOMMENDATIONS), night.read(ITEMS).read(["item_id"])["item_id"]
    everyone = known_user_figures(lists, ids, catalogue, night.read(USERS).manifest.rows, params.ks)
    return [*figures(measured, params), *everyone]


def _ratings(session: SparkSession, night: Night, params: Evaluate) -> tuple[Metrics, list[Figure]]:
    """Predicts the ratings of the days after t0, where the log has any; writes both tables of ratings."""
    entries = write_ratings(session, night, params)
    night.wrote(RATINGS, entries)
    rows = pa.concat_tables([read_attempt(night.write(RATINGS), entry) for entry in entries])
    table, methods, settings = predicted(rows, night.read(NEIGHBOURS), night.read(ITEMS).manifest.rows)
    night.wrote(PREDICTED_RATINGS, [night.write(PREDICTED_RATINGS).write_part(0, [table])])
    if settings is None:
        return {}, []
    described = {"rating_methods": methods, "rating_settings": asdict(settings)}
    return described, list(rating_figures(table, methods, params))


def metric_names(params: Evaluate) -> list[str]:
    """Names of the accuracy metrics in the order of USER_METRICS.accuracy."""
    none = np.zeros(1, np.int64)
    return list(accuracy(np.full((0, 1), -1), (none, none[:0]), params.ks))


def _liked_after(session: SparkSession, night: Night, params: Evaluate) -> DataFrame:
    """Distinct (user_id, item_id) liked in the test_days after ds, and whether only in scenes new to them.

    A scene is new to a user who was seen before t0, but never there.
    """
    events = spark.read_files(session, EVENTS, [raw.path for raw in night.raw["truth"]["events"]])
    end = night.end + timedelta(days=params.test_days)
    weight = event_weight(night.config.clean_events, night.config.weigh_events, F.col("event_time"))
    after = events.filter((F.col("event_time") >= night.end) & (F.col("event_time") < end))
    liked = after.filter((weight > 0) & F.col("item_id").isNotNull())
    before = spark.read(session, night.window(EVENTS)).select("user_id", "scene").distinct()
    scenes = before.groupBy("user_id").agg(F.collect_set("scene").alias("scenes"))
    new = F.coalesce(~F.array_contains("scenes", F.col("scene")), F.lit(False))
    flagged = liked.join(scenes, "user_id", "left").withColumn("new_scene", new)
    return flagged.groupBy("user_id", "item_id").agg(F.min("new_scene").alias("new_scene"))


def _truth(session: SparkSession, night: Night, later: DataFrame) -> DataFrame:
    """Of what was liked later, the items that the catalogue of ds has, without what had been seen."""
    items = spark.read(session, night.read(ITEMS)).select("item_id", "item_num")
    pairs = later.join(items, "item_id").select("user_id", "item_num", "new_scene")
    if not night.config.retrieve.exclude_seen:
        return pairs
    seen = spark.read(session, night.read(INTERACTIONS)).select("user_id", "item_num")
    return pairs.join(seen, ["user_id", "item_num"], "left_anti")


def _truth_counts(
    session: SparkSession, night: Night, later: DataFrame, truth: tuple[FileEntry, ...]
) -> dict[str, int]:
    """Where the pairs liked later went: truth, items that were not there yet, items seen before."""
    items = spark.read(session, night.read(ITEMS)).select("item_id")
    with spark.spark_errors("truth"):
        total, listed = later.count(), later.join(items, "item_id").count()
    rows = sum(entry.rows for entry in truth)
    return {
        "liked_later": total,
        "truth": rows,
        "items_not_there_yet": total - listed,
        "seen_before": listed - rows,
    }


def _popular(session: SparkSession, night: Night, params: Evaluate) -> np.ndarray:
    """Available items by the number of users who liked them in the last `popular_days`, ties by number."""
    since = night.end - timedelta(days=params.popular_days)
    pairs = spark.read(session, night.read(INTERACTIONS))
    recent = pairs.filter((F.col("last_event_time") >= since) & (F.col("weight") > 0))
    counted = recent.groupBy("item_num").count()
    items = spark.read(session, night.read(ITEMS)).filter("available").select("item_num")
    best = counted.join(items, "item_num").orderBy(F.desc("count"), "item_num").limit(POPULAR_KEPT)
    with spark.spark_errors("evaluate"):
        rows = best.collect()
    return np.array([row["item_num"] for row in rows], np.int64)


def _task(
    session: SparkSession, night: Night, params: Evaluate, truth: tuple[FileEntry, ...]
) -> EvaluatePart:
    items = night.read(ITEMS).read(["item_id", "available", "category"])
    catalogue = catalogue_of(items, night.read(INTERACTIONS))
    popular = _popular(session, night, params) if params.baselines else np.zeros(0, np.int64)
    single = SingleInputs(
        night.read(NEIGHBOURS),
        night.read(ITEM_EMBEDDINGS),
        popular,
        catalogue.available,
        catalogue.cold,
        params.seed,
        item_factors(session, night, params.seed) if "als" in params.baselines else None,
    )
    categories = category_sets(items["category"], params.category_separator)
    people = UserSide(
        night.read(RECOMMENDATIONS),
        night.read(USERS),
        night.read(INTERACTIONS),
        _night_before(night),
        night.config.retrieve.exclude_seen,
        night.config.rank.k,
    )
    return EvaluatePart(
        people,
        ItemSide(night.read(ITEMS), catalogue, categories, single),
        (OURS, *methods_of(params.baselines, single.neighbours)),
        night.write(TRUTH),
        truth,
        night.write(USER_METRICS),
        params.ks,
    )


def _night_before(night: Night) -> Committed | None:
    """The lists of the night before, where the back-test ran it: its buckets hold the same users."""
    if not night.raw.get("night_before"):
        return None
    return night.dataset(RECOMMENDATIONS, night.ds - timedelta(days=1)).require("rank")
