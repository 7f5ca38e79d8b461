"""The first half of clean_events: each raw row by itself becomes an event or gets the reason it is none.

Reasons are tried in the order of REASONS and the first that holds wins; then the scene's own `reject` rules
in alphabetical order; `bot` comes last, from the sequence of events (event_buckets.py). `bad_id` means an id
of user or item that is too long or holds control characters, NUL, or bytes that are no UTF-8. `../` and the
like are legal: ids never enter a path.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from nightjar.config import EVENT_COLUMNS, CleanEvents, Scene
from nightjar.engines.raw import ROW, SOURCE, UNREADABLE, RawGroup, mapping, quoted
from nightjar.stage import Night
from nightjar.stages.cleaning.cells import BAD_LETTERS, bad_id, external_id, instant, not_an_item, text
from nightjar.stages.cleaning.event_buckets import FORGOTTEN

REASONS = (
    "unreadable",
    "missing_user",
    "missing_item",
    "missing_time",
    "bad_time",
    "before_window",
    "future",
    "too_late",
    "unknown_event_type",
    "not_an_item",
    "bad_id",
    "bad_value",
)
BOT = "bot"

JUDGED = {
    "key": "string",
    "scene": "string",
    "reason": "string",
    "event_id": "string",
    "user_id": "string",
    "item_id": "string",
    "event_type": "string",
    "micros": "bigint",
    "value": "double",
    "query": "string",
    "segment": "string",
    "payload": "string",
    "source_file": "string",
}
"""Columns of a judged row. reason: null for an event, whose key is its user; a reject's key spreads it."""

_REJECT = "reject."
_FORGET = "_forget"


@dataclass(frozen=True)
class Span:
    """The instants an event may have, in microseconds; `late`: what to call one before `start`."""

    start: int
    end: int
    late: str


def span(night: Night, params: CleanEvents) -> Span:
    """What counts as history for this night, by the rule of `history`."""
    end = night.end + timedelta(seconds=params.future_seconds)
    snapshot = params.history == "snapshot"
    days = params.window_days if snapshot else params.late_days + 1
    start = night.end - timedelta(days=days)
    late = "before_window" if snapshot else "too_late"
    return Span(int(start.timestamp()) * 1_000_000, int(end.timestamp()) * 1_000_000, late)


def wanted(scene: Scene) -> dict[str, str]:
    """What to read of a scene's files: its mapped columns and its reject rules, as SQL."""
    rules = {f"{_REJECT}{reason}": f"coalesce({sql}, false)" for reason, sql in scene.reject.items()}
    return {**mapping(scene), **rules}


def judge(
    group: RawGroup, name: str, params: CleanEvents, times: Span, forgotten: DataFrame | None = None
) -> DataFrame:
    """Raw rows of one layout -> JUDGED rows, one each. Payload is kept for rejected rows only.

    forgotten: user_id of users whose rows are FORGOTTEN before any reason is looked for.
    """
    scene = params.scenes[name]
    # Three steps, since an alias cannot be used beside its definition: clean, judge, keep what is needed.
    rules = [quoted(f"{_REJECT}{reason}") for reason in scene.reject]
    cleaned = group.frame.select(ROW, SOURCE, UNREADABLE, *rules, *_cleaned(name, scene, params))
    reason = _reason(scene, params, times, cleaned)
    if forgotten is not None:
        cleaned = cleaned.join(forgotten.withColumn(_FORGET, F.lit(True)), "user_id", "left")
        reason = F.when(F.col(_FORGET), F.lit(FORGOTTEN)).otherwise(reason)
    judged = cleaned.select("*", reason.alias("reason"))
    return judged.select(*_kept(group, name))


