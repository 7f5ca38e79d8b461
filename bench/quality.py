"""Recommendations against every single method a user could run instead (`--data NAME`, or a folder).

Global temporal split: trained before the 90% quantile of time, tested after it; every method is tuned on the
80–90% window and refitted. The full catalogue of items with an event is ranked, what a user has seen is left
out, users are those with a history and something new chosen later. Nightjar is its default configuration,
the same for every data set: its own stages, run on what was known (quality_night.py); it fits itself on the
newest of that. Appends JSON lines to bench/results.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import machine
from bench.quality_cold import CASES, OURS, Found, cold_table, cold_together
from bench.quality_data import MIN_EVENTS, Log, Split, embeddings, moment, read_log, split, with_new_items
from bench.quality_measure import RESAMPLES, Measured, change, difference, held_against, pooled
from bench.quality_night import BEFORE_RANK, NO_CHANGE, Settings, default_config, lists_for, night_of
from bench.quality_trials import EASE_ITEMS, Method, methods, tuned
from nightjar.conf_files import changed
from nightjar.errors import InputError
from nightjar.job import guarded
from nightjar.kernels import taste
from nightjar.kernels.statistics import bootstrap_mean, paired_difference, paired_ratio
from nightjar.pipeline import RANK
from nightjar.stage import Metrics
from nightjar.tables import BLEND
from nightjar.variants import Variant, varied

RESULTS = Path(__file__).parent / "results" / "quality.jsonl"
TUNED_FROM, TEST_FROM = 0.8, 0.9
"""Quantiles of time at which the validation and the test window begin."""
TUNING_USERS, TEST_USERS = 2000, 5000
PARTS = ["beside", "withheld", "new"]
"""Beside the table of warm items: cold items among them, the two tables of cold items."""
Row = tuple[dict[str, Any], Measured]


@dataclass(frozen=True)
class Ours:
    """Nightjar's lists held against the truth; chosen: the blend; cpu_seconds: of the stages."""

    lists: NDArray[np.int64]
    found: Measured
    chosen: Metrics
    cpu_seconds: float


@dataclass(frozen=True)
class Window:
    """The table of one test window. users: (n,) ids of the evaluated ones; every result has a row for each.

    varied: lists of the night with a setting changed; cold: what was found among cold items, by case; end:
    what its last line prints.
    """

    users: NDArray[Any]
    rows: dict[str, Row]
    ours: Row
    varied: dict[str, Measured]
    cold: dict[str, Found]
    end: dict[str, Any]


def nightjar(
    log: Log,
    E: NDArray[np.float32],
    test: Split,
    available: NDArray[np.bool_],
    root: Path | None = None,
    settings: Settings = NO_CHANGE,
) -> Ours:
    """The default night as of the test window, or one with other `settings`; available: (n_items,) bool.

    root: where the night stays, so that another one there, with other items available, learns nothing anew.
    """
    with contextlib.ExitStack() as stack:
        root = root or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = changed(default_config(root), settings)
        started = time.process_time()
        night = night_of(log, moment(log, TEST_FROM), available, E, config)
        lists = lists_for(night, test.users)
        spent = time.process_time() - started
        chosen = night.dataset(BLEND).require("fit_blend").manifest.metrics
    return Ours(lists, held_against(test, lists), dict(chosen), spent)


