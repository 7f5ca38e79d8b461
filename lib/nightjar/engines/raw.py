"""Raw files as rows of text: Parquet, CSV and JSON lines through one mapping, unreadable lines marked.

Text files are read line by line and parsed by an explicit schema, so each line is exactly one row and its
own payload; nothing is inferred and nothing can be dropped by a reader's mode. Parquet columns become text
whatever their type, so that files whose types drift between days are one source. Only columns that the
mapping names are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from urllib.parse import unquote

import pyarrow as pa
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from nightjar.config import Files
from nightjar.engines.raw_layout import Layout, brief, layouts, require_keys
from nightjar.errors import ConfigError
from nightjar.sources import RawFile

ROW, SOURCE, UNREADABLE = "_row", "_source", "_unreadable"
_CORRUPT = "_corrupt"


@dataclass(frozen=True)
class RawGroup:
    """Rows of one layout. frame: the wanted columns as text, SOURCE, UNREADABLE and what payload reads.

    payload is kept as an expression: writing a row as JSON is paid only for rows that are rejected.
    """

    frame: DataFrame
    payload: Column


@dataclass(frozen=True)
class RawTable:
    """One source's raw files, inspected and ready to read."""

    spark: SparkSession
    files: Files
    layouts: tuple[Layout, ...]
    where: str

    def groups(self, wanted: Mapping[str, str]) -> list[RawGroup]:
        """The rows, mapped: `wanted` gives our name -> an SQL expression of the file's columns.

        Raises ConfigError naming the key of an expression that Spark refuses.
        """
        return [self._group(layout, wanted) for layout in self.layouts]

    def count(self) -> int:
        """How many rows the files hold, counted apart from parsing them, so that sums can be checked."""
        if self.files.format == "parquet":
            return sum(layout.n_rows or 0 for layout in self.layouts)
        counted = (self._lines(layout).select(F.lit(1)) for layout in self.layouts)
        return sum(frame.count() for frame in counted)

    def _group(self, layout: Layout, wanted: Mapping[str, str]) -> RawGroup:
        if self.files.format == "parquet":
            frame, payload = self._parquet(layout, wanted), F.to_json(F.col(ROW))
        elif self.files.format == "csv" and self.files.multiline:
            frame, payload = self._multiline(layout), F.coalesce(F.col(f"{ROW}.{_CORRUPT}"), F.to_json(ROW))
        else:
            frame, payload = self._text(layout, wanted), F.col(ROW)
        with lenient(self.spark):
            try:
                exprs = [F.expr(sql).cast("string").alias(name) for name, sql in wanted.items()]
                mapped = frame.select(*exprs, ROW, SOURCE, UNREADABLE)
                _ = mapped.schema  # over Spark Connect only this analyses
            except PySparkException as error:
                raise self._refused(frame, wanted, error) from None
        return RawGroup(mapped, payload)

    def _refused(self, frame: DataFrame, wanted: Mapping[str, str], error: PySparkException) -> ConfigError:
        """Says which expression Spark refuses, found by trying them one by one."""
        for name, sql in wanted.items():
            try:
                _ = frame.select(F.expr(sql)).schema
            except PySparkException as own:
                return ConfigError(f"{self.where}: the SQL of {name} ({sql}) is refused: {brief(own)}")
        return ConfigError(f"{self.where}: the mapping is refused: {brief(error)}")

    def _parquet(self, layout: Layout, wanted: Mapping[str, str]) -> DataFrame:
        # Without it Spark refuses the nanosecond timestamps that pandas writes.
        self.spark.conf.set("spark.sql.legacy.parquet.nanosAsLong", "true")
        frame = self.spark.read.parquet(*_escaped(layout.files)).withColumn(SOURCE, _source(layout))
        used = _named_in(wanted.values())
        types = {field.name: field.dataType.simpleString() for field in frame.schema}
        kept = [name for name in layout.columns if name.lower() in used]
        zones = dict(layout.nanos)
        texts = [_as_text(name, types[name], zones.get(name)).alias(name) for name in kept]
        frame = frame.select(*texts, SOURCE, F.lit(False).alias(UNREADABLE))
        return frame.withColumn(ROW, F.struct(*map(quoted, kept)))

    def _text(self, layout: Layout, wanted: Mapping[str, str]) -> DataFrame:
        parsed = F.col("_parsed")
        lines = self._lines(layout)
        if self.files.format == "csv":
            options = {**_PERMISSIVE, "sep": self.files.delimiter, "quote": self.files.quote}
            schema = _text_schema(_distinct(layout.columns))
            # RFC 4180: a quote inside quotes is doubled. A backslash is a letter like any other.
            parse = F.from_csv(ROW, schema, {**options, "escape": self.files.quote})
            torn = F.lit(False)
        else:
            names = _json_columns(self.files, wanted)
            parse = F.from_json(ROW, _text_schema(names), _PERMISSIVE)
            # Jackson stops after the first document: two glued together would lose the second one.
            torn = F.col(ROW).contains("}{") | F.col(ROW).contains("} {") | ~F.rtrim(ROW).endswith("}")
        frame = lines.withColumn("_parsed", parse)
        unreadable = parsed.isNull() | parsed[_CORRUPT].isNotNull() | torn
        return frame.select(ROW, SOURCE, unreadable.alias(UNREADABLE), "_parsed.*").drop(_CORRUPT)

    def _lines(self, layout: Layout) -> DataFrame:
        """Lines that are rows: not blank, and not the header or a repetition of it."""
        if self.files.multiline and self.files.format == "csv":
            return self._multiline(layout)
        frame = self.spark.read.option("lineSep", "\n").text(_escaped(layout.files))
        frame = frame.select(F.expr(r"trim(TRAILING '\r' FROM value)").alias(ROW), _source(layout))
        frame = frame.filter(F.trim(ROW) != "")
        return frame.filter(F.col(ROW) != layout.header) if layout.header else frame

    def _multiline(self, layout: Layout) -> DataFrame:
        names = _distinct(layout.columns)
        reader = self.spark.read.schema(_text_schema(names)).options(**_PERMISSIVE)
        reader = reader.options(sep=self.files.delimiter, quote=self.files.quote, escape=self.files.quote)
        frame = reader.options(header=bool(layout.header), multiLine=True).csv(_escaped(layout.files))
        row = F.struct(*map(quoted, (*names, _CORRUPT)))
        marked = frame.select("*", row.alias(ROW), _source(layout))
        return marked.withColumn(UNREADABLE, F.col(_CORRUPT).isNotNull()).drop(_CORRUPT)


