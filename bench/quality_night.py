"""Nightjar's default on a log: the night's own stages, from learn_taste to rank, with loops for engines.

The tables a night has after weigh_events are made from a `Log`; from there on `run_stage` runs the declared
stages with the default configuration, only that Ray's pool of actors and Spark's tasks are loops in this
process. A test holds the lists of a real night equal to these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bench.loops import loops_for_engines
from bench.quality_data import Log
from nightjar.config import NightConfig
from nightjar.kernels.signals import decay
from nightjar.night import function_of
from nightjar.pipeline import NIGHT
from nightjar.progress import Report
from nightjar.stage import Night, run_stage
from nightjar.store import Committed, Dataset, Manifest, Store
from nightjar.tables import (
    INTERACTIONS,
    ITEM_EMBEDDINGS,
    ITEM_TEXT,
    ITEMS,
    POPULARITY,
    QUERY_EMBEDDINGS,
    RECOMMENDATIONS,
    USER_TEXTS,
    USERS,
    WEIGHT_ONE,
    Table,
    vector_column,
)

F32, F64, I64, Mask = NDArray[np.float32], NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]
DS = date(2020, 1, 1)
"""The night's date: the log's moment t0 is put at its end, since only differences of time count."""
MICROS_A_DAY = 86_400e6
Settings = Mapping[tuple[str, ...], Any]
"""Keys of the configuration, by their path, that are not as the default has them."""
NO_CHANGE: Settings = {}
BEFORE_RANK = ("relate_items", "learn_taste", "fit_blend", "aggregate_users", "build_index", "retrieve")


def default_config(root: Path, **sections: Any) -> NightConfig:
    """The default configuration; scenes and items are named because they must be, and never read."""
    columns = {"user_id": "u", "item_id": "i", "event_type": "e", "event_time": "t"}
    files = {"path": "none", "format": "parquet"}
    scene = {"columns": columns, "time": {"format": "iso"}, "event_types": {"event": {}}, **files}
    needed = {
        "clean_events": {"scenes": {"log": scene}},
        "build_items": {
            "template": "{title}",
            "sources": [{"columns": {"item_id": "i", "title": "t"}, **files}],
        },
    }
    return NightConfig.model_validate({"root": str(root), **needed, **sections})


def lists_for(night: Night, served: I64) -> I64:
    """Runs the stages up to retrieve, then ranks for the `served` users alone; their lists (served, k)."""
    with loops_for_engines():
        for stage in NIGHT:
            if stage.name in BEFORE_RANK:
                run_stage(stage, function_of(stage), night)
        users = night.dataset(USERS).require("the log")
        kept = pa.array(np.isin(users.read(["user_id"])["user_id"].to_numpy(), _ids("u", served)))
        commit(night, USERS, [users.read().filter(kept)], "served")
        (rank,) = (stage for stage in NIGHT if stage.name == "rank")
        run_stage(rank, function_of(rank), night)
    rows = night.dataset(RECOMMENDATIONS).require("rank").read(["user_id", "rank", "item_id"])
    lists = np.full((len(served), night.config.rank.k), -1, np.int64)
    at = np.searchsorted(served, _numbers(rows["user_id"]))
    lists[at, rows["rank"].to_numpy() - 1] = _numbers(rows["item_id"])
    return lists


def night_of(log: Log, t0: float, available: Mask, embeddings: F32, config: NightConfig) -> Night:
    """Commits what a night would know of the events before t0 (days), as weigh_events leaves it.

    available: (n_items,) bool, what may be recommended; embeddings: (n_items, d) float32 unit rows.
    """
    night = Night(config, DS, Report(quiet=True))
    known = log.where(log.time < t0)
    ids = pa.array(_ids("i", np.arange(log.n_items)), pa.string())
    nums = pa.array(np.arange(log.n_items))
    texts = pa.array([text if text.strip() else "-" for text in log.texts], pa.string())
    n, no_time = log.n_items, pa.nulls(log.n_items, pa.timestamp("us", "UTC"))
    columns = {"item_id": ids, "item_num": nums, "title": texts}
    none = {"fields": pa.nulls(n, pa.map_(pa.string(), pa.string())), "category": pa.nulls(n, pa.string())}
    items = {
        **columns,
        **none,
        "available": pa.array(available),
        "first_seen": no_time,
        "updated_at": no_time,
    }
    served = f"log-{hashlib.sha256(available.tobytes()).hexdigest()[:16]}"
    commit(night, ITEMS, [pa.table(items)], served)
    named = {"item_id": ids, "item_num": nums, "text": texts, "text_hash": ids}
    named["image"] = pa.nulls(n, pa.string())
    commit(night, ITEM_TEXT, [pa.table(named)])
    vectors = {"item_id": ids, "text_hash": ids, "embedding": vector_column(embeddings)}
    commit(night, ITEM_EMBEDDINGS, [pa.table(vectors)], dim=embeddings.shape[1])
    for nobody_wrote, dim in ((QUERY_EMBEDDINGS, embeddings.shape[1]), (USER_TEXTS, None)):
        commit(night, nobody_wrote, [nobody_wrote.arrow_schema(dim).empty_table()], dim=dim)
    pairs = Pairs.of(known, t0)
    commit(night, INTERACTIONS, [pairs.interactions(night)])
    commit(night, USERS, [pairs.users(night)])
    commit(night, POPULARITY, [pairs.popularity(night, available)], served)
    return night


@dataclass(frozen=True)
class Pairs:
    """What weigh_events makes of one scene of one event type that weighs 1: rows by user, then item.

    user, item: (n,) int64; weight, strength: (n,) int64 fixed point; count: (n,) events; first, last: (n,)
    float64, days before t0; kept: (n,) bool, within the history cap.
    """

    user: I64
    item: I64
    weight: I64
    count: I64
    first: F64
    last: F64

    @classmethod
    def of(cls, log: Log, t0: float, half_life_days: float = 120.0) -> Pairs:
        age = t0 - log.time
        newest = np.full(log.n_users, np.inf)
        np.minimum.at(newest, log.user, age)
        units = np.maximum(np.round(decay(age - newest[log.user], half_life_days) * WEIGHT_ONE), 1)
        keys, at, count = np.unique(
            log.user * log.n_items + log.item, return_inverse=True, return_counts=True
        )
        first, last = np.zeros(len(keys)), np.full(len(keys), np.inf)
        np.maximum.at(first, at, age)
        np.minimum.at(last, at, age)
        weight = np.bincount(at, units, len(keys)).astype(np.int64)
        return cls(keys // log.n_items, keys % log.n_items, weight, count.astype(np.int64), first, last)

    def interactions(self, night: Night) -> pa.Table:
        order = np.lexsort((self.item, self.last, self.user))
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order)) - np.searchsorted(self.user[order], self.user[order])
        last = _times(night, self.last)
        return pa.table(
            {
                "user_id": pa.array(_ids("u", self.user), pa.string()),
                "item_num": pa.array(self.item),
                "weight": pa.array(self.weight),
                "strength": pa.array(self.count * WEIGHT_ONE),
                "n_events": pa.array(self.count.astype(np.int32)),
                "last_event_time": last,
                "first_liked": _times(night, self.first),
                "last_liked": last,
                "in_profile": pa.array(place < night.config.weigh_events.history_cap),
            }
        )

    def users(self, night: Night) -> pa.Table:
        users, first = np.unique(self.user, return_index=True)
        return pa.table(
            {
                "user_id": pa.array(_ids("u", users), pa.string()),
                "segment": pa.nulls(len(users), pa.string()),
                "n_events": pa.array(np.add.reduceat(self.count, first)),
                "n_items": pa.array(np.diff(np.r_[first, len(self.user)])),
                "last_event_time": _times(night, np.minimum.reduceat(self.last, first)),
            }
        )

    def popularity(self, night: Night, available: Mask) -> pa.Table:
        how = night.config.weigh_events
        units = np.round(decay(self.last, how.popularity_half_life_days) * WEIGHT_ONE)
        total = np.bincount(self.item, units, len(available)).astype(np.int64)
        total[~available] = 0
        best = np.argsort(-total, kind="stable")[: how.popularity_items]
        best = best[np.bincount(self.item, minlength=len(total))[best].astype(bool) & available[best]]
        return pa.table(
            {
                "segment": pa.array([""] * len(best), pa.string()),
                "rank": pa.array(np.arange(1, len(best) + 1, dtype=np.int32)),
                "item_num": pa.array(best),
                "weight": pa.array(total[best]),
            }
        )


def commit(
    night: Night, table: Table, parts: Sequence[pa.Table], fingerprint: str = "log", dim: int | None = None
) -> Committed:
    """Writes and commits rows as an earlier stage would have left them."""
    attempt = Dataset(Store(night.config.root), table, str(night.ds)).attempt(fingerprint, dim)
    files = tuple(attempt.write_part(number, [rows]) for number, rows in enumerate(parts))
    n_rows = sum(entry.rows for entry in files)
    return attempt.commit(Manifest(table.name, str(night.ds), "log", fingerprint, files, n_rows, ()))


def _ids(letter: str, numbers: I64) -> list[str]:
    return [f"{letter}{number:010d}" for number in numbers.tolist()]


def _numbers(ids: pa.ChunkedArray) -> I64:
    return np.array([int(text[1:]) for text in ids.to_pylist()], np.int64)


def _times(night: Night, days_before: F64) -> pa.Array:
    end = int(night.end.timestamp() * 1e6)
    micros = end - np.maximum(np.round(days_before * MICROS_A_DAY).astype(np.int64), 1)
    return pa.array(micros).cast(pa.timestamp("us", "UTC"))
