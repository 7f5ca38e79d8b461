"""Embeddings and interactions -> item vectors and relations: what behaviour adds to text.

Runs in one actor over memory-mapped matrices, because its result must not depend on how it is split. Items
that nobody touched keep their text vector and have relations by text, so cold items stand among warm ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import partial

import numpy as np
import pyarrow as pa
from scipy import sparse

from nightjar.config import LearnTaste, Resources
from nightjar.engines import actors
from nightjar.engines.nearest import nearest_items
from nightjar.engines.threads import threads_of, use_threads
from nightjar.kernels import relations, signals, taste
from nightjar.kernels.likes import Likes
from nightjar.matrix import mapped_matrix, vector_dim
from nightjar.stage import Metrics, Night
from nightjar.stages.blending.relation_rows import read_relation, relation_rows
from nightjar.stages.blending.taste_log import fit_text_space, learning, read_likes, smoothed
from nightjar.stages.users.query_vectors import write_query_vectors
from nightjar.store import Attempt, Committed, FileEntry
from nightjar.tables import (
    CO_OCCURRENCE,
    INTERACTIONS,
    ITEM_EMBEDDINGS,
    ITEM_TEXT,
    ITEM_VECTORS,
    NEIGHBOURS,
    QUERY_EMBEDDINGS,
    QUERY_VECTORS,
    vector_column,
)

LEAST_NORM = np.float32(1e-2)
"""An item out of fashion for years still has a direction that float32 can hold."""


def learn_taste(night: Night, params: LearnTaste, resources: Resources) -> Metrics:
    """Writes a vector for every item, part by part as item_text has them, and a part for each relation."""
    text, embeddings = night.read(ITEM_TEXT), night.read(ITEM_EMBEDDINGS)
    dim = vector_dim(embeddings)
    work = TasteWork(
        text,
        embeddings,
        night.read(QUERY_EMBEDDINGS),
        night.read(INTERACTIONS),
        night.read(CO_OCCURRENCE),
        night.write(ITEM_VECTORS, dim),
        night.write(NEIGHBOURS),
        night.write(QUERY_VECTORS, dim),
        params,
        night.end,
        threads_of(resources),
    )
    actors.connect(night.config.ray)
    pool: actors.Pool[Learnt] = actors.Pool(work, resources, 1)
    ((_, learnt),) = pool.map([0])
    night.wrote(ITEM_VECTORS, learnt.vectors)
    night.wrote(NEIGHBOURS, learnt.neighbours)
    night.wrote(QUERY_VECTORS, learnt.queries)
    return learnt.metrics


@dataclass(frozen=True)
class Learnt:
    """What the actor reports: the files it wrote and its figures."""

    vectors: list[FileEntry]
    neighbours: list[FileEntry]
    queries: list[FileEntry]
    metrics: Metrics


@dataclass(frozen=True)
class TasteWork:
    """What travels to the actor; the whole catalogue is its one part."""

    text: Committed
    embeddings: Committed
    queries: Committed
    interactions: Committed
    co_occurrence: Committed
    vectors: Attempt
    neighbours: Attempt
    query_vectors: Attempt
    params: LearnTaste
    end: datetime
    threads: int

    def __call__(self) -> TasteWork.Part:
        return self.Part(self)

    @dataclass(frozen=True)
    class Part:
        work: TasteWork

        def __call__(self, part: int) -> Learnt:
            del part
            work, params = self.work, self.work.params
            use_threads(1)  # of BLAS, whose sums may depend on it; threads work on whole relations and blocks
            E = mapped_matrix(work.embeddings)
            space = fit_text_space(E, params)
            V = np.asarray(E) if space is None else taste.whiten(E, space)
            likes = read_likes(work.interactions, len(V), work.end, most=params.most_likes)
            liked = likes.matrix()
            bent, reached = smoothed(V, liked, params.smooth_weight)
            vectors = self._vectors(bent, item_norms(likes, params))
            how = learning(params)
            nearest = partial(nearest_items, threads=work.threads)
            text = relations.from_text(V, how, nearest)
            together = read_relation(work.co_occurrence, len(V))
            learnt = relations.from_behaviour(likes, V, bent, text, how, nearest, work.threads, together)
            every = {"text": text, **self._by_words(how), **learnt}
            found = relations.with_unliked(every, likes.unliked(), how)
            neighbours = [
                work.neighbours.write_part(at, [neighbour_rows(name, relation)])
                for at, (name, relation) in enumerate(found.items())
            ]
            metrics: Metrics = {"items": len(V), "items_with_behaviour": reached, "likes": len(likes)}
            metrics["neighbours"] = {name: relation.nnz for name, relation in found.items()}
            queries = write_query_vectors(work.queries, work.query_vectors, space)
            return Learnt(vectors, neighbours, queries, metrics)

        def _by_words(self, how: relations.Learning) -> dict[str, sparse.csr_matrix]:
            texts = self.work.text.read(["text"])["text"]
            return relations.from_words((text.as_py() for text in texts), how)

        def _vectors(self, V: np.ndarray, norms: np.ndarray) -> list[FileEntry]:
            entries, row = [], 0
            for entry in self.work.text.parts:
                rows = self.work.text.read_part(entry, ["item_id", "item_num"])
                norm = norms[row : row + len(rows)]
                scaled = vector_column(V[row : row + len(rows)] * norm[:, None])
                table = rows.append_column("vector", scaled).append_column("norm", pa.array(norm))
                entries.append(self.work.vectors.write_part(entry.part or 0, [table]))
                row += len(rows)
            return entries


def item_norms(likes: Likes, params: LearnTaste) -> np.ndarray:
    """How much each item counts, (n_items,) float32: its freshness to a power; 1 where nothing is known.

    As the length of its vector, it multiplies every score of the item in retrieval, so one inner-product
    index still finds the best exactly and the shares of a reason do not change.
    """
    if not params.freshness_power:
        return np.ones(likes.n_items, np.float32)
    recent, ever = likes.counts(params.freshness_half_life_days), likes.counts(None)
    norms: np.ndarray = signals.freshness(recent, ever) ** params.freshness_power
    return norms.astype(np.float32).clip(LEAST_NORM)


def neighbour_rows(name: str, relation: sparse.csr_matrix) -> pa.Table:
    """A relation (n_items, n_items) as rows of the neighbours table, one an item."""
    names = pa.array([name] * relation.shape[0], pa.string())
    return relation_rows(relation).add_column(0, "relation", names)
