"""clean_events on Spark: dirty input line by line, an independent count, several nights, equal bytes."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from nightjar.conf_files import load_config
from nightjar.config import Scene
from nightjar.errors import InputError, NightjarError
from nightjar.pipeline import CLEAN_EVENTS
from nightjar.progress import QUIET
from nightjar.sources import raw_files
from nightjar.stage import Night
from nightjar.stages.clean_events import clean_events
from nightjar.store import damage
from nightjar.tables import EVENTS, QUARANTINE
from tests.conftest import ROOT, MakeNight, config_of, real_data, run, spark_with
from tests.integration import dirty_logs
from tests.integration.dirty_cases import (
    CSV,
    JSONL,
    LINE,
    PARQUET,
    PLAIN,
    REFUSED,
    SCENE,
    TIME,
    Case,
    write_dirty,
)

pytestmark = pytest.mark.usefixtures("spark")


def events_of(night: Night) -> pa.Table:
    return night.dataset(EVENTS).require("clean_events").read()


def quarantine_of(night: Night) -> pa.Table:
    return night.dataset(QUARANTINE).require("clean_events").read()


@dataclass(frozen=True)
class Cleaned:
    night: Night
    metrics: dict[str, Any]
    events: list[dict[str, Any]]
    quarantine: list[dict[str, Any]]


@pytest.fixture(scope="module")
def dirty(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Cleaned:
    """One night over every case of the dirty list."""
    del spark
    folder = tmp_path_factory.mktemp("dirty")
    night = Night(
        config_of(str(folder / "root"), write_dirty(folder / "raw"), cleaning={"double_click_seconds": 0}),
        datetime(2026, 3, 31).date(),
        QUIET,
    )
    metrics = dict(run(CLEAN_EVENTS, clean_events, night).metrics)
    return Cleaned(night, metrics, events_of(night).to_pylist(), quarantine_of(night).to_pylist())


ALL_CASES = [
    pytest.param(scene, case, id=f"{scene}: {case.name}")
    for scene, cases in (("csv", CSV), ("json", JSONL), ("parquet", PARQUET), ("plain", PLAIN))
    for case in cases
]


@pytest.mark.parametrize(("scene", "case"), ALL_CASES)
def test_a_dirty_row_is_an_event_or_has_its_reason(dirty: Cleaned, scene: str, case: Case) -> None:
    marks = (case.mark, f'["{case.mark}"]')
    found = [
        row
        for row in dirty.events
        if row["scene"] == scene and (row["item_id"] in marks or row["query"] in marks)
    ]
    rejected = [
        row for row in dirty.quarantine if row["scene"] == scene and _holds(row["payload"], case.mark)
    ]
    if isinstance(case.fate, str):
        assert [row["reason"] for row in rejected] == [case.fate]
        assert not found
    else:
        assert not rejected
        assert len(found) == 1
        assert {name: found[0][name] for name in case.fate} == case.fate


def _holds(payload: str, mark: str) -> bool:
    words = payload
    for letter in '",{}[]:':
        words = words.replace(letter, "\n")
    return mark in [word.strip(" \x00") for word in words.split("\n")] or payload.endswith(mark)


def test_no_row_of_the_dirty_list_is_lost(dirty: Cleaned) -> None:
    assert dirty.metrics["scenes"]["csv"]["raw"] == len(CSV) + 1
    assert dirty.metrics["scenes"]["json"]["raw"] == len(JSONL)
    assert dirty.metrics["scenes"]["parquet"]["raw"] == len(PARQUET)
    assert dirty.metrics["scenes"]["plain"]["raw"] == len(PLAIN)
    assert len(dirty.events) + len(dirty.quarantine) == len(ALL_CASES) + 1
    assert dirty.metrics["quarantine"] == Counter(row["reason"] for row in dirty.quarantine)


def test_columns_in_another_order_are_read_by_name(dirty: Cleaned) -> None:
    [row] = [row for row in dirty.events if row["item_id"] == "turned"]
    assert (row["user_id"], row["value"]) == ("ann", 4.0)


def test_a_reject_keeps_its_line_and_names_its_file(dirty: Cleaned) -> None:
    by_reason = {row["reason"]: row for row in dirty.quarantine if row["scene"] == "csv"}
    assert by_reason["below_zero"]["payload"] == f"ann,c28,view,{TIME},-1,,"
    assert by_reason["below_zero"]["source_file"] == "day+2%20.csv"
    files = {row["source_file"] for row in dirty.quarantine}
    assert files == {"day+2%20.csv", "day [1].csv", "log.jsonl", "c.parquet", "e.parquet", "plain.dat"}
    [one] = [row for row in dirty.quarantine if row["source_file"] == "e.parquet"]
    assert json.loads(one["payload"])["user"] == "p8 has none"


def test_a_second_run_changes_nothing(dirty: Cleaned) -> None:
    before = dirty.night.dataset(EVENTS).require("clean_events")
    assert not run(CLEAN_EVENTS, clean_events, dirty.night).ran
    assert not damage(before)


@pytest.fixture(scope="module")
def generated(
    spark: SparkSession, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Cleaned, dirty_logs.Expected]:
    """One night over generated dirty logs, and what DuckDB counts in the same files."""
    del spark
    folder = tmp_path_factory.mktemp("generated")
    dirty_logs.write_logs(folder / "raw", seed=5, n=700)
    config = config_of(str(folder / "root"), dirty_logs.scenes(folder / "raw"), cleaning=dirty_logs.CLEANING)
    night = Night(config, datetime.fromisoformat(dirty_logs.DS).date(), QUIET)
    metrics = dict(run(CLEAN_EVENTS, clean_events, night).metrics)
    cleaned = Cleaned(night, metrics, events_of(night).to_pylist(), quarantine_of(night).to_pylist())
    return cleaned, dirty_logs.expected(folder / "raw")


@pytest.mark.parametrize("scene", ["shop", "video", "search"])
def test_counts_agree_with_an_independent_count(
    generated: tuple[Cleaned, dirty_logs.Expected], scene: str
) -> None:
    cleaned, expected = generated
    found = cleaned.metrics["scenes"][scene]
    counts = {
        **found["quarantine"],
        "duplicates": found["duplicates"],
        "double_clicks": found["double_clicks"],
    }
    assert counts == {reason: n for (name, reason), n in expected.counts.items() if name == scene}
    assert found["raw"] == expected.raw[scene]
    assert found["events"] == sum(row[0] == scene for row in expected.events)


def test_the_events_themselves_and_their_sessions_agree(
    generated: tuple[Cleaned, dirty_logs.Expected],
) -> None:
    cleaned, expected = generated
    names = ("scene", "user_id", "item_id", "event_type", "event_time", "value", "query")
    cells = lambda row: tuple(  # noqa: E731 - a key used once
        round(row[name].timestamp() * 1e6) if name == "event_time" else row[name] for name in names
    )
    assert Counter(map(cells, cleaned.events)) == Counter(row[:-1] for row in expected.events)
    sessions: dict[str, set[int]] = {}
    number = {row[:-1]: row[-1] for row in expected.events}
    for row in cleaned.events:
        sessions.setdefault(row["session_id"], set()).add(number[cells(row)])
    assert all(len(found) == 1 for found in sessions.values())
    assert len(sessions) == len(set(number.values()))


def test_event_ids_are_unique_and_users_keep_to_their_part(
    generated: tuple[Cleaned, dirty_logs.Expected],
) -> None:
    events = generated[0].night.dataset(EVENTS).require("clean_events")
    ids: list[str] = []
    homes: dict[str, int] = {}
    for entry in events.parts:
        rows = events.read_part(entry).to_pylist()
        ids += [row["event_id"] for row in rows]
        order = [(row["user_id"], row["event_time"], row["event_id"]) for row in rows]
        assert order == sorted(order)
        for row in rows:
            assert homes.setdefault(row["user_id"], entry.part or 0) == (entry.part or 0)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("parts", [1, 3, 8])
@pytest.mark.parametrize("adaptive", ["true", "false"])
def test_bytes_do_not_depend_on_partitions_or_order(
    spark: SparkSession, tmp_path_factory: pytest.TempPathFactory, parts: int, adaptive: str
) -> None:
    shared = tmp_path_factory.getbasetemp() / "equal-bytes.json"
    folder = tmp_path_factory.mktemp("order")
    order = parts * 2 + (adaptive == "true")
    dirty_logs.write_logs(folder / "raw", seed=6, n=150, files=1 + order % 3, order=order)
    settings = spark_with(parts, sql_adaptive_enabled=adaptive)
    scenes, root = dirty_logs.scenes(folder / "raw"), str(folder / "root")
    config = config_of(root, scenes, cleaning=dirty_logs.CLEANING, spark=settings)
    night = Night(config, datetime.fromisoformat(dirty_logs.DS).date(), QUIET)
    try:
        run(CLEAN_EVENTS, clean_events, night)
    finally:
        spark.conf.set("spark.sql.adaptive.enabled", "true")
    found = [entry.sha256 for entry in night.dataset(EVENTS).require("clean_events").parts]
    assert len(found) == 8
    if not shared.exists():
        shared.write_text(json.dumps(found))
    assert found == json.loads(shared.read_text())


@pytest.mark.parametrize(("broken", "kind", "words"), REFUSED, ids=[case[0].__name__ for case in REFUSED])
def test_what_cannot_be_read_at_all_is_one_clear_sentence(
    tmp_path: Path,
    make_night: MakeNight,
    broken: Callable[[Path], dict[str, Any]],
    kind: type[NightjarError],
    words: str,
) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    scene = broken(folder)
    night = make_night(scenes={"shop": {**scene, "path": scene["path"].format(folder=folder)}})
    with pytest.raises(kind, match=words) as caught:
        run(CLEAN_EVENTS, clean_events, night)
    assert "\n" not in str(caught.value)
    assert night.dataset(EVENTS).committed() is None


@pytest.fixture
def nobody() -> Iterator[None]:
    """Root reads everything; as nobody the mode of a folder counts."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_an_unreadable_folder_is_one_clear_sentence(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "log.csv").write_text(LINE)
    closed.chmod(0o300)
    scene = Scene.model_validate({**SCENE, "path": f"{closed}/*.csv"})
    request.getfixturevalue("nobody")
    with pytest.raises(InputError, match=r"cannot be listed .*check that the folder is readable"):
        raw_files(scene, datetime(2026, 3, 31).date(), 1, "scene shop")


