"""Reading the tables of users bucket by bucket: part i of each of them holds the same users.

`weigh_events` hashes users into a fixed number of buckets and every later table of users keeps that layout,
so retrieving and ranking need no shuffle. These readers turn one bucket into arrays for the kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nightjar.kernels.interactions import Columns, Histories, histories, joined, whole_users
from nightjar.kernels.interests import Interests
from nightjar.store import Committed
from nightjar.tables import WEIGHT_ONE, vectors

COLUMNS = ["user_id", "item_num", "weight", "strength", "in_profile", "last_event_time"]


def read_histories(interactions: Committed, bucket: int) -> Histories:
    """All histories of one bucket."""
    return histories(_columns(interactions.read_part(interactions.parts[bucket], COLUMNS)))


def stream_histories(interactions: Committed, bucket: int) -> Iterator[Histories]:
    """The histories of one bucket, some users at a time, a row group in memory."""
    return whole_users(_columns(batch) for batch in interactions.batches(interactions.parts[bucket], COLUMNS))


class HistoriesInOrder:
    """The histories of a bucket for users who come in order, some at a time, a few row groups in memory."""

    def __init__(self, interactions: Committed, bucket: int) -> None:
        self._coming = stream_histories(interactions, bucket)
        self._held: list[Histories] = []

    def of(self, user_ids: np.ndarray) -> Histories:
        """Those of the given users, in ascending order and beyond all asked for before; see `aligned`."""
        while not self._held or self._held[-1].user_ids[-1] < user_ids[-1]:
            more = next(self._coming, None)
            if more is None:
                break
            self._held.append(more)
        self._held = [one for one in self._held if one.user_ids[-1] >= user_ids[0]]
        return joined(self._held).aligned(user_ids)


@dataclass(frozen=True)
class UserVectors:
    """Whole users of a bucket. first: position of the first row in the bucket; user_ids (rows,), those of a
    user side by side; vectors (rows, d) float32."""

    first: int
    user_ids: np.ndarray
    vectors: np.ndarray
    interests: Interests


def stream_vectors(users: Committed, bucket: int, n_rows: int) -> Iterator[UserVectors]:
    """The vectors of a bucket's users in blocks of about n_rows, a row group in memory."""
    first, columns = 0, ["user_id", "vector", "importance"]
    ids, V, importance = np.empty(0, object), None, np.empty(0, np.float32)
    for batch in users.batches(users.parts[bucket], columns):
        ids = np.concatenate([ids, strings(batch.column("user_id"))])
        mine = vectors(batch.column("vector"))
        V = mine if V is None else np.concatenate([V, mine])
        importance = np.concatenate([importance, batch.column("importance").to_numpy()])
        # The last user of a batch may go on in the next one.
        for block in _blocks(first, ids, V, importance, n_rows)[:-1]:
            yield block
            n = len(block.user_ids)
            first, ids, V, importance = first + n, ids[n:], V[n:], importance[n:]
    if V is not None:
        yield from _blocks(first, ids, V, importance, n_rows)


def _blocks(
    first: int, ids: np.ndarray, V: np.ndarray, importance: np.ndarray, n_rows: int
) -> list[UserVectors]:
    interests, found = Interests.of(ids, importance), []
    for start, stop in interests.blocks(n_rows):
        rows = slice(int(interests.starts[start]), int(interests.starts[stop]))
        found.append(UserVectors(first + rows.start, ids[rows], V[rows], interests.take(start, stop)))
    return found


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
