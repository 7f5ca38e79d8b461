"""One face for all indexes: the factory names the engine that builds a shard, a Searcher hides which it was.

`exact` and `lists` are the bulk engine's (the same file: the threshold join, or only a user's nearest lists);
any other factory is a FAISS string. Whatever the engine, a score is `kernels.topk.rescore`'s, the filters
hold, k is met, and ties go to the lower item number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nightjar.engines import bulk, index
from nightjar.engines.shards import Effort, ShardFacts
from nightjar.kernels.topk import F32, I64, Filters, Mask, TopK

__all__ = ["EXACT", "LISTS", "METRIC", "Searcher", "ShardFacts", "build_shard", "is_bulk", "open_shard"]

EXACT, LISTS = "exact", "lists"
METRIC = "ip"
AnyShard = bulk.BulkShard | index.Shard


def is_bulk(factory: str) -> bool:
    """Whether the bulk engine builds and searches this factory."""
    return factory in (EXACT, LISTS)


def build_shard(vectors: F32, item_nums: I64, path: Path, factory: str, seed: int = 0) -> ShardFacts:
    """Write one file of vectors (n, d) float32 with item_nums (n,) int64, ascending; return its facts.

    Errors as from `engines.index.build_shard`.
    """
    if is_bulk(factory):
        return replace(bulk.build_shard(vectors, item_nums, path, seed=seed), factory=factory)
    return index.build_shard(vectors, item_nums, path, factory, METRIC, seed)


def open_shard(path: Path, sha256: str, factory: str) -> AnyShard:
    """Open a shard memory-mapped after its sha256 was checked; errors as from `engines.index.open_shard`."""
    return bulk.open_shard(path, sha256) if is_bulk(factory) else index.open_shard(path, sha256)


@dataclass(frozen=True)
class Searcher:
    """The open shards of one factory over the item vectors (n, d) in item-number order, which may be mapped.

    effort.probe_share counts for `lists` alone; `exact` never leaves an item out.
    """

    factory: str
    shards: Sequence[AnyShard]
    matrix: F32
    effort: Effort

    def held(self) -> Mask:
        """Which items of the matrix some shard holds, (n,) bool; no other is ever found."""
        held = np.zeros(len(self.matrix), np.bool_)
        for shard in self.shards:
            held[shard.item_nums] = True
        return held

    def search(self, queries: F32, k: int, filters: Filters | None = None) -> TopK:
        """The best k allowed items of every user: see `engines.index.search_shards`."""
        found: TopK
        engine: Any = index
        effort = self.effort
        if is_bulk(self.factory):
            engine = bulk
            effort = replace(effort, probe_share=effort.probe_share if self.factory == LISTS else None)
        found = engine.search_shards(list(self.shards), queries, k, self.matrix, filters, effort)
        return found

    def tuned(self, settings: Mapping[str, Any]) -> "Searcher":
        """The same shards searched with other settings of `Effort`."""
        return replace(self, effort=replace(self.effort, **settings))