def test_an_empty_log_gives_an_empty_night(tmp_path: Path, make_night: MakeNight) -> None:
    (tmp_path / "log.csv").write_bytes(b"")
    night = make_night(scenes={"shop": {**SCENE, "path": f"{tmp_path}/log.csv"}})
    metrics = run(CLEAN_EVENTS, clean_events, night).metrics
    assert (metrics["raw"], metrics["events"]) == (0, 0)
    assert events_of(night).num_rows == 0


def test_daily_nights_know_late_events_and_those_that_came_before(
    tmp_path: Path, make_night: MakeNight
) -> None:
    header = "id,user,item,type,time\n"
    days = {
        "2026-03-29": "1,ann,a,view,2026-03-29 10:00\n2,bob,b,view,2026-03-29 11:00\n",
        "2026-03-31": (
            "2,bob,b,view,2026-03-29 11:00\n3,ann,late,view,2026-03-29 00:00\n"
            "4,ann,gone,view,2026-03-28 23:59\n5,ann,c,view,2026-03-31 09:00\n6,ann,d,view,2026-04-01 00:00\n"
        ),
    }
    for day, rows in days.items():
        (tmp_path / f"{day}.csv").write_text(header + rows)
    scene = {**SCENE, "columns": {**SCENE["columns"], "event_id": "id"}, "path": f"{tmp_path}/{{ds}}.csv"}
    nights = {
        day: make_night(ds=day, scenes={"shop": scene}, cleaning={"history": "daily", "late_days": 2})
        for day in days
    }
    first = run(CLEAN_EVENTS, clean_events, nights["2026-03-29"])
    assert first.metrics["events"] == 2
    second = run(CLEAN_EVENTS, clean_events, nights["2026-03-31"])
    assert {row["item_id"] for row in events_of(nights["2026-03-31"]).to_pylist()} == {"late", "c"}
    assert second.metrics["duplicates"] == 1
    assert second.metrics["quarantine"] == {"too_late": 1, "future": 1}
    # What came before is an input: another first night makes the second one stale.
    (tmp_path / "2026-03-29.csv").write_text(header + "7,eve,e,view,2026-03-29 10:00\n")
    assert run(CLEAN_EVENTS, clean_events, nights["2026-03-29"]).ran
    again = run(CLEAN_EVENTS, clean_events, nights["2026-03-31"])
    assert again.ran
    assert again.metrics["duplicates"] == 0


