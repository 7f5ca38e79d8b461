"""Spark: the session, reading committed tables, and writing tables through their contract.

Parts are written by our own writer inside `mapInArrow` tasks rather than by Spark's file committer: a part
is checked, hashed and put in place in one pass, its name and bytes depend on its rows alone, and a retried or
speculative task puts the same bytes again. Only DataFrame expressions and mapInArrow are used, so the same
code runs on Spark 3.5 to 4.3 and over Spark Connect.
"""

from __future__ import annotations

import importlib.resources
import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from nightjar.config import NightConfig
from nightjar.errors import NightjarError, StageError
from nightjar.store import Attempt, Committed, FileEntry
from nightjar.tables import Table

PART = "_part"
JAVA_OPTIONS = "spark.driver.extraJavaOptions"
STACK = "8m"
"""Of a thread: Java deserialises the lineage of ALS by recursion, which 1 MB may be too small for, and Spark
then ends its JVM. conf/spark-defaults.conf has the same for clusters."""
ENTRIES = "name string, bytes long, sha256 string, rows long, part int"

Rows = Iterator[pa.RecordBatch]
PartWriter = Callable[[Iterable[pa.RecordBatch]], Iterable[pa.RecordBatch]]
"""What runs in a Spark task by mapInArrow."""


def session(config: NightConfig) -> SparkSession:
    """The running session, or a new one; under spark-submit the master and memory are its own.

    PYSPARK_PYTHON is set to this interpreter: without it executors start the system's python, which
    has neither pyarrow nor nightjar.
    """
    # A relative interpreter under spark-submit is one inside a shipped archive; leave it alone.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    logging.getLogger("SQLQueryContextLogger").disabled = True
    builder = SparkSession.builder.appName("nightjar")
    if "PYSPARK_GATEWAY_PORT" not in os.environ:
        builder = _local(builder, config)
    for key, value in _fixed(config).items():
        builder = builder.config(key, value)
    try:
        spark = builder.getOrCreate()
    except Exception as error:  # py4j raises a plain RuntimeError subclass when the JVM does not start
        raise StageError(
            f"Spark did not start ({_first_line(error)}); run `nightjar doctor` to see whether Java is there"
        ) from None
    if "PYSPARK_GATEWAY_PORT" not in os.environ and "NIGHTJAR_DEBUG" not in os.environ:
        spark.sparkContext.setLogLevel("OFF")  # what fails is raised, in one sentence
    return spark


def _local(builder: Any, config: NightConfig) -> Any:
    """A session on this machine: bound to the loopback address, with quiet logs and no open web page."""
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    builder = builder.master(config.spark.master).config("spark.driver.memory", config.spark.driver_memory)
    own_logs = importlib.resources.files("nightjar.engines") / "log4j2.properties"
    with importlib.resources.as_file(own_logs) as logs:
        java = f"-Xss{STACK} -Dlog4j2.configurationFile={logs.as_uri()}"
    own = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        **config.spark.conf,
        JAVA_OPTIONS: f"{java} {config.spark.conf.get(JAVA_OPTIONS, '')}".strip(),
    }
    for key, value in own.items():
        builder = builder.config(key, value)
    return builder


def _fixed(config: NightConfig) -> dict[str, str]:
    """Settings that results or safety rest on, whoever made the session."""
    return {
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": str(config.spark.shuffle_partitions),
        "spark.sql.execution.arrow.maxRecordsPerBatch": "20000",
        # Spark 4 keeps a Python stack trace for every column expression and logs each refused query as JSON.
        "spark.python.sql.dataFrameDebugging.enabled": "false",
        "spark.sql.execution.arrow.maxBytesPerBatch": "64m",
        # Before 4.0 the default raises on the first text that only the parser of Spark 2 understood.
        "spark.sql.legacy.timeParserPolicy": "CORRECTED",
    }


def read(spark: SparkSession, inputs: Committed | Sequence[Committed]) -> DataFrame:
    """Committed rows as a DataFrame with the contract's schema: the files the manifests list, no others."""
    several = [inputs] if isinstance(inputs, Committed) else list(inputs)
    return read_files(spark, several[0].dataset.table, [path for one in several for path in one.paths()])


def read_files(spark: SparkSession, table: Table, paths: Sequence[str]) -> DataFrame:
    """Rows of a table's files as a DataFrame with the contract's schema."""
    schema = from_arrow_schema(table.schema)
    return spark.read.schema(schema).parquet(*paths) if paths else spark.createDataFrame([], schema)


def write(frame: DataFrame, attempt: Attempt, n_parts: int, by: Sequence[str]) -> tuple[FileEntry, ...]:
    """Writes a DataFrame as n_parts parts: hashed by the first column of `by`, sorted by all of them.

    The layout is fixed by the arguments, so equal rows give equal bytes whatever the cluster, the shuffle
    partitions or the retries. Rows of one user thus share a part number across all tables of users.
    """
    # The part is a column, not the partition's number: where the rows already lie by this key in n_parts
    # partitions, Spark drops the repartition, and adaptive execution then merges what is left.
    bucket = F.pmod(F.hash(by[0]), F.lit(n_parts))
    placed = frame.withColumn(PART, bucket).repartition(n_parts, F.col(by[0]))
    return write_placed(placed.sortWithinPartitions(PART, *by), attempt, n_parts, PART)


def write_ranges(
    frame: DataFrame, attempt: Attempt, n_parts: int, part: str, by: str
) -> tuple[FileEntry, ...]:
    """Writes a DataFrame whose column `part` (0…n_parts−1) says where a row goes, sorted by `by`."""
    placed = frame.repartition(n_parts, F.col(part)).sortWithinPartitions(part, by)
    return write_placed(placed, attempt, n_parts, part)


