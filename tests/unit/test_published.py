"""LATEST.json: going live, going back, damage, and the audit before it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nightjar.errors import GateError, NotCommitted, StorageError
from nightjar.night import run_declared
from nightjar.pipeline import PUBLISH
from nightjar.published import (
    KEPT,
    LATEST,
    keep_lists,
    latest,
    make_live,
    opened,
    publications,
    remembered,
    roll_back,
)
from nightjar.stage import Night, run_stage
from nightjar.stages.inputs import raw_inputs
from nightjar.stages.publish import publish
from nightjar.stages.searching.limits import LIMITS_SCHEMA, SETS, SETS_SCHEMA, bucket_file
from nightjar.store import Committed, Dataset, Manifest, Store
from nightjar.tables import CANDIDATES, EVENTS, INTERACTIONS, ITEMS, METRICS, RECOMMENDATIONS, USERS
from tests.unit.committed_rows import commit
from tests.world import DS, event, night


def _rows(lists: dict[str, Sequence[str]]) -> pa.Table:
    rows = [
        {
            "user_id": user,
            "rank": at + 1,
            "item_id": item,
            "score": -float(at),
            "source": "popular",
            "reason": [],
        }
        for user, items in sorted(lists.items())
        for at, item in enumerate(items)
    ]
    return pa.Table.from_pylist(rows, RECOMMENDATIONS.schema)


def a_night(root: Path | str, ds: str, fingerprint: str | None = None) -> Committed:
    store = Store(str(root))
    commit(store, RECOMMENDATIONS, date.fromisoformat(ds), [_rows({"u": [f"i-{ds}"]})], fingerprint or ds)
    return Dataset(store, RECOMMENDATIONS, ds).require("rank")


def live(root: Path | str) -> list[str]:
    return [one.fingerprint for one in publications(Store(str(root)))]


DAYS = ["2025-03-01", "2025-03-02", "2025-03-03"]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for ds in DAYS:
        make_live(Store(str(tmp_path)), a_night(tmp_path, ds))
    return tmp_path


def test_dates_published_at_once_are_all_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads what is live, then waits for the other: without a lock one would write over the other."""
    nights = [a_night(tmp_path, f"2025-03-{day:02}") for day in range(1, 9)]
    put = Store.put

    def slowly(store: Store, name: str, data: bytes) -> None:
        if name == LATEST:
            time.sleep(0.02)
        put(store, name, data)

    monkeypatch.setattr(Store, "put", slowly)
    with ThreadPoolExecutor(len(nights)) as pool:
        list(pool.map(lambda one: make_live(Store(str(tmp_path)), one), nights))
    assert live(tmp_path) == sorted(live(tmp_path), reverse=True)
    assert len(live(tmp_path)) == len(nights)


