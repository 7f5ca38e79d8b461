"""Interactions, item vectors and what users wrote -> user vectors, by blocked sparse–dense products.

A bucket's interactions are sorted by user and item, so they stream into CSR blocks multiplied with the
memory-mapped item vectors: no vector goes through a shuffle, and the sum runs in one fixed order. Searches,
reviews and stated interests add their vectors to that sum (kernels/words.py), so users who only searched have
one too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nightjar.config import AggregateUsers, Resources
from nightjar.engines import spark
from nightjar.kernels.taste import unit_rows
from nightjar.kernels.words import with_speakers
from nightjar.matrix import mapped_matrix, vector_dim
from nightjar.stage import Metrics, Night
from nightjar.stages.buckets import stream_histories, strings
from nightjar.stages.user_words import UserWords
from nightjar.store import Attempt, Committed, FileEntry
from nightjar.tables import (
    INTERACTIONS,
    ITEM_VECTORS,
    QUERY_VECTORS,
    USER_TEXTS,
    USER_VECTORS,
    USERS,
    vector_column,
)


def aggregate_users(night: Night, params: AggregateUsers, resources: Resources) -> Metrics:
    """Writes a vector for every user whose history or words say something; the others are counted."""
    del params, resources
    vectors, interactions, users = night.read(ITEM_VECTORS), night.read(INTERACTIONS), night.read(USERS)
    attempt = night.write(USER_VECTORS, vector_dim(vectors))
    words = UserWords.of(night.read(USER_TEXTS), night.read(QUERY_VECTORS))
    half_life = night.config.weigh_events.half_life_days  # in the fingerprint of the interactions
    task = AggregatePart(interactions, users, vectors, attempt, words, half_life)
    session = spark.session(night.config)
    entries = spark.map_parts(session, task, attempt, len(interactions.parts))
    night.wrote(USER_VECTORS, entries)
    n_vectors = sum(entry.rows for entry in entries)
    return {
        "users": users.manifest.rows,
        "vectors": n_vectors,
        "without_history": users.manifest.rows - n_vectors,
    }


@dataclass(frozen=True)
class AggregatePart:
    """Inside a Spark task: one bucket's user vectors."""

    interactions: Committed
    users: Committed
    vectors: Committed
    attempt: Attempt
    words: UserWords | None
    half_life_days: float

    def __call__(self, bucket: int) -> FileEntry:
        return self.attempt.write_part(bucket, self._tables(bucket))

    def _tables(self, bucket: int) -> Iterator[pa.Table]:
        V, norms = mapped_matrix(self.vectors), self.vectors.read(["norm"])["norm"].to_numpy()
        people = self.users.read_part(self.users.parts[bucket], ["user_id", "n_events", "last_event_time"])
        words = self.words.bucket(bucket) if self.words else None
        blocks = stream_histories(self.interactions, bucket)
        for block in blocks if words is None else with_speakers(blocks, words.said.user_ids):
            # The float32 sum follows the order of item numbers; only the direction of U counts.
            sums = block.profile_of_directions(norms) @ V
            U = unit_rows(sums if words is None else sums + words.sums(block, self.half_life_days))
            useful = np.linalg.norm(U, axis=1) > 0.5
            yield _rows(block.user_ids[useful], U[useful], people)


def _rows(user_ids: np.ndarray, U: np.ndarray, people: pa.Table) -> pa.Table:
    at = pc.index_in(pa.array(user_ids, pa.string()), people["user_id"].combine_chunks())
    n = len(user_ids)
    return pa.table(
        {
            "user_id": pa.array(strings(pa.array(user_ids, pa.string())), pa.string()),
            "interest": pa.array(np.zeros(n, np.int32)),
            "vector": vector_column(U),
            "importance": pa.array(np.ones(n, np.float32)),
            "n_events": people["n_events"].take(at),
            "last_event_time": people["last_event_time"].take(at),
        }
    )
