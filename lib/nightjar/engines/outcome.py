"""Several tables and their counts from one Spark pass: each task writes a part of every table and says so.

The counts come back with the parts of tasks that succeeded, so retries and speculation cannot count twice,
as an accumulator or an observed metric would.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import pyarrow as pa
from pyspark.sql import DataFrame

from nightjar.engines.spark import PartWriter, spark_errors
from nightjar.store import Attempt, FileEntry

OUTCOME = "written string, counts string"

Counts = Counter[tuple[str, ...]]


@dataclass(frozen=True)
class Outcome:
    """What a pass left: files of each table in order of their parts, and counts by key."""

    files: Mapping[str, tuple[FileEntry, ...]]
    counts: Counts


def outcome(entries: Mapping[str, Sequence[FileEntry]], counts: Counts) -> pa.RecordBatch:
    """What a task yields: the parts it wrote of each table, and what it counted."""
    written = {table: [asdict(entry) for entry in listed] for table, listed in entries.items()}
    counted = [[list(key), n] for key, n in sorted(counts.items())]
    columns = [pa.array([json.dumps(written)]), pa.array([json.dumps(counted)])]
    return pa.RecordBatch.from_arrays(columns, names=["written", "counts"])


def write_several(frame: DataFrame, task: PartWriter, attempts: Mapping[Attempt, int]) -> Outcome:
    """Runs a task over every partition; it writes parts of several tables and yields their `outcome`.

    attempts: each attempt -> how many parts its table has. A part that no task wrote has no rows.
    """
    names = " and ".join(attempt.dataset.table.name for attempt in attempts)
    with spark_errors(names):
        rows = frame.mapInArrow(task, OUTCOME).collect()
    counts: Counts = Counter()
    by_table: dict[str, dict[int | None, FileEntry]] = {}
    for row in rows:
        for table, listed in json.loads(row["written"]).items():
            found = [FileEntry(**entry) for entry in listed]
            by_table.setdefault(table, {}).update({entry.part: entry for entry in found})
        counts.update({tuple(key): n for key, n in json.loads(row["counts"])})
    files = {a.dataset.table.name: _all_parts(a, n, by_table) for a, n in attempts.items()}
    return Outcome(files, counts)


def _all_parts(
    attempt: Attempt, n_parts: int, written: Mapping[str, Mapping[int | None, FileEntry]]
) -> tuple[FileEntry, ...]:
    found = written.get(attempt.dataset.table.name, {})
    return tuple(found.get(part) or attempt.write_part(part, []) for part in range(n_parts))


class Spool:
    """Rows put aside on local disk while the rows beside them are written, then read back in order."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.n_rows = 0

    def __enter__(self) -> Spool:
        self._folder = tempfile.TemporaryDirectory(prefix="nightjar-")
        self._path = Path(self._folder.name) / "rows.arrow"
        self._writer = pa.ipc.new_stream(str(self._path), self.schema)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        self._folder.cleanup()

    def put(self, rows: pa.Table) -> None:
        """Adds rows at the end."""
        if len(rows):
            self._writer.write_table(rows.select(self.schema.names).cast(self.schema))
            self.n_rows += len(rows)

    def rows(self) -> Iterable[pa.RecordBatch]:
        """Everything put so far; nothing can be put after this."""
        self._writer.close()
        return self._read()

    def _read(self) -> Iterator[pa.RecordBatch]:
        with pa.OSFile(str(self._path)) as source:
            yield from pa.ipc.open_stream(source)


def valid_text(rows: pa.Table) -> pa.Table:
    """Rows whose text is UTF-8: Spark passes bytes on as they are, and readers of Parquet choke on them."""
    for at, name in enumerate(rows.column_names):
        column = rows.column(at)
        if not pa.types.is_string(column.type):
            continue
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            raw = column.cast(pa.binary()).to_pylist()
            text = [None if value is None else value.decode("utf-8", "replace") for value in raw]
            rows = rows.set_column(at, name, pa.array(text, pa.string()))
    return rows
