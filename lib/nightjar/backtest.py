"""`nightjar backtest`: the night as of an earlier t0, against what users did in the days after it.

The lists are made by the very stages of a night, run for the day before t0 under <root>/backtest, so texts,
popularity, vectors and availability are all as of t0: an event of the test days is a future event there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

from nightjar.config import NightConfig
from nightjar.errors import ConfigError
from nightjar.inspect import table_text
from nightjar.night import function_of, run_declared
from nightjar.pipeline import CLEAN_EVENTS, EVALUATE, NIGHT, PUBLISH
from nightjar.sources import RawFile
from nightjar.stage import Night, run_stage
from nightjar.store import BACKTEST, Committed
from nightjar.tables import EVENTS, METRICS

SHOWN = ("Recall", "nDCG", "HitRate", "MRR")


def backtest(night: Night) -> str:
    """Runs every window and returns the table of means as text; the rest stands in the committed metrics."""
    params = night.config.evaluate
    if max(params.ks) > night.config.rank.k:
        raise ConfigError(
            f"evaluate.ks goes to {max(params.ks)}, rank.k publishes {night.config.rank.k}; raise rank.k"
        )
    texts = []
    for window in range(params.windows):
        end = night.ds - timedelta(days=params.test_days * window)
        texts.append(_text(_window(night, end)))
    return "\n\n".join(texts)


def _window(night: Night, end: date) -> Committed:
    """One t0: truth from a cleaning as of `end`, lists from a night as of test_days before it."""
    config = _as_of(night)
    truth_night = replace(night, config=config, ds=end, lender=night.store)
    run_declared(CLEAN_EVENTS, function_of(CLEAN_EVENTS), truth_night)
    truth = truth_night.dataset(EVENTS).require(CLEAN_EVENTS.name)
    t0_night = replace(truth_night, ds=end - timedelta(days=night.config.evaluate.test_days))
    for stage in NIGHT:
        if stage is not PUBLISH:
            run_declared(stage, function_of(stage), t0_night)
    files = tuple(RawFile(path, truth.manifest.fingerprint, 0, 0) for path in truth.paths())
    run_stage(EVALUATE, function_of(EVALUATE), t0_night, {"truth": {"events": files}})
    return t0_night.dataset(METRICS).require(EVALUATE.name)


def _as_of(night: Night) -> NightConfig:
    """The same night under a root of its own; logs that come day by day are cleaned as one window."""
    cleaning = night.config.clean_events.model_copy(update={"history": "snapshot"})
    root = night.store.below(BACKTEST).root
    return night.config.model_copy(update={"root": root, "clean_events": cleaning})


def _text(metrics: Committed) -> str:
    """The means as a table, a line a metric: ours, the baselines, and the paired difference to `popular`."""
    params = metrics.manifest.params["evaluate"]
    found = {(row["slice"], row["name"]): row for row in metrics.read().to_pylist()}
    users = {slice_: int(row["value"]) for (slice_, name), row in found.items() if name == "users"}
    lines = []
    for slice_ in ("all", "warm"):
        names = [f"{name}@{k}" for name in SHOWN for k in params["ks"]] if slice_ in users else []
        lines += [(slice_, name, *_cells(found, slice_, name)) for name in names]
    columns = ("users", "metric", "nightjar", "popular", "random", "nightjar - popular")
    counted = ", ".join(f"{count:,} {name}" for name, count in users.items())
    days = params["test_days"]
    head = f"lists as of {metrics.manifest.ds}, held against the {days} days after: {counted} users"
    coverage = [f"{name} {row['value']:.3f}" for (_, name), row in found.items() if "Coverage@" in name]
    return "\n".join([head, table_text(columns, lines), ", ".join(coverage)])


def _cells(found: dict[tuple[str, str], dict[str, Any]], slice_: str, name: str) -> Iterator[str]:
    for method in ("nightjar", "popular", "random", "nightjar-popular"):
        row = found[slice_, f"{method}.{name}"]
        mean = f"{row['value']:+.4f}" if "-" in method else f"{row['value']:.4f}"
        yield mean if method == "random" else f"{mean} [{row['low']:.4f}, {row['high']:.4f}]"