def run(
    log: Log,
    only: Sequence[str],
    parts: Sequence[str],
    ease_items: int = EASE_ITEMS,
    variants: Sequence[Variant] = (),
) -> Window:
    """The whole table for the newest window of one data set."""
    validation = split(log, TUNED_FROM, TEST_FROM, TUNING_USERS)
    test = split(log, TEST_FROM, 1.0, TEST_USERS)
    print(
        f"{log.name}: {len(log.time)} events, {log.n_users} users, {log.n_items} items; "
        f"{len(validation.users)} validation users, {len(test.users)} test users",
        flush=True,
    )
    if not len(validation.users) or not len(test.users):
        raise InputError(
            f"{log.name}: nobody known before the validation or the test window chose something new in it; "
            f"items with fewer than {MIN_EVENTS} events are left out, so this takes a larger log"
        )
    E = embeddings(log)
    V = taste.whiten(E, taste.fit_whitening(E, 1.0, 0.05))
    rows: dict[str, Row] = {}
    for method in chosen_of(methods(log, V, E, ease_items), only):
        rows[method.name] = tuned(method, log, validation, test)
        report(method.name, *rows[method.name])
    with tempfile.TemporaryDirectory() as root:
        ours = nightjar(log, E, test, test.warm, Path(root))
        row = (ours.chosen | {"cpu_seconds": round(ours.cpu_seconds)}, ours.found)
        report(OURS, *row)
        end: dict[str, Any] = summary(log.name, rows, row) if rows else {}
        if "beside" in parts:
            everything = nightjar(log, E, test, np.ones(log.n_items, bool), Path(root))
            beside_cold_items(ours, everything, with_new_items(log, test, moment(log, TEST_FROM)))
        asked = [part for part in parts if part in CASES]
        cold = cold_table(log, E, V, TEST_FROM, asked, Path(root), variants)
        others: dict[str, Measured] = {}
        for variant in variants:
            others[variant.name] = nightjar(log, E, test, test.warm, Path(root), variant.settings).found
            print(f"{variant.name}: {_changed(ours.found, others[variant.name])}", flush=True)
    return Window(log.user_ids[test.users], rows, row, others, cold, end | cold_end(cold))


def together(name: str, windows: Sequence[Window]) -> dict[str, Any]:
    """The table of several windows of the same log, as `run` prints it for one; returns the comparison."""

    def all_of(results: Sequence[Row]) -> Row:
        found = [(window.users, found) for window, (_, found) in zip(windows, results, strict=True)]
        return {"windows": [params for params, _ in results]}, pooled(found)

    rows = {method: all_of([window.rows[method] for window in windows]) for method in windows[0].rows}
    ours = all_of([window.ours for window in windows])
    found = [len(window.users) for window in windows]
    print(f"{name}: {len(ours[1].ndcg)} users of {len(windows)} windows ({', '.join(map(str, found))})")
    for method, (_, measured) in [*rows.items(), (OURS, ours)]:
        report(method, {}, measured)
    for variant in windows[0].varied:
        other = pooled([(window.users, window.varied[variant]) for window in windows])
        print(f"{variant}: {_changed(ours[1], other)}", flush=True)
    end = cold_end(cold_together([window.cold for window in windows]))
    return end | (summary(f"{name}, {len(windows)} windows", rows, ours) if rows else {})


def cold_end(cold: Mapping[str, Found]) -> dict[str, Any]:
    """What the last line says of cold items."""
    return {"cold_recall20": cold["withheld"].rows[OURS][0].mean()} if "withheld" in cold else {}


def chosen_of(every: Sequence[Method], only: Sequence[str]) -> list[Method]:
    """The methods named in `only`, all of them where it is empty. Raises InputError for a name of none."""
    names = [method.name for method in every]
    for name in only:
        if name not in names:
            raise InputError(f"--only {name}: no single method of that name; there are {', '.join(names)}")
    return [method for method in every if not only or method.name in only]


def variants_of(texts: Sequence[str]) -> list[Variant]:
    """What `--vary` asks for, of the stages that run here; ConfigError for anything else."""
    config, names = default_config(Path("none")), (*BEFORE_RANK, RANK.name)
    return [variant for text in texts for variant in varied(config, text, names)]


def quantile(text: str) -> float:
    """A share of time as an option has it, above 0 and at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share of the log's time: above 0, at most 1")
    return value


def count(text: str) -> int:
    """A number of things as an option has it, at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no whole number of 1 or more")
    return int(text)


def beside_cold_items(ours: Ours, everything: Ours, whole: Split) -> None:
    """Prints what users lose and gain where items that nobody chose yet may take places in their lists.

    whole: the same users, whose truth has such items too.
    """
    print(f"cold items available too: {_changed(ours.found, everything.found)} of warm items", flush=True)
    both = (held_against(whole, one.lists) for one in (ours, everything))
    print(f"cold items available too: {_changed(*both)} of all items", flush=True)


def _changed(before: Measured, after: Measured) -> str:
    return f"{change('R@20', before.recall, after.recall)}; {change('N@20', before.ndcg, after.ndcg)}"


