"""build_items on Spark: joined sources, dirty rows, dense numbers, equal bytes, an independent count."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from nightjar.conf_files import load_config
from nightjar.errors import ConfigError, InputError, NightjarError
from nightjar.pipeline import BUILD_ITEMS
from nightjar.progress import QUIET
from nightjar.stage import Night
from nightjar.stages.build_items import build_items
from nightjar.stages.catalogue import sources as catalogue
from nightjar.store import Manifest
from nightjar.tables import EVENTS, ITEM_TEXT, ITEMS, ITEMS_QUARANTINE
from tests.conftest import ROOT, MakeNight, config_of, real_data, run, spark_with

pytestmark = pytest.mark.usefixtures("spark")

DS = "2026-03-31"
DAY = datetime(2026, 3, 1, tzinfo=UTC)


def commit_events(night: Night, seen: dict[str | None, datetime]) -> None:
    """Commits one event an item, as clean_events would: build_items reads the log only for its items."""
    rows = [
        {"event_id": f"e{at}", "user_id": "ann", "item_id": item, "scene": "shop", "event_type": "view",
         "event_time": time, "value": None, "query": None, "segment": None, "session_id": "s"}
        for at, (item, time) in enumerate(seen.items())
    ]  # fmt: skip
    attempt = night.dataset(EVENTS).attempt("planted")
    entry = attempt.write_part(0, [pa.Table.from_pylist(rows, schema=EVENTS.schema)])
    attempt.commit(Manifest("events", str(night.ds), "clean_events", "planted", (entry,), entry.rows, ()))


def rows_of(night: Night, table: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = night.dataset(table).require("build_items").read().to_pylist()
    return found


MAIN = [
    b'{"id": "a", "name": "Tea &amp; Cake", "text": "Soft\\u0000 and  warm.", "brand": "Acme",'
    b' "ok": "yes", "since": "2026-01-02", "at": "2026-02-01"}',
    b'{"id": "a", "name": "Old name", "at": "2026-01-01", "ok": 0}',
    b'{"id": "b", "name": "", "ok": "no", "at": "2026-02-01"}',
    b'{"id": "c", "name": "?!", "ok": "perhaps", "at": "soon"}',
    b'{"id": " d ", "name": "Caf\\u00e9", "ok": true, "other": [1]}',
    b'{"id": "../../x", "name": "Path", "ok": 1}',
    b'{"id": "f", "name": "' + b"long " * 200_000 + b'"}',
    b'{"id": "POSTAGE", "name": "Postage"}',
    b'{"id": "FEE 1", "name": "Fee"}',
    b'{"id": "", "name": "nobody"}',
    b'{"name": "no id"}',
    b'{"id": "g\\u0001", "name": "bad"}',
    b'{"id": "' + b"h" * 300 + b'", "name": "too long"}',
    b'{"id": "i", "name": "cut o',
    b'{"id": "y", "name": "Yet to come", "since": "9999-12-31", "at": "2026-01-01"}',
    b'{"id": "a", "name": "Later name", "at": "9999-12-31"}',
    b"",
]
SECOND = (
    "key,label,colour,kind\na,Other,red,Pots\nb,Bread,,Food\nz,Zither,,Music\nz,Zither,,Music\nz,Zitter,,\n"
)
TRIPLES = (
    "s,p,o\na,made_of,clay\na,made_of,clay\na,made_of,ash\na,made_of,zinc\na,used_for,tea\na,secret,x\n"
    "b,used_for,\n,used_for,tea\nq,used_for,nothing\nb,used_for,toast &amp; tea\n"
)


def write_parquet(folder: Path) -> None:
    """Parquet whose types drift: ids and times of two kinds, holes as NaN, no rows."""
    born = pa.array([np.datetime64("2026-02-02T00:00:00", "ns")] * 2, pa.timestamp("ns"))
    doubles = {"code": [17850.0, float("nan")], "label": ["Lamp", "hole"], "born": born, "stock": [1.0, 1.0]}
    wholes = {"code": [17851], "label": [float("nan")], "born": ["9999-01-01"], "stock": [True]}
    more = {"extra": [{"a": 1}]}
    pq.write_table(pa.table(doubles), folder / "a.parquet")
    pq.write_table(pa.table(wholes | more), folder / "b.parquet")
    pq.write_table(pa.table(doubles).slice(0, 0), folder / "zero rows.parquet")


@pytest.fixture(scope="module")
def small(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Night, dict[str, Any]]:
    """One night over two sources, triples and a log that knows items of its own."""
    del spark
    folder = tmp_path_factory.mktemp("items")
    (folder / "main.jsonl").write_bytes(b"\n".join(MAIN))
    (folder / "second.csv").write_text(SECOND)
    (folder / "main-empty.jsonl").write_bytes(b"")
    (folder / "triples.csv").write_text(TRIPLES)
    write_parquet(folder)
    main = {
        "path": f"{folder}/main*.jsonl",
        "format": "jsonl",
        "columns": {"item_id": "id", "title": "name", "description": "text", "available": "ok",
                    "first_seen": "since", "updated_at": "at"},
        "fields": {"brand": "brand"},
        "not_items": ["POSTAGE"],
        "not_items_sql": "item_id like 'FEE%'",
    }  # fmt: skip
    second = {
        "path": f"{folder}/second.csv",
        "format": "csv",
        "columns": {"item_id": "key", "title": "label", "category": "kind"},
        "fields": {"colour": "colour"},
        "pick": "most_frequent",
    }
    third = {
        "path": f"{folder}/*.parquet",
        "format": "parquet",
        "columns": {"item_id": "code", "title": "label", "first_seen": "born", "available": "stock"},
    }
    triples = {
        "path": f"{folder}/triples.csv",
        "format": "csv",
        "columns": {"item_id": "s", "relation": "p", "entity": "o"},
        "relations": ["used_for", "made_of"],
        "max_per_relation": 2,
    }
    items = {
        "triples": [triples],
        "template": "{title} by {brand}. {description} ({colour}) {knowledge}",
        "max_chars": 120,
        "unknown_items": "keep",
        "rows_per_part": 3,
    }
    sources = [main, second, third]
    night = Night(config_of(str(folder / "root"), sources=sources, items=items), DAY.date(), QUIET)
    commit_events(
        night, {"a": DAY, "b": DAY, "new": DAY, None: DAY, "../../x": datetime(2026, 2, 1, tzinfo=UTC)}
    )
    return night, dict(run(BUILD_ITEMS, build_items, night).metrics)


def test_sources_are_joined_field_by_field_and_the_earlier_one_wins(small: tuple[Night, Any]) -> None:
    items = {row["item_id"]: row for row in rows_of(small[0], ITEMS)}
    codes = ["17850", "17851"]
    assert sorted(items) == sorted(["../../x", "a", "b", "c", "d", "f", "new", "y", "z", *codes])
    assert items["17850"]["title"] == "Lamp"
    assert items["a"]["title"] == "Tea & Cake"
    assert items["a"]["category"] == "Pots"
    assert dict(items["a"]["fields"]) == {"brand": "Acme", "colour": "red"}
    assert items["b"]["title"] == "Bread"  # an empty title is none
    assert items["z"]["title"] == "Zither"  # written twice, Zitter once
    assert items["new"]["title"] == "new"
    assert items["new"]["fields"] is None


def test_texts_follow_the_template_and_their_bound(small: tuple[Night, Any]) -> None:
    texts = {row["item_id"]: row["text"] for row in rows_of(small[0], ITEM_TEXT)}
    assert texts["a"] == "Tea & Cake by Acme. Soft and warm. (red) used_for: tea; made_of: ash, clay"
    assert texts["b"] == "Bread. used_for: toast & tea"
    assert texts["c"] == "c"  # nothing to encode in `?!`
    assert texts["new"] == "new"
    assert texts["f"] == " ".join(["long"] * 24)
    assert len(texts["f"]) <= 120


def test_availability_and_times_have_their_defaults(small: tuple[Night, Any]) -> None:
    items = {row["item_id"]: row for row in rows_of(small[0], ITEMS)}
    available = {item: row["available"] for item, row in items.items()}
    assert available == {**dict.fromkeys(items, True), "b": False, "y": False, "17851": False}
    assert items["17850"]["first_seen"] == datetime(2026, 2, 2, tzinfo=UTC)
    assert items["y"]["first_seen"] == datetime(9999, 12, 31, tzinfo=UTC)
    assert items["a"]["first_seen"] == datetime(2026, 1, 2, tzinfo=UTC)
    assert items["a"]["updated_at"] == datetime(2026, 2, 1, tzinfo=UTC)
    assert items["../../x"]["first_seen"] == datetime(2026, 2, 1, tzinfo=UTC)
    assert items["b"]["first_seen"] == DAY
    assert items["z"]["first_seen"] is None
    assert items["c"]["updated_at"] is None


def test_numbers_are_dense_in_byte_order_and_parts_are_cut_by_number(small: tuple[Night, Any]) -> None:
    night = small[0]
    for table in (ITEMS, ITEM_TEXT):
        committed = night.dataset(table).require("build_items")
        assert [entry.rows for entry in committed.parts] == [3, 3, 3, 2]
        rows = committed.read().to_pylist()
        assert [row["item_num"] for row in rows] == list(range(11))
        ids = [row["item_id"] for row in rows]
        assert ids == sorted(ids, key=str.encode)
    for row in rows_of(night, ITEM_TEXT):
        assert row["text_hash"] == hashlib.sha256(row["text"].encode()).hexdigest()


def test_every_raw_row_is_accounted_for(small: tuple[Night, Any]) -> None:
    night, metrics = small
    assert metrics["sources"] == {
        "source0": {
            "raw": len(MAIN) - 1,
            "items": 7,
            "duplicates": 1,
            "quarantine": {"bad_id": 2, "future": 1, "missing_item": 2, "not_an_item": 2, "unreadable": 1},
        },
        "source1": {"raw": 5, "items": 3, "duplicates": 2, "quarantine": {}},
        "source2": {"raw": 3, "items": 2, "duplicates": 0, "quarantine": {"missing_item": 1}},
        "triples0": {
            "raw": 10,
            "facts": 6,
            "duplicates": 1,
            "unlisted": 1,
            "quarantine": {"missing_item": 1, "missing_value": 1},
        },
    }
    assert metrics["items"] == 11
    assert metrics["unknown_items"] == 1
    assert metrics["items_without_text"] == 3
    assert metrics["unavailable_items"] == 3
    rejects = Counter((row["scene"], row["reason"]) for row in rows_of(night, ITEMS_QUARANTINE))
    counted = {
        (name, reason): n
        for name, found in metrics["sources"].items()
        for reason, n in found["quarantine"].items()
    }
    assert rejects == counted
    [cut] = [row for row in rows_of(night, ITEMS_QUARANTINE) if row["reason"] == "unreadable"]
    assert cut["payload"] == MAIN[13].decode()
    assert cut["source_file"] == "main.jsonl"


@pytest.mark.parametrize("bucket", [5, 40, 1000])
def test_part_starts_are_exact_over_several_buckets(spark: SparkSession, bucket: int) -> None:
    rng = np.random.default_rng(bucket)
    ids = sorted({f"{'é' if n % 7 == 0 else 'i'}{rng.integers(10_000)}" for n in range(300)}, key=str.encode)
    shuffled = [ids[at] for at in rng.permutation(len(ids))]
    frame = spark.createDataFrame([(one,) for one in shuffled], "item_id string")
    starts = catalogue.part_starts(frame, len(ids), 7, bucket)
    assert starts == ids[7::7]
    placed = frame.withColumn("part", catalogue._place(starts)).agg(
        F.collect_list(F.struct("item_id", "part"))
    )
    parts = {row["item_id"]: row["part"] for row in placed.collect()[0][0]}
    assert parts == {one: at // 7 for at, one in enumerate(ids)}


def write_catalogue(folder: Path, files: int, order: int) -> dict[str, Any]:
    """The same 400 rows of 150 items in `files` files, in an order of their own."""
    rng = np.random.default_rng(3)
    rows = [
        {
            "id": f"i{rng.integers(150)}",
            "name": f"Name {rng.integers(4)}",
            "at": f"2026-01-0{rng.integers(1, 4)}",
        }
        for _ in range(400)
    ]
    rows = [rows[at] for at in np.random.default_rng(order).permutation(len(rows))]
    folder.mkdir()
    for number in range(files):
        lines = "\n".join(json.dumps(row) for row in rows[number::files])
        (folder / f"part{(number + order) % files}.jsonl").write_text(lines + "\n")
    columns = {"item_id": "id", "title": "name", "updated_at": "at"}
    return {"path": f"{folder}/*.jsonl", "format": "jsonl", "columns": columns}


@pytest.mark.parametrize(("parts", "adaptive"), [(1, "false"), (3, "true"), (8, "false")])
def test_bytes_do_not_depend_on_partitions_or_order(
    spark: SparkSession, tmp_path_factory: pytest.TempPathFactory, parts: int, adaptive: str
) -> None:
    shared = tmp_path_factory.getbasetemp() / "equal-items.json"
    folder = tmp_path_factory.mktemp("items-order")
    pick = {"pick": "most_frequent"}
    sources = [write_catalogue(folder / "a", parts, parts) | pick, write_catalogue(folder / "b", 1, parts)]
    settings = spark_with(parts, sql_adaptive_enabled=adaptive)
    config = config_of(str(folder / "root"), sources=sources, items={"rows_per_part": 40}, spark=settings)
    night = Night(config, DAY.date(), QUIET)
    commit_events(night, {"i1": DAY})
    try:
        run(BUILD_ITEMS, build_items, night)
    finally:
        spark.conf.set("spark.sql.adaptive.enabled", "true")
    found = [
        entry.sha256
        for table in (ITEMS, ITEM_TEXT)
        for entry in night.dataset(table).require("build_items").parts
    ]
    if not shared.exists():
        shared.write_text(json.dumps(found))
    assert found == json.loads(shared.read_text())


def _no_field(folder: Path) -> dict[str, Any]:
    (folder / "items.csv").write_text("item,title\na,Tea\n")
    return {"items": {"template": "{title} {brnd}"}}


def _no_brace(folder: Path) -> dict[str, Any]:
    (folder / "items.csv").write_text("item,title\na,Tea\n")
    return {"items": {"template": "{title} {"}}


def _no_column(folder: Path) -> dict[str, Any]:
    (folder / "items.csv").write_text("item,name\na,Tea\n")
    return {}


def _empty(folder: Path) -> dict[str, Any]:
    (folder / "items.csv").write_bytes(b"")
    return {}


def _no_parquet(folder: Path) -> dict[str, Any]:
    (folder / "items.parquet").write_bytes(b"PAR1 is no Parquet")
    columns = {"item_id": "item", "title": "title"}
    source = {"path": f"{folder}/items.parquet", "format": "parquet", "columns": columns}
    return {"sources": [source]}


def _no_rows(folder: Path) -> dict[str, Any]:
    (folder / "items.csv").write_text("item,title\n")
    return {}


REFUSED: list[tuple[Callable[[Path], dict[str, Any]], type[NightjarError], str]] = [
    (_no_field, ConfigError, "template names brnd, which no source has"),
    (_no_brace, ConfigError, "brace that belongs to no field"),
    (_no_column, InputError, "items.csv has no column 'title'"),
    (_empty, InputError, "all files are empty"),
    (_no_rows, InputError, "no item is left"),
    (_no_parquet, InputError, "items.parquet cannot be read as Parquet"),
]


@pytest.mark.parametrize(("broken", "kind", "words"), REFUSED, ids=[case[0].__name__ for case in REFUSED])
def test_what_cannot_be_used_is_one_clear_sentence(
    tmp_path: Path,
    make_night: MakeNight,
    broken: Callable[[Path], dict[str, Any]],
    kind: type[NightjarError],
    words: str,
) -> None:
    sections = broken(tmp_path)
    columns = {"item_id": "item", "title": "title"}
    source = {"path": f"{tmp_path}/items.csv", "format": "csv", "columns": columns}
    night = make_night(**{"sources": [source], **sections})
    commit_events(night, {"a": DAY})
    with pytest.raises(kind, match=words) as caught:
        run(BUILD_ITEMS, build_items, night)
    assert "\n" not in str(caught.value)
    assert night.dataset(ITEMS).committed() is None


def test_items_only_the_log_knows_are_dropped_and_counted(tmp_path: Path, make_night: MakeNight) -> None:
    pq.write_table(pa.table({"item": [7, 9], "title": ["Tea", None]}), tmp_path / "items.parquet")
    columns = {"item_id": "item", "title": "title"}
    source = {"path": f"{tmp_path}/items.parquet", "format": "parquet", "columns": columns}
    night = make_night(sources=[source])
    commit_events(night, {"7": DAY, "8": DAY})
    metrics = run(BUILD_ITEMS, build_items, night).metrics
    assert metrics["unknown_items"] == 1
    assert [(row["item_id"], row["text"]) for row in rows_of(night, ITEM_TEXT)] == [("7", "Tea"), ("9", "9")]


RETAIL = """
with a as (
  select upper(trim(StockCode)) item, nullif(trim(Description), '') title from read_parquet('{path}')),
