"""The dirty list: single rows with what must become of them, and files that cannot be read at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nightjar.errors import ConfigError, InputError, NightjarError


@dataclass(frozen=True)
class Case:
    """One dirty row. mark: found in its item id or payload; fate: a reason, or the event's expected cells."""

    name: str
    line: bytes
    mark: str
    fate: str | dict[str, Any]


TIME = "2026-03-30T10:00:00"
HEAD = b"user,item,type,time,value,query,extra\r\n"


def csv_line(*cells: str | bytes) -> bytes:
    return b",".join(cell if isinstance(cell, bytes) else cell.encode() for cell in cells) + b"\r\n"


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


CSV = [
    Case("plain", csv_line("ann", "c1", "view", TIME, "2", "", "x"), "c1", {"value": 2.0, "query": None}),
    Case("path as id", csv_line("../../etc/passwd", "c2", "view", TIME, "", "", ""), "c2",
         {"user_id": "../../etc/passwd", "value": None}),
    Case("quoted comma", csv_line("ann", "c3", "view", TIME, "", '"a, ""b"""', ""),
         "c3", {"query": 'a, "b"'}),
    Case("spaces around", csv_line(" ann ", " c4 ", " view ", f" {TIME} ", " 3 ", " tea ", ""), "c4",
         {"user_id": "ann", "value": 3.0, "query": "tea"}),
    Case("too few columns", csv_line("ann", "c5", "view"), "c5", "unreadable"),
    Case("too many columns", csv_line("ann", "c6", "view", TIME, "", "", "", "more"), "c6", "unreadable"),
    Case("open quote", csv_line("ann", "c7", "view", TIME, "", '"never closed', ""), "c7", "unreadable"),
    Case("NUL in an id", csv_line(b"an\x00n", "c8", "view", TIME, "", "", ""), "c8", "bad_id"),
    Case("line of NULs", b"\x00" * 40 + b"c9\r\n", "c9", "unreadable"),
    Case("no UTF-8 in an id", csv_line(b"caf\xe9", "c10", "view", TIME, "", "", ""), "c10", "bad_id"),
    Case("no UTF-8 in a query", csv_line("ann", "c11", "view", TIME, "", b"caf\xe9 bar", ""), "c11",
         {"query": "caf  bar"}),
    Case("1 MB id", csv_line("a" * 1_000_000, "c12", "view", TIME, "", "", ""), "c12", "bad_id"),
    Case("1 MB query", csv_line("ann", "c13", "view", TIME, "", "q" * 1_000_000, ""), "c13",
         {"query": "q" * 1000}),
    Case("year 9999", csv_line("ann", "c14", "view", "9999-12-31 23:59:59", "", "", ""), "c14", "future"),
    Case("year 99999", csv_line("ann", "c15", "view", "99999-01-01", "", "", ""), "c15", "bad_time"),
    Case("year 0", csv_line("ann", "c16", "view", "0000-01-01", "", "", ""), "c16", "before_window"),
    Case("time without date", csv_line("ann", "c17", "view", "10:00", "", "", ""), "c17", "bad_time"),
    Case("no such day", csv_line("ann", "c18", "view", "2026-02-30", "", "", ""), "c18", "bad_time"),
    Case("local time", csv_line("ann", "c19", "view", "2026-03-30 10:00:00", "", "", ""), "c19",
         {"event_time": utc("2026-03-30T08:00:00")}),
    Case("time before summer", csv_line("ann", "c20", "view", "2026-03-28 10:00", "", "", ""), "c20",
         {"event_time": utc("2026-03-28T09:00:00")}),
    Case("time with offset", csv_line("ann", "c21", "view", "2026-03-30T10:00:00.5-05:00", "", "", ""), "c21",
         {"event_time": utc("2026-03-30T15:00:00.5")}),
    Case("UTC time", csv_line("ann", "c22", "view", "2026-03-30T10:00:00Z", "", "", ""), "c22",
         {"event_time": utc("2026-03-30T10:00:00")}),
    Case("last instant of ds", csv_line("ann", "c23", "view", "2026-03-31T23:59:59.999999Z", "", "", ""),
         "c23",
         {"event_time": utc("2026-03-31T23:59:59.999999")}),
    Case("first instant after", csv_line("ann", "c24", "view", "2026-04-01T00:00:00Z", "", "", ""),
         "c24", "future"),
    Case("word as value", csv_line("ann", "c25", "view", TIME, "many", "", ""), "c25", "bad_value"),
    Case("NaN as value", csv_line("ann", "c26", "view", TIME, "NaN", "", ""), "c26", "bad_value"),
    Case("NaN as user", csv_line("NaN", "c27", "view", TIME, "", "", ""), "c27", "missing_user"),
    Case("configured reason", csv_line("ann", "c28", "view", TIME, "-1", "", ""), "c28", "below_zero"),
    Case("unknown type", csv_line("ann", "c29", "View", TIME, "", "", ""), "c29", "unknown_event_type"),
    Case("no item, as allowed", csv_line("zoe", "", "search", TIME, "", "c30", ""), "c30", {"item_id": None}),
    Case("no item", csv_line("zoe", "", "view", TIME, "", "c31", ""), "c31", "missing_item"),
]  # fmt: skip


