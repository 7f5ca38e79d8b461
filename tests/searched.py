"""A night whose vectors are given: the tables that build_index and retrieve read, committed as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nightjar.kernels.topk import F32
from nightjar.pipeline import BUILD_INDEX, RETRIEVE
from nightjar.stage import Night, StageResult
from nightjar.tables import (
    CANDIDATES,
    INTERACTIONS,
    ITEM_VECTORS,
    ITEMS,
    USER_VECTORS,
    USERS,
    WEIGHT_ONE,
    Table,
    vector_column,
)
from tests import world


@dataclass(frozen=True)
class Vectors:
    """items (n, d), users (q, d) float32; seen and segment by user position; buckets: of users, in order."""

    items: F32
    users: F32
    seen: Sequence[Sequence[int]]
    available: np.ndarray
    segment: Sequence[str | None]
    buckets: int = 2
    silent: Sequence[str] = field(default=())  # known users without a vector, in the last bucket
    interests: Mapping[int, Sequence[tuple[F32, float]]] = field(default_factory=dict)
    """Of users with several vectors: each and its importance, in place of that in users."""

    @property
    def item_ids(self) -> list[str]:
        return [f"i{number:05d}" for number in range(len(self.items))]

    @property
    def user_ids(self) -> list[str]:
        return [f"u{number:05d}" for number in range(len(self.users))]

    def of(self, user: int) -> Sequence[tuple[F32, float]]:
        """The vectors of a user, with their importance."""
        return self.interests.get(int(user), [(self.users[user], 1.0)])

    def commit(self, night: Night) -> None:
        """Commits every table that build_index and retrieve read."""
        numbers = np.arange(len(self.items))
        items = {"item_id": self.item_ids, "item_num": numbers, "title": self.item_ids}
        _commit(night, ITEMS, [items | {"available": self.available}])
        norms = np.linalg.norm(self.items, axis=1).astype(np.float32)
        vectors = {"item_id": self.item_ids, "item_num": numbers, "norm": norms}
        _commit(night, ITEM_VECTORS, [vectors | {"vector": vector_column(self.items)}], self.items.shape[1])
        parts: dict[Table, list[Mapping[str, Any]]] = {USERS: [], USER_VECTORS: [], INTERACTIONS: []}
        for at, mine in enumerate(np.array_split(np.arange(len(self.users)), self.buckets)):
            ids = [self.user_ids[user] for user in mine]
            more = list(self.silent) if at == self.buckets - 1 else []
            known = {"user_id": ids + more, "n_events": [1] * (len(ids) + len(more))}
            segment = [self.segment[user] for user in mine] + [None] * len(more)
            parts[USERS].append(known | {"n_items": known["n_events"], "segment": segment})
            rows = [
                (self.user_ids[user], interest, importance, vector)
                for user in mine
                for interest, (vector, importance) in enumerate(self.of(user))
            ]
            when = {"n_events": [1] * len(rows), "last_event_time": [night.end] * len(rows)}
            names = ("user_id", "interest", "importance")
            one = {name: [row[at] for row in rows] for at, name in enumerate(names)}
            theirs = np.array([row[3] for row in rows], np.float32).reshape(len(rows), self.users.shape[1])
            parts[USER_VECTORS].append(one | when | {"vector": vector_column(theirs)})
            pairs = [(self.user_ids[user], item) for user in mine for item in sorted(self.seen[user])]
            parts[INTERACTIONS].append(
                {
                    "user_id": [user for user, _ in pairs],
                    "item_num": [item for _, item in pairs],
                    "weight": [WEIGHT_ONE] * len(pairs),
                    "strength": [WEIGHT_ONE] * len(pairs),
                    "n_events": [1] * len(pairs),
                    "last_event_time": [night.end] * len(pairs),
                    "in_profile": [True] * len(pairs),
                }
            )
        for table, rows in parts.items():
            _commit(night, table, rows, self.users.shape[1] if table.vector else None)


def _commit(night: Night, table: Table, parts: Sequence[Mapping[str, Any]], dim: int | None = None) -> None:
    """Commits columns, nulls where none are given."""
    schema = table.arrow_schema(dim)
    rows = []
    for columns in parts:
        n = len(next(iter(columns.values())))
        rows.append(
            pa.table(
                [columns.get(name, pa.nulls(n, schema.field(name).type)) for name in schema.names],
                schema=schema,
            )
        )
    world.commit(night.store, table, night.ds, rows, dim=dim)


def searched(
    root: Path, vectors: Vectors, on_ray: bool = False, **sections: Any
) -> tuple[Night, dict[str, StageResult]]:
    """Commits the vectors under a root, builds the index and retrieves."""
    night = world.night(root, **sections)
    vectors.commit(night)
    return night, world.run(night, (BUILD_INDEX, RETRIEVE), on_ray)


def lists_of(night: Night) -> dict[str, list[tuple[int, float]]]:
    """The candidates that were committed: user -> (item number, score) in order."""
    rows = night.dataset(CANDIDATES).require("retrieve").read().to_pylist()
    return {row["user_id"]: list(zip(row["item_nums"], row["scores"], strict=True)) for row in rows}