def test_nothing_is_live_at_first(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert publications(store) == []
    with pytest.raises(NotCommitted, match=r"nothing is published under .*; run `nightjar run` first"):
        latest(store)
    with pytest.raises(NotCommitted, match="nothing rolled back"):
        roll_back(store)


def test_going_live_twice_changes_nothing(three: Path) -> None:
    store, path = Store(str(three)), three / LATEST
    before = path.read_bytes()
    again = make_live(store, a_night(three, DAYS[-1]))
    assert path.read_bytes() == before
    assert (again.ds, again.fingerprint) == (DAYS[-1], DAYS[-1])
    assert live(three) == DAYS[::-1]
    assert latest(store).read()["item_id"].to_pylist() == [f"i-{DAYS[-1]}"]


def test_a_commit_that_replaces_the_live_one_does_not_move_it(three: Path) -> None:
    """Write, audit, publish: a night run again and refused leaves its readers with what they had."""
    store = Store(str(three))
    a_night(three, DAYS[-1], "again")
    assert latest(store).manifest.fingerprint == DAYS[-1]
    assert latest(store).read().num_rows == 1


def test_rolling_back_step_by_step(three: Path) -> None:
    store = Store(str(three))
    assert roll_back(store).ds == DAYS[1]
    assert live(three) == DAYS[1::-1]
    assert roll_back(store).ds == DAYS[0]
    assert latest(store).manifest.ds == DAYS[0]
    before = (three / LATEST).read_bytes()
    with pytest.raises(NotCommitted, match="no other published list is remembered"):
        roll_back(store)
    assert (three / LATEST).read_bytes() == before


def test_rolling_back_to_a_date(three: Path) -> None:
    store = Store(str(three))
    with pytest.raises(NotCommitted, match="no other published list of 2025-01-01"):
        roll_back(store, "2025-01-01")
    with pytest.raises(NotCommitted):
        roll_back(store, DAYS[-1])  # it is live, not earlier
    assert roll_back(store, DAYS[0]).ds == DAYS[0]
    assert live(three) == [DAYS[0]]


def test_one_date_published_twice_goes_back_to_its_first_list(three: Path) -> None:
    store = Store(str(three))
    make_live(store, a_night(three, DAYS[-1], "second"))
    assert live(three) == ["second", *DAYS[::-1]]
    assert roll_back(store, DAYS[-1]).fingerprint == DAYS[-1]


def test_after_going_back_a_night_goes_live_again(three: Path) -> None:
    store = Store(str(three))
    roll_back(store)
    make_live(store, Dataset(store, RECOMMENDATIONS, DAYS[-1]).require("rank"))
    assert live(three) == DAYS[::-1]


def test_a_list_whose_files_are_gone_is_not_gone_back_to(three: Path) -> None:
    store = Store(str(three))
    store.drop(f"{RECOMMENDATIONS.name}/ds={DAYS[1]}")
    before = (three / LATEST).read_bytes()
    with pytest.raises(NotCommitted, match=f"the published list of {DAYS[1]} .* is gone"):
        roll_back(store)
    assert (three / LATEST).read_bytes() == before
    assert roll_back(store, DAYS[0]).ds == DAYS[0]


def test_a_bounded_number_is_remembered(tmp_path: Path) -> None:
    store, found = Store(str(tmp_path)), a_night(tmp_path, DAYS[0])
    for number in range(KEPT + 5):
        commit(store, RECOMMENDATIONS, date.fromisoformat(DAYS[0]), [_rows({"u": ["i"]})], f"f{number}")
        make_live(store, found.dataset.require("rank"))
    assert live(tmp_path) == [f"f{number}" for number in range(KEPT + 4, 4, -1)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "3",
        '"x"',
        "[]",
        "{}",
        '{"current": {}}',
        '{"current": null, "previous": []}',
        '{"current": {"ds": 1}, "previous": []}',
        '{"current": [], "previous": {}}',
    ],
)
def test_a_damaged_latest_is_named(three: Path, text: str) -> None:
    (three / LATEST).write_text(text)
    store = Store(str(three))
    for look in (publications, latest, roll_back):
        with pytest.raises(StorageError, match=r"LATEST\.json is damaged .*; remove it and run"):
            look(store)


def test_a_damaged_latest_without_previous_is_named(three: Path) -> None:
    raw = json.loads((three / LATEST).read_text())
    (three / LATEST).write_text(json.dumps({"current": raw["current"]}))
    with pytest.raises(StorageError, match="damaged"):
        opened(Store(str(three)), publications(Store(str(three)))[0])


SOUND = {"u0": ["i2", "i3"], "u1": ["i0", "i3"]}


def _tonight(
    root: Path,
    lists: dict[str, Sequence[str]],
    ds: date = DS,
    privacy: dict[str, Any] | None = None,
    **gates: Any,
) -> Night:
    """Two users, i0 … i4 of which i4 is unavailable; u0 has seen i0 and i1, u1 has seen i2."""
    found = night(root, ds, rank={"k": 2}, publish=gates, privacy=privacy or {})
    when = event("u0", "i0", found.end - timedelta(hours=6))["event_time"]
    blank = {"fields": None, "category": None, "first_seen": None, "updated_at": None}
    items = [
        {"item_id": f"i{n}", "item_num": n, "title": "t", "available": n != 4, **blank} for n in range(5)
    ]
    people = [
        {"user_id": user, "segment": None, "n_events": 1, "n_items": 1, "last_event_time": last}
        for user, last in (("u0", when), ("u1", None))
    ]
    seen = [
        {
            "user_id": user,
            "item_num": item,
            "weight": 1,
            "strength": 1,
            "n_events": 1,
            "last_event_time": when,
            "in_profile": True,
        }
        for user, item in (("u0", 0), ("u0", 1), ("u1", 2))
    ]
    events = [event("u0", "i0", when)]
    commit(found.store, CANDIDATES, ds, [CANDIDATES.schema.empty_table()])
    for table, rows in ((ITEMS, items), (USERS, people), (INTERACTIONS, seen), (EVENTS, events)):
        commit(found.store, table, ds, [pa.Table.from_pylist(rows, table.schema)])
    fingerprint = "-".join(item for items in lists.values() for item in items)
    commit(found.store, RECOMMENDATIONS, ds, [_rows(lists)], fingerprint)
    return found


