"""`nightjar backtest`: the night as of an earlier t0, against what users did in the days after it.

The lists are made by the very stages of a night, run for the day before t0 under <root>/backtest, so texts,
popularity, vectors and availability are all as of t0: an event of the test days is a future event there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, timedelta

import pyarrow as pa

from nightjar.config import NightConfig
from nightjar.errors import ConfigError
from nightjar.night import function_of, run_declared
from nightjar.pipeline import CLEAN_EVENTS, EVALUATE, NIGHT, PUBLISH
from nightjar.sources import RawFile
from nightjar.stage import Night, run_stage
from nightjar.stages.evaluation.about_lists import catalogue_of
from nightjar.stages.evaluation.user_means import Figure, Measured, figures
from nightjar.store import BACKTEST, Committed, Manifest, Store
from nightjar.tables import EVENTS, INTERACTIONS, ITEMS, METRICS, RECOMMENDATIONS, USER_METRICS


@dataclass(frozen=True)
class Tested:
    """One window. night: the night as of t0, its stages committed; truth: the events of the days after it."""

    night: Night
    truth: tuple[RawFile, ...]
    manifest: Manifest
    figures: list[Figure]
    user_metrics: Committed

    @property
    def measured(self) -> Measured:
        """Its per-user rows, to be pooled with those of other windows or compared with a variant's."""
        return measured_of([self.user_metrics.read()], [self])


def backtest(night: Night) -> list[Tested]:
    """Runs every window, the newest first; everything measured is committed under <root>/backtest."""
    params = night.config.evaluate
    if max(params.ks) > night.config.rank.k:
        raise ConfigError(
            f"evaluate.ks goes to {max(params.ks)}, rank.k publishes {night.config.rank.k}; raise rank.k"
        )
    return [_window(night, night.ds - timedelta(days=params.test_days * at)) for at in range(params.windows)]


def pooled(windows: list[Tested]) -> list[Figure]:
    """The figures over all windows; a user who stands in several is drawn with all of them."""
    tables = [window.user_metrics.read() for window in windows]
    return figures(measured_of(tables, windows), windows[0].night.config.evaluate)


def measured_of(tables: list[pa.Table], windows: list[Tested]) -> Measured:
    """Rows of user_metrics, one table a window, with what is known of each window's catalogue."""
    described = windows[0].manifest.metrics
    catalogues = tuple(
        catalogue_of(
            window.night.dataset(ITEMS).require("build_items").read(["available"]),
            window.night.dataset(INTERACTIONS).require("weigh_events"),
        )
        for window in windows
    )
    return Measured(tuple(tables), catalogues, described["accuracy"], described["about_list"])


def _window(night: Night, end: date) -> Tested:
    """One t0: truth from a cleaning as of `end`, lists from a night as of test_days before it."""
    config = as_of(night.config)
    truth_night = replace(night, config=config, ds=end, lender=night.store)
    run_declared(CLEAN_EVENTS, function_of(CLEAN_EVENTS), truth_night)
    truth = truth_night.dataset(EVENTS).require(CLEAN_EVENTS.name)
    t0_night = replace(truth_night, ds=end - timedelta(days=night.config.evaluate.test_days))
    before: tuple[RawFile, ...] = ()
    if config.evaluate.night_before:
        eve = replace(t0_night, ds=t0_night.ds - timedelta(days=1))
        _night_of(eve)
        before = raw_files_of(eve.dataset(RECOMMENDATIONS).require("rank"))
    _night_of(t0_night)
    return judged(t0_night, raw_files_of(truth), before)


def _night_of(night: Night) -> None:
    for stage in NIGHT:
        if stage is not PUBLISH:
            run_declared(stage, function_of(stage), night)


def judged(night: Night, truth: tuple[RawFile, ...], before: tuple[RawFile, ...] = ()) -> Tested:
    """Holds the lists of a night that is committed against the events of the days after it."""
    raw = {"truth": {"events": truth}, "night_before": {"recommendations": before} if before else {}}
    run_stage(EVALUATE, function_of(EVALUATE), night, raw)
    metrics = night.dataset(METRICS).require(EVALUATE.name)
    rows = [Figure(**row) for row in metrics.read().to_pylist()]
    users = night.dataset(USER_METRICS).require(EVALUATE.name)
    return Tested(night, truth, metrics.manifest, rows, users)


def raw_files_of(committed: Committed) -> tuple[RawFile, ...]:
    """A committed table as external input of `evaluate`, named by its fingerprint."""
    return tuple(RawFile(path, committed.manifest.fingerprint, 0, 0) for path in committed.paths())


def as_of(config: NightConfig) -> NightConfig:
    """The same night under a root of its own; logs that come day by day are cleaned as one window."""
    cleaning = config.clean_events.model_copy(update={"history": "snapshot"})
    root = Store(config.root).below(BACKTEST).root
    return config.model_copy(update={"root": root, "clean_events": cleaning})
