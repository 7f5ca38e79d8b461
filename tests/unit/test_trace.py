"""Where rows of a user still lie, and how they go."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from nightjar.errors import NotCommitted
from nightjar.published import make_live
from nightjar.retention import prune
from nightjar.store import BACKTEST, Dataset, Store
from nightjar.tables import EVENTS, ITEM_TEXT, QUARANTINE, RECOMMENDATIONS, Table
from nightjar.trace import trace
from tests import world
from tests.unit.committed_rows import commit

DAYS = [date(2025, 3, day) for day in (1, 2, 3)]


def rows(table: Table, user: str) -> pa.Table:
    when = world.event(user, "i", world.night("unused").end)
    known = {
        EVENTS: when,
        QUARANTINE: {
            "stage": "s", "scene": "s", "reason": "bad_time", "payload": f"{user},x", "source_file": "f"
        },
        RECOMMENDATIONS: {
            "user_id": user, "rank": 1, "item_id": "i", "score": 1.0, "source": "popular", "reason": []
        },
    }  # fmt: skip
    return pa.Table.from_pylist([known[table]], table.schema)


def test_rows_are_found_until_they_are_pruned(tmp_path: Path) -> None:
    config = world.config(tmp_path)
    store = Store(config.root)
    for day, user in zip(DAYS, ("ann", "ann", "bob"), strict=True):
        for table in (EVENTS, QUARANTINE, RECOMMENDATIONS):
            commit(store, table, day, [rows(table, user)], str(day))
        commit(store, ITEM_TEXT, day, [ITEM_TEXT.schema.empty_table()], str(day))
        make_live(store, Dataset(store, RECOMMENDATIONS, str(day)).require("rank"))
        commit(store.below(BACKTEST), EVENTS, day, [rows(EVENTS, user)], str(day))
    text, total = trace(store, "ann")
    assert total == 2 * 4
    assert [line.split() for line in text.splitlines()[1:]][-2:] == [
        ["backtest/events", "2025-03-01", "1"],
        ["backtest/events", "2025-03-02", "1"],
    ]
    prune(config, 1, dry_run=False)
    assert trace(store, "ann")[1] == 2, "lists that can be rolled back to stay"
    gone = prune(config, 1, 1, dry_run=True)
    assert len(gone) == 2
    assert trace(store, "ann")[1] == 2
    assert prune(config, 1, 1, dry_run=False) == gone
    assert trace(store, "ann") == ("table  night  rows", 0)
    assert trace(store, "bob")[1] == 4


def test_an_empty_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotCommitted, match="nothing is committed under"):
        trace(Store(str(tmp_path)), "ann")
