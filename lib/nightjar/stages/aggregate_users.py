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
import pyarrow.parquet as pq
from scipy import sparse

from nightjar.config import AggregateUsers, Resources
from nightjar.engines import spark
from nightjar.kernels.clusters import Interests, Splitting, interests
from nightjar.kernels.signals import Fading
from nightjar.kernels.taste import unit_rows
from nightjar.kernels.words import with_speakers
from nightjar.matrix import mapped_matrix, vector_dim
from nightjar.stage import Metrics, Night
from nightjar.stages.users.buckets import stream_histories, strings
from nightjar.stages.users.words import UserWords
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
    """Writes the vectors of every user whose history or words say something; the others are counted."""
    del resources
    vectors, interactions, users = night.read(ITEM_VECTORS), night.read(INTERACTIONS), night.read(USERS)
    attempt = night.write(USER_VECTORS, vector_dim(vectors))
    words = UserWords.of(night.read(USER_TEXTS), night.read(QUERY_VECTORS))
    half_life = night.config.weigh_events.half_life_days  # in the fingerprint of the interactions
    how = Splitting(
        params.interests,
        params.interest_distance,
        params.interest_items,
        params.interest_vector == "medoid",
    )
    task = AggregatePart(interactions, users, vectors, attempt, words, half_life, how)
    session = spark.session(night.config)
    entries = spark.map_parts(session, task, attempt, len(interactions.parts))
    night.wrote(USER_VECTORS, entries)
    with_vector = sum(_people(attempt, entry) for entry in entries)
    return {
        "users": users.manifest.rows,
        "vectors": sum(entry.rows for entry in entries),
        "without_history": users.manifest.rows - with_vector,
    }


def _people(attempt: Attempt, entry: FileEntry) -> int:
    """Users of a part that was written moments ago: each has one first interest."""
    with attempt.dataset.store.open(f"{attempt.folder}/{entry.name}") as source:
        first = pq.read_table(source, columns=["interest"])["interest"]
    return pc.sum(pc.equal(first, 0)).as_py() or 0


@dataclass(frozen=True)
class AggregatePart:
    """Inside a Spark task: one bucket's user vectors."""

    interactions: Committed
    users: Committed
    vectors: Committed
    attempt: Attempt
    words: UserWords | None
    half_life_days: float
    how: Splitting

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
            said = None if words is None else words.sums(block, Fading(self.half_life_days))
            U = unit_rows(sums if said is None else sums + said)
            useful = np.linalg.norm(U, axis=1) > 0.5
            rows = _whole(np.flatnonzero(useful), U[useful])
            if self.how.most > 1:
                profile = block.profile(len(V))
                several = interests(profile, V, self.how)
                rows = _split(rows, several if said is None else _with_words(several, said, profile))
            yield _rows(block.user_ids[rows.user], rows, people)


def _whole(users: np.ndarray, U: np.ndarray) -> Interests:
    """The one vector of each user, of importance 1 and without a medoid."""
    return Interests(users, U, np.ones(len(users), np.float32), np.full(len(users), -1, np.int64))


def _split(whole: Interests, several: Interests) -> Interests:
    """Users who have several interests with these alone, the others with their one vector."""
    one = ~np.isin(whole.user, several.user)
    user = np.concatenate([whole.user[one], several.user])
    order = np.argsort(user, kind="stable")
    vector = np.concatenate([whole.vector[one], several.vector])
    importance = np.concatenate([whole.importance[one], several.importance])
    medoid = np.concatenate([whole.medoid[one], several.medoid])
    return Interests(user[order], vector[order], importance[order], medoid[order])


def _with_words(several: Interests, said: np.ndarray, profile: sparse.csr_matrix) -> Interests:
    """What a user wrote as one interest more, which counts as much of the user as it does in their sum.

    said: (q, d) float32 sums of what users wrote; profile: (q, n_items) weights of their items.
    """
    length = np.linalg.norm(said, axis=1)
    liked = np.asarray(profile.maximum(0).sum(axis=1)).ravel()
    share = length / np.maximum(length + liked, np.float32(1e-9))
    writers = np.unique(several.user[length[several.user] > 0])
    user = np.concatenate([several.user, writers])
    vector = np.concatenate([several.vector, unit_rows(said[writers])])
    importance = np.concatenate([several.importance * (1 - share[several.user]), share[writers]])
    medoid = np.concatenate([several.medoid, np.full(len(writers), -1, np.int64)])
    order = np.lexsort((-importance, user))
    return Interests(user[order], vector[order], importance[order].astype(np.float32), medoid[order])


def _rows(user_ids: np.ndarray, found: Interests, people: pa.Table) -> pa.Table:
    at = pc.index_in(pa.array(user_ids, pa.string()), people["user_id"].combine_chunks())
    n = len(user_ids)
    first = np.searchsorted(found.user, found.user)
    return pa.table(
        {
            "user_id": pa.array(strings(pa.array(user_ids, pa.string())), pa.string()),
            "interest": pa.array((np.arange(n) - first).astype(np.int32)),
            "vector": vector_column(found.vector),
            "importance": pa.array(found.importance),
            "n_events": people["n_events"].take(at),
            "last_event_time": people["last_event_time"].take(at),
        }
    )
