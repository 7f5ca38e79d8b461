"""The first half of clean_events: each raw row by itself becomes an event or gets the reason it is none.

Reasons are tried in the order of REASONS and the first that holds wins; then the scene's own `reject` rules
in alphabetical order; `bot` comes last, from the sequence of events (event_buckets.py). `bad_id` means an id
of user or item that is too long or holds control characters, NUL, or bytes that are no UTF-8. `../` and the
like are legal: ids never enter a path.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from nightjar.config import EVENT_COLUMNS, CleanEvents, Clock, Scene
from nightjar.engines.raw import ROW, SOURCE, UNREADABLE, RawGroup, mapping, quoted
from nightjar.errors import ConfigError
from nightjar.stage import Night

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

BAD_LETTERS = "[\\x00-\\x1F\\x7F\\uFFFD]"
"""Control characters; U+FFFD is what bytes that are no UTF-8 become."""

_REJECT = "reject."
_MAX_SECONDS = 253_402_300_799
"""The last second of year 9999: what lies beyond is no time but a unit mistaken."""


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


def judge(group: RawGroup, name: str, params: CleanEvents, times: Span) -> DataFrame:
    """Raw rows of one layout -> JUDGED rows, one each. Payload is kept for rejected rows only."""
    scene = params.scenes[name]
    # Three steps, since an alias cannot be used beside its definition: clean, judge, keep what is needed.
    rules = [quoted(f"{_REJECT}{reason}") for reason in scene.reject]
    cleaned = group.frame.select(ROW, SOURCE, UNREADABLE, *rules, *_cleaned(name, scene, params))
    judged = cleaned.select("*", _reason(scene, params, times, cleaned).alias("reason"))
    return judged.select(*_kept(group, name))


def _cleaned(name: str, scene: Scene, params: CleanEvents) -> list[Column]:
    given = mapping(scene)

    def text(column: str) -> Column:
        return _text(F.col(column)) if column in given else F.lit(None).cast("string")

    query = F.regexp_replace(text("query"), BAD_LETTERS, " ")
    cleaned = {
        "user_id": _id(text("user_id")),
        "item_id": _id(text("item_id")),
        "event_type": text("event_type"),
        "event_time": text("event_time"),
        "micros": instant("event_time", scene.time),
        "value_text": text("value"),
        "value": F.expr("try_cast(`value` as double)") if "value" in given else F.lit(None).cast("double"),
        "query": _text(F.substring(query, 1, params.max_query_chars)),
        "segment": F.substring(text("segment"), 1, params.max_id_chars),
        "event_id": _event_id(name, scene, params),
    }
    return [column.alias(alias) for alias, column in cleaned.items()]


def _text(column: Column) -> Column:
    """Without spaces around, and null where nothing is left."""
    trimmed = F.trim(column)
    return F.when(trimmed != "", trimmed)


def _id(column: Column) -> Column:
    """A float column writes its holes as NaN, which is no id."""
    return F.when(column != "NaN", column)


def _event_id(name: str, scene: Scene, params: CleanEvents) -> Column:
    """`scene:` and the id given, or a hash of all mapped values, so that equal rows are one event.

    Each value goes in behind its length, so that no two different rows write the same text.
    """
    given = [column for column in EVENT_COLUMNS if column in mapping(scene) and column != "event_id"]
    measured = (F.concat(F.length(column).cast("string"), F.lit(":"), F.col(column)) for column in given)
    pieces = (F.coalesce(piece, F.lit("-")) for piece in measured)
    hashed = F.substring(F.sha2(F.concat(F.lit(f"{name}:"), *pieces), 256), 1, 32)
    if "event_id" not in mapping(scene):
        return F.concat(F.lit(f"{name}:"), hashed)
    own = _id(_text(F.col("event_id")))
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
        "not_an_item": _not_an_item(scene, cleaned),
        "bad_id": _bad_id(F.col("user_id"), params) | F.coalesce(_bad_id(item, params), F.lit(False)),
        "bad_value": F.col("value_text").isNotNull() & ~_finite(F.col("value")),
    }
    reason = F.lit(None).cast("string")
    own = [(name, quoted(f"{_REJECT}{name}") == "true") for name in sorted(scene.reject)]
    ordered = [(name, holds[name]) for name in REASONS if name in holds] + own
    for name, condition in reversed(ordered):
        reason = F.when(condition, F.lit(name)).otherwise(reason)
    return reason


def _not_an_item(scene: Scene, cleaned: DataFrame) -> Column:
    named = F.col("item_id").isin(list(scene.not_items)) if scene.not_items else F.lit(False)
    if scene.not_items_sql is None:
        return F.coalesce(named, F.lit(False))
    return F.coalesce(named, F.lit(False)) | no_item_sql(scene.not_items_sql, cleaned)


def no_item_sql(sql: str, cleaned: DataFrame) -> Column:
    """The rule `not_items_sql` on rows whose `item_id` is cleaned; ConfigError where Spark refuses it."""
    try:
        rule = F.coalesce(F.expr(sql), F.lit(False))
        _ = cleaned.select(rule).schema
    except PySparkException as error:
        raise ConfigError(f"not_items_sql ({sql}) is refused: {str(error).splitlines()[0]}") from None
    return rule


def _bad_id(column: Column, params: CleanEvents) -> Column:
    return (F.length(column) > params.max_id_chars) | column.rlike(BAD_LETTERS)


def _finite(column: Column) -> Column:
    """False for null, NaN and the infinities; NaN is larger than every number in Spark."""
    return F.coalesce(F.abs(column) < float("inf"), F.lit(False))


def _kept(group: RawGroup, name: str) -> list[Column]:
    alive = F.col("reason").isNull()
    payload = F.coalesce(group.payload, F.lit(""))
    spread = F.hex(F.xxhash64(payload, F.col(SOURCE)))
    special = {
        "key": F.when(alive, F.col("user_id")).otherwise(spread),
        "scene": F.lit(name),
        "reason": F.col("reason"),
        "payload": F.when(~alive, payload),
        "source_file": F.col(SOURCE),
    }
    columns = {column: special.get(column, F.when(alive, F.col(column))) for column in JUDGED}
    return [columns[column].cast(kind).alias(column) for column, kind in JUDGED.items()]


def instant(column: str, clock: Clock) -> Column:
    """A column of text as microseconds since 1970 UTC; null where it is no time by its clock.

    A time that names its own offset keeps it; one that does not is taken to be in clock.zone.
    """
    name = f"`{column}`"
    if clock.format in ("epoch_seconds", "epoch_millis"):
        per_second = 1_000 if clock.format == "epoch_millis" else 1
        number = F.expr(f"try_cast({name} as double)")
        sound = F.abs(number) <= _MAX_SECONDS * per_second
        return F.when(sound, F.round(number * (1_000_000 // per_second)).cast("bigint"))
    text = F.trim(F.col(column))
    if clock.format == "iso":
        # Spark also reads `10:00` (as today) and `2011`; a time without its date is none.
        looks = text.rlike(r"^\d{4}-\d{1,2}-\d{1,2}([T ]|$)")
        moment = F.when(looks, F.try_to_timestamp(text))
        zoned = text.rlike(r"\d:.*(Z|UTC|GMT|[+-][\d:]+|[A-Za-z]+/[A-Za-z_/]+)$")
    else:
        moment = F.try_to_timestamp(text, F.lit(clock.format))
        zoned = F.lit(_names_zone(clock.format))
    if clock.zone != "UTC":
        moment = F.when(zoned, moment).otherwise(F.to_utc_timestamp(moment, clock.zone))
    return F.unix_micros(moment)


def _names_zone(pattern: str) -> bool:
    """Whether a datetime pattern reads an offset or zone; quoted letters are plain text."""
    return any(letter in "VzOXxZ" for piece in pattern.split("'")[::2] for letter in piece)


def check_clock(spark: SparkSession, clock: Clock, where: str) -> None:
    """Refuses a pattern or time zone that Spark does not know, before any row is read."""
    plain = clock.format in ("iso", "epoch_seconds", "epoch_millis")
    if plain and clock.zone == "UTC":
        return
    try:
        spark.sql("select '2020-01-01 00:00:00' as t").select(instant("t", clock)).collect()
    except PySparkException as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"{where}: time.format {clock.format!r} or time.zone {clock.zone!r} is unknown ({first})"
        ) from None
