"""What a step of the night is, and how one runs: skip, run, verify, commit.

A Stage is a declaration; its function has the shape `run(night, params, resources) -> metrics`. run_stage
reads the manifests of the inputs, derives the fingerprint, returns at once when every output is committed
with it, otherwise runs the function and commits what it wrote.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

from nightjar import __version__
from nightjar.config import NightConfig, Resources, Section
from nightjar.errors import ContractError, NightjarError, NotCommitted, StageError
from nightjar.progress import Report
from nightjar.sources import RawFile
from nightjar.sources import fingerprint as files_fingerprint
from nightjar.store import Attempt, Committed, Dataset, FileEntry, Manifest, Store, committed_dates
from nightjar.tables import Table


@dataclass(frozen=True)
class Raw:
    """External input of a stage: files that the configuration names."""

    name: str


@dataclass(frozen=True)
class Window:
    """A table over the window of dates up to ds, where nights are cleaned day by day (history: daily)."""

    table: Table


Source = Table | Window | Raw


@dataclass(frozen=True)
class Stage:
    """A step of the night, free of any engine.

    also: other sections whose params change this stage's result. version: raised by hand when the code
    changes what comes out, so that a new release does not repeat a night for nothing.
    """

    name: str
    engine: Literal["spark", "ray", "local"]
    reads: tuple[Source, ...]
    writes: tuple[Table, ...]
    also: tuple[str, ...] = ()
    version: int = 1


Metrics = dict[str, Any]
Output = tuple[Sequence[FileEntry], Metrics]
RunStage = Callable[["Night", Any, Resources], Metrics]


@dataclass(frozen=True)
class Night:
    """One run for one logical date, as a stage's function sees it.

    read/window/write give the committed inputs and the attempts to write; `wrote` hands over what was
    written. Everything here is plain data, so parts of it travel to tasks and actors.
    """

    config: NightConfig
    ds: date
    report: Report = field(default_factory=Report)
    fingerprint: str = ""
    stage: str = ""
    inputs: Mapping[str, tuple[Committed, ...]] = field(default_factory=dict)
    raw: Mapping[str, Mapping[str, tuple[RawFile, ...]]] = field(default_factory=dict)
    outputs: dict[str, tuple[FileEntry, ...]] = field(default_factory=dict)
    lender: Store | None = None  # another root whose embeddings may be taken over: a back-test's own night

    @property
    def store(self) -> Store:
        return Store(self.config.root)

    @property
    def end(self) -> datetime:
        """The first instant after ds; decay counts from here."""
        return datetime.combine(self.ds + timedelta(days=1), datetime.min.time(), UTC)

    def dataset(self, table: Table, ds: date | None = None) -> Dataset:
        return Dataset(self.store, table, str(ds or self.ds))

    def read(self, table: Table) -> Committed:
        """The committed input of this date."""
        return self.inputs[table.name][-1]

    def window(self, table: Table) -> tuple[Committed, ...]:
        """The committed inputs of the window, oldest first."""
        return self.inputs[table.name]

    def write(self, table: Table, dim: int | None = None) -> Attempt:
        """Where this stage's parts of a table go."""
        return self.dataset(table).attempt(self.fingerprint, dim)

    def wrote(self, table: Table, files: Sequence[FileEntry]) -> None:
        """Hands over the finished files of an output."""
        self.outputs[table.name] = tuple(files)


@dataclass(frozen=True)
class StageResult:
    """What became of a stage. ran: False when everything was up to date."""

    stage: str
    ran: bool
    seconds: float
    fingerprint: str
    metrics: Mapping[str, Any]


def run_stage(
    stage: Stage,
    run: RunStage,
    night: Night,
    raw: Mapping[str, Mapping[str, tuple[RawFile, ...]]] | None = None,
) -> StageResult:
    """Brings a stage's outputs up to date for night.ds.

    Raises NotCommitted for a missing input, ContractError for output that breaks its contract (nothing is
    committed then), NightLocked when the same stage of the same date runs elsewhere.
    """
    section: Section = getattr(night.config, stage.name)
    bound = replace(night, stage=stage.name, inputs=_inputs(stage, night), raw=raw or {}, outputs={})
    identity = _identity(stage, bound)
    bound = replace(bound, fingerprint=_digest(identity))
    busy = f"{stage.name} {night.ds} is being run by another process under {night.store.root}"
    with night.store.lock(f"{stage.name}.{night.ds}", f"{busy}; wait for it or stop it"):
        if (current := _current(stage, bound)) is not None:
            night.report.line(f"{stage.name} {night.ds}: up to date")
            return StageResult(stage.name, False, 0.0, bound.fingerprint, current[0].manifest.metrics)
        started = time.monotonic()
        for table in stage.writes:
            bound.write(table).sweep()
        night.report.line(f"{stage.name} {night.ds}: running on {stage.engine}")
        metrics = _run(stage, run, bound, section)
        seconds = time.monotonic() - started
        _commit(stage, bound, identity, metrics, seconds)
    night.report.line(f"{stage.name} {night.ds}: committed in {seconds:.1f} s")
    return StageResult(stage.name, True, seconds, bound.fingerprint, metrics)