def write_placed(frame: DataFrame, attempt: Attempt, n_parts: int, part: str) -> tuple[FileEntry, ...]:
    """Writes rows that are sorted by the column `part` in each partition: every run of it is that part."""
    return _collect(frame.mapInArrow(_ByColumn(attempt, part), ENTRIES), attempt, n_parts)


class _ByColumn:
    """Each run of equal part numbers becomes that part. A class, not a closure: it pickles by name."""

    def __init__(self, attempt: Attempt, column: str) -> None:
        self.attempt, self.column = attempt, column

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Rows:
        runs = Runs(batches, self.column)
        entries = [self.attempt.write_part(number, rows) for number, rows in runs]
        yield _entry_batch(entries)


class Runs:
    """Splits batches sorted by an integer column into (value, batches without that column)."""

    def __init__(self, batches: Iterable[pa.RecordBatch], column: str) -> None:
        self._pieces = self._split(batches, column)
        self._next = next(self._pieces, None)

    def __iter__(self) -> Iterator[tuple[int, Iterator[pa.RecordBatch]]]:
        while self._next is not None:
            number = self._next[0]
            yield number, self._run(number)

    def _run(self, number: int) -> Iterator[pa.RecordBatch]:
        while self._next is not None and self._next[0] == number:
            piece = self._next[1]
            self._next = next(self._pieces, None)
            yield piece

    @staticmethod
    def _split(batches: Iterable[pa.RecordBatch], column: str) -> Iterator[tuple[int, pa.RecordBatch]]:
        for batch in batches:
            numbers = batch.column(column).to_numpy()
            rest = batch.drop_columns([column])
            cuts = [0, *(int(at) + 1 for at in (numbers[1:] != numbers[:-1]).nonzero()[0]), len(numbers)]
            for start, stop in itertools.pairwise(cuts):
                if stop > start:
                    yield int(numbers[start]), rest.slice(start, stop - start)


PartTask = Callable[[int], FileEntry]


def map_parts(spark: SparkSession, task: PartTask, attempt: Attempt, n_parts: int) -> tuple[FileEntry, ...]:
    """Runs `task(part)` for every part number, one Spark task each; it reads and writes its parts itself.

    For tables of users that are already bucketed alike: bucket i of every input makes part i of the output,
    so nothing is shuffled. A part finished by an earlier, interrupted run is not made again.
    """
    todo = [part for part in range(n_parts) if attempt.done(part) is None]
    if not todo:
        return _completed(attempt, n_parts, [])
    numbers = spark.range(0, len(todo), 1, len(todo))
    return _collect(numbers.mapInArrow(_EachPart(task, todo), ENTRIES), attempt, n_parts)


class _EachPart:
    def __init__(self, task: PartTask, todo: Sequence[int]) -> None:
        self.task, self.todo = task, todo

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Rows:
        for batch in batches:
            yield _entry_batch([self.task(self.todo[int(at)]) for at in batch.column("id").to_numpy()])


def _entry_batch(entries: Iterable[FileEntry]) -> pa.RecordBatch:
    rows = [(e.name, e.bytes, e.sha256, e.rows, e.part) for e in entries]
    columns: list[Sequence[Any]] = [*zip(*rows, strict=True)] or [()] * 5
    types = (pa.string(), pa.int64(), pa.string(), pa.int64(), pa.int32())
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, names=["name", "bytes", "sha256", "rows", "part"])


def _collect(entries: DataFrame, attempt: Attempt, n_parts: int) -> tuple[FileEntry, ...]:
    with spark_errors(attempt.dataset.table.name):
        rows = entries.collect()
    written = [FileEntry(r["name"], r["bytes"], r["sha256"], r["rows"], r["part"]) for r in rows]
    return _completed(attempt, n_parts, written)


def _completed(attempt: Attempt, n_parts: int, written: Sequence[FileEntry]) -> tuple[FileEntry, ...]:
    """All n_parts entries in order: written now, finished earlier, or empty (no rows: Spark runs no task)."""
    by_part = {entry.part: entry for entry in written}
    out = []
    for part in range(n_parts):
        entry = by_part.get(part) or attempt.done(part)
        out.append(entry or attempt.write_part(part, []))
    return tuple(out)


class spark_errors:  # noqa: N801 - reads as a context manager
    """Turns Spark's failures into one sentence; an error of ours raised in a task keeps its own words."""

    def __init__(self, doing: str) -> None:
        self.doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, NightjarError):
            return
        if isinstance(error, PySparkException) or type(error).__module__.startswith("py4j"):
            raise _translated(error, self.doing) from None


def _translated(error: BaseException, doing: str) -> NightjarError:
    from nightjar import errors

    for line in str(error).splitlines():
        name, colon, text = line.strip().removeprefix("pyspark.errors.exceptions.base.").partition(": ")
        if colon and name.startswith("nightjar.errors."):
            kind = getattr(errors, name.rpartition(".")[2], StageError)
            return kind(text)
    return StageError(f"Spark failed while writing {doing}: {_cause(str(error))}")


_RAISED = re.compile(r"^(?:Caused by: )?([\w.$]*(?:Error|Exception)): (.+)$")


def _cause(text: str) -> str:
    """The last exception that a Spark stack trace names: the one behind all others."""
    found = [match for match in map(_RAISED.match, text.splitlines()) if match]
    python = [match for match in found if "." not in match.group(1)]
    chosen = (python or found)[-1:]
    return (
        f"{chosen[0].group(1)}: {chosen[0].group(2)[:400]}" if chosen else text.strip().split("\n")[0][:400]
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
