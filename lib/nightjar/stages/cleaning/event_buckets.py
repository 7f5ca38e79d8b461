"""The second half of clean_events: one bucket of users, whose rows come sorted by user, time and event id.

What needs the sequence is decided here in one pass of bounded memory: rows that repeat an event id, days too
busy to be a person's, double clicks, sessions. The bucket's events and its quarantine are then written by the
same task, so that raw logs are read once and every count is that of rows really written.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark import TaskContext

from nightjar.config import CleanEvents
from nightjar.engines.outcome import Counts, Spool, outcome, valid_text
from nightjar.engines.raw import source_names
from nightjar.errors import ContractError
from nightjar.kernels import sequences as seq
from nightjar.store import Attempt
from nightjar.tables import EVENTS, QUARANTINE_SCHEMA, TIME

STAGE = "clean_events"
EVENT, DUPLICATE, DOUBLE_CLICK, FORGOTTEN = "=event", "=duplicate", "=double_click", "=forgotten"
"""What became of a row that was not rejected; no reason can be spelled like that."""


@dataclass(frozen=True)
class Rules:
    """What is judged along a user's sequence. Times in microseconds. keep_payload: of rejected rows."""

    max_events_per_day: int
    double_click: int
    session_gap: int
    keep_payload: bool = True

    @classmethod
    def of(cls, params: CleanEvents, keep_payload: bool = True) -> Rules:
        micros = seq.MICROS
        return cls(
            params.max_events_per_day,
            round(params.double_click_seconds * micros),
            round(params.session_gap_minutes * 60 * micros),
            keep_payload,
        )


class WriteBucket:
    """The Spark task: JUDGED rows of one bucket -> a part of events, a part of quarantine, and counts."""

    def __init__(self, events: Attempt, quarantine: Attempt, rules: Rules) -> None:
        self.events, self.quarantine, self.rules = events, quarantine, rules

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        part = context.partitionId() if context else 0
        with Spool(QUARANTINE_SCHEMA) as rejected, Spool(QUARANTINE_SCHEMA) as bots:
            bucket = Bucket(self.rules, rejected, bots)
            events = self.events.write_part(part, bucket.events(batches))
            # One after the other: where a batch ends must not show in the file.
            quarantined = self.quarantine.write_part(part, chain(rejected.rows(), bots.rows()))
        bucket.check(events.rows, quarantined.rows)
        tables = (self.events, self.quarantine)
        entries = ([events], [quarantined])
        written = {a.dataset.table.name: e for a, e in zip(tables, entries, strict=True)}
        yield outcome(written, bucket.counts)