def json_line(**cells: Any) -> bytes:
    row = {"user": "joe", "type": "view", "time": 1774864800, **cells}
    return json.dumps({name: value for name, value in row.items() if value is not ...}).encode() + b"\n"


JSONL = [
    Case("plain", json_line(item="j1", value=2.5, unknown={"a": [1]}), "j1", {"value": 2.5}),
    Case("number as id", json_line(item=7001, user=12), "7001", {"user_id": "12"}),
    Case("truncated", json_line(item="j3", value=1)[:-3] + b"\n", "j3", "unreadable"),
    Case("array", b'[{"user": "joe", "item": "j4"}]\n', "j4", "unreadable"),
    Case("bare text", b'"j5"\n', "j5", "unreadable"),
    Case("bare number", b"900006\n", "900006", "unreadable"),
    Case("two documents", json_line(item="j7")[:-1] + json_line(item="j7b"), "j7b", "unreadable"),
    Case("plain text", b"GET /index.html j8\n", "j8", "unreadable"),
    Case("no user", json_line(item="j9", user=...), "j9", "missing_user"),
    Case("null user", json_line(item="j10", user=None), "j10", "missing_user"),
    Case("object as time", json_line(item="j11", time={"at": 3}), "j11", "bad_time"),
    Case("no time", json_line(item="j12", time=...), "j12", "missing_time"),
    Case("milliseconds for seconds", json_line(item="j13", time=1774864800000), "j13", "bad_time"),
    Case("fraction of a second", json_line(item="j14", time=1774864800.25), "j14",
         {"event_time": utc("2026-03-30T10:00:00.25")}),
    Case("NaN", json_line(item="j15", value=float("nan")), "j15", "bad_value"),
    Case("infinity", json_line(item="j16", value=float("inf")), "j16", "bad_value"),
    Case("NUL escaped", json_line(item="j17", user="a\x00b"), "j17", "bad_id"),
    Case("not an item", json_line(item="POSTAGE j18"), "POSTAGE j18", "not_an_item"),
    Case("list as item", json_line(item=["j19"]), "j19", {"item_id": '["j19"]'}),
    Case("one wrong cell of a formula", json_line(item="j20", value=1, seen="abc", length=2), "j20",
         {"segment": None}),
    Case("a good formula", json_line(item="j21", value=1, seen=1, length=2), "j21", {"segment": "0.5"}),
    Case("division by zero", json_line(item="j22", value=1, seen=1, length=0), "j22", {"segment": None}),
]  # fmt: skip
PARQUET = [
    Case("int32", b"", "p1", {"user_id": "7", "value": 1.0}),
    Case("int64", b"", "p2", {"user_id": "5000000000", "value": None}),
    Case("whole double as id", b"", "p3", {"user_id": "17850"}),
    Case("NaN as id", b"", "p4", "missing_user"),
    Case("NaN as value", b"", "p5", "bad_value"),
    Case("nanoseconds", b"", "p6", {"event_time": utc("2026-03-30T10:00:00.000001")}),
    Case("instant", b"", "p7", {"event_time": utc("2026-03-30T10:00:00")}),
    Case("null item", b"", "p8 has none", "missing_item"),
]  # fmt: skip


