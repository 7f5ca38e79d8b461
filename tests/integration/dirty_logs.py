"""Generated dirty logs of three scenes, and what DuckDB says cleaning must make of them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DS = "2026-03-31"
END = datetime(2026, 4, 1, tzinfo=UTC)
WINDOW_DAYS, MAX_A_DAY, CLICK_SECONDS, GAP_MINUTES = 60, 30, 1.0, 30
NAMES = ("eid", "user", "item", "type", "time", "value", "query")
TYPES = {"view": {}, "buy": {"weight": 3}, "search": {"item": False}}
Row = dict[str, Any]


def scenes(folder: Path) -> dict[str, Any]:
    """The scenes' configuration: CSV with ids of its own, JSON lines and Parquet without."""
    mapped = {"user_id": "user", "item_id": "item", "event_type": "type", "event_time": "time"}
    mapped |= {"value": "value", "query": "query"}
    both = {"event_types": TYPES, "not_items": ["POSTAGE"], "not_items_sql": "item_id like 'FEE%'"}
    return {
        "shop": {
            **both,
            "path": f"{folder}/shop/*.csv",
            "format": "csv",
            "columns": {**mapped, "event_id": "eid"},
            "reject": {"too_dear": "value > 900"},
        },
        "video": {
            **both,
            "path": f"{folder}/video/*.jsonl",
            "format": "jsonl",
            "columns": mapped,
            "time": {"format": "epoch_millis"},
        },
        "search": {**both, "path": f"{folder}/search/*.parquet", "format": "parquet", "columns": mapped},
    }


CLEANING = {
    "window_days": WINDOW_DAYS,
    "max_events_per_day": MAX_A_DAY,
    "double_click_seconds": CLICK_SECONDS,
    "session_gap_minutes": GAP_MINUTES,
}


def write_logs(folder: Path, seed: int, n: int, files: int = 2, order: int = 0) -> None:
    """Writes about n dirty rows a scene; `files` and `order` only change where a row stands."""
    for at, scene in enumerate(("shop", "video", "search")):
        rows = _rows(np.random.default_rng([seed, at]), n)
        if order:
            rows = [rows[i] for i in np.random.default_rng(order).permutation(len(rows))]
        (folder / scene).mkdir(parents=True)
        for number in range(files):
            _WRITE[scene](folder / scene / f"log{number}", rows[number::files])


def _rows(rng: np.random.Generator, n: int) -> list[Row]:
    rows: list[Row] = []
    for at in range(n):
        moment = END - timedelta(seconds=float(rng.integers(0, 10 * 86_400_000)) / 1000 + 1)
        kind = str(rng.choice(["view", "buy", "search"]))
        item = "" if kind == "search" and rng.random() < 0.5 else f"i{rng.integers(40)}"
        value = "" if rng.random() < 0.3 else f"{rng.integers(0, 1000)}"
        row = {"eid": f"e{at}", "user": f"u{rng.integers(60)}", "item": item, "type": kind, "time": moment}
        row |= {"value": value, "query": f" tea {rng.integers(5)} " if kind == "search" else ""}
        rows += [row, *_echoes(rng, row), *_dirt(rng, row)]
    day = END - timedelta(hours=20)
    busy = {"user": "bot", "item": "i1", "type": "view", "value": "", "query": ""}
    rows += [{**busy, "eid": f"b{at}", "time": day + timedelta(minutes=at)} for at in range(2 * MAX_A_DAY)]
    return rows


def _echoes(rng: np.random.Generator, row: Row) -> list[Row]:
    """Now and then the row again: the same, with the same id but another item, or as a second click."""
    draw = rng.random()
    if draw < 0.05:
        return [row]
    if draw < 0.08:
        return [{**row, "item": "i41", "time": row["time"] + timedelta(seconds=5)}]
    if draw < 0.15:
        clicks = [0.4, 0.8, 1.2, 1.7][: rng.integers(1, 5)]
        return [
            {**row, "eid": f"{row['eid']}-{s}", "time": row["time"] + timedelta(seconds=s)} for s in clicks
        ]
    return []


