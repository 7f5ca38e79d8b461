"""Commits of given rows under a given fingerprint, as a stage of an earlier run would have left them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import pyarrow as pa

from nightjar.store import Dataset, Manifest, Store
from nightjar.tables import EVENTS, Table


def commit(
    store: Store, table: Table, ds: date, parts: Sequence[pa.Table], fingerprint: str = "planted"
) -> None:
    """Writes and commits the parts; events count as raw rows of which none was rejected."""
    attempt = Dataset(store, table, str(ds)).attempt(fingerprint)
    files = tuple(attempt.write_part(number, [rows]) for number, rows in enumerate(parts))
    n_rows = sum(entry.rows for entry in files)
    metrics = {"raw": n_rows, "quarantine": {}} if table is EVENTS else {}
    attempt.commit(Manifest(table.name, str(ds), "planted", fingerprint, files, n_rows, (), metrics=metrics))