_PERMISSIVE = {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": _CORRUPT}


def open_raw(
    spark: SparkSession, files: Files, found: Sequence[RawFile], where: str, needed: Iterable[str] = ()
) -> RawTable:
    """Learns the columns of raw files; `needed` are our names whose keys JSON lines must have somewhere.

    Raises InputError for a file that cannot be opened or lacks a column that the mapping names.
    """
    require_keys(files, found, where, needed)
    return RawTable(spark, files, layouts(files, found, where), where)


@contextmanager
def lenient(spark: SparkSession) -> Iterator[None]:
    """While it lasts, expressions are made to give null where ANSI SQL would raise.

    Logs are text and dirty: one `abc` in `seconds / length` of the configuration must not end a night. The
    choice is fixed when an expression is analysed; Spark Connect analyses later, so there the SQL of a
    configuration needs try_cast and try_divide.
    """
    before = spark.conf.get("spark.sql.ansi.enabled", "true")
    spark.conf.set("spark.sql.ansi.enabled", "false")
    try:
        yield
    finally:
        spark.conf.set("spark.sql.ansi.enabled", before or "true")


def mapping(files: Files) -> dict[str, str]:
    """Our names -> SQL expressions, from a configuration's `columns` and `sql`."""
    return {**{name: quoted_name(column) for name, column in files.columns.items()}, **files.sql}


def unite(frames: Iterable[DataFrame]) -> DataFrame | None:
    """All rows of several DataFrames of the same columns; None of none."""
    listed = list(frames)
    return reduce(DataFrame.unionByName, listed) if listed else None


def quoted_name(name: str) -> str:
    """A column's name as SQL takes it."""
    return "`" + name.replace("`", "``") + "`"


def quoted(name: str) -> Column:
    return F.col(quoted_name(name))


def _as_text(name: str, kind: str, nanos: str | None) -> Column:
    """A Parquet column as text: instants say that they are UTC, whole floats lose their `.0`."""
    column, sql = quoted(name), quoted_name(name)
    if nanos is not None:
        return F.concat(F.expr(f"cast(timestamp_micros({sql} div 1000) as string)"), F.lit(nanos))
    if kind == "timestamp":
        return F.concat(column.cast("string"), F.lit("Z"))
    if kind in ("float", "double"):
        # pandas makes integers with holes into doubles: 17850.0 is the id 17850. 1e15 keeps them exact.
        whole = (column == F.rint(column)) & (F.abs(column) < 1e15)
        return F.when(whole, column.cast("bigint").cast("string")).otherwise(column.cast("string"))
    if kind.startswith(("struct", "array", "map")):
        return F.to_json(column)
    return column.cast("string")


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names made distinct for Spark, which ignores case; only a column nobody maps may be renamed."""
    seen: set[str] = set()
    out = []
    for at, name in enumerate(names):
        kept = name if name.lower() not in seen else f"{name} ({at})"
        seen.add(kept.lower())
        out.append(kept)
    return tuple(out)


def _text_schema(columns: Iterable[str]) -> str:
    return ", ".join(f"{quoted_name(name)} string" for name in (*columns, _CORRUPT))


_LITERAL = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_NAME = re.compile(r"`((?:[^`]|``)+)`|([A-Za-z_]\w*)")


def _names(sql: str) -> list[str]:
    """Every word of an expression that could be a column; words that are none do no harm."""
    return [(a or b).replace("``", "`") for a, b in _NAME.findall(_LITERAL.sub(" ", sql))]


def _named_in(expressions: Iterable[str]) -> set[str]:
    return {name.lower() for sql in expressions for name in _names(sql)}


def _json_columns(files: Files, wanted: Mapping[str, str]) -> list[str]:
    """Keys to look for in JSON lines: those mapped, and all that the SQL may mean."""
    names = [*files.columns.values(), *(name for sql in wanted.values() for name in _names(sql))]
    by_case: dict[str, str] = {}
    for name in names:
        by_case.setdefault(name.lower(), name)
    return list(by_case.values())


def _escaped(files: Sequence[RawFile]) -> list[str]:
    """Paths with the letters escaped that Hadoop would take for a glob."""
    return [re.sub(r"([\[\]{}*?\\])", r"\\\1", raw.path) for raw in files]


def _source(layout: Layout) -> Column:
    """Where a row's file lies below its glob's fixed part, still encoded as a URI: see `source_names`.

    A path of this machine would tell a reader nothing. Decoding each row's here cost more than parsing it.
    """
    return F.substring_index("_metadata.file_path", "/", -1 - layout.depth).alias(SOURCE)


def source_names(column: pa.ChunkedArray) -> pa.Array:
    """The names of files from what the SOURCE column holds; few are distinct."""
    encoded = column.combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    names = pa.array([unquote(name) for name in encoded.dictionary.to_pylist()], pa.string())
    return names.take(encoded.indices)