def _publish(night: Night) -> dict[str, Any]:
    raw = raw_inputs(PUBLISH, night.config, night.ds)
    return dict(run_stage(PUBLISH, publish, night, raw).metrics)


def test_sound_lists_go_live_with_their_figures(tmp_path: Path) -> None:
    figures = _publish(_tonight(tmp_path, SOUND))
    published, live_ds = figures.pop("published_at"), figures.pop("live")
    assert live_ds == str(DS)
    assert published == publications(Store(str(tmp_path)))[0].published_at
    assert figures == {
        "users": 2, "rows": 4, "fill": 1.0, "user_coverage": 1.0, "catalogue_coverage": 3 / 4,
        "unavailable": 0, "quarantine_share": 0.0, "seen_leak": 0, "limit_leak": 0,
        "days_since_last_event": 0.25,
    }  # fmt: skip
    metrics = Dataset(Store(str(tmp_path)), METRICS, str(DS)).require("publish").read()
    assert set(metrics["name"].to_pylist()) == {f"publish.{name}" for name in figures}


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ({"u0": ["i2", "i0"], "u1": ["i0", "i3"]}, "seen_leak is 1, above 0"),
        ({"u0": ["i2", "i4"], "u1": ["i0", "i3"]}, "unavailable is 1, above 0"),
        ({"u0": ["i2", "gone"], "u1": ["i0", "i3"]}, "unavailable is 1, above 0"),
        ({"u0": ["i2"], "u1": ["i0", "i3"]}, r"fill is 0\.7500, below 0\.999"),
        ({"u0": ["i2", "i3"]}, r"user_coverage is 0\.5000"),
        ({"u0": ["i0", "i4"]}, "fill .* user_coverage .* seen_leak .* unavailable"),
    ],
)
def test_a_gate_that_refuses_says_why_and_leaves_yesterday_live(
    tmp_path: Path, lists: dict[str, Sequence[str]], said: str
) -> None:
    make_live(Store(str(tmp_path)), a_night(tmp_path, "2025-03-30"))
    tonight = _tonight(tmp_path, lists)
    with pytest.raises(GateError, match=said):
        _publish(tonight)
    assert live(tmp_path) == ["2025-03-30"]
    assert tonight.dataset(RECOMMENDATIONS).committed() is not None


def test_a_short_catalogue_is_no_fault(tmp_path: Path) -> None:
    """u1 has seen all but one available item: one row is all that k of 2 can get."""
    tonight = _tonight(tmp_path, {"u0": ["i2", "i3"], "u1": ["i3"]})
    when = tonight.end
    seen = [
        {
            "user_id": user,
            "item_num": item,
            "weight": 1,
            "strength": 1,
            "n_events": 1,
            "last_event_time": when,
            "in_profile": True,
        }
        for user, numbers in (("u0", [0, 1]), ("u1", [0, 1, 2, 4]))
        for item in numbers
    ]
    commit(tonight.store, INTERACTIONS, DS, [pa.Table.from_pylist(seen, INTERACTIONS.schema)], "more")
    assert _publish(tonight)["fill"] == 1.0


