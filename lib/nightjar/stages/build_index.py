"""Item vectors -> index shards, one actor task a shard."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nightjar.config import BuildIndex, Resources
from nightjar.engines import actors
from nightjar.engines.choose import Limits, Trial, plan, settled, trials
from nightjar.engines.search import METRIC, Searcher, ShardFacts, build_shard, is_bulk, open_shard
from nightjar.engines.shards import Effort
from nightjar.engines.threads import threads_of, use_threads
from nightjar.kernels.topk import item_norms
from nightjar.matrix import mapped_matrix, vector_dim
from nightjar.stage import Metrics, Night
from nightjar.store import Attempt, Committed, FileEntry
from nightjar.tables import INDEX_SHARDS, ITEM_VECTORS

AUTO = "auto"
ROWS = 8192


def build_index(night: Night, params: BuildIndex, resources: Resources) -> Metrics:
    """Cuts the items into `shards` runs of item numbers that tile them, and indexes each.

    An item whose vector is zero stands in none: nothing is known that would make it anybody's.

    Metrics name the factory; where it was chosen (`auto`) also why, what was tried, and the effort to search
    it with.
    """
    vectors, attempt = night.read(ITEM_VECTORS), night.write(INDEX_SHARDS)
    factory, why = params.factory, ""
    if factory == AUTO:
        limits = Limits(params.exact_up_to, params.memory_bytes, params.recall_target)
        factory, why = plan(vectors.manifest.rows, vector_dim(vectors), params.shards, limits)
    actors.connect(night.config.ray)
    work = ShardWork(
        vectors,
        attempt,
        params.shards,
        factory,
        params.seed,
        Effort(threads=threads_of(resources)),
        bool(why),
    )
    pool: actors.Pool[Built] = actors.Pool(work, resources, actors.pool_size(resources, params.shards))
    found: dict[int, Built] = {}
    with night.report.task("build_index", params.shards, "shards") as task:
        for shard, result in pool.map(range(params.shards)):
            found[shard] = result
            task.advance(1)
    built = [found[shard] for shard in sorted(found)]
    chosen: dict[str, Any] = {"factory": factory}
    if why:
        tried = [one.trials for one in built if one.trials]
        chosen = settled(factory, why, tried, params.recall_target)
    rows = _rows(built, chosen["factory"])
    night.wrote(INDEX_SHARDS, [*(one.entry for one in built), attempt.write_part(0, [rows])])
    held = sum(one.facts.n_vectors for one in built)
    return {
        "items": held,
        "items_without_vector": vectors.manifest.rows - held,
        "shards": params.shards,
        "bytes": sum(one.facts.bytes for one in built),
        **chosen,
    }


def _rows(built: list[Built], factory: str) -> pa.Table:
    return pa.table(
        {
            "shard": pa.array(range(len(built)), pa.int32()),
            "file": [one.entry.name for one in built],
            "n_vectors": [one.facts.n_vectors for one in built],
            "factory": [factory] * len(built),
            "metric": [METRIC] * len(built),
            "sha256": [one.facts.sha256 for one in built],
        }
    )


@dataclass(frozen=True)
class Built:
    """One finished shard; trials: what was measured of it, nothing unless the factory is being chosen."""

    entry: FileEntry
    facts: ShardFacts
    trials: list[Trial]


@dataclass(frozen=True)
class ShardWork:
    """What travels to an actor, and the work itself: builds the shard of a number.

    effort: how to search a finished shard; measure: whether to do so, to see what it needs.
    """

    vectors: Committed
    attempt: Attempt
    n_shards: int
    factory: str
    seed: int
    effort: Effort
    measure: bool

    def __call__(self) -> ShardWork.Part:
        return self.Part(self)

    @dataclass(frozen=True)
    class Part:
        work: ShardWork

        def __call__(self, shard: int) -> Built:
            work, V = self.work, mapped_matrix(self.work.vectors)
            use_threads(work.effort.threads)
            start, stop = (len(V) * at // work.n_shards for at in (shard, shard + 1))
            name = f"shard-{shard:05d}.{'bulk' if is_bulk(work.factory) else 'faiss'}"
            scratch = work.attempt.dataset.store.scratch(work.attempt.folder)
            with tempfile.TemporaryDirectory(dir=scratch, prefix=".tmp-") as folder:
                aside = Path(folder) / name
                nums = start + np.flatnonzero(item_norms(V[start:stop], f"items from {start}") > 0)
                mine = V[start:stop] if len(nums) == stop - start else _mapped_rows(V, nums, Path(folder))
                facts = build_shard(mine, nums, aside, work.factory, work.seed)
                tried: list[Trial] = []
                if work.measure and len(nums):
                    opened = open_shard(aside, facts.sha256, work.factory)
                    searcher = Searcher(work.factory, [opened], V, work.effort)
                    tried = trials(searcher, slice(start, stop), work.seed)
                return Built(work.attempt.put_artefact(aside, name), facts, tried)


def _mapped_rows(V: np.ndarray, nums: np.ndarray, folder: Path) -> np.ndarray:
    """Some rows of a matrix as a map of a file of their own, so that they need no memory."""
    if not len(nums):
        return V[:0]
    rows = np.memmap(folder / "vectors", np.float32, "w+", shape=(len(nums), V.shape[1]))
    for start in range(0, len(nums), ROWS):
        rows[start : start + ROWS] = V[nums[start : start + ROWS]]
    return rows
