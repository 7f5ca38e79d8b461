"""The whole night in one process: every stage of pipeline.NIGHT, or some of them, on its engine."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

from nightjar.config import EARLIEST, LATEST, NightConfig
from nightjar.errors import ConfigError
from nightjar.pipeline import NIGHT, PUBLISH, RANK
from nightjar.published import make_live, publications
from nightjar.stage import Night, RunStage, Stage, StageResult, run_stage
from nightjar.tables import RECOMMENDATIONS


def stage_named(name: str) -> Stage:
    """A declared stage by its name; ConfigError lists the known ones."""
    for stage in NIGHT:
        if stage.name == name:
            return stage
    names = [stage.name for stage in NIGHT]
    raise ConfigError(f"there is no stage {name!r}; {hint(name, names)}known: {', '.join(names)}")


def hint(name: str, known: Sequence[str]) -> str:
    """`did you mean …? ` where a known name is near, else nothing."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}? " if near else ""


def function_of(stage: Stage) -> RunStage:
    """The function behind a declaration; importing it is what loads its engine."""
    function: RunStage = getattr(importlib.import_module(f"nightjar.stages.{stage.name}"), stage.name)
    return function


def run_declared(stage: Stage, run: RunStage, night: Night) -> StageResult:
    """One stage with its raw inputs resolved: what `nightjar STAGE`, jobs/STAGE.py and a whole night call."""
    inputs = importlib.import_module("nightjar.stages.inputs")
    result = run_stage(stage, run, night, inputs.raw_inputs(stage, night.config, night.ds))
    if stage is PUBLISH and not publications(night.store):
        # LATEST.json was lost or, being damaged, removed: the gates of this very list have passed before.
        make_live(night.store, night.dataset(RECOMMENDATIONS).require(RANK.name))
    return result


def run_night(night: Night, first: str | None = None, last: str | None = None) -> list[StageResult]:
    """Runs the stages from `first` to `last`, both included, in order; by default all of them."""
    names = [stage.name for stage in NIGHT]
    start = names.index(stage_named(first).name) if first else 0
    stop = names.index(stage_named(last).name) + 1 if last else len(names)
    if start >= stop:
        raise ConfigError(f"--from {first} comes after --until {last}; the order is {', '.join(names)}")
    return [run_declared(stage, function_of(stage), night) for stage in NIGHT[start:stop]]


def logical_date(text: str | None, config: NightConfig, option: str = "--ds") -> date:
    """The date of an option, else of the configuration, else yesterday (UTC); ConfigError for no date."""
    if text is None:
        return config.ds or datetime.now(UTC).date() - timedelta(days=1)
    try:
        ds = date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option} {text}: write a date as YYYY-MM-DD") from None
    if not EARLIEST <= ds <= LATEST:
        raise ConfigError(f"{option} {text}: name a date from {EARLIEST} to {LATEST}")
    return ds


def seconds_by_stage(results: Sequence[StageResult]) -> dict[str, float]:
    """Seconds each stage took; 0 where it was up to date."""
    return {result.stage: result.seconds for result in results}
