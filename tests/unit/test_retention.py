"""Pruning drops what nothing needs, and never what is live, can be rolled back to, or is being written."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pytest

from nightjar.config import NightConfig
from nightjar.published import latest, make_live, opened, remembered, roll_back
from nightjar.retention import droppable, prune
from nightjar.store import Committed, Dataset, Store, committed_dates
from nightjar.tables import EVENTS, ITEM_TEXT, RECOMMENDATIONS, Table
from tests import world
from tests.unit.committed_rows import commit

FIRST = date(2025, 3, 1)


def nights(config: NightConfig, n: int) -> None:
    store = Store(config.root)
    for at in range(n):
        for table in (EVENTS, ITEM_TEXT, RECOMMENDATIONS):
            commit(
                store, table, FIRST + timedelta(days=at), [table.schema.empty_table()], fingerprint=f"fp{at}"
            )


def at(config: NightConfig, table: Table, day: int) -> Committed | None:
    return Dataset(Store(config.root), table, str(FIRST + timedelta(days=day))).committed()


def test_old_nights_go_and_published_lists_stay(tmp_path: Path) -> None:
    config = world.config(tmp_path)
    nights(config, 6)
    store = Store(config.root)
    for day in (1, 4):
        committed = at(config, RECOMMENDATIONS, day)
        assert committed is not None
        make_live(store, committed)
    assert len(prune(config, 2, dry_run=True)) == len(droppable(config, 2))
    assert len(committed_dates(store, ITEM_TEXT)) == 6
    prune(config, 2, dry_run=False)
    assert committed_dates(store, ITEM_TEXT) == committed_dates(store, EVENTS) == ["2025-03-05", "2025-03-06"]
    assert committed_dates(store, RECOMMENDATIONS) == ["2025-03-02", "2025-03-05", "2025-03-06"]
    assert latest(store).manifest.fingerprint == "fp4"
    assert roll_back(store).fingerprint == "fp1"
    assert [opened(store, one).manifest.fingerprint for one in remembered(store)] == ["fp1", "fp4"]
    assert not droppable(config, 2)


def test_replaced_attempts_go_but_not_of_the_newest_night(tmp_path: Path) -> None:
    config = world.config(tmp_path)
    nights(config, 3)
    store = Store(config.root)
    for day in (1, 2):
        commit(
            store,
            ITEM_TEXT,
            FIRST + timedelta(days=day),
            [ITEM_TEXT.schema.empty_table()],
            fingerprint="again",
        )
    assert [one.name for one in prune(config, 3, dry_run=False)] == ["item_text/ds=2025-03-02/fp1"]
    assert {"again", "fp2"} <= set(store.children("item_text/ds=2025-03-03"))


@pytest.mark.parametrize(("history", "left"), [("snapshot", 1), ("daily", 4)])
def test_daily_history_keeps_the_window_of_events(tmp_path: Path, history: str, left: int) -> None:
    small = world.config(tmp_path)
    cleaning = small.clean_events.model_copy(update={"history": history, "window_days": 3})
    config = small.model_copy(update={"clean_events": cleaning})
    nights(config, 6)
    prune(config, 1, dry_run=False)
    assert len(committed_dates(Store(config.root), EVENTS)) == left
    assert len(committed_dates(Store(config.root), ITEM_TEXT)) == 1
