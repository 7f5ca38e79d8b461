"""What people look at afterwards: files, runs, a user's list, a summary, and the re-check of every hash."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from nightjar import inspect
from nightjar.errors import ConfigError, NotCommitted, StorageError
from nightjar.pipeline import PUBLISH
from nightjar.published import LATEST
from nightjar.stage import Night, run_stage
from nightjar.stages.publish import publish
from nightjar.store import Store
from nightjar.tables import CANDIDATES, EVENTS, INTERACTIONS, ITEMS, RECOMMENDATIONS, USERS
from tests.unit.committed_rows import commit
from tests.world import DS, event, night


@pytest.fixture
def tonight(tmp_path: Path) -> Night:
    """A published night: `u:0:` has a history and a list with a reason, `new [b]` is new."""
    found = night(tmp_path, rank={"k": 2})
    when = event("u", "i", found.end - timedelta(hours=1))["event_time"]
    blank = {"fields": None, "category": None, "first_seen": None, "updated_at": None}
    items = [
        {"item_id": f"i{n}", "item_num": n, "title": f"title {n} [red]:heart:", "available": True, **blank}
        for n in range(4)
    ]
    people = [
        {"user_id": user, "segment": segment, "n_events": 1, "n_items": 1, "last_event_time": None}
        for user, segment in (("new [b]", None), ("u:0:", "north"))
    ]
    seen = [
        {"user_id": "u:0:", "item_num": n, "weight": (n + 1) << 19, "strength": 1 << 20, "n_events": n + 1,
         "last_event_time": when - timedelta(days=n), "in_profile": True}
        for n in (0, 1)
    ]  # fmt: skip
    reason = [{"item_id": "i1", "share": 0.75}]
    lists = [
        {"user_id": user, "rank": rank, "item_id": item, "score": 1.0 - rank, "source": source, "reason": why}
        for user, rank, item, source, why in (
            ("new [b]", 1, "i3", "popular", []),
            ("new [b]", 2, "i0", "popular", []),
            ("u:0:", 1, "i2", "personal", reason),
            ("u:0:", 2, "i3", "popular", []),
        )
    ]
    events = [event("u:0:", "i0", when)]
    tables = (
        (ITEMS, items),
        (USERS, people),
        (INTERACTIONS, seen),
        (EVENTS, events),
        (CANDIDATES, []),
        (RECOMMENDATIONS, lists),
    )
    for table, rows in tables:
        commit(found.store, table, DS, [pa.Table.from_pylist(rows, table.schema)])
    run_stage(PUBLISH, publish, found)
    return found


def test_a_users_history_and_list_can_be_read(tonight: Night) -> None:
    text = inspect.show_user(tonight.store, "u:0:")
    lines = [re.sub(r" {2,}", " | ", line) for line in text.splitlines()]
    assert lines[0] == f"user u:0:, segment north, night {DS}"
    assert "2025-03-31 23:00 | 1 | 0.50 | i0 title 0 [red]:heart:" in lines
    assert "2025-03-30 23:00 | 2 | 1.00 | i1 title 1 [red]:heart:" in lines
    assert "1 | 0.000 | personal | i2 title 2 [red]:heart: | i1 title 1 [red]:heart: (75%)" in lines
    assert "2 | -1.000 | popular | i3 title 3 [red]:heart:" in lines


def test_a_new_user_has_a_list_and_no_history(tonight: Night) -> None:
    text = inspect.show_user(tonight.store, "new [b]", str(DS))
    assert text.startswith(f"user new [b], night {DS}\nhistory: 0 items")
    assert "list: 2 items" in text


@pytest.mark.parametrize("user", ["nobody", "u:0", "U:0:", ""])
def test_an_unknown_user_is_named(tonight: Night, user: str) -> None:
    with pytest.raises(NotCommitted, match=re.escape(f"user {user!r} is not known on {DS}")):
        inspect.show_user(tonight.store, user)


def test_files_of_a_table(tonight: Night) -> None:
    (path,) = inspect.list_files(tonight.store, "recommendations", str(DS))
    assert Path(path).is_file()
    assert path.startswith(f"{tonight.config.root}/recommendations/ds={DS}/")
    with pytest.raises(ConfigError, match=r"no table 'recomendations'; did you mean 'recommendations'"):
        inspect.list_files(tonight.store, "recomendations", str(DS))
    with pytest.raises(NotCommitted, match="2020-01-01"):
        inspect.list_files(tonight.store, "items", "2020-01-01")


def test_runs_and_summary(tonight: Night) -> None:
    runs = inspect.runs(tonight.store)
    assert re.search(rf"{DS} +\d+/13 +publish +4 +\d+ +live", runs)
    summary = inspect.summary(tonight.store, str(DS))
    assert re.search(r"rank +4", summary)
    assert "fill 1.0000" in summary
    assert summary.endswith(f"output: {tonight.config.root}/recommendations")


def test_a_night_that_died_before_its_first_commit_is_listed(tonight: Night) -> None:
    """A folder of a date without a manifest: what a kill in the first stage leaves."""
    tonight.store.put("events/ds=2025-04-01/half/part-00000.parquet", b"")
    assert re.search(r"2025-04-01 +0/13 +none yet +- +0 +no", inspect.runs(tonight.store))
    with pytest.raises(NotCommitted, match="no stage is committed for 2025-04-01"):
        inspect.summary(tonight.store, "2025-04-01")


def test_an_empty_root_says_what_to_do(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "none"))
    for look in (
        lambda: inspect.runs(store),
        lambda: inspect.verify(store),
        lambda: inspect.summary(store, str(DS)),
        lambda: inspect.show_user(store, "u"),
        lambda: inspect.list_files(store, "items", str(DS)),
    ):
        with pytest.raises(NotCommitted, match=r"run|nothing to verify"):
            look()
    assert not (tmp_path / "none").exists()  # looking makes nothing


def test_a_sound_root_verifies(tonight: Night) -> None:
    faults, checked = inspect.verify(tonight.store)
    assert (faults, checked) == ([], 7)
    assert inspect.verify(tonight.store, str(DS)) == ([], 7)
    with pytest.raises(NotCommitted, match="nothing is committed for 2020-01-01"):
        inspect.verify(tonight.store, "2020-01-01")


def test_verifying_goes_on_after_a_damaged_manifest(tonight: Night) -> None:
    """Three faults in three tables: all are told."""
    root = Path(tonight.config.root)
    (root / f"events/ds={DS}/MANIFEST.json").write_text("{")
    next((root / f"items/ds={DS}").rglob("*.parquet")).write_bytes(b"PAR1")
    next((root / f"users/ds={DS}").rglob("*.parquet")).unlink()
    faults, checked = inspect.verify(tonight.store)
    assert checked == 6
    tables = ("events", "items", "users")
    assert [next(name for name in tables if f"/{name}/" in fault) for fault in faults] == list(tables)


def test_the_live_list_is_verified_also_behind_a_refused_one(tonight: Night) -> None:
    live = next((Path(tonight.config.root) / f"recommendations/ds={DS}").rglob("*.parquet"))
    commit(tonight.store, RECOMMENDATIONS, DS, [RECOMMENDATIONS.schema.empty_table()], "refused")
    assert inspect.verify(tonight.store) == ([], 8)
    live.write_bytes(live.read_bytes()[:-1])
    faults, _ = inspect.verify(tonight.store)
    assert len(faults) == 1
    assert str(live) in faults[0]


@pytest.mark.parametrize("spoil", ["damage", "drop"])
def test_a_damaged_latest_is_a_fault(tonight: Night, spoil: str) -> None:
    if spoil == "damage":
        tonight.store.put(LATEST, b"{")
    else:
        tonight.store.drop(f"recommendations/ds={DS}")
    faults, _ = inspect.verify(tonight.store)
    assert [("LATEST.json is damaged" in fault or "is gone" in fault) for fault in faults] == [True]


@pytest.mark.parametrize(
    "table", [RECOMMENDATIONS, USERS, INTERACTIONS, ITEMS], ids=lambda table: str(table.name)
)
def test_showing_a_user_from_damaged_files_is_one_sentence(tonight: Night, table: object) -> None:
    name = getattr(table, "name", "")
    part = next((Path(tonight.config.root) / f"{name}/ds={DS}").rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    with pytest.raises(StorageError, match=f"{name}.* is damaged") as refused:
        inspect.show_user(tonight.store, "u:0:")
    assert "\n" not in str(refused.value)


def test_looking_works_on_object_stores_too(tmp_path: Path) -> None:
    store = Store(f"memory://inspect{tmp_path.name}")
    people = [{"user_id": "u", "segment": None, "n_events": 0, "n_items": 0, "last_event_time": None}]
    commit(store, USERS, DS, [pa.Table.from_pylist(people, USERS.schema)])
    assert inspect.verify(store) == ([], 1)
    assert inspect.list_files(store, "users", str(DS))[0].startswith(store.root)
    assert str(DS) in inspect.runs(store)
