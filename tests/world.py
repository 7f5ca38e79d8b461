"""A small planted world whose right answer is known, committed straight into a store.

Each taste has words of its own, each item is about one taste, each user likes the items of one taste and has
touched all of them but one: the withheld item must come first. Stages after cleaning run on it unchanged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.loops import loops_for_actors
from nightjar.config import NightConfig
from nightjar.night import function_of, run_declared
from nightjar.progress import QUIET
from nightjar.stage import Night, Stage, StageResult
from nightjar.store import Dataset, Manifest, Store
from nightjar.tables import EVENTS, ITEM_TEXT, ITEMS, Table
from tests.conftest import SPARK

WORDS = (
    "sourdough flour oven crust baking yeast loaf",
    "mountain trail boots hiking rope summit tent",
    "guitar strings amplifier chord vinyl jazz record",
    "telescope planet star lens galaxy orbit night",
    "tomato garden seed soil compost spade bloom",
    "bicycle wheel chain pedal saddle race helmet",
)
DS = date(2025, 3, 31)


@dataclass(frozen=True)
class World:
    """The planted truth. withheld: user_id -> item_id that must come first."""

    items: tuple[dict[str, Any], ...]
    events: tuple[dict[str, Any], ...]
    withheld: dict[str, str] = field(default_factory=dict)


def planted(n_users: int = 24, per_taste: int = 8, seed: int = 0) -> World:
    """A world of six tastes with `per_taste` items each."""
    rng = np.random.default_rng(seed)
    items = []
    for taste, words in enumerate(WORDS):
        vocabulary = words.split()
        for number in range(per_taste):
            chosen = " ".join(rng.permutation(vocabulary)[:4])
            items.append({"item_id": f"i{taste}{number:02d}", "title": f"{chosen} {number}", "taste": taste})
    events, withheld = [], {}
    for user in range(n_users):
        user_id, taste = f"u{user:03d}", user % len(WORDS)
        mine = [item["item_id"] for item in items if item["taste"] == taste]
        hidden = mine[(user // len(WORDS)) % len(mine)]
        withheld[user_id] = hidden
        for place, item_id in enumerate(one for one in mine if one != hidden):
            when = datetime(2025, 3, 1, tzinfo=UTC) + timedelta(
                hours=int(rng.integers(0, 700)), minutes=place
            )
            events.append(event(user_id, item_id, when))
    return World(tuple(items), tuple(events), withheld)


def event(user_id: str, item_id: str | None, when: datetime, **more: Any) -> dict[str, Any]:
    """One clean event of the scene `shop`."""
    row = {
        "event_id": hashlib.sha256(f"{user_id}|{item_id}|{when}|{more}".encode()).hexdigest()[:16],
        "user_id": user_id,
        "item_id": item_id,
        "scene": "shop",
        "event_type": "view",
        "event_time": when,
        "value": None,
        "query": None,
        "segment": None,
        "session_id": "s",
    }
    return {**row, **more}


def config(root: Path | str, **sections: Any) -> NightConfig:
    """A small configuration; sections are merged over it."""
    base: dict[str, Any] = {
        "root": str(root),
        "spark": {**SPARK, "shuffle_partitions": 2},
        "ray": {"num_cpus": 2, "object_store_bytes": 80_000_000},
        "clean_events": {
            "scenes": {
                "shop": {
                    "path": "unused",
                    "format": "jsonl",
                    "columns": {"user_id": "u", "event_type": "t", "event_time": "at"},
                    "event_types": {
                        "view": {},
                        "buy": {"weight": 3.0},
                        "return": {"weight": 3.0, "negative": True},
                    },
                }
            }
        },
        "build_items": {"sources": [{"path": "unused", "format": "jsonl", "columns": {"item_id": "id"}}]},
        # Each actor loads its libraries for seconds and has milliseconds to do.
        "encode_items": {"resources": {"actors": 1}},
        "encode_queries": {"resources": {"actors": 1}},
        "build_index": {"resources": {"actors": 1}},
        "weigh_events": {"user_parts": 3},
        "relate_items": {"block_items": 20},
        "retrieve": {"k_prime": 20, "resources": {"actors": 1}},
        "rank": {"k": 5},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
    return NightConfig.model_validate(base)


def commit(store: Store, table: Table, ds: date, parts: Sequence[pa.Table], dim: int | None = None) -> None:
    """Commits rows as they are, as a stage of an earlier run would have."""
    fingerprint = "planted"
    attempt = Dataset(store, table, str(ds)).attempt(fingerprint, dim)
    files = tuple(attempt.write_part(number, [rows]) for number, rows in enumerate(parts))
    rows = sum(entry.rows for entry in files)
    metrics = {"raw": rows, "quarantine": {}} if table is EVENTS else {}
    attempt.commit(Manifest(table.name, str(ds), "planted", fingerprint, files, rows, (), metrics=metrics))


def commit_world(world: World, night: Night, rows_per_part: int = 20) -> None:
    """Commits the world's events, items and item_text for night.ds."""
    store = night.store
    ordered = sorted(world.items, key=lambda item: str(item["item_id"]))
    events = pa.Table.from_pylist(sorted(world.events, key=lambda e: e["event_id"]), schema=EVENTS.schema)
    commit(store, EVENTS, night.ds, [events])
    items = [
        {
            "item_id": item["item_id"],
            "item_num": number,
            "title": item["title"],
            "fields": None,
            "category": str(item.get("taste")),
            "available": item.get("available", True),
            "first_seen": None,
            "updated_at": None,
        }
        for number, item in enumerate(ordered)
    ]
    texts = [
        {
            "item_id": item["item_id"],
            "item_num": number,
            "text": item["title"],
            "text_hash": hashlib.sha256(item["title"].encode()).hexdigest(),
        }
        for number, item in enumerate(ordered)
    ]
    for table, rows in ((ITEMS, items), (ITEM_TEXT, texts)):
        cuts = range(0, max(len(rows), 1), rows_per_part)
        commit(
            store,
            table,
            night.ds,
            [pa.Table.from_pylist(rows[at : at + rows_per_part], table.schema) for at in cuts],
        )


def night(root: Path | str, ds: date = DS, **sections: Any) -> Night:
    """A quiet night under a root."""
    return Night(config(root, **sections), ds, QUIET)


def run(night: Night, stages: Iterable[Stage], on_ray: bool = False) -> dict[str, StageResult]:
    """Runs stages on the raw files that the configuration names.

    on_ray: False has loops in this process in place of actors: the same code, without the seconds in which
    an actor loads its libraries.
    """
    results = {}
    with nullcontext() if on_ray else loops_for_actors():
        for stage in stages:
            results[stage.name] = run_declared(stage, function_of(stage), night)
    return results