PLAIN = [
    Case("plain", b"", "n1", {"user_id": "ann", "value": 2.0, "event_time": utc("2026-03-30T10:00:00")}),
    Case("a quote is a letter", b"", 'n"2', {"user_id": '"bob'}),
    Case("too few columns", b"", "n3", "unreadable"),
    Case("word as time", b"", "n4", "bad_time"),
]


def write_dirty(folder: Path) -> dict[str, Any]:
    """The files of the dirty list, and the scenes that read them."""
    (folder / "csv").mkdir(parents=True)
    (folder / "csv" / "empty.csv").write_bytes(b"")
    (folder / "csv" / "header.csv").write_bytes(HEAD)
    (folder / "csv" / "day [1].csv").write_bytes(
        b"\xef\xbb\xbf" + HEAD + b"".join(case.line for case in CSV[:20]) + b"\r\n" + HEAD + b"  \r\n"
    )
    (folder / "csv" / "day+2%20.csv").write_bytes(HEAD + b"".join(case.line for case in CSV[20:]))
    turned = b"time,type,item,user,query,value\n2026-03-30T10:00:00,view,turned,ann,,4\n"
    (folder / "csv" / "turned.csv").write_bytes(turned)
    (folder / "log.jsonl").write_bytes(b"\n".join(case.line for case in JSONL))
    (folder / "plain.dat").write_text(
        'ann::n1::2::20260330 1000\n"bob::n"2::::20260330 1000\nann::n3\nann::n4::1::yesterday\n'
    )
    write_parquet(folder / "parquet")
    mapped = {
        "user_id": "user",
        "item_id": "item",
        "event_type": "type",
        "event_time": "time",
        "value": "value",
    }
    types = {"view": {}, "search": {"item": False}}
    return {
        "csv": {
            "path": f"{folder}/csv/*.csv",
            "format": "csv",
            "columns": {**mapped, "query": "query"},
            "time": {"zone": "Europe/Berlin"},
            "event_types": types,
            "reject": {"below_zero": "value < 0"},
        },
        "json": {
            "path": f"{folder}/log.jsonl",
            "format": "jsonl",
            "columns": mapped,
            "sql": {"segment": "seen / length"},
            "time": {"format": "epoch_seconds"},
            "event_types": types,
            "not_items_sql": "item_id like 'POSTAGE%'",
        },
        "plain": {
            "path": f"{folder}/plain.dat",
            "format": "csv",
            "names": ["who", "what", "n", "when"],
            "delimiter": "::",
            "quote": "",
            "columns": {"user_id": "who", "item_id": "what", "event_time": "when", "value": "n"},
            "sql": {"event_type": "'view'"},
            "time": {"format": "yyyyMMdd HHmm"},
            "event_types": types,
        },
        "parquet": {
            "path": f"{folder}/parquet/*.parquet",
            "format": "parquet",
            "columns": mapped,
            "time": {"zone": "Europe/Berlin"},
            "event_types": types,
        },
    }


def write_parquet(folder: Path) -> None:
    folder.mkdir()
    at = datetime(2026, 3, 30, 12)
    utc_time, nanos = pa.timestamp("us", "UTC"), pa.timestamp("ns")

    def put(name: str, user: pa.Array, items: list[str | None], time: pa.Array, value: pa.Array) -> None:
        types = pa.array(["view"] * len(items))
        columns = {
            "user": user,
            "item": pa.array(items, pa.string()),
            "type": types,
            "time": time,
            "value": value,
        }
        pq.write_table(pa.table({**columns, "nested": pa.array([{"a": 1}] * len(items))}), folder / name)

    naive = pa.array([at], pa.timestamp("us"))
    put("a.parquet", pa.array([7], pa.int32()), ["p1"], naive, pa.array([1], pa.int32()))
    put("b.parquet", pa.array([5_000_000_000]), ["p2"], naive, pa.array([None], pa.float64()))
    put("c.parquet", pa.array([17850.0, float("nan"), 3.0]), ["p3", "p4", "p5"],
        pa.array([at] * 3, pa.timestamp("ms")), pa.array([1.5, 1.5, float("nan")]))  # fmt: skip
    put("d.parquet", pa.array([1]), ["p6"], pa.array([1774872000_000001_000], nanos), pa.array([1]))
    when = pa.array([datetime(2026, 3, 30, 10, tzinfo=UTC)] * 2, utc_time)
    put("e.parquet", pa.array(["p7u", "p8 has none"]), ["p7", None], when, pa.array([1.0, 1.0]))
    empty = pq.read_table(folder / "a.parquet").schema.empty_table()
    pq.write_table(empty, folder / "zero rows.parquet")