def test_users_to_forget_leave_no_row_and_no_text(tmp_path: Path, make_night: MakeNight) -> None:
    rows = ["eve,a,view,2026-03-30", "eve,b,view,never", " eve ,a,view,2026-03-30", "eve,,view,2026-03-30"]
    rows += ["ann,a,view,2026-03-30", "ann,b,view,never", "torn eve", "evelyn,a,view,2026-03-30"]
    (tmp_path / "log.csv").write_text("user,item,type,time\n" + "\n".join(rows))
    (tmp_path / "forget.csv").write_text("who,since\neve,2026-03-01\nnobody,2026-03-01\n,\n")
    scene = {**SCENE, "path": f"{tmp_path}/log.csv"}
    forget = {"path": f"{tmp_path}/forget.csv", "format": "csv", "columns": {"user_id": "who"}}
    night = make_night(scenes={"shop": scene}, privacy={"forget": [forget]})
    metrics = run(CLEAN_EVENTS, clean_events, night).metrics
    assert (metrics["raw"], metrics["events"], metrics["forgotten"]) == (8, 2, 4)
    assert metrics["quarantine"] == {"bad_time": 1, "unreadable": 1}
    assert {row["user_id"] for row in events_of(night).to_pylist()} == {"ann", "evelyn"}
    # Whose the torn line is nobody can say: for such logs there is keep_payload.
    payloads = quarantine_of(night).column("payload").to_pylist()
    assert sorted(payloads) == ["ann,b,view,never", "torn eve"]


