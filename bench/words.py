"""What users' words add: lists of users who only searched, and of users with a history, by their weight.

    make bench-words                        a generated world of 3,000 users, weights 0, 0.5 and 1
    make bench-words ARGS="--users 20000 --items 20000 --events 600000"

Of the users with searches, every fourth is made to have only those: their other events are taken out of what
is known before t0 and their clicks keep the query and lose the item. A night is then run as of t0 for each
weight of words, everything else equal, and its lists are held against what users did in the days after: all
users with at least one new item there, those who only searched and those with a history apart.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from nightjar.conf_files import load_config
from nightjar.config import NightConfig
from nightjar.generate import GenerateSpec, generate
from nightjar.kernels.metrics import accuracy
from nightjar.kernels.statistics import Interval, bootstrap_mean
from nightjar.night import function_of, run_declared
from nightjar.pipeline import NIGHT
from nightjar.progress import QUIET
from nightjar.stage import Night
from nightjar.store import Manifest
from nightjar.tables import EVENTS, ITEMS, RECOMMENDATIONS, USERS

WORK = Path("build/bench-words")
TEST_DAYS = 7
K = 20
FIRST = ("clean_events",)
"""Stages before the log is changed."""


@dataclass(frozen=True)
class Held:
    """truth: user -> items newly chosen after t0; searchers: users of whom only searches are known."""

    truth: Mapping[str, set[str]]
    searchers: frozenset[str]


def main() -> None:
    """Prints a table and the headline."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("users", 3000), ("items", 2500), ("events", 90_000)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.5, 1.0], metavar="W")
    options = parser.parse_args()
    spec = GenerateSpec(users=options.users, items=options.items, events=options.events)
    shutil.rmtree(WORK, ignore_errors=True)
    generate(spec, WORK / "raw")
    last = spec.start + timedelta(days=spec.days - 1)
    whole = Night(config_of("log", 1.0), last, QUIET)
    run(whole, FIRST)
    events = whole.dataset(EVENTS).require("clean_events").read()
    known, held = split(events, last - timedelta(days=TEST_DAYS))
    found: dict[float, dict[str, dict[str, np.ndarray]]] = {}
    lender = None
    for weight in options.weights:
        night = Night(config_of(f"w{weight:g}", weight), last - timedelta(days=TEST_DAYS), QUIET)
        if lender is not None:
            night = replace(night, lender=lender)
        commit_events(night, known)
        run(night, [stage.name for stage in NIGHT if stage.name not in (*FIRST, "publish")])
        found[weight] = judged(night, held)
        lender = lender or night.store
    print(table(found))


def config_of(name: str, weight: float) -> NightConfig:
    """The demo's configuration over the generated world, with searches that may lack an item."""
    content: dict[str, Any] = yaml.safe_load(
        Path("conf/demo.yaml").read_text().replace("build/demo/raw", str(WORK / "raw"))
    )
    content |= {"root": str(WORK / name), "extends": str(Path("conf/base.yaml").resolve())}
    types = content["clean_events"]["scenes"]["search"]["event_types"]
    types["search"] = {"weight": types["click"]["weight"], "item": False}
    content["weigh_events"]["words"] = {"query": weight}
    content["rank"] = {"k": K}
    path = WORK / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_config([str(path)])


def run(night: Night, names: Sequence[str]) -> None:
    for stage in NIGHT:
        if stage.name in names:
            run_declared(stage, function_of(stage), night)


def split(events: pa.Table, t0: date) -> tuple[pa.Table, Held]:
    """The log as known at the end of t0, some users reduced to their searches, and what came after."""
    end = pa.scalar(
        datetime.combine(t0 + timedelta(days=1), time.min, UTC), events.schema.field("event_time").type
    )
    before = events.filter(pc.less(events["event_time"], end))
    after = events.filter(pc.greater_equal(events["event_time"], end))
    searched = sorted(set(before.filter(pc.is_valid(before["query"]))["user_id"].to_pylist()))
    searchers = frozenset(searched[::4])
    only = pc.is_in(before["user_id"], pa.array(sorted(searchers), pa.string()))
    said = before.filter(pc.and_(only, pc.is_valid(before["query"])))
    nothing = pa.nulls(len(said), pa.string())
    kind = pa.array(["search"] * len(said), pa.string())
    for name, values in (("item_id", nothing), ("event_type", kind)):
        place = said.schema.get_field_index(name)
        said = said.set_column(place, said.schema.field(place), values)
    rest = before.filter(pc.invert(only))
    known = pa.concat_tables([rest, said]).sort_by("event_id")
    seen: dict[str, set[str]] = {}
    for user, item in pairs(rest):
        seen.setdefault(user, set()).add(item)
    truth: dict[str, set[str]] = {}
    for user, item in pairs(after):
        if item not in seen.get(user, ()):
            truth.setdefault(user, set()).add(item)
    return known, Held(truth, searchers)


