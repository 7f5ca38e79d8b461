"""`nightjar trace USER`: where committed nights still hold rows of a user.

It answers a request to know or to be forgotten. Looked through are all committed tables, those of back-tests
too, and every list that a rollback can lead to; quarantined rows count where their text holds the id. Folders
of replaced attempts are not looked through: `nightjar prune` drops them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow.compute as pc

from nightjar.errors import NotCommitted
from nightjar.inspect import rows_of, table_text
from nightjar.published import opened, remembered
from nightjar.store import BACKTEST, Committed, Dataset, Store, committed_dates
from nightjar.tables import TABLES


def trace(store: Store, user_id: str) -> tuple[str, int]:
    """A line for each table and date that holds rows of the user, as text, and the number of rows in all."""
    found: list[tuple[str, ...]] = []
    total = looked = 0
    seen: set[str] = set()
    for committed in (*_commits(store), *_commits(store.below(BACKTEST))):
        where = f"{committed.dataset.store.root}/{committed.dataset.folder}/{committed.manifest.fingerprint}"
        if where in seen:
            continue
        seen.add(where)
        looked += 1
        if n := _rows(committed, user_id):
            total += n
            kind = "" if committed.dataset.store.root == store.root else f"{BACKTEST}/"
            found.append((f"{kind}{committed.dataset.table.name}", committed.dataset.ds, f"{n:,}"))
    if not looked:
        raise NotCommitted(f"nothing is committed under {store.root}; nothing to look through")
    return table_text(("table", "night", "rows"), found), total


def _commits(store: Store) -> Iterator[Committed]:
    for table in TABLES:
        if not {"user_id", "payload"} & set(table.schema.names):
            continue
        for ds in committed_dates(store, table):
            if (committed := Dataset(store, table, ds).committed()) is not None:
                yield committed
    for publication in remembered(store):
        yield opened(store, publication)


def _rows(committed: Committed, user_id: str) -> int:
    if "user_id" in committed.dataset.table.schema.names:
        return len(rows_of(committed, user_id))
    n = 0
    for entry in committed.parts:
        payloads = committed.read_part(entry, ["payload"])["payload"]
        n += int(pc.sum(pc.match_substring(payloads, user_id)).as_py() or 0)
    return n
