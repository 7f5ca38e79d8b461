"""Embeddings and interactions -> item vectors: what behaviour adds to text.

Runs in one actor over memory-mapped matrices: the work is linear in the catalogue and in the pairs, and its
result must not depend on how it is split. Items that nobody touched keep their text vector, so cold items
stand among warm ones in one space.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
from scipy import sparse

from nightjar.config import LearnTaste, Resources
from nightjar.engines import actors
from nightjar.kernels import signals, taste
from nightjar.matrix import mapped_matrix, vector_dim
from nightjar.stage import Metrics, Night, require_rows
from nightjar.stages.buckets import read_histories
from nightjar.store import Attempt, Committed, FileEntry
from nightjar.tables import INTERACTIONS, ITEM_EMBEDDINGS, ITEM_TEXT, ITEM_VECTORS, vector_column

LEAST_NORM = np.float32(1e-2)
"""An item out of fashion for years still has a direction that float32 can hold."""


def learn_taste(night: Night, params: LearnTaste, resources: Resources) -> Metrics:
    """Writes a vector for every item, part by part as item_text has them."""
    text, embeddings = night.read(ITEM_TEXT), night.read(ITEM_EMBEDDINGS)
    require_rows(text, "so there is nothing to recommend; look at items_quarantine and the item sources")
    attempt = night.write(ITEM_VECTORS, vector_dim(embeddings))
    actors.connect(night.config.ray)
    work = TasteWork(text, embeddings, night.read(INTERACTIONS), attempt, params, night.end)
    pool: actors.Pool[tuple[list[FileEntry], Metrics]] = actors.Pool(work, resources, 1)
    ((_, (entries, metrics)),) = pool.map([0])
    night.wrote(ITEM_VECTORS, entries)
    return metrics


@dataclass(frozen=True)
class TasteWork:
    """What travels to the actor; the whole catalogue is its one part."""

    text: Committed
    embeddings: Committed
    interactions: Committed
    attempt: Attempt
    params: LearnTaste
    end: datetime

    def __call__(self) -> TasteWork.Part:
        return self.Part(self)

    @dataclass(frozen=True)
    class Part:
        work: TasteWork

        def __call__(self, part: int) -> tuple[list[FileEntry], Metrics]:
            del part
            work = self.work
            V, neighbours = item_vectors(mapped_matrix(work.embeddings), work.interactions, work.params)
            norms = item_norms(work.interactions, len(V), work.params, work.end)
            entries, row = [], 0
            for entry in work.text.parts:
                rows = work.text.read_part(entry, ["item_id", "item_num"])
                norm = norms[row : row + len(rows)]
                scaled = vector_column(V[row : row + len(rows)] * norm[:, None])
                table = rows.append_column("vector", scaled).append_column("norm", pa.array(norm))
                entries.append(work.attempt.write_part(entry.part or 0, [table]))
                row += len(rows)
            return entries, {"items": len(V), "items_with_behaviour": neighbours}


def item_vectors(E: np.ndarray, interactions: Committed, params: LearnTaste) -> tuple[np.ndarray, int]:
    """The (n, d) unit item vectors from embeddings E and behaviour, and how many items behaviour reached."""
    V = np.asarray(E) if params.transform == "raw" else _transformed(E, params)
    if not params.smooth_weight:
        return V, 0
    buckets = (_liked(interactions, bucket, len(V)) for bucket in range(len(interactions.parts)))
    neighbours = taste.propagate(V, buckets)
    return taste.smooth(V, neighbours, params.smooth_weight), int((neighbours != 0).any(axis=1).sum())


def item_norms(interactions: Committed, n_items: int, params: LearnTaste, end: datetime) -> np.ndarray:
    """How much each item counts, (n_items,) float32: its freshness to a power; 1 where nothing is known.

    As the length of its vector, it multiplies every score of the item in retrieval, so one inner-product
    index still finds the best exactly and the shares of a reason do not change.
    """
    if not params.freshness_power:
        return np.ones(n_items, np.float32)
    recent, ever = np.zeros(n_items), np.zeros(n_items)
    for entry in interactions.parts:
        rows = interactions.read_part(entry, ["item_num", "weight", "last_event_time"])
        liked = rows["weight"].to_numpy() > 0
        nums = rows["item_num"].to_numpy()[liked]
        micros = rows["last_event_time"].cast(pa.int64()).to_numpy()[liked]
        age_days = (end.timestamp() - micros / 1e6) / 86_400
        ever += np.bincount(nums, minlength=n_items)
        decayed = signals.decay(age_days, params.freshness_half_life_days)
        recent += np.bincount(nums, weights=decayed, minlength=n_items)
    norms: np.ndarray = signals.freshness(recent, ever) ** params.freshness_power
    return norms.astype(np.float32).clip(LEAST_NORM)


def _transformed(E: np.ndarray, params: LearnTaste) -> np.ndarray:
    power = params.whiten_power if params.transform == "whiten" else 0.0
    return taste.whiten(E, taste.fit_whitening(E, power, params.shrinkage))


def _liked(interactions: Committed, bucket: int, n_items: int) -> sparse.csr_matrix:
    """One bucket's positive interactions as 1.0 each: repeated clicks say little about what goes together."""
    weights = read_histories(interactions, bucket).profile(n_items)
    weights.data = (weights.data > 0).astype(np.float32)
    weights.eliminate_zeros()
    return weights