SCENE: dict[str, Any] = {
    "path": "{folder}/*.csv",
    "format": "csv",
    "columns": {"user_id": "user", "item_id": "item", "event_type": "type", "event_time": "time"},
    "event_types": {"view": {}},
}
LINE = "user,item,type,time\nann,a,view,2026-03-30\n"


def _misspelt(folder: Path) -> dict[str, Any]:
    (folder / "log.csv").write_text(LINE.replace("item", "itm"))
    return SCENE


def _doubled(folder: Path) -> dict[str, Any]:
    (folder / "log.csv").write_text("user,item,user,type,time\nann,a,bob,view,2026-03-30\n")
    return SCENE


def _blank_header(folder: Path) -> dict[str, Any]:
    (folder / "log.csv").write_text("\n" + LINE)
    return SCENE


def _parquet_without(folder: Path) -> dict[str, Any]:
    pq.write_table(
        pa.table({"user": ["ann"], "type": ["view"], "time": ["2026-03-30"]}), folder / "a.parquet"
    )
    return {**SCENE, "format": "parquet", "path": "{folder}/*.parquet"}


def _damaged_parquet(folder: Path) -> dict[str, Any]:
    (folder / "a.parquet").write_bytes(b"PAR1 is no Parquet")
    return {**SCENE, "format": "parquet", "path": "{folder}/*.parquet"}


def _json_key(folder: Path) -> dict[str, Any]:
    (folder / "a.jsonl").write_text('{"usr": "ann", "item": "a", "type": "view", "time": "2026-03-30"}\n')
    return {**SCENE, "format": "jsonl", "path": "{folder}/*.jsonl"}


def _no_files(folder: Path) -> dict[str, Any]:
    del folder
    return SCENE


def _bad_sql(folder: Path) -> dict[str, Any]:
    (folder / "log.csv").write_text(LINE)
    return {**SCENE, "sql": {"value": "nosuch + 1"}}


def _bad_syntax(folder: Path) -> dict[str, Any]:
    (folder / "log.csv").write_text(LINE)
    return {**SCENE, "reject": {"odd": "item = = 'a'"}}


def _bad_item_rule(folder: Path) -> dict[str, Any]:
    (folder / "log.csv").write_text(LINE)
    return {**SCENE, "not_items_sql": "itemid = 'a'"}


def _bad_pattern(folder: Path) -> dict[str, Any]:
    (folder / "log.csv").write_text(LINE)
    return {**SCENE, "time": {"format": "qqqq-bad"}}


def _bad_zone(folder: Path) -> dict[str, Any]:
    (folder / "log.csv").write_text(LINE)
    return {**SCENE, "time": {"zone": "Europe/Atlantis"}}


REFUSED: list[tuple[Callable[[Path], dict[str, Any]], type[NightjarError], str]] = [
    (_misspelt, InputError, r"log.csv has no column 'item' .*it has 'user', 'itm', 'type', 'time'"),
    (_doubled, InputError, "log.csv has more than one column 'user'"),
    (_blank_header, InputError, "blank line where its header should be"),
    (_parquet_without, InputError, r"a.parquet has no column 'item' .*it has 'user', 'type', 'time'"),
    (_damaged_parquet, InputError, "a.parquet cannot be read as Parquet"),
    (_json_key, InputError, r"a.jsonl has no key 'user' .*'usr'"),
    (_no_files, InputError, "no file matches"),
    (_bad_sql, ConfigError, r"scene shop: the SQL of value \(nosuch \+ 1\) is refused"),
    (_bad_syntax, ConfigError, "scene shop: the SQL of reject.odd"),
    (_bad_item_rule, ConfigError, r"not_items_sql \(itemid = 'a'\) is refused"),
    (_bad_pattern, ConfigError, "time.format 'qqqq-bad'"),
    (_bad_zone, ConfigError, "time.zone 'Europe/Atlantis'"),
]
