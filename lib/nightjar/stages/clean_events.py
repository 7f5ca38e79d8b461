"""Raw logs of all scenes -> events and quarantine. Nothing vanishes: raw = events + removed + quarantine.

Removed are repeated ids, double clicks and rows of users to forget (forgotten.py), each counted.

One pass. Each row is judged by itself (event_rules.py); rows of scenes that bring their own event ids meet
by id, so that one id is one event; then every row goes to its user's bucket, sorted, where the sequence is
judged and both tables are written (cleaning/event_buckets.py).

Which of several rows with one id stays: the earliest, then the smallest in all other columns, in a fixed
order. A double click is an event less than `double_click_seconds` after the last kept event of the same user,
scene, type and item. A bot's day is a user and UTC day with more events than the bound, counted after
duplicates and before double clicks.
"""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from nightjar.config import CleanEvents, Resources
from nightjar.engines.outcome import Counts, write_several
from nightjar.engines.raw import RawTable, lenient, mapping, open_raw, unite
from nightjar.engines.spark import read, session, spark_errors
from nightjar.errors import ContractError
from nightjar.stage import Metrics, Night
from nightjar.stages.cleaning import event_rules
from nightjar.stages.cleaning.cells import check_clock
from nightjar.stages.cleaning.event_buckets import (
    DOUBLE_CLICK,
    DUPLICATE,
    EVENT,
    FORGOTTEN,
    Rules,
    WriteBucket,
)
from nightjar.stages.cleaning.event_rules import JUDGED
from nightjar.stages.cleaning.forgotten import forgotten_users
from nightjar.store import Committed
from nightjar.tables import EVENTS, QUARANTINE

BUCKETS = 8
"""Parts of events, where resources.parts does not say."""

NEEDED = ("user_id", "event_type", "event_time")
_PRIOR = "=prior"


def clean_events(night: Night, params: CleanEvents, resources: Resources) -> Metrics:
    """Runs the stage; returns counts in all and for each scene.

    Raises InputError for a file that cannot be read or lacks a mapped column, ConfigError for SQL, patterns
    or time zones that Spark refuses, ContractError when rows written and removed are not the rows read.
    """
    spark = session(night.config)
    n_parts = resources.parts or BUCKETS
    with spark_errors("events"):
        tables = {name: _open(spark, night, name, params) for name in params.scenes}
        with lenient(spark):
            judged = _judged(spark, night, params, tables)
        order = ("key", "micros", "event_id", "payload", "source_file")
        placed = judged.repartition(n_parts, "key").sortWithinPartitions(*order)
    events, quarantine = night.write(EVENTS), night.write(QUARANTINE)
    task = WriteBucket(events, quarantine, Rules.of(params, night.config.privacy.keep_payload))
    result = write_several(placed, task, {events: n_parts, quarantine: n_parts})
    with spark_errors("events"):
        raw = {name: table.count() for name, table in tables.items()}
    metrics = _balanced(raw, result.counts)
    night.wrote(EVENTS, result.files[EVENTS.name])
    night.wrote(QUARANTINE, result.files[QUARANTINE.name])
    return metrics


def _open(spark: SparkSession, night: Night, name: str, params: CleanEvents) -> RawTable:
    scene, where = params.scenes[name], f"scene {name}"
    found = night.raw["events_raw"][name]
    check_clock(spark, scene.time, where)
    return open_raw(spark, scene, found, where, NEEDED)


def _judged(spark: SparkSession, night: Night, params: CleanEvents, tables: dict[str, RawTable]) -> DataFrame:
    """JUDGED rows of all scenes, those that repeat an event id marked."""
    times = event_rules.span(night, params)
    forgotten = forgotten_users(spark, night)
    own_ids: list[DataFrame] = []
    hashed: list[DataFrame] = []
    for name, table in tables.items():
        scene = params.scenes[name]
        groups = table.groups(event_rules.wanted(scene))
        rows = [event_rules.judge(group, name, params, times, forgotten) for group in groups]
        # Ids made by hashing hold the user and the time: their repeats meet in the user's bucket anyway.
        (own_ids if "event_id" in mapping(scene) else hashed).extend(rows)
    earlier = _earlier(night)
    if earlier:
        # An earlier night's id may repeat in any scene.
        own_ids, hashed = [*own_ids, *hashed], []
    frames = [*hashed]
    if (met := unite(own_ids)) is not None:
        frames.append(_once(met, read(spark, earlier) if earlier else None))
    united = unite(frames)
    return united if united is not None else spark.createDataFrame([], _ddl())


