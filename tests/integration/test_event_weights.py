"""The fixed-point weight of an event: its scene, its kind, value and age, each scene at its own pace."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from nightjar.stages.weigh_events import event_weight
from nightjar.tables import WEIGHT_ONE
from tests.world import config

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NEWEST = datetime(2025, 3, 31, tzinfo=UTC)
KINDS = {"view": {}, "buy": {"weight": 3.0, "value_weight": "least(value, 2)"}, "return": {"negative": True}}


def scene(**more: object) -> dict[str, object]:
    columns = {"user_id": "u", "event_type": "t", "event_time": "at"}
    return {"path": "unused", "format": "jsonl", "columns": columns, "event_types": KINDS, **more}


def weights(spark: SparkSession, rows: list[tuple[str, str, float, float]], faded: bool = True) -> list[int]:
    """rows: scene, event type, age in days, value."""
    from pyspark.sql import functions as F

    scenes = {"shop": scene(), "video": scene(weight=0.5, half_life_days=10.0), "search": scene(weight=0.0)}
    made = config("unused", clean_events={"scenes": scenes}, weigh_events={"half_life_days": 40.0})
    events = [(at, *row[:2], NEWEST - timedelta(days=row[2]), row[3]) for at, row in enumerate(rows)]
    frame = spark.createDataFrame(
        events, "at int, scene string, event_type string, event_time timestamp, value double"
    )
    weight = event_weight(made.clean_events, made.weigh_events, F.lit(NEWEST), faded)
    return [row["w"] for row in frame.select("at", weight.alias("w")).orderBy("at").collect()]


ROWS = [
    ("shop", "view", 40.0, 1.0),
    ("video", "view", 40.0, 1.0),
    ("shop", "buy", 0.0, 5.0),
    ("video", "return", 10.0, 1.0),
    ("video", "view", 4000.0, 1.0),
    ("search", "view", 0.0, 1.0),
    ("shop", "gone", 0.0, 1.0),
]


def test_each_scene_weighs_and_fades_on_its_own(spark: SparkSession) -> None:
    units = [0.5, 0.5 * 2**-4, 6.0, -0.25]
    expected = [round(unit * WEIGHT_ONE) for unit in units]
    # However old, it was liked; a scene or kind of event of weight 0 says nothing, an unknown kind neither.
    assert weights(spark, ROWS) == [*expected, 1, 0, 0]


def test_what_a_scene_forgets_sooner_stays_forgotten_where_the_shared_half_life_is_left_out(
    spark: SparkSession,
) -> None:
    kept = 2 ** -(10 / 10 - 10 / 40)
    found = weights(spark, ROWS[:4], faded=False)
    assert found[:3] == [WEIGHT_ONE, round(0.5 * 2**-3 * WEIGHT_ONE), 6 * WEIGHT_ONE]
    assert found[3] == pytest.approx(-0.5 * kept * WEIGHT_ONE, abs=1)
