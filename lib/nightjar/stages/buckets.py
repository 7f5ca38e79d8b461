"""Reading the tables of users bucket by bucket: part i of each of them holds the same users.

`weigh_events` hashes users into a fixed number of buckets and every later table of users keeps that layout,
so retrieving and ranking need no shuffle. These readers turn one bucket into arrays for the kernels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nightjar.kernels.interactions import Columns, Histories, histories, whole_users
from nightjar.store import Committed
from nightjar.tables import WEIGHT_ONE

COLUMNS = ["user_id", "item_num", "weight", "strength", "in_profile", "last_event_time"]


def read_histories(interactions: Committed, bucket: int) -> Histories:
    """All histories of one bucket."""
    return histories(_columns(interactions.read_part(interactions.parts[bucket], COLUMNS)))


def stream_histories(interactions: Committed, bucket: int) -> Iterator[Histories]:
    """The histories of one bucket, some users at a time, a row group in memory."""
    return whole_users(_columns(batch) for batch in interactions.batches(interactions.parts[bucket], COLUMNS))


def _columns(rows: pa.Table | pa.RecordBatch) -> Columns:
    weights, strengths = (
        (rows.column(name).to_numpy() / WEIGHT_ONE).astype(np.float32) for name in ("weight", "strength")
    )
    return (
        strings(rows.column("user_id")),
        rows.column("item_num").to_numpy(),
        weights,
        strengths,
        rows.column("in_profile").to_numpy(zero_copy_only=False)
        if isinstance(rows, pa.RecordBatch)
        else rows.column("in_profile").to_numpy(),
        rows.column("last_event_time").cast(pa.int64()).to_numpy(),
    )


def strings(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A string column as a NumPy object array."""
    array: np.ndarray = (
        column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
    )
    return array


def list_matrix(rows: pa.Table, people: pa.Array, item_ids: pa.ChunkedArray, k: int) -> np.ndarray:
    """Rows (user_id, rank, item_id) as a (users, k) matrix of positions in `item_ids`; an id that is not
    there gets a number of its own above them."""
    user_of = pc.index_in(rows["user_id"], people)
    kept = user_of.is_valid().to_numpy()
    item_of = pc.index_in(rows["item_id"], item_ids).fill_null(-2).to_numpy().astype(np.int64)
    unknown = np.flatnonzero(item_of == -2)
    item_of[unknown] = len(item_ids) + unknown
    rank = rows["rank"].to_numpy()
    kept &= rank <= k
    lists = np.full((len(people), k), -1, np.int64)
    lists[user_of.fill_null(0).to_numpy()[kept], rank[kept] - 1] = item_of[kept]
    return lists
