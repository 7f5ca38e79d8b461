"""Item vectors -> FAISS shards, one actor task a shard."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from nightjar.config import BuildIndex, Resources
from nightjar.engines import actors
from nightjar.engines.index import build_shard
from nightjar.matrix import mapped_matrix
from nightjar.stage import Metrics, Night
from nightjar.store import Attempt, Committed, FileEntry
from nightjar.tables import INDEX_SHARDS, ITEM_VECTORS

METRIC = "ip"


def build_index(night: Night, params: BuildIndex, resources: Resources) -> Metrics:
    """Cuts the items into `shards` runs of item numbers that tile them, and indexes each."""
    vectors, attempt = night.read(ITEM_VECTORS), night.write(INDEX_SHARDS)
    actors.connect(night.config.ray)
    work = ShardWork(vectors, attempt, params)
    pool: actors.Pool[tuple[FileEntry, pa.Table]] = actors.Pool(
        work, resources, actors.pool_size(resources, params.shards)
    )
    with night.report.task("build_index", params.shards, "shards") as task:
        built = {}
        for shard, result in pool.map(range(params.shards)):
            built[shard] = result
            task.advance(1)
    rows = pa.concat_tables([built[shard][1] for shard in sorted(built)])
    night.wrote(INDEX_SHARDS, [*(built[shard][0] for shard in sorted(built)), attempt.write_part(0, [rows])])
    return {"items": vectors.manifest.rows, "shards": params.shards, "factory": params.factory}


@dataclass(frozen=True)
class ShardWork:
    """What travels to an actor, and the work itself: builds the shard of a number."""

    vectors: Committed
    attempt: Attempt
    params: BuildIndex

    def __call__(self) -> ShardWork.Part:
        return self.Part(self)

    @dataclass(frozen=True)
    class Part:
        work: ShardWork

        def __call__(self, shard: int) -> tuple[FileEntry, pa.Table]:
            params, V = self.work.params, mapped_matrix(self.work.vectors)
            start, stop = (len(V) * at // params.shards for at in (shard, shard + 1))
            name = f"shard-{shard:05d}.faiss"
            scratch = self.work.attempt.dataset.store.scratch(self.work.attempt.folder)
            with tempfile.TemporaryDirectory(dir=scratch, prefix=".tmp-") as folder:
                aside = Path(folder) / name
                nums = np.arange(start, stop, dtype=np.int64)
                facts = build_shard(V[start:stop], nums, aside, params.factory, METRIC, params.seed)
                entry = self.work.attempt.put_artefact(aside, name)
            row = {
                "shard": pa.array([shard], pa.int32()),
                "file": [name],
                "n_vectors": [facts.n_vectors],
                "factory": [facts.factory],
                "metric": [facts.metric],
                "sha256": [facts.sha256],
            }
            return entry, pa.table(row)
