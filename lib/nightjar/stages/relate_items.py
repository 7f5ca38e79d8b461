"""Interactions -> which items the same users like: co-occurrence of the whole log, counted in Spark tasks.

A task finds the neighbours of a block of items. It reads the log once, bucket by bucket, and keeps the users
who like an item of its block: their rows times the block is all that these items' neighbours rest on. So no
pair of items goes through a shuffle (a billion likes make some hundred billion), what a task holds shrinks
with its block, and a part finished by an interrupted run is not made again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from scipy import sparse

from nightjar.config import RelateItems, Resources
from nightjar.engines import spark
from nightjar.kernels.signals import add_weights, co_occurrence_rows
from nightjar.stage import Metrics, Night, require_rows
from nightjar.stages.blending.relation_rows import relation_rows
from nightjar.stages.blending.taste_log import bucket_likes, counting
from nightjar.store import Attempt, Committed, FileEntry
from nightjar.tables import CO_OCCURRENCE, INTERACTIONS, ITEM_TEXT


def relate_items(night: Night, params: RelateItems, resources: Resources) -> Metrics:
    """Writes a row for every item, a part for each block of them."""
    del resources
    text, interactions = night.read(ITEM_TEXT), night.read(INTERACTIONS)
    require_rows(text, "so there is nothing to recommend; look at items_quarantine and the item sources")
    attempt, n_items = night.write(CO_OCCURRENCE), text.manifest.rows
    task = RelatePart(interactions, attempt, n_items, params, night.end)
    n_parts = -(-n_items // params.block_items)
    night.wrote(CO_OCCURRENCE, spark.map_parts(spark.session(night.config), task, attempt, n_parts))
    return {"items": n_items}


@dataclass(frozen=True)
class RelatePart:
    """Inside a Spark task: the neighbours of one block of items."""

    interactions: Committed
    attempt: Attempt
    n_items: int
    params: RelateItems
    end: datetime

    def __call__(self, part: int) -> FileEntry:
        how, size = counting(self.params), self.params.block_items
        items = range(part * size, min((part + 1) * size, self.n_items))
        weight, theirs = np.zeros(self.n_items), [sparse.csr_matrix((0, self.n_items), dtype=np.float32)]
        for bucket in range(len(self.interactions.parts)):
            likes, _ = bucket_likes(self.interactions, bucket, self.n_items, self.end)
            X = likes.newest(self.params.user_likes).matrix()
            add_weights(weight, X, how)
            theirs.append(X[np.diff(X[:, items.start : items.stop].indptr) > 0])
        found = co_occurrence_rows(sparse.vstack(theirs, "csr"), weight, items, how)
        return self.attempt.write_part(part, [relation_rows(found, items.start)])
