"""What raw files hold, learnt on the driver from footers and first lines, before Spark reads a row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nightjar.config import Files, ItemSource
from nightjar.errors import InputError
from nightjar.sources import RawFile
from nightjar.store import locate

HEAD_BYTES = 1 << 20
"""How much of a text file the driver looks at to learn its columns."""


@dataclass(frozen=True)
class Layout:
    """Files with the same columns, named as in the file.

    n_rows: known from Parquet footers, None for text. nanos: Parquet columns of nanosecond timestamps with
    the zone their text gets: `Z` where they are instants, nothing where they are times of day somewhere.
    """

    columns: tuple[str, ...]
    files: tuple[RawFile, ...]
    n_rows: int | None = None
    nanos: tuple[tuple[str, str], ...] = ()
    header: str = ""

    @property
    def depth(self) -> int:
        """How many folders deep the files lie below their glob's fixed part; alike within a layout."""
        return self.files[0].name.count("/")


def layouts(files: Files, found: Sequence[RawFile], where: str) -> tuple[Layout, ...]:
    """The layouts of a source's files; empty files have no rows and none.

    Raises InputError for a file that cannot be opened or lacks a column that the mapping names.
    """
    learn = {"parquet": _parquet_layout, "csv": _csv_layout, "jsonl": _json_layout}[files.format]
    with ThreadPoolExecutor(16) as pool:
        single = list(pool.map(lambda raw: learn(files, raw, where), [raw for raw in found if raw.bytes]))
    for layout in single:
        _require(files, layout, where)
    return _merged(single)


def _merged(single: Sequence[Layout]) -> tuple[Layout, ...]:
    """Layouts with equal columns joined into one, in the order they came."""
    by_shape: dict[Any, Layout] = {}
    for layout in single:
        shape = (layout.columns, layout.nanos, layout.header, layout.n_rows is None, layout.depth)
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
    spelt = [name.lower() for name in layout.columns]  # Spark ignores case
    for name, column in {**fields, **files.columns}.items():
        if column not in layout.columns or spelt.count(column.lower()) > 1:
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
            f"{where}: {raw.name} cannot be read as Parquet ({brief(error)}); repair it or move it away"
        ) from None
    nanos = tuple(
        (leaf.path, "Z" if "isAdjustedToUTC=true" in str(leaf.logical_type) else "")
        for leaf in leaves
        if "timeUnit=nanoseconds" in str(leaf.logical_type)
    )
    types = tuple(f"{leaf.path}:{leaf.physical_type}:{leaf.logical_type}" for leaf in leaves)
    # The types tell layouts apart, since Spark reads all files of one read by one file's types.
    return Layout(columns, (raw,), n_rows, nanos, header="\n".join(types))


def _csv_layout(files: Files, raw: RawFile, where: str) -> Layout:
    if files.names:
        return Layout(files.names, (raw,))
    line = _head(raw, where).partition("\n")[0].rstrip("\r").removeprefix("\ufeff")
    if not line.strip():
        raise InputError(f"{where}: {raw.name} begins with a blank line where its header should be")
    if files.quote and len(files.delimiter) == 1:
        columns = next(csv.reader([line], delimiter=files.delimiter, quotechar=files.quote))
    else:
        columns = line.split(files.delimiter)
    return Layout(tuple(columns), (raw,), header=line)


def _json_layout(files: Files, raw: RawFile, where: str) -> Layout:  # noqa: ARG001
    return Layout((), (raw,))


def require_keys(files: Files, found: Sequence[RawFile], where: str, needed: Iterable[str]) -> None:
    """For JSON lines: InputError when a needed key stands in no line at the head of the first file.

    A mistyped mapping would otherwise send every row to quarantine one by one.
    """
    if files.format != "jsonl" or not (filled := [raw for raw in found if raw.bytes]):
        return
    keys: set[str] = set()
    for line in _head(filled[0], where).split("\n")[:1000]:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        keys.update(row if isinstance(row, dict) else ())
    for name in needed:
        column = files.columns.get(name)
        if keys and column is not None and column not in keys:
            raise InputError(
                f"{where}: {filled[0].name} has no key {column!r} (mapped to {name}); it has "
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
            f"{where}: {raw.name} cannot be opened ({brief(error)}); check its mode and owner"
        ) from None
    return data.decode("utf-8", errors="replace")


def brief(error: BaseException) -> str:
    """The first line of an error's text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