def _cleaned(name: str, scene: Scene, params: CleanEvents) -> list[Column]:
    given = mapping(scene)

    def given_text(column: str) -> Column:
        return text(F.col(column)) if column in given else F.lit(None).cast("string")

    query = F.regexp_replace(given_text("query"), BAD_LETTERS, " ")
    cleaned = {
        "user_id": external_id(given_text("user_id")),
        "item_id": external_id(given_text("item_id")),
        "event_type": given_text("event_type"),
        "event_time": given_text("event_time"),
        "micros": instant("event_time", scene.time),
        "value_text": given_text("value"),
        "value": F.expr("try_cast(`value` as double)") if "value" in given else F.lit(None).cast("double"),
        "query": text(F.substring(query, 1, params.max_query_chars)),
        "segment": F.substring(given_text("segment"), 1, params.max_id_chars),
        "event_id": _event_id(name, scene, params),
    }
    return [column.alias(alias) for alias, column in cleaned.items()]


def _event_id(name: str, scene: Scene, params: CleanEvents) -> Column:
    """`scene:` and the id given, or a hash of all mapped values, so that equal rows are one event.

    The values are parted by a control character, which no id, type, time or number of a good row holds; the
    free text of a query goes last. Writing each value's length before it took twice the time of the sha2.
    """
    given = [column for column in EVENT_COLUMNS if column in mapping(scene) and column != "event_id"]
    given.sort(key=lambda column: column == "query")
    pieces = (F.coalesce(F.col(column), F.lit("\x00")) for column in given)
    hashed = F.substring(F.sha2(F.concat_ws("\x1f", F.lit(name), *pieces), 256), 1, 32)
    if "event_id" not in mapping(scene):
        return F.concat(F.lit(f"{name}:"), hashed)
    own = external_id(text(F.col("event_id")))
    unfit = (F.length(own) > params.max_id_chars) | own.rlike(BAD_LETTERS)
    return F.concat(F.lit(f"{name}:"), F.when(unfit, F.sha2(own, 256)).otherwise(F.coalesce(own, hashed)))


def _reason(scene: Scene, params: CleanEvents, times: Span, cleaned: DataFrame) -> Column:
    kinds = list(scene.event_types)
    itemless = [kind for kind, spec in scene.event_types.items() if not spec.item]
    item, micros = F.col("item_id"), F.col("micros")
    holds = {
        "unreadable": F.col(UNREADABLE),
        "missing_user": F.col("user_id").isNull(),
        "missing_item": item.isNull() & ~F.coalesce(F.col("event_type").isin(itemless), F.lit(False)),
        "missing_time": F.col("event_time").isNull(),
        "bad_time": micros.isNull(),
        times.late: micros < times.start,
        "future": micros >= times.end,
        "unknown_event_type": ~F.coalesce(F.col("event_type").isin(kinds), F.lit(False)),
        "not_an_item": not_an_item(scene.not_items, scene.not_items_sql, cleaned),
        "bad_id": bad_id(F.col("user_id"), params.max_id_chars) | bad_id(item, params.max_id_chars),
        "bad_value": F.col("value_text").isNotNull() & ~_finite(F.col("value")),
    }
    reason = F.lit(None).cast("string")
    own = [(name, quoted(f"{_REJECT}{name}") == "true") for name in sorted(scene.reject)]
    ordered = [(name, holds[name]) for name in REASONS if name in holds] + own
    for name, condition in reversed(ordered):
        reason = F.when(condition, F.lit(name)).otherwise(reason)
    return reason


def _finite(column: Column) -> Column:
    """False for null, NaN and the infinities; NaN is larger than every number in Spark."""
    return F.coalesce(F.abs(column) < float("inf"), F.lit(False))


def _kept(group: RawGroup, name: str) -> list[Column]:
    alive = F.col("reason").isNull()
    rejected = ~alive & (F.col("reason") != FORGOTTEN)
    payload = F.coalesce(group.payload, F.lit(""))
    spread = F.hex(F.xxhash64(payload, F.col(SOURCE)))
    special = {
        "key": F.when(alive, F.col("user_id")).otherwise(spread),
        "scene": F.lit(name),
        "reason": F.col("reason"),
        "payload": F.when(rejected, payload),
        "source_file": F.col(SOURCE),
    }
    columns = {column: special.get(column, F.when(alive, F.col(column))) for column in JUDGED}
    return [columns[column].cast(kind).alias(column) for column, kind in JUDGED.items()]