def pairs(events: pa.Table) -> list[tuple[str, str]]:
    """(user, item) of the events that speak for an item."""
    liked = pc.invert(pc.is_in(events["event_type"], pa.array(["return", "dislike"])))
    rows = events.filter(pc.and_(liked, pc.is_valid(events["item_id"])))
    return list(zip(rows["user_id"].to_pylist(), rows["item_id"].to_pylist(), strict=True))


def commit_events(night: Night, rows: pa.Table) -> None:
    """Commits a log as it is, as clean_events would."""
    attempt = night.dataset(EVENTS).attempt("searched")
    entry = attempt.write_part(0, [rows])
    manifest = Manifest(EVENTS.name, str(night.ds), "clean_events", "searched", (entry,), entry.rows, ())
    attempt.commit(manifest)


def judged(night: Night, held: Held) -> dict[str, dict[str, np.ndarray]]:
    """group -> metric -> a value for each user with truth among the items of the catalogue."""
    items = night.dataset(ITEMS).require("build_items").read(["item_id"])["item_id"].to_pylist()
    num = {item: at for at, item in enumerate(items)}
    people = set(night.dataset(USERS).require("weigh_events").read(["user_id"])["user_id"].to_pylist())
    rows = night.dataset(RECOMMENDATIONS).require("rank").read(["user_id", "rank", "item_id"])
    lists: dict[str, list[int]] = {}
    for row in rows.sort_by([("user_id", "ascending"), ("rank", "ascending")]).to_pylist():
        lists.setdefault(row["user_id"], []).append(num[row["item_id"]])
    out = {}
    for group in ("only searched", "history"):
        users = [
            u for u in sorted(held.truth) if u in people and (u in held.searchers) == (group != "history")
        ]
        wanted = [sorted(num[i] for i in held.truth[user] if i in num) for user in users]
        users = [user for user, mine in zip(users, wanted, strict=True) if mine]
        wanted = [mine for mine in wanted if mine]
        ranked = np.full((len(users), K), -1, np.int64)
        for at, user in enumerate(users):
            ranked[at, : len(lists[user])] = lists[user]
        indptr = np.cumsum([0, *map(len, wanted)]).astype(np.int64)
        flat = np.array([item for mine in wanted for item in mine], np.int64)
        scores = accuracy(ranked, (indptr, flat), [K])
        out[group] = {name: scores[name] for name in (f"nDCG@{K}", f"Recall@{K}", f"HitRate@{K}")}
    return out


def interval(values: np.ndarray) -> Interval:
    return bootstrap_mean(values, 1000, 0)


def table(found: Mapping[float, Mapping[str, Mapping[str, np.ndarray]]]) -> str:
    """A line a group and metric, a column a weight: means with bootstrap intervals; then the headline."""
    weights = sorted(found)
    lines = [f"{'users':<22}{'metric':<12}" + "".join(f"{f'words {w:g}':>26}" for w in weights)]
    for group, metrics in found[weights[0]].items():
        for name, values in metrics.items():
            cells = (interval(found[w][group][name]) for w in weights)
            shown = "".join(f"{f'{c.mean:.4f} [{c.low:.4f}, {c.high:.4f}]':>26}" for c in cells)
            lines.append(f"{f'{group} ({len(values):,})':<22}{name:<12}{shown}")
    least, most = weights[0], weights[-1]
    head = {
        group.replace(" ", "_"): found[most][group][f"nDCG@{K}"] - found[least][group][f"nDCG@{K}"]
        for group in found[most]
    }
    told = (interval(values) for values in head.values())
    gains = [f"{name}={c.mean:+.4f}[{c.low:+.4f},{c.high:+.4f}]" for name, c in zip(head, told, strict=True)]
    return "\n".join([*lines, f"bench words: gain of nDCG@{K} at weight {most:g}: " + " ".join(gains)])


if __name__ == "__main__":
    main()
