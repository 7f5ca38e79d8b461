"""The demo: a generated world, a whole night on it, a back-test, and a summary a person can read."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nightjar import backtest_report, inspect
from nightjar.backtest import backtest
from nightjar.conf_files import load_config
from nightjar.errors import ContractError
from nightjar.generate import GenerateSpec, generate
from nightjar.job import guarded
from nightjar.night import logical_date, run_night
from nightjar.progress import Report
from nightjar.published import latest
from nightjar.stage import Night, StageResult
from nightjar.tables import EVENTS, RECOMMENDATIONS, USERS

RAW = Path("build/demo/raw")
CONFIG = "conf/demo.yaml"
SHOWN = 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m nightjar.demo`."""
    parser = argparse.ArgumentParser(prog="nightjar.demo", description=__doc__)
    spec = GenerateSpec()
    for name in ("users", "items", "events"):
        parser.add_argument(f"--{name}", type=int, default=getattr(spec, name), metavar="N")
    parser.add_argument("--no-backtest", action="store_true", help="only the night")
    options = parser.parse_args(arguments)
    wanted = GenerateSpec(users=options.users, items=options.items, events=options.events)
    guarded(lambda: _demo(wanted, with_backtest=not options.no_backtest))


def _demo(spec: GenerateSpec, with_backtest: bool) -> None:
    started = time.monotonic()
    report = Report()
    facts = _world(spec, report)
    config = load_config([CONFIG])
    night = Night(config, logical_date(None, config), report)
    results = run_night(night)
    tested = backtest_report.text(backtest(night)) if with_backtest else ""
    print(_summary(night, results, facts))
    if tested:
        print(f"\nBACK-TEST\n{tested}")
    print(_people(night))
    print(f"\noutput      {night.store.path(RECOMMENDATIONS.name)}  (files: nightjar ls recommendations)")
    print(f"a user      nightjar show {_users_shown(night)[0]}")
    print(f"demo took   {time.monotonic() - started:.0f} s")


def _world(spec: GenerateSpec, report: Report) -> dict[str, object]:
    """Generates the world unless it is there already with the same spec."""
    facts = RAW / "truth" / "facts.json"
    if facts.exists():
        known: dict[str, object] = json.loads(facts.read_text())
        if "asked" in known and known["spec"] == json.loads(json.dumps(spec.__dict__, default=str)):
            report.line(f"generate: {RAW} is there already")
            return known
    with report.task("generate", spec.all_days, "days") as task:
        return generate(spec, RAW, lambda done, _: task.advance(done - task.done))


def _summary(night: Night, results: Sequence[StageResult], facts: dict[str, object]) -> str:
    """Counts in and out, seconds, the planted answer."""
    lines = ["", f"THE NIGHT OF {night.ds}", inspect.summary(night.store, str(night.ds)), ""]
    events = night.dataset(EVENTS).require("clean_events").manifest
    rows = latest(night.store).manifest.rows
    users = night.dataset(USERS).require("weigh_events").manifest.rows
    k = night.config.rank.k
    lines.append(f"events      {events.metrics['raw']:,} raw rows in, {events.rows:,} kept")
    lines.append(
        f"lists       {users:,} known users, {rows:,} rows out, {rows / max(users, 1):.2f} a user of k = {k}"
    )
    if rows != users * k:
        raise ContractError(f"demo: {users:,} known users should have {users * k:,} rows, there are {rows:,}")
    total = sum(result.seconds for result in results)
    lines.append(f"seconds     {total:.1f} for the night")
    lines += [_withheld(night, facts), _by_words(night)]
    return "\n".join(lines)


def _withheld(night: Night, facts: dict[str, object]) -> str:
    """Where the item withheld from each collector stands in their list, and the generator's ceiling."""
    withheld = pq.read_table(RAW / "truth" / "withheld.parquet")
    lists = latest(night.store).read(["user_id", "rank", "item_id"])
    keys = pc.binary_join_element_wise(lists["user_id"], lists["item_id"], "\t")
    wanted = pc.binary_join_element_wise(withheld["user_id"], withheld["item_id"], "\t")
    at = pc.index_in(wanted, keys.combine_chunks())
    rank = lists["rank"].take(at).fill_null(0).to_numpy().astype(np.float64)
    rank = np.where(rank == 0, np.inf, rank)
    ceiling = facts["ceiling"]["withheld"]  # type: ignore[index]
    figures: dict[str, np.ndarray] = {
        "hit_rate_at_1": rank <= 1,
        "hit_rate_at_10": rank <= 10,
        "mrr": 1 / rank,
    }
    words = [
        f"{name} {float(np.mean(values)):.3f} (ceiling {ceiling[name]:.3f})"
        for name, values in figures.items()
    ]
    return f"withheld    of {len(rank):,} users: " + ", ".join(words)


def _by_words(night: Night) -> str:
    """How much of the lists of users who only wrote is of their planted taste, beside what is popular."""
    users = pq.read_table(RAW / "truth" / "users.parquet", columns=["user_id", "taste_1"])
    items = pq.read_table(RAW / "truth" / "items.parquet", columns=["item_id", "taste"])
    people = night.dataset(USERS).require("weigh_events").read(["user_id", "n_items"])
    idle = people.filter(pc.equal(people["n_items"], 0))["user_id"].combine_chunks()
    rows = latest(night.store).read(["user_id", "item_id", "source"])
    rows = rows.filter(pc.is_in(rows["user_id"], idle))
    wanted = users["taste_1"].take(pc.index_in(rows["user_id"], users["user_id"].combine_chunks()))
    found = items["taste"].take(pc.index_in(rows["item_id"], items["item_id"].combine_chunks()))
    fits = pc.equal(wanted, found).to_numpy().astype(np.float64)
    words = []
    for source, who in (("personal", "who only searched"), ("interests", "who stated interests")):
        here = pc.equal(rows["source"], source).to_numpy()
        if here.any():
            n = pc.count_distinct(rows["user_id"].filter(pa.array(here))).as_py()
            words.append(f"of {n:,} users {who} {fits[here].mean():.0%}")
    rest = pc.is_in(rows["source"], pa.array(["popular", "popular_segment"])).to_numpy()
    popular = f" (popular rows: {fits[rest].mean():.0%})" if rest.any() else ""
    return f"words       rows of the planted first taste: {', '.join(words)}{popular}"


def _users_shown(night: Night) -> list[str]:
    """Users with a history worth reading: of the withheld ones, the first that have a list."""
    withheld = pq.read_table(RAW / "truth" / "withheld.parquet", columns=["user_id"])["user_id"]
    known = night.dataset(USERS).require("weigh_events").read(["user_id"])["user_id"]
    both = withheld.filter(pc.is_in(withheld, known.combine_chunks())).to_pylist()
    step = max(len(both) // SHOWN, 1)
    return sorted(both)[::step][:SHOWN]


def _people(night: Night) -> str:
    return "\n\n".join(["", *(inspect.show_user(night.store, user) for user in _users_shown(night))])


if __name__ == "__main__":
    main()