DIRT: dict[str, list[Any]] = {
    "user": ["", "  ", "NaN", "u\x01", "u" * 300],
    "item": ["", "POSTAGE", "FEE 7", "i\x7f", "i" * 257],
    "type": ["", "strange", "VIEW"],
    "time": ["", "garbage", "10:00", END, END + timedelta(days=900), END - timedelta(days=61)],
    "value": ["NaN", "abc", "Infinity", "-inf", "1e999"],
}


def _dirt(rng: np.random.Generator, row: Row) -> list[Row]:
    if rng.random() > 0.25:
        return []
    name = str(rng.choice(list(DIRT)))
    # Not at the same instant: which of two clicks at one instant stays is nobody's business here.
    later = {**row, "eid": f"{row['eid']}-d", "time": row["time"] + timedelta(seconds=7)}
    dirty = {**later, name: DIRT[name][rng.integers(len(DIRT[name]))]}
    return [{**dirty, "torn": bool(rng.random() < 0.2)}]


def _csv(path: Path, rows: list[Row]) -> None:
    lines = [",".join(NAMES)]
    for row in rows:
        line = ",".join(str(_text_time(row)[name]) for name in NAMES)
        lines.append(line.rpartition(",")[0] if row.get("torn") else line)
    path.with_suffix(".csv").write_text("\n".join(lines) + "\n")


def _text_time(row: Row) -> Row:
    time = row["time"]
    return {**row, "time": time if isinstance(time, str) else f"{time:%Y-%m-%d %H:%M:%S.%f}"}


def _jsonl(path: Path, rows: list[Row]) -> None:
    lines = []
    for row in rows:
        time = row["time"]
        cells = {**row, "time": time if isinstance(time, str) else round(time.timestamp() * 1000)}
        line = json.dumps({name: cells[name] for name in NAMES if cells[name] != ""})
        lines.append(line[: len(line) // 2] if row.get("torn") else line)
    path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n")


def _parquet(path: Path, rows: list[Row]) -> None:
    rows = [row for row in rows if not isinstance(row["time"], str)]
    texts = ("eid", "user", "item", "type", "query")
    columns = {name: pa.array([row[name] or None for row in rows], pa.string()) for name in texts}
    columns["time"] = pa.array([row["time"] for row in rows], pa.timestamp("us", "UTC"))
    columns["value"] = pa.array([_number(row["value"]) for row in rows], pa.float64())
    pq.write_table(pa.table(columns), path.with_suffix(".parquet"))


def _number(text: str) -> float | None:
    return None if text in ("", "abc") else float(text)


_WRITE = {"shop": _csv, "video": _jsonl, "search": _parquet}


@dataclass
class Expected:
    """What cleaning must give. events: (scene, user, item, type, micros, value, query) with their session."""

    raw: Counter[str] = field(default_factory=Counter)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    events: list[tuple[Any, ...]] = field(default_factory=list)


def expected(folder: Path) -> Expected:
    """Counts rows and reasons with DuckDB over the raw text, and walks the sequences with plain loops."""
    out = Expected()
    con = duckdb.connect()
    con.execute(f"create table cells ({', '.join(f'{name} varchar' for name in _CELLS)})")
    _load_lines(con, folder)
    con.execute(_REASONS)
    for scene, n in con.execute("select scene, count(*) from judged group by 1").fetchall():
        out.raw[scene] = n
    for scene, reason, n in con.execute(_COUNT).fetchall():
        out.counts[scene, reason] = n
    con.execute(_DISTINCT)
    for scene, n in con.execute("select scene, count(*) from numbered where nth > 1 group by 1").fetchall():
        out.counts[scene, "duplicates"] = n
    for scene, n in con.execute(_BOTS).fetchall():
        out.counts[scene, "bot"] = n
    _walk(out, con.execute(_PEOPLE).fetchall())
    return out


_CELLS = ("scene", "broken", *NAMES)


def _load_lines(con: duckdb.DuckDBPyConnection, folder: Path) -> None:
    for path in sorted(folder.glob("shop/*.csv")):
        con.register("lines", pa.table({"line": path.read_text().splitlines()[1:]}))
        cells = ", ".join(f"str_split(line, ',')[{at}]" for at in range(1, 8))
        con.execute(f"insert into cells select 'shop', len(str_split(line, ',')) <> 7, {cells} from lines")
    for path in sorted(folder.glob("video/*.jsonl")):
        con.register("lines", pa.table({"line": path.read_text().splitlines()}))
        cells = ", ".join(f"case when json_valid(line) then line->>'{name}' end" for name in NAMES)
        con.execute(f"insert into cells select 'video', not json_valid(line), {cells} from lines")
    found = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("search/*.parquet"))])
    naive = found.column("time").cast(pa.timestamp("us"))
    con.register("typed", found.set_column(found.schema.get_field_index("time"), "time", naive))
    cells = "eid, user, item, type, strftime(time, '%Y-%m-%d %H:%M:%S.%f'), value, query"
    con.execute(f"insert into cells select 'search', false, {cells} from typed")


