"""One cell of a raw row: text, ids, instants and truth values out of whatever a log wrote.

Everything here is a Spark expression that gives null, and never raises, for text it cannot read.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from nightjar.config import Clock
from nightjar.errors import ConfigError

BAD_LETTERS = "[\\x00-\\x1F\\x7F\\uFFFD]"
"""Control characters; U+FFFD is what bytes that are no UTF-8 become."""

_MAX_TIME_CHARS = 64
_MAX_SECONDS = 253_402_300_799
"""The last second of year 9999: what lies beyond is no time but a unit mistaken."""


def text(column: Column) -> Column:
    """Without spaces around, and null where nothing is left."""
    trimmed = F.trim(column)
    return F.when(trimmed != "", trimmed)


def external_id(column: Column) -> Column:
    """An id from cleaned text; a float column writes its holes as NaN, which is no id."""
    return F.when(column != "NaN", column)


def bad_id(column: Column, max_chars: int) -> Column:
    """True for an id that is too long or holds letters no id has; false for null."""
    return F.coalesce((F.length(column) > max_chars) | column.rlike(BAD_LETTERS), F.lit(False))


def not_an_item(names: Sequence[str], sql: str | None, cleaned: DataFrame) -> Column:
    """Whether the cleaned `item_id` is listed as no item or meets the SQL written over it.

    Raises ConfigError where Spark refuses the SQL.
    """
    listed = F.coalesce(F.col("item_id").isin(list(names)), F.lit(False)) if names else F.lit(False)
    if sql is None:
        return listed
    try:
        rule = F.coalesce(F.expr(sql), F.lit(False))
        _ = cleaned.select(rule).schema
    except PySparkException as error:
        raise ConfigError(f"not_items_sql ({sql}) is refused: {str(error).splitlines()[0]}") from None
    return listed | rule


def truth(column: Column) -> Column:
    """true, 1, yes, y, t and their opposites, in any case; null for anything else."""
    word = F.lower(F.trim(column))
    yes, no = word.isin("true", "1", "yes", "y", "t"), word.isin("false", "0", "no", "n", "f")
    return F.when(yes, F.lit(True)).when(no, F.lit(False))


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
    cell = F.trim(F.col(column))
    # Nothing longer is a time, and a pattern searched in a megabyte of digits takes minutes.
    text = F.when(F.length(cell) <= _MAX_TIME_CHARS, cell)
    if clock.format == "iso":
        # Spark also reads `10:00` (as today) and `2011`; a time without its date is none.
        moment = F.when(F.substring(text, 5, 1) == "-", F.try_to_timestamp(text))
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