def _limit(night: Night, folder: Path, rows: list[dict[str, Any]], sets: list[list[int]]) -> None:
    """Commits candidates again, searched within deny and allow lists."""
    attempt = Dataset(night.store, CANDIDATES, str(night.ds)).attempt("limited")
    tables = {
        SETS: pa.table([[0] * len(sets), ["s"] * len(sets), sets], schema=SETS_SCHEMA),
        bucket_file(0): pa.Table.from_pylist(rows, LIMITS_SCHEMA),
    }
    files = [attempt.write_part(0, [CANDIDATES.schema.empty_table()])]
    for name, table in tables.items():
        pq.write_table(table, folder / name)
        files.append(attempt.put_artefact(folder / name, name))
    attempt.commit(Manifest(CANDIDATES.name, str(night.ds), "retrieve", "limited", tuple(files), 0, ()))


def test_what_a_list_forbids_is_refused_and_what_it_leaves_is_enough(tmp_path: Path) -> None:
    (tmp_path / "aside").mkdir()
    denied = {"user_id": "u0", "denied": [3], "sets": [], "own": []}
    within = {"user_id": "u1", "denied": [], "sets": [0], "own": [[0, 1, 3]]}
    tonight = _tonight(tmp_path, SOUND)
    _limit(tonight, tmp_path / "aside", [denied, within], [[0, 1, 2]])
    with pytest.raises(GateError, match="limit_leak is 2, above 0"):
        _publish(tonight)
    # u0 may get i2 alone, u1 has i0 and i1 left.
    tonight = _tonight(tmp_path, {"u0": ["i2"], "u1": ["i1", "i0"]})
    _limit(tonight, tmp_path / "aside", [denied, within], [[0, 1, 2]])
    figures = _publish(tonight)
    assert figures["limit_leak"] == 0 and figures["fill"] == 1.0


def test_change_against_the_night_before(tmp_path: Path) -> None:
    earlier = date(2025, 3, 30)
    _publish(_tonight(tmp_path, {"u0": ["i2", "i3"], "u1": ["i1", "i3"]}, earlier))
    tonight = _tonight(tmp_path, SOUND)
    assert _publish(tonight)["overlap"] == pytest.approx((1 + 1 / 3) / 2)