def _ddl() -> str:
    return ", ".join(f"{name} {kind}" for name, kind in JUDGED.items())


def _earlier(night: Night) -> list[Committed]:
    """Events of the nights whose late arrivals may come again in this one (history: daily).

    inputs.raw_inputs puts these commits among the raw inputs, so the stage's fingerprint covers them.
    """
    back = sorted(int(days) for days in night.raw.get("events_before", {}))
    found = (night.dataset(EVENTS, night.ds - timedelta(days=days)).committed() for days in back)
    return [committed for committed in found if committed is not None]


def _once(rows: DataFrame, earlier: DataFrame | None) -> DataFrame:
    """Rows with every repetition of an event id marked DUPLICATE and emptied; rejects pass as they are."""
    if earlier is not None:
        blank = {name: F.lit(None).cast(kind).alias(name) for name, kind in JUDGED.items()}
        prior = {**blank, "event_id": F.col("event_id"), "reason": F.lit(_PRIOR).alias("reason")}
        rows = rows.unionByName(earlier.select(*(prior[name] for name in JUDGED)))
    alive = F.col("reason").isNull()
    candidate = alive | (F.col("reason") == _PRIOR)
    # Rejects have no id: their spread key keeps them from crowding one task.
    group = Window.partitionBy(F.coalesce(F.col("event_id"), F.col("key")), candidate)
    order = ("micros", "user_id", "item_id", "event_type", "value", "query", "segment", "source_file")
    numbered = rows.withColumn("_nth", F.row_number().over(group.orderBy(F.col("reason").desc(), *order)))
    if earlier is not None:
        numbered = numbered.filter(F.col("reason").isNull() | (F.col("reason") != _PRIOR))
    again = alive & (F.col("_nth") > 1)
    emptied = {name: F.when(~again, F.col(name)).alias(name) for name in JUDGED}
    emptied["scene"] = F.col("scene")
    emptied["key"] = F.when(again, F.col("event_id")).otherwise(F.col("key")).alias("key")
    emptied["reason"] = F.when(again, F.lit(DUPLICATE)).otherwise(F.col("reason")).alias("reason")
    return numbered.select(*(emptied[name] for name in JUDGED))


def _balanced(raw: dict[str, int], counts: Counts) -> Metrics:
    """Counts in all and for each scene; ContractError unless every row read is accounted for."""
    scenes: dict[str, Any] = {}
    for name, n_rows in raw.items():
        fates = {fate: n for (scene, fate), n in counts.items() if scene == name}
        scenes[name] = found = _counts(n_rows, fates)
        out = sum(fates.values())
        if out != found["raw"]:
            raise ContractError(
                f"clean_events: scene {name} has {found['raw']} rows, but {out} are accounted for ({found}); "
                "were its files changed meanwhile? run the same command again"
            )
    totals: Counter[str] = Counter()
    quarantine: Counter[str] = Counter()
    for found in scenes.values():
        totals.update({key: n for key, n in found.items() if key != "quarantine"})
        quarantine.update(found["quarantine"])
    return {**totals, "quarantine": dict(sorted(quarantine.items())), "scenes": scenes}


def _counts(n_raw: int, fates: dict[str, int]) -> dict[str, Any]:
    return {
        "raw": n_raw,
        "events": fates.get(EVENT, 0),
        "duplicates": fates.get(DUPLICATE, 0),
        "double_clicks": fates.get(DOUBLE_CLICK, 0),
        "forgotten": fates.get(FORGOTTEN, 0),
        "quarantine": {reason: n for reason, n in sorted(fates.items()) if not reason.startswith("=")},
    }