def test_csv_fields_may_hold_line_breaks(tmp_path: Path, make_night: MakeNight) -> None:
    text = (
        'user,item,type,time,query\nann,a,view,2026-03-30,"two\nlines"\nann,b,view\nbob,c,view,2026-03-30,x\n'
    )
    (tmp_path / "log.csv").write_text(text)
    scene = {**SCENE, "multiline": True, "columns": {**SCENE["columns"], "query": "query"}}
    night = make_night(scenes={"shop": {**scene, "path": f"{tmp_path}/log.csv"}})
    metrics = run(CLEAN_EVENTS, clean_events, night).metrics
    assert {row["query"] for row in events_of(night).to_pylist()} == {"two lines", "x"}
    assert metrics["quarantine"] == {"unreadable": 1}
    assert quarantine_of(night).column("payload").to_pylist() == ["ann,b,view"]


RETAIL = """
with a as (
  select *, upper(trim(StockCode)) item from read_parquet('{path}')),
b as (
  select *, case
    when CustomerID is null then 'missing_user'
    when item is null or item = '' then 'missing_item'
    when not regexp_matches(item, '^([0-9]{{5}}|DCGS)') then 'not_an_item'
    when UnitPrice <= 0 then 'bad_price'
    when Quantity <= 0 and not starts_with(InvoiceNo, 'C') then 'bad_quantity'
  end reason from a)
select coalesce(reason, 'good'), count(*), count(distinct
  (InvoiceNo, StockCode, coalesce(Description, ''), Quantity, InvoiceDate, UnitPrice, CustomerID))
from b group by 1
"""


def test_the_real_shop_log_agrees_with_an_independent_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = real_data("online_retail")
    monkeypatch.setenv("NIGHTJAR_DATA", str(folder.parent))
    config = load_config(
        [ROOT / "conf" / "online_retail.yaml"], [f"root={tmp_path}", "spark.master=local[2]"]
    )
    assert config.ds is not None
    night = Night(config, config.ds, QUIET)
    metrics = run(CLEAN_EVENTS, clean_events, night).metrics
    path = folder / "online_retail_2010-12_2011-06.parquet"
    rows = duckdb.connect().execute(RETAIL.format(path=path)).fetchall()
    counted = {reason: (n, distinct) for reason, n, distinct in rows}
    good, distinct = counted.pop("good")
    assert metrics["quarantine"] == {reason: n for reason, (n, _) in counted.items()}
    assert metrics["duplicates"] == good - distinct
    assert metrics["events"] == distinct
    assert metrics["raw"] == sum(n for n, _ in counted.values()) + good