def test_an_item_gone_since_is_a_change(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    commit(store, RECOMMENDATIONS, date(2025, 3, 30), [_rows({"u0": ["x", "y"], "u1": ["x", "i3"]})], "old")
    make_live(store, Dataset(store, RECOMMENDATIONS, "2025-03-30").require("rank"))
    assert _publish(_tonight(tmp_path, SOUND))["overlap"] == pytest.approx((0 + 1 / 3) / 2)


def test_lists_that_share_nothing_with_the_night_before_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _publish(_tonight(tmp_path, {"u0": ["i2"], "u1": ["i1"]}, date(2025, 3, 30), min_fill=0.5))
    tonight = _tonight(tmp_path, {"u0": ["i3"], "u1": ["i0"]}, min_fill=0.5)
    monkeypatch.setattr("nightjar.stages.publish.OVERLAP_USERS", 2)
    with pytest.raises(GateError, match=r"overlap is 0\.0000, below 0\.2; .*move the gate with --set"):
        _publish(tonight)
    assert live(tmp_path) == ["i2-i1"]
    monkeypatch.setattr("nightjar.stages.publish.OVERLAP_DAYS", 0)  # nor from lists of long ago
    assert _publish(tonight)["days_since_before"] == 1
    assert live(tmp_path) == ["i3-i0", "i2-i1"]


def test_of_few_users_nothing_is_concluded(tmp_path: Path) -> None:
    _publish(_tonight(tmp_path, {"u0": ["i2"], "u1": ["i1"]}, date(2025, 3, 30), min_fill=0.5))
    tonight = _tonight(tmp_path, {"u0": ["i3"], "u1": ["i0"]}, min_fill=0.5)
    assert _publish(tonight)["overlap"] == 0


def test_half_the_users_of_the_night_before_are_too_few(tmp_path: Path) -> None:
    store, many = Store(str(tmp_path)), {f"u{n}": ["i2", "i3"] for n in range(5)}
    commit(store, RECOMMENDATIONS, date(2025, 3, 30), [_rows(many)], "old")
    make_live(store, Dataset(store, RECOMMENDATIONS, "2025-03-30").require("rank"))
    with pytest.raises(GateError, match=r"users_vs_before is 0\.4000, below 0\.5"):
        _publish(_tonight(tmp_path, SOUND))
    assert _publish(_tonight(tmp_path, SOUND, min_users_vs_before=0.4))["users_vs_before"] == 0.4


def test_a_log_that_stopped_is_refused_where_asked_for(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"days_since_last_event is 0\.25, above 0\.2"):
        _publish(_tonight(tmp_path, SOUND, max_days_since_last_event=0.2))


def test_a_list_that_names_somebody_to_forget_is_refused(tmp_path: Path) -> None:
    (tmp_path / "forget.csv").write_text("user\n u1 \nnobody\n")
    source = {"path": str(tmp_path / "forget.csv"), "format": "csv", "columns": {"user_id": "user"}}
    with pytest.raises(GateError, match="forgotten_users is 1, above 0"):
        _publish(_tonight(tmp_path, SOUND, privacy={"forget": [source]}))
    (tmp_path / "forget.csv").write_text("user\nnobody\n")
    assert _publish(_tonight(tmp_path, SOUND, privacy={"forget": [source]}))["forgotten_users"] == 0


def test_a_published_list_removed_by_hand_holds_nobody_up(tmp_path: Path) -> None:
    make_live(Store(str(tmp_path)), a_night(tmp_path, "2025-03-30"))
    Store(str(tmp_path)).drop(f"{RECOMMENDATIONS.name}/ds=2025-03-30")
    assert "overlap" not in _publish(_tonight(tmp_path, SOUND))


def test_a_lost_latest_comes_back_with_its_night(tmp_path: Path) -> None:
    tonight = _tonight(tmp_path, SOUND)
    assert run_declared(PUBLISH, publish, tonight).ran
    before = live(tmp_path)
    (tmp_path / LATEST).unlink()
    assert not run_declared(PUBLISH, publish, tonight).ran
    assert live(tmp_path) == before


def test_an_older_night_goes_behind_the_live_one(three: Path) -> None:
    store, late = Store(str(three)), a_night(three, DAYS[1], "again")
    for _ in range(2):
        assert make_live(store, late).ds == DAYS[2]
        assert live(three) == [DAYS[2], "again", DAYS[1], DAYS[0]]
    assert roll_back(store, DAYS[1]).fingerprint == "again"
    assert live(three) == ["again", DAYS[1], DAYS[0]]
    make_live(store, a_night(three, "2025-02-01"))
    assert [one.ds for one in remembered(store)] == [DAYS[1], DAYS[1], DAYS[0], "2025-02-01", DAYS[2]]


def test_only_so_many_lists_are_remembered_when_asked_for(three: Path) -> None:
    store = Store(str(three))
    roll_back(store)
    assert {one.ds for one in keep_lists(store, 1)} == {DAYS[0], DAYS[2]}
    assert [one.ds for one in remembered(store)] == [DAYS[1]]


def test_a_night_without_any_old_user_is_published(tmp_path: Path) -> None:
    """No user has both lists, so there is no overlap to speak of."""
    store = Store(str(tmp_path))
    commit(store, RECOMMENDATIONS, date(2025, 3, 30), [_rows({"gone": ["i0", "i1"]})], "old")
    make_live(store, Dataset(store, RECOMMENDATIONS, "2025-03-30").require("rank"))
    assert "overlap" not in _publish(_tonight(tmp_path, SOUND))
    assert latest(store).manifest.ds == str(DS)


def test_a_rolled_back_list_can_go_live_again(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for day, name in ((1, "fp1"), (2, "fp2"), (3, "fp3")):
        rows = [RECOMMENDATIONS.schema.empty_table()]
        commit(store, RECOMMENDATIONS, date(2025, 3, day), rows, fingerprint=name)
        made = Dataset(store, RECOMMENDATIONS, f"2025-03-0{day}").committed()
        assert made is not None
        make_live(store, made)
    assert roll_back(store, "2025-03-01").fingerprint == "fp1"
    assert [one.fingerprint for one in remembered(store)] == ["fp1", "fp3", "fp2"]
    assert roll_back(store, "2025-03-03").fingerprint == "fp3"
    assert [one.fingerprint for one in publications(store)] == ["fp3", "fp1"]
    assert [one.fingerprint for one in remembered(store)] == ["fp3", "fp1", "fp2"]
