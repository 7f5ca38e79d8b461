"""Raw files as rows of text: Parquet, CSV and JSON lines through one mapping, unreadable lines marked.

Text files are read line by line and parsed by an explicit schema, so each line is exactly one row and its
own payload; nothing is inferred and nothing can be dropped by a reader's mode. Parquet columns become text
whatever their type, so that files whose types drift between days are one source. Only columns that the
mapping names are read.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from nightjar.config import Files, ItemSource
from nightjar.errors import ConfigError, InputError
from nightjar.sources import RawFile
from nightjar.store import locate

ROW, SOURCE, UNREADABLE = "_row", "_source", "_unreadable"
_CORRUPT = "_corrupt"
HEAD_BYTES = 1 << 20
"""How much of a text file the driver looks at to learn its columns."""


@dataclass(frozen=True)
class Layout:
    """Files with the same columns. n_rows: known from Parquet footers, None for text."""

    columns: tuple[str, ...]
    files: tuple[RawFile, ...]
    n_rows: int | None = None
    nanos: frozenset[str] = frozenset()
    header: str = ""


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
                return ConfigError(f"{self.where}: the SQL of {name} ({sql}) is refused: {_brief(own)}")
        return ConfigError(f"{self.where}: the mapping is refused: {_brief(error)}")

    def _parquet(self, layout: Layout, wanted: Mapping[str, str]) -> DataFrame:
        # Without it Spark refuses the nanosecond timestamps that pandas writes.
        self.spark.conf.set("spark.sql.legacy.parquet.nanosAsLong", "true")
        frame = self.spark.read.parquet(*_escaped(layout.files)).withColumn(SOURCE, _source(layout.files))
        used = _named_in(wanted.values())
        types = {field.name: field.dataType.simpleString() for field in frame.schema}
        kept = [name for name in layout.columns if name.lower() in used]
        texts = [_as_text(name, types[name], name in layout.nanos).alias(name) for name in kept]
        frame = frame.select(*texts, SOURCE, F.lit(False).alias(UNREADABLE))
        return frame.withColumn(ROW, F.struct(*map(quoted, kept)))

    def _text(self, layout: Layout, wanted: Mapping[str, str]) -> DataFrame:
        parsed = F.col("_parsed")
        lines = self._lines(layout)
        if self.files.format == "csv":
            options = {**_PERMISSIVE, "sep": self.files.delimiter, "quote": self.files.quote}
            schema = _text_schema(layout.columns)
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
        frame = frame.select(F.expr(r"trim(TRAILING '\r' FROM value)").alias(ROW), _source(layout.files))
        frame = frame.filter(F.trim(ROW) != "")
        return frame.filter(F.col(ROW) != layout.header) if layout.header else frame

    def _multiline(self, layout: Layout) -> DataFrame:
        reader = self.spark.read.schema(_text_schema(layout.columns)).options(**_PERMISSIVE)
        reader = reader.options(sep=self.files.delimiter, quote=self.files.quote, escape=self.files.quote)
        frame = reader.options(header=True, multiLine=True).csv(_escaped(layout.files))
        row = F.struct(*map(quoted, (*layout.columns, _CORRUPT)))
        marked = frame.select("*", row.alias(ROW), _source(layout.files))
        return marked.withColumn(UNREADABLE, F.col(_CORRUPT).isNotNull()).drop(_CORRUPT)


_PERMISSIVE = {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": _CORRUPT}


def open_raw(spark: SparkSession, files: Files, found: Sequence[RawFile], where: str) -> RawTable:
    """Learns the columns of raw files from footers and first lines; empty files have no rows.

    Raises InputError for a file that cannot be opened or lacks a column that the mapping names.
    """
    learn = {"parquet": _parquet_layout, "csv": _csv_layout, "jsonl": _json_layout}[files.format]
    with ThreadPoolExecutor(16) as pool:
        single = list(pool.map(lambda raw: learn(files, raw, where), [raw for raw in found if raw.bytes]))
    for layout in single:
        _require(files, layout, where)
    return RawTable(spark, files, _merged(single), where)


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


def _merged(single: Sequence[Layout]) -> tuple[Layout, ...]:
    """Layouts with equal columns joined into one, in the order they came."""
    by_shape: dict[Any, Layout] = {}
    for layout in single:
        shape = (layout.columns, layout.nanos, layout.header, layout.n_rows is None)
        before = by_shape.get(shape)
        by_shape[shape] = layout if before is None else _joined(before, layout)
    return tuple(by_shape.values())


def _joined(a: Layout, b: Layout) -> Layout:
    n_rows = None if a.n_rows is None else a.n_rows + (b.n_rows or 0)
    return replace(a, files=(*a.files, *b.files), n_rows=n_rows)


def _require(files: Files, layout: Layout, where: str) -> None:
    """Every column that the mapping names must be there; JSON lines may leave out what is null."""
    if files.format == "jsonl":
        return
    fields = files.fields if isinstance(files, ItemSource) else {}
    for name, column in {**fields, **files.columns}.items():
        if layout.columns.count(column) != 1:
            what = "has no column" if column not in layout.columns else "has more than one column"
            raise InputError(
                f"{where}: {layout.files[0].name} {what} {column!r} (mapped to {name}); it has "
                f"{', '.join(map(repr, layout.columns))}; correct `columns` or the file"
            )


def _parquet_layout(files: Files, raw: RawFile, where: str) -> Layout:  # noqa: ARG001 - one shape for all formats
    fs, path = locate(raw.path)
    try:
        with fs.open_input_file(path) as source:
            footer = pq.ParquetFile(source)
            schema, n_rows = footer.schema, footer.metadata.num_rows
            columns = tuple(footer.schema_arrow.names)
            leaves = [schema.column(at) for at in range(len(schema))]
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise InputError(
            f"{where}: {raw.name} cannot be read as Parquet ({_brief(error)}); repair it or move it away"
        ) from None
    nanos = frozenset(leaf.path for leaf in leaves if "nanoseconds" in str(leaf.logical_type))
    types = tuple(f"{leaf.path}:{leaf.physical_type}:{leaf.logical_type}" for leaf in leaves)
    # The types tell layouts apart, since Spark reads all files of one read by one file's types.
    return Layout(columns, (raw,), n_rows, nanos, header="\n".join(types))


def _csv_layout(files: Files, raw: RawFile, where: str) -> Layout:
    line = _head(raw, where).partition("\n")[0].rstrip("\r").removeprefix("\ufeff")
    if not line.strip():
        raise InputError(f"{where}: {raw.name} begins with a blank line where its header should be")
    columns = next(csv.reader([line], delimiter=files.delimiter, quotechar=files.quote))
    return Layout(_distinct(columns), (raw,), header=line)


def _json_layout(files: Files, raw: RawFile, where: str) -> Layout:  # noqa: ARG001
    return Layout((), (raw,))


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names made distinct for Spark, which ignores case; only a column nobody maps may be renamed."""
    seen: set[str] = set()
    out = []
    for at, name in enumerate(names):
        kept = name if name.lower() not in seen else f"{name} ({at})"
        seen.add(kept.lower())
        out.append(kept)
    return tuple(out)