b as (select item, title, count(*) n from a where regexp_matches(item, '^([0-9]{{5}}|DCGS)') group by all),
c as (select *, max(n) over (partition by item) best from b where title is not null)
select (select count(distinct item) from b), (select sum(n) from b),
  (select count(*) from a where not regexp_matches(item, '^([0-9]{{5}}|DCGS)')),
  (select count(*) from (select item from b group by 1 having count(title) = 0)),
  (select map(list(item), list(titles))
   from (select item, list(title) titles from c where n = best group by 1))
"""


def test_the_catalogue_of_the_real_shop_log_agrees_with_an_independent_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = real_data("online_retail")
    monkeypatch.setenv("NIGHTJAR_DATA", str(folder.parent))
    config = load_config(
        [ROOT / "conf" / "online_retail.yaml"], [f"root={tmp_path}", "spark.master=local[2]"]
    )
    assert config.ds is not None
    night = Night(config, config.ds, QUIET)
    commit_events(night, {"85123A": DAY, "no such code": DAY})
    metrics = run(BUILD_ITEMS, build_items, night).metrics
    path = folder / "online_retail_2010-12_2011-06.parquet"
    [row] = duckdb.connect().execute(RETAIL.format(path=path)).fetchall()
    n_items, n_rows, n_rejected, n_untitled, titles = row
    assert metrics["unknown_items"] == 1
    assert metrics["items"] == n_items
    assert metrics["sources"]["source0"]["duplicates"] == n_rows - n_items
    assert metrics["sources"]["source0"]["quarantine"] == {"not_an_item": n_rejected}
    for item in rows_of(night, ITEMS):
        common = [" ".join(title.split()) for title in titles.get(item["item_id"], [item["item_id"]])]
        assert item["title"] in common
    untitled = [item for item in rows_of(night, ITEMS) if item["title"] == item["item_id"]]
    assert len(untitled) == n_untitled
