"""Raw files of two columns (who, what) read without Spark: the deny and allow lists of `retrieve`.

Rows come as text, trimmed, some at a time; a row without both values or that cannot be parsed is counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from nightjar.config import Files
from nightjar.errors import InputError
from nightjar.sources import RawFile
from nightjar.store import locate

LINES = 65_536
SCHEMA = pa.schema([("who", pa.string()), ("what", pa.string())])


@dataclass
class Counts:
    """Rows of the files; unusable: those among them that name nobody or nothing, or cannot be read."""

    rows: int = 0
    unusable: int = 0


@dataclass
class PlainList:
    """One source: its files and which of their columns are (who, what). counts grow as rows are read."""

    source: Files
    files: Sequence[RawFile]
    who: str
    what: str
    where: str
    counts: Counts = field(default_factory=Counts)

    def batches(self) -> Iterator[pa.Table]:
        """Usable rows as tables (who, what) of text."""
        read = {"csv": self._csv, "parquet": self._parquet, "jsonl": self._jsonl}[self.source.format]
        for raw in self.files:
            try:
                for rows in read(raw):
                    yield self._usable(rows)
            except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:
                said = " ".join(str(error).split())[:300]
                raise InputError(f"{self.where}: {raw.path} cannot be read ({said})") from None

    def _columns(self) -> tuple[str, str]:
        return self.source.columns[self.who], self.source.columns[self.what]

    def _usable(self, rows: pa.Table) -> pa.Table:
        cells = [pc.utf8_trim_whitespace(column.cast(pa.string())) for column in rows.columns]
        kept = pc.and_(*(pc.fill_null(pc.not_equal(cell, ""), False) for cell in cells))
        self.counts.rows += len(rows)
        self.counts.unusable += len(rows) - (pc.sum(kept).as_py() or 0)
        return pa.table(cells, schema=SCHEMA).filter(kept)

    def _csv(self, raw: RawFile) -> Iterator[pa.Table]:
        fs, path = locate(raw.path)

        def skip(_row: pacsv.InvalidRow) -> str:
            self.counts.rows += 1
            self.counts.unusable += 1
            return "skip"

        names = list(self.source.names) or None
        with fs.open_input_stream(path) as stream:
            try:
                reader = pacsv.open_csv(
                    stream,
                    pacsv.ReadOptions(column_names=names),
                    pacsv.ParseOptions(
                        delimiter=self.source.delimiter,
                        quote_char=self.source.quote,
                        invalid_row_handler=skip,
                    ),
                    pacsv.ConvertOptions(
                        include_columns=list(self._columns()),
                        column_types=dict.fromkeys(self._columns(), pa.string()),
                    ),
                )
            except pa.ArrowInvalid as error:
                if "Empty CSV file" in str(error):
                    return
                raise
            for batch in reader:
                yield pa.Table.from_batches([batch])

    def _parquet(self, raw: RawFile) -> Iterator[pa.Table]:
        fs, path = locate(raw.path)
        with fs.open_input_file(path) as stream:
            file = pq.ParquetFile(stream)
            for name in self._columns():
                if name not in file.schema_arrow.names:
                    raise KeyError(f"no column {name!r}, there are {', '.join(file.schema_arrow.names)}")
            for batch in file.iter_batches(columns=list(self._columns())):
                yield pa.Table.from_batches([batch]).select(list(self._columns()))

    def _jsonl(self, raw: RawFile) -> Iterator[pa.Table]:
        fs, path = locate(raw.path)
        with fs.open_input_stream(path) as stream:
            lines: list[tuple[str, str]] = []
            for line in _lines(stream):
                lines.append(self._cells(line))
                if len(lines) == LINES:
                    yield _as_table(lines)
                    lines = []
            yield _as_table(lines)

    def _cells(self, line: bytes) -> tuple[str, str]:
        """The two values as text, empty where the line has none."""
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            return "", ""
        who, what = (row.get(name) for name in self._columns())
        return _text(who), _text(what)


def _lines(stream: Any) -> Iterator[bytes]:
    """Non-empty lines of a binary stream."""
    rest = b""
    while chunk := stream.read(1 << 20):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line for line in whole if line.strip())
    if rest.strip():
        yield rest


def _text(value: Any) -> str:
    return "" if value is None or isinstance(value, dict | list | bool) else str(value)


def _as_table(rows: Iterable[tuple[str, str]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [(), ()]
    return pa.table([pa.array(column, pa.string()) for column in columns], schema=SCHEMA)
