"""One bucket of users without Spark: the stream in any batches against loops over whole lists."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nightjar.engines.outcome import Spool, valid_text
from nightjar.errors import ContractError
from nightjar.stages.cleaning.event_buckets import DOUBLE_CLICK, DUPLICATE, EVENT, FORGOTTEN, Bucket, Rules
from nightjar.tables import QUARANTINE_SCHEMA

DAY = 86_400_000_000
RULES = Rules(max_events_per_day=6, double_click=1_000_000, session_gap=1_800_000_000)
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "scene", "reason", "event_id", "user_id", "item_id")),
        ("event_type", pa.string()),
        ("micros", pa.int64()),
        ("value", pa.float64()),
        *((name, pa.string()) for name in ("query", "segment", "payload", "source_file")),
    ]
)
Row = dict[str, Any]


def rows_of(seed: int) -> list[Row]:
    """Sorted rows as Spark hands them over: events of five users (one a bot), rejects, marked duplicates."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for at in range(120):
        user = "bot" if at % 4 == 0 else f"u{rng.integers(4)}"
        second = int(rng.choice([0, 400, 1000, 1500, 2_000_000, 90_000_000])) + int(rng.integers(3)) * 500
        row = blank(event_id=f"e{rng.integers(100):03d}", user_id=user, key=user, event_type="view")
        row["micros"] = int(rng.integers(2)) * DAY + second * 1000
        row["item_id"] = None if rng.random() < 0.2 else f"i{rng.integers(2)}"
        row["query"] = f"q{rng.integers(2)}"
        # Ids hold their user and time, as hashed ids do.
        row["event_id"] = f"{user}-{row['micros']}-{row['event_id']}"
        rows.append(row)
    for at in range(20):
        rows.append(blank(key=f"x{at}", reason="bad_time" if at % 3 else DUPLICATE, payload=f"line {at}"))
    return sorted(rows, key=lambda row: (row["key"], row["micros"] or 0, row["event_id"] or ""))


def blank(**given: Any) -> Row:
    return {**dict.fromkeys(SCHEMA.names), "scene": "shop", "source_file": "a.csv", **given}


def by_loops(rows: list[Row]) -> tuple[list[tuple[str, str]], Counter[str]]:
    """(event id, session) of the events that stay, and counts, from the definitions."""
    counts: Counter[str] = Counter(row["reason"] for row in rows if row["reason"])
    alive: dict[str, Row] = {}
    for row in rows:
        if not row["reason"]:
            counts[DUPLICATE] += row["event_id"] in alive
            alive.setdefault(row["event_id"], row)
    kept, sessions = [], []
    for _, day in groupby(alive.values(), key=lambda row: (row["user_id"], row["micros"] // DAY)):
        listed = list(day)
        if len(listed) > RULES.max_events_per_day:
            counts["bot"] += len(listed)
        else:
            kept += listed
    last: dict[tuple[Any, ...], int] = {}
    previous: Row | None = None
    for row in kept:
        what = row["item_id"] or f"query {row['query']}"
        click = (row["user_id"], row["scene"], row["event_type"], what)
        if click in last and row["micros"] - last[click] < RULES.double_click:
            counts[DOUBLE_CLICK] += 1
            continue
        last[click] = row["micros"]
        same = previous is not None and previous["user_id"] == row["user_id"]
        if not (same and row["micros"] - previous["micros"] < RULES.session_gap):
            start = row["event_id"]
        sessions.append((row["event_id"], start))
        previous = row
    counts[EVENT] = len(sessions)
    return sessions, +counts


def streamed(
    rows: list[Row], sizes: list[int], rules: Rules = RULES
) -> tuple[list[Row], list[Row], Counter[str]]:
    """(events, rejects, counts by fate) of the rows cut into batches of the given sizes, over and over."""
    table, batches, at = pa.Table.from_pylist(rows, schema=SCHEMA), [], 0
    while at < len(rows):
        size = sizes[len(batches) % len(sizes)]
        batches += table.slice(at, size).combine_chunks().to_batches()
        at += size
    with Spool(QUARANTINE_SCHEMA) as rejected, Spool(QUARANTINE_SCHEMA) as bots:
        bucket = Bucket(rules, rejected, bots)
        events = [row for found in bucket.events(batches) for row in found.to_pylist()]
        rejects = [row for part in (rejected, bots) for batch in part.rows() for row in batch.to_pylist()]
    bucket.check(len(events), len(rejects))
    return events, rejects, +Counter({fate: n for (_, fate), n in bucket.counts.items()})


@pytest.mark.parametrize("seed", range(8))
def test_a_bucket_is_what_the_definitions_say_in_any_batches(seed: int) -> None:
    rows = rows_of(seed)
    expected, counts = by_loops(rows)
    whole = streamed(rows, [len(rows)])
    assert [row["event_id"] for row in whole[0]] == [event_id for event_id, _ in expected]
    assert whole[2] == counts
    assert counts["bot"]
    assert counts[DOUBLE_CLICK]
    assert counts[DUPLICATE]
    for sizes in ([1], [2, 3], [7], [50, 1]):
        assert streamed(rows, sizes) == whole


@pytest.mark.parametrize("seed", range(8))
def test_events_share_a_session_exactly_when_no_gap_parts_them(seed: int) -> None:
    rows = rows_of(seed)
    expected, _ = by_loops(rows)
    events, _, _ = streamed(rows, [5])
    starts = dict(expected)
    by_id: dict[str, set[str]] = {}
    for row in events:
        by_id.setdefault(row["session_id"], set()).add(starts[row["event_id"]])
    assert all(len(found) == 1 for found in by_id.values())
    assert len(by_id) == len(set(starts.values()))


def test_a_quarantine_without_text_and_users_who_are_forgotten() -> None:
    rows = rows_of(1)
    gone = [blank(key=f"x{at}", reason=FORGOTTEN, source_file="a.csv") for at in range(5)]
    events, rejects, counts = streamed(rows, [7])
    bare = replace(RULES, keep_payload=False)
    mixed = sorted([*rows, *gone], key=lambda row: (row["key"], row["micros"] or 0, row["event_id"] or ""))
    assert streamed(mixed, [3], bare) == (
        events,
        [{**row, "payload": ""} for row in rejects],
        counts + Counter({FORGOTTEN: 5}),
    )
    assert any(row["payload"] for row in rejects)


def test_a_row_that_is_written_nowhere_is_refused() -> None:
    with Spool(QUARANTINE_SCHEMA) as rejected, Spool(QUARANTINE_SCHEMA) as bots:
        bucket = Bucket(RULES, rejected, bots)
        list(bucket.events(pa.Table.from_pylist(rows_of(0), schema=SCHEMA).to_batches()))
        with pytest.raises(ContractError, match="the sums differ"):
            bucket.check(0, 0)


def test_bytes_that_are_no_text_become_text() -> None:
    broken = pa.array([b"caf\xe9", None, b"tea"], pa.binary()).view(pa.string())
    rows = valid_text(pa.table({"a": broken, "b": [1, 2, 3]}))
    assert rows.column("a").to_pylist() == ["caf\ufffd", None, "tea"]