def report(method: str, params: Mapping[str, Any], found: Measured) -> None:
    print(
        f"{method:20s} R@20 {found.recall.mean():.4f}  N@20 {found.ndcg.mean():.4f}  "
        f"cov {found.coverage:.2f}  {dict(params)}",
        flush=True,
    )


def summary(name: str, rows: Mapping[str, Row], ours: Row) -> dict[str, Any]:
    """Appends a line for each method and returns the comparison with the best of them on the test window.

    The best is chosen by its figure on the test window itself, which favours it.
    """
    mine, facts = ours[1], machine.facts()
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as sink:
        for method, (params, found) in [*rows.items(), (OURS, ours)]:
            line = {
                "bench": "quality",
                "data": name,
                "method": method,
                "params": params,
                "users": len(found.ndcg),
                "coverage": round(found.coverage, 4),
                **figures(found, mine, method != OURS),
            }
            sink.write(json.dumps(line | facts) + "\n")
    best = {
        metric: max(rows, key=lambda method: getattr(rows[method][1], metric).mean())
        for metric in ("recall", "ndcg")
    }
    for metric, method in best.items():
        own, theirs = getattr(mine, metric), getattr(rows[method][1], metric)
        print(
            f"{metric}@20: ours {own.mean():.4f}, best single {method} {theirs.mean():.4f}, "
            f"difference {difference(own, theirs)}"
        )
    lift = paired_ratio(mine.ndcg, rows[best["ndcg"]][1].ndcg, RESAMPLES, 0)
    return {
        "ndcg20": mine.ndcg.mean(),
        "best_single": f"{best['ndcg']} {rows[best['ndcg']][1].ndcg.mean():.4f}",
        "lift": lift.mean,
        "lift_low": lift.low,
    }


def figures(found: Measured, ours: Measured, compared: bool) -> dict[str, list[float]]:
    """Means with their 95% intervals, and what Nightjar has more than them."""
    line: dict[str, list[float]] = {}
    for metric in ("recall", "ndcg"):
        values = getattr(found, metric)
        line[f"{metric}20"] = [round(float(value), 5) for value in bootstrap_mean(values, RESAMPLES, 0)]
        if compared:
            gap = paired_difference(getattr(ours, metric), values, RESAMPLES, 0)
            line[f"nightjar_minus_{metric}20"] = [
                round(value, 5) for value in (gap.difference, gap.low, gap.high)
            ]
    return line


def main() -> None:
    """Reads --data, prints the table, ends with the line that CI reads."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default="online_retail", help="a name, or a folder with interactions, items"
    )
    parser.add_argument("--folder", type=Path, help="where the named data sets are; default NIGHTJAR_DATA")
    parser.add_argument("--only", nargs="*", default=[], help="single methods to run; default all")
    parser.add_argument(
        "--parts",
        nargs="*",
        choices=PARTS,
        default=PARTS,
        help="what is measured beside the warm table; default: all",
    )
    parser.add_argument("--until", type=quantile, default=1.0, help="quantile of time at which the log ends")
    parser.add_argument(
        "--windows",
        type=count,
        default=1,
        help="test windows, each ending where the one after it begins, everything learnt anew before each; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--own-clocks", action="store_true", help="everybody's events spread over the same year: no fashion"
    )
    parser.add_argument(
        "--ease-items",
        type=count,
        default=EASE_ITEMS,
        help="most liked items that the single method EASE has, where there are more; default: %(default)s",
    )
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="A.B=V,W",
        help="also the night with a setting changed, for the same users; repeatable",
    )
    args = parser.parse_args()
    variants = variants_of(args.vary)
    windows, before = list[Window](), np.inf
    while len(windows) < args.windows:
        log = read_log(args.data, args.folder, args.until, args.own_clocks, before)
        windows.append(run(log, args.only, args.parts, args.ease_items, variants))
        before = moment(log, TEST_FROM)
    end = windows[0].end
    if len(windows) > 1:
        end |= together(Path(args.data).name, windows)
    if {"lift", "cold_recall20"} <= set(end):
        print(
            f"bench quality: ndcg20={end['ndcg20']:.4f} best_single={end['best_single'].replace(' ', '_')} "
            f"lift={end['lift']:.3f} lift_low={end['lift_low']:.3f} cold_recall20={end['cold_recall20']:.4f}"
        )


if __name__ == "__main__":
    guarded(main)
