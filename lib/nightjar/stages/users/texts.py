"""What users wrote (searches, reviews, stated interests) -> user_texts and query_text: the Spark half.

A text weighs what its events weigh, before they fade, times what its kind counts (`weigh_events.words`); a
negative event's words subtract as its item does. Each distinct text is numbered in the order of its hash, so
that its vector is a row of a matrix and users carry eight bytes for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import accumulate

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from nightjar.config import CleanEvents, WeighEvents
from nightjar.engines import spark
from nightjar.stage import Metrics, Night
from nightjar.tables import QUERY_TEXT, USER_TEXTS, WEIGHT_ONE, WORDS

QUERY, REVIEW, INTERESTS = WORDS
SAID = ("user_id", "kind", "text", "strength", "last_event_time")


@dataclass(frozen=True)
class Wordings:
    """Where users' words stand. events: the log; strength: the unfaded fixed-point weight of an event, over
    its columns and `newest`, its user's newest time; declared: users with their `interests`, or None.
    """

    events: DataFrame
    strength: Column
    declared: DataFrame | None


def write_user_texts(session: SparkSession, night: Night, params: WeighEvents, wordings: Wordings) -> Metrics:
    """Writes both tables, empty ones where nothing is mapped or nothing counts; returns counts."""
    cleaning = night.config.clean_events
    frames = [*_logged(cleaning, params, wordings), *_stated(params, wordings)]
    if not frames:
        return _write_nothing(night, params)
    said = _summed(reduce(DataFrame.unionByName, frames), cleaning.max_query_chars, params.text_cap)
    said = said.persist()
    try:
        with spark.spark_errors(USER_TEXTS.name):
            n_texts = said.select("text_hash").distinct().count()
        if not n_texts:
            return _write_nothing(night, params)
        n_rows = _write(session, night, params, said, -(-n_texts // params.texts_per_part))
    finally:
        said.unpersist()
    return {"texts": n_texts, "user_texts": n_rows}


def _write_nothing(night: Night, params: WeighEvents) -> Metrics:
    attempt = night.write(USER_TEXTS)
    night.wrote(USER_TEXTS, [attempt.write_part(part, []) for part in range(params.user_parts)])
    night.wrote(QUERY_TEXT, [])
    return {"texts": 0, "user_texts": 0}


def _logged(cleaning: CleanEvents, params: WeighEvents, wordings: Wordings) -> list[DataFrame]:
    """SAID rows of the log, of the kinds of event whose words are mapped and count."""
    counted = _counted(cleaning, params)
    if not counted:
        return []
    kind: Column = F.lit(None).cast("string")
    factor: Column = F.lit(0.0)
    for (scene, event_type), (name, weight) in counted.items():
        here = (F.col("scene") == scene) & (F.col("event_type") == event_type)
        kind = F.when(here, F.lit(name)).otherwise(kind)
        factor = F.when(here, F.lit(weight)).otherwise(factor)
    worded = wordings.events.withColumn("kind", kind).filter("kind is not null and query is not null")
    newest = F.max("event_time").over(Window.partitionBy("user_id"))
    said = worded.withColumn("newest", newest).select(
        "user_id",
        "kind",
        F.col("query").alias("text"),
        F.round(wordings.strength * factor).cast("long").alias("strength"),
        F.col("event_time").alias("last_event_time"),
    )
    return [said]


def _counted(cleaning: CleanEvents, params: WeighEvents) -> dict[tuple[str, str], tuple[str, float]]:
    """(scene, event type) -> (kind, what it counts), of those whose words are mapped and count at all."""
    found: dict[tuple[str, str], tuple[str, float]] = {}
    for scene_name, scene in cleaning.scenes.items():
        if "query" not in {**scene.columns, **scene.sql}:
            continue
        for type_name, event_type in scene.event_types.items():
            weight = {QUERY: params.words.query, REVIEW: params.words.review}.get(event_type.words, 0.0)
            if weight:
                found[scene_name, type_name] = event_type.words, weight
    return found


def _stated(params: WeighEvents, wordings: Wordings) -> list[DataFrame]:
    """SAID rows of the interests that declared users stated."""
    if wordings.declared is None or not params.words.interests:
        return []
    amount = F.lit(round(params.words.interests * WEIGHT_ONE)).cast("long")
    stated = wordings.declared.filter("interests is not null").select(
        "user_id",
        F.lit(INTERESTS).alias("kind"),
        F.col("interests").alias("text"),
        amount.alias("strength"),
        F.lit(None).cast("timestamp").alias("last_event_time"),
    )
    return [stated]


def _summed(said: DataFrame, longest: int, cap: int) -> DataFrame:
    """A row a user, kind and text, with text_hash; of each user the `cap` texts used last.

    A text without a letter or digit says nothing. Interests have no time and come before all others.
    """
    text = F.trim(F.substring(F.regexp_replace("text", r"\s+", " "), 1, longest))
    tidy = said.withColumn("text", text).filter(F.col("text").rlike(r"[\p{L}\p{N}]"))
    summed = tidy.groupBy("user_id", "kind", "text").agg(
        F.sum("strength").alias("strength"), F.max("last_event_time").alias("last_event_time")
    )
    hashed = summed.filter("strength <> 0").withColumn("text_hash", F.sha2("text", 256))
    newest_first = F.desc_nulls_first("last_event_time")
    recent = Window.partitionBy("user_id").orderBy(newest_first, "kind", "text_hash")
    return hashed.withColumn("place", F.row_number().over(recent)).filter(F.col("place") <= cap).drop("place")


def _write(session: SparkSession, night: Night, params: WeighEvents, said: DataFrame, n_parts: int) -> int:
    numbered = _numbered(session, said.select("text", "text_hash").distinct(), n_parts).persist()
    try:
        texts = numbered.select("part", "text", "text_hash")
        night.wrote(
            QUERY_TEXT, spark.write_ranges(texts, night.write(QUERY_TEXT), n_parts, "part", "text_hash")
        )
        rows = said.join(numbered.select("text_hash", "text_num"), "text_hash")
        rows = rows.select(*USER_TEXTS.schema.names)
        written = spark.write(rows, night.write(USER_TEXTS), params.user_parts, USER_TEXTS.key)
        night.wrote(USER_TEXTS, written)
    finally:
        numbered.unpersist()
    return sum(entry.rows for entry in written)


def _numbered(session: SparkSession, texts: DataFrame, n_parts: int) -> DataFrame:
    """Texts with their `part` and `text_num`: 0…n−1 in the order of hashes, parts being ranges of hashes.

    A hash spreads evenly, so its first 32 bits say the part; only the counts of parts come to the driver.
    """
    head = F.conv(F.substring("text_hash", 1, 8), 16, 10).cast("long")
    placed = texts.withColumn("part", F.shiftright(head * n_parts, 32).cast("int"))
    with spark.spark_errors(QUERY_TEXT.name):
        counts = {
            row["part"]: row["n"] for row in placed.groupBy("part").agg(F.count("*").alias("n")).collect()
        }
    starts = [0, *accumulate(counts.get(part, 0) for part in range(n_parts))]
    offsets = session.createDataFrame(list(enumerate(starts[:-1])), "part int, offset long")
    inside = F.row_number().over(Window.partitionBy("part").orderBy("text_hash"))
    numbered = placed.withColumn("inside", inside).join(F.broadcast(offsets), "part")
    return numbered.withColumn("text_num", F.col("offset") + F.col("inside") - 1)