def require_keys(table: RawTable, found: Sequence[RawFile], needed: Iterable[str]) -> None:
    """For JSON lines: InputError when a needed key stands in no line at the head of the first file.

    A mistyped mapping would otherwise send every row to quarantine one by one.
    """
    if table.files.format != "jsonl" or not (filled := [raw for raw in found if raw.bytes]):
        return
    keys: set[str] = set()
    for line in _head(filled[0], table.where).split("\n")[:1000]:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        keys.update(row if isinstance(row, dict) else ())
    for name in needed:
        column = table.files.columns.get(name)
        if keys and column is not None and column not in keys:
            raise InputError(
                f"{table.where}: {filled[0].name} has no key {column!r} (mapped to {name}); it has "
                f"{', '.join(map(repr, sorted(keys)))}; correct `columns` or the file"
            )


def _head(raw: RawFile, where: str) -> str:
    """The first HEAD_BYTES of a text file, decompressed by its suffix."""
    fs, path = locate(raw.path)
    try:
        with fs.open_input_stream(path, compression="detect") as stream:
            data: bytes = stream.read(HEAD_BYTES)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{where}: {raw.name} cannot be opened ({_brief(error)}); check its mode and owner"
        ) from None
    return data.decode("utf-8", errors="replace")


def _as_text(name: str, kind: str, nanos: bool) -> Column:
    """A Parquet column as text: instants say that they are UTC, whole floats lose their `.0`."""
    column, sql = quoted(name), quoted_name(name)
    if nanos:
        return F.concat(F.expr(f"cast(timestamp_micros({sql} div 1000) as string)"), F.lit("Z"))
    if kind == "timestamp":
        return F.concat(column.cast("string"), F.lit("Z"))
    if kind in ("float", "double"):
        # pandas makes integers with holes into doubles: 17850.0 is the id 17850. 1e15 keeps them exact.
        whole = (column == F.rint(column)) & (F.abs(column) < 1e15)
        return F.when(whole, column.cast("bigint").cast("string")).otherwise(column.cast("string"))
    if kind.startswith(("struct", "array", "map")):
        return F.to_json(column)
    return column.cast("string")


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


def _source(files: Sequence[RawFile]) -> Column:
    """The name of a row's file below its glob's fixed part: a path of this machine tells readers nothing."""
    decoded = F.url_decode(F.replace(F.col("_metadata.file_path"), F.lit("+"), F.lit("%2B")))
    path = F.regexp_replace(decoded, "^[A-Za-z0-9+.-]+:/+", "")
    out = path
    for folder in sorted({_bare(raw.path)[: -len(raw.name)] for raw in files}, key=len):
        out = F.when(path.startswith(folder), F.substring(path, len(folder) + 1, 1 << 30)).otherwise(out)
    return out.alias(SOURCE)


def _bare(path: str) -> str:
    return re.sub("^([A-Za-z0-9+.-]+:)?/+", "", path)


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