class Bucket:
    """One bucket on its way through: rows in, events out, rejects aside, everything counted."""

    def __init__(self, rules: Rules, rejected: Spool, bots: Spool) -> None:
        self.rules, self.rejected, self.bots = rules, rejected, bots
        self.counts: Counts = Counter()
        self.n_rows = 0

    def events(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
        """Events ready to be written, from rows sorted by key, time and event id."""
        clicks, sessions = DoubleClicks(self.rules.double_click), Sessions(self.rules.session_gap)
        for rows in self._people(self._alive(batches)):
            kept = clicks.keep(rows)
            self._count(rows, DOUBLE_CLICK, +1)
            self._count(kept, DOUBLE_CLICK, -1)
            self._count(kept, EVENT, +1)
            if len(kept):
                yield sessions.mark(kept)

    def check(self, n_events: int, n_quarantined: int) -> None:
        """Every row that came must be in a file or counted as removed."""
        gone = (DUPLICATE, DOUBLE_CLICK, FORGOTTEN)
        removed = sum(n for (_, fate), n in self.counts.items() if fate in gone)
        if self.n_rows != n_events + n_quarantined + removed:
            raise ContractError(
                f"clean_events: {self.n_rows} rows came, {n_events} events and {n_quarantined} rejects were "
                f"written and {removed} removed; the sums differ"
            )

    def _alive(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
        """Rows that are events so far: rejects go aside, repeated ids and forgotten users are counted."""
        last_id = None
        for batch in batches:
            rows = valid_text(pa.Table.from_batches([batch]))
            self.n_rows += len(rows)
            reasons = rows.column("reason")
            refused = pc.is_valid(reasons)
            dropped = pa.array(np.zeros(len(rows), bool))
            for fate in (DUPLICATE, FORGOTTEN):
                this = pc.fill_null(pc.equal(reasons, fate), False)
                self._count(rows.filter(this), fate, +1)
                dropped = pc.or_(dropped, this)
            self._reject(rows.filter(pc.and_not(refused, dropped)), self.rejected)
            alive = rows.filter(pc.invert(refused))
            if not len(alive):
                continue
            repeated = pa.array(_equals_previous(alive.column("event_id"), last_id))
            self._count(alive.filter(repeated), DUPLICATE, +1)
            last_id = alive.column("event_id")[-1].as_py()
            yield alive.filter(pc.invert(repeated))

    def _people(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Rows of days no busier than the bound; the others are a bot's and go aside.

        The last user-day of a batch may go on in the next one, so it waits, at most up to the bound.
        """
        waiting: pa.Table | None = None
        bot: tuple[str, int] | None = None
        for table in tables:
            rows = table if waiting is None else pa.concat_tables([waiting, table]).combine_chunks()
            if not len(rows):
                continue
            starts, sizes = _user_days(rows)
            busy = sizes > self.rules.max_events_per_day
            busy[0] |= _user_day(rows, 0) == bot
            self._bots(rows.filter(pa.array(np.repeat(busy, sizes))))
            people = np.repeat(~busy, sizes)
            bot, waiting = _user_day(rows, len(rows) - 1), None
            if not busy[-1]:
                bot, waiting = None, rows.slice(int(starts[-1]))
                people[starts[-1] :] = False
            yield rows.filter(pa.array(people))
        if waiting is not None:
            yield waiting

    def _bots(self, rows: pa.Table) -> None:
        if not len(rows):
            return
        shown = rows.drop_columns(["key", "reason", "payload", "source_file"]).to_pylist()
        payload = pa.array([json.dumps(row, ensure_ascii=False) for row in shown], pa.string())
        reason = pa.array(["bot"] * len(rows), pa.string())
        names = rows.schema.get_field_index
        rows = rows.set_column(names("payload"), "payload", payload)
        self._reject(rows.set_column(names("reason"), "reason", reason), self.bots)

    def _reject(self, rows: pa.Table, aside: Spool) -> None:
        pairs = rows.group_by(["scene", "reason"]).aggregate([([], "count_all")]).to_pylist()
        for pair in pairs:
            self.counts[pair["scene"], pair["reason"]] += pair["count_all"]
        stage = pa.array([STAGE] * len(rows), pa.string())
        shown = rows.select(["scene", "reason", "payload"])
        if not self.rules.keep_payload:
            shown = shown.set_column(2, "payload", pa.array([""] * len(rows), pa.string()))
        shown = shown.append_column("source_file", source_names(rows.column("source_file")))
        aside.put(shown.append_column("stage", stage))

    def _count(self, rows: pa.Table, fate: str, sign: int) -> None:
        for pair in pc.value_counts(rows.column("scene")).to_pylist():
            self.counts[pair["values"], fate] += sign * pair["counts"]


class DoubleClicks:
    """Drops events that follow a kept one of the same user, scene, type and item too closely.

    An event without an item is compared by its query. Batches may cut a user anywhere: the kept rows that
    could still matter are carried over.
    """

    NAMES = ("user_id", "scene", "event_type", "item_id", "query", "micros")

    def __init__(self, within: int) -> None:
        self.within = within
        self._tail: pa.Table | None = None

    def keep(self, rows: pa.Table) -> pa.Table:
        """The rows that stay, in order."""
        if not self.within or not len(rows):
            return rows
        narrow = rows.select(self.NAMES)
        joined = narrow if self._tail is None else pa.concat_tables([self._tail, narrow]).combine_chunks()
        n_before = len(joined) - len(rows)
        dropped = self._repeats(joined)
        kept = joined.filter(pa.array(~dropped))
        self._tail = self._recent(kept)
        return rows.filter(pa.array(~dropped[n_before:]))

    def _repeats(self, rows: pa.Table) -> np.ndarray:
        micros = rows.column("micros").to_numpy()
        changes = _changes(rows.column("user_id"))
        near = seq.near_previous(changes, micros, self.within)
        dropped = np.zeros(len(rows), dtype=bool)
        if near.any():
            user = pa.array(np.cumsum(changes)[near])
            keys = _codes([user, *_sameness(rows.filter(pa.array(near)))])
            dropped[near] = seq.repeats(keys, micros[near], self.within)
        return dropped

    def _recent(self, kept: pa.Table) -> pa.Table:
        """Kept rows of the last user that the next batch may repeat."""
        last = kept.slice(len(kept) - 1)
        same = pc.equal(kept.column("user_id"), last.column("user_id")[0])
        recent = pc.greater(kept.column("micros"), last.column("micros")[0].as_py() - self.within)
        return kept.filter(pc.and_(same, recent))


class Sessions:
    """Gives events their session: a user's events with no gap of the bound between them, across scenes."""

    def __init__(self, gap: int) -> None:
        self.gap = gap
        self._last: tuple[str, int, str] | None = None

    def mark(self, rows: pa.Table) -> pa.Table:
        """EVENTS rows from cleaned ones; `session_id` is a hash of the user and the session's first time."""
        users, micros = rows.column("user_id"), rows.column("micros").to_numpy()
        starts = seq.session_starts(_changes(users), micros, self.gap)
        goes_on = self._goes_on(users[0].as_py(), int(micros[0]))
        at = np.flatnonzero(starts)
        ids = [_session_id(users[int(i)].as_py(), int(micros[i])) for i in at]
        if goes_on is not None:
            ids[0] = goes_on
        sessions = pa.array(ids, pa.string()).take(pa.array(np.cumsum(starts) - 1))
        self._last = (users[-1].as_py(), int(micros[-1]), ids[-1])
        times = rows.column("micros").cast(TIME)
        marked = rows.append_column("event_time", times).append_column("session_id", sessions)
        return marked.select(EVENTS.schema.names)

    def _goes_on(self, user: str, micros: int) -> str | None:
        if self._last is None:
            return None
        before, last_micros, session_id = self._last
        return session_id if user == before and micros - last_micros < self.gap else None


def _session_id(user_id: str, micros: int) -> str:
    return hashlib.blake2b(f"{user_id}\0{micros}".encode(), digest_size=10).hexdigest()


def _changes(column: pa.ChunkedArray) -> np.ndarray:
    """True at the first row and where a value differs from the one before."""
    differs = pc.not_equal(column.slice(1), column.slice(0, max(len(column) - 1, 0)))
    changes: np.ndarray = np.r_[True, differs.to_numpy(zero_copy_only=False)][: len(column)].astype(bool)
    return changes


def _equals_previous(column: pa.ChunkedArray, before: str | None) -> np.ndarray:
    same = ~_changes(column)
    same[0] = column[0].as_py() == before
    return same


def _user_days(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Where each user-day starts, and how many rows it has."""
    days = seq.days(rows.column("micros").to_numpy())
    starts = seq.run_starts(_changes(rows.column("user_id")), days)
    return starts, np.diff(np.r_[starts, len(rows)])


def _user_day(rows: pa.Table, at: int) -> tuple[str, int]:
    return rows.column("user_id")[at].as_py(), rows.column("micros")[at].as_py() // seq.DAY


def _sameness(rows: pa.Table) -> list[pa.ChunkedArray]:
    """What two clicks must share beside their user; without an item, the query stands in for it."""
    item = rows.column("item_id")
    query = pc.if_else(pc.is_null(item), rows.column("query"), pa.scalar(None, pa.string()))
    return [rows.column("scene"), rows.column("event_type"), item, query]


def _codes(columns: list[pa.Array | pa.ChunkedArray]) -> np.ndarray:
    """One int64 for each distinct combination of values; null is a value of its own."""
    code = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        encoded = whole.dictionary_encode(null_encoding="encode")
        encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
        values = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        code = np.unique(code * (values.max(initial=0) + 1) + values, return_inverse=True)[1]
    return code