_BAD = "regexp_matches({0}, '[\\x00-\\x1F\\x7F]') or length({0}) > 256"
_REASONS = f"""
create table judged as
with a as (
  select *, nullif(nullif(trim("user"), ''), 'NaN') u, nullif(nullif(trim(item), ''), 'NaN') i,
    nullif(trim(type), '') k, nullif(trim(value), '') v, try_cast(trim(value) as double) x,
    case when scene = 'video' then make_timestamp(try_cast(time as bigint) * 1000)
         else try_strptime(time, '%Y-%m-%d %H:%M:%S.%f') end t
  from cells)
select *, case
  when broken then 'unreadable'
  when u is null then 'missing_user'
  when i is null and coalesce(k, '') <> 'search' then 'missing_item'
  when time is null or trim(time) = '' then 'missing_time'
  when t is null then 'bad_time'
  when t < timestamp '2026-04-01' - interval {WINDOW_DAYS} day then 'before_window'
  when t >= timestamp '2026-04-01' then 'future'
  when k is null or k not in ('view', 'buy', 'search') then 'unknown_event_type'
  when i = 'POSTAGE' or i like 'FEE%' then 'not_an_item'
  when {_BAD.format("u")} or {_BAD.format("coalesce(i, '')")} then 'bad_id'
  when v is not null and (x is null or not isfinite(x)) then 'bad_value'
  when scene = 'shop' and x > 900 then 'too_dear'
  end reason, epoch_us(t) micros, nullif(trim(query), '') q from a
"""
_COUNT = "select scene, reason, count(*) from judged where reason is not null group by 1, 2"
_DISTINCT = """
create table numbered as select *, row_number() over (
  partition by scene, case when scene = 'shop' then eid
    else concat_ws('|', "user", coalesce(item, '~'), type, time, coalesce(value, '~'), coalesce(query, '~'))
    end
  order by t, u, i nulls first, k, x nulls first, q nulls first) nth
from judged where reason is null
"""
_DAYS = f"""
with days as (select u, micros // 86400000000 d from numbered where nth = 1
  group by 1, 2 having count(*) > {MAX_A_DAY})
"""
_IN_DAYS = "(u, micros // 86400000000) in (select (u, d) from days)"
_BOTS = f"{_DAYS} select scene, count(*) from numbered where nth = 1 and {_IN_DAYS} group by 1"
_PEOPLE = f"""{_DAYS} select scene, u, i, k, micros, x, q from numbered where nth = 1 and not {_IN_DAYS}
order by u, micros"""


def _walk(out: Expected, rows: list[tuple[Any, ...]]) -> None:
    """Double clicks and sessions, one row after the other."""
    last: dict[tuple[Any, ...], int] = {}
    user, time, session = None, 0, 0
    for row in rows:
        scene, who, item, kind, micros, _, query = row
        click = (scene, who, kind, item or ("query", query))
        if click in last and micros - last[click] < CLICK_SECONDS * 1e6:
            out.counts[scene, "double_clicks"] += 1
            continue
        last[click] = micros
        if who != user or micros - time >= GAP_MINUTES * 60e6:
            session += 1
        user, time = who, micros
        out.events.append((*row, session))