def _run(stage: Stage, run: RunStage, night: Night, section: Any) -> Metrics:
    try:
        metrics = run(night, section, section.resources)
    except NightjarError:
        raise
    except MemoryError:
        raise StageError(
            f"{stage.name} {night.ds}: out of memory; lower its resources (actors, block_users) "
            "or raise spark.driver_memory, then run the same command again"
        ) from None
    if missing := [table.name for table in stage.writes if table.name not in night.outputs]:
        raise ContractError(f"{stage.name} did not write {', '.join(missing)}")
    return metrics


def _inputs(stage: Stage, night: Night) -> dict[str, tuple[Committed, ...]]:
    found: dict[str, tuple[Committed, ...]] = {}
    for source in stage.reads:
        if isinstance(source, Table):
            found[source.name] = (night.dataset(source).require(source.made_by),)
        elif isinstance(source, Window):
            found[source.table.name] = _window(source.table, night)
    return found


def _window(table: Table, night: Night) -> tuple[Committed, ...]:
    """Commits of the dates that count as history; ds itself must be there."""
    today = night.dataset(table).require(table.made_by)
    cleaning = night.config.clean_events
    if cleaning.history == "snapshot":
        return (today,)
    oldest = night.ds - timedelta(days=cleaning.window_days - 1)
    dates = [text for text in committed_dates(night.store, table) if str(oldest) <= text < str(night.ds)]
    earlier = (Dataset(night.store, table, text).committed() for text in dates)
    return (*(found for found in earlier if found is not None), today)


def _identity(stage: Stage, night: Night) -> dict[str, Any]:
    params = {name: getattr(night.config, name).identity() for name in (stage.name, *stage.also)}
    inputs = {
        f"{name}@{one.dataset.ds}": one.manifest.fingerprint
        for name, committed in night.inputs.items()
        for one in committed
    }
    for name, files in night.raw.items():
        inputs.update({f"{name}/{source}": files_fingerprint(group) for source, group in files.items()})
    return {
        "stage": stage.name,
        "version": stage.version,
        "ds": str(night.ds),
        "params": params,
        "inputs": inputs,
    }


def _digest(identity: Mapping[str, Any]) -> str:
    """sha256 of canonical JSON, shortened; a value JSON cannot encode raises, since str() would drift."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, allow_nan=False).encode()).hexdigest()[:20]


def _current(stage: Stage, night: Night) -> list[Committed] | None:
    """The commits of all outputs if each carries this fingerprint, else None."""
    found = [night.dataset(table).committed() for table in stage.writes]
    current = [one for one in found if one is not None and one.manifest.fingerprint == night.fingerprint]
    return current if len(current) == len(stage.writes) else None


def _commit(
    stage: Stage, night: Night, identity: Mapping[str, Any], metrics: Metrics, seconds: float
) -> None:
    for table in stage.writes:
        files = night.outputs[table.name]
        manifest = Manifest(
            table=table.name,
            ds=str(night.ds),
            stage=stage.name,
            fingerprint=night.fingerprint,
            files=tuple(files),
            rows=sum(entry.rows for entry in files),
            schema=tuple(f"{f.name}: {f.type}{'' if f.nullable else '!'}" for f in table.schema),
            params=identity["params"],
            inputs=identity["inputs"],
            metrics=metrics,
            code={"version": __version__, **_versions()},
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
        )
        night.write(table).commit(manifest)


def _versions() -> dict[str, str]:
    names = ("pyspark", "ray", "torch", "transformers", "faiss-cpu", "pyarrow", "numpy")
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def require_rows(committed: Committed, why: str) -> None:
    """NotCommitted's neighbour: an input that is there but empty, where nothing can be made of it."""
    if not committed.manifest.rows:
        table = committed.dataset.table.name
        raise NotCommitted(f"{table} of {committed.dataset.ds} has no rows, {why}")
