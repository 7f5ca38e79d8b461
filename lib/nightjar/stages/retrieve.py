"""User vectors and shards -> candidates: every user against every shard, merged exactly.

A bucket of users is the unit of work. What a user has seen or must not get and what is not available never
comes back, and every user gets k_prime candidates wherever the catalogue has them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from nightjar.config import Resources, Retrieve
from nightjar.engines import actors
from nightjar.engines.search import Searcher, open_shard
from nightjar.engines.shards import Effort
from nightjar.engines.threads import threads_of, use_threads
from nightjar.errors import GateError
from nightjar.kernels.limits import Limits, best_among
from nightjar.kernels.topk import Filters, ItemLists, TopK
from nightjar.matrix import mapped_matrix
from nightjar.stage import Metrics, Night
from nightjar.stages.buckets import read_histories, strings
from nightjar.stages.index_recall import Sample, recall_of
from nightjar.stages.limits import Lists, limits_in, total_counts
from nightjar.store import Attempt, Committed, FileEntry
from nightjar.tables import (
    CANDIDATES,
    INDEX_SHARDS,
    INTERACTIONS,
    ITEM_VECTORS,
    ITEMS,
    USER_VECTORS,
    USERS,
    vectors,
)


def retrieve(night: Night, params: Retrieve, resources: Resources) -> Metrics:
    """Writes candidates for every user with a vector; refuses an index whose sampled recall is too low."""
    users, attempt = night.read(USER_VECTORS), night.write(CANDIDATES)
    lists = Lists(params, night.raw.get("limits_raw", {}), night.read(USERS), night.read(ITEMS))
    sets, counts = lists.write_sets(attempt) if params.deny or params.allow else (None, {})
    work = RetrieveWork(
        users,
        night.read(INTERACTIONS),
        Catalogue(night.read(ITEMS), night.read(ITEM_VECTORS), night.read(INDEX_SHARDS)),
        attempt,
        params,
        lists if sets else None,
        _effort(params, resources),
        resources.block_users,
    )
    actors.connect(night.config.ray)
    n_parts = len(users.parts)
    pool: actors.Pool[Searched] = actors.Pool(work, resources, actors.pool_size(resources, n_parts))
    found: dict[int, Searched] = {}
    with night.report.task("retrieve", n_parts, "buckets") as task:
        for bucket, result in pool.map(range(n_parts)):
            found[bucket] = result
            task.advance(1, result.entry.rows, "users")
    recall = Sample.together([found[bucket].recall for bucket in sorted(found)]).metrics()
    if recall["index_recall"] < params.min_recall:
        raise GateError(
            f"retrieve {night.ds}: IndexRecall@{params.k_prime} is {recall['index_recall']:.4f} on "
            f"{recall['recall_users']} sampled users, below {params.min_recall}; raise nprobe, ef_search, "
            "probe_share or k_factor, or use factory exact"
        )
    parts = [found[bucket] for bucket in sorted(found)]
    artefacts = [entry for entry in (sets, *(one.limits for one in parts)) if entry is not None]
    night.wrote(CANDIDATES, [*(one.entry for one in parts), *artefacts])
    return {
        "users": sum(one.entry.rows for one in found.values()),
        "short": sum(one.n_short for one in found.values()),
        "lists": {**counts, **total_counts([one.list_counts for one in parts])},
        **recall,
    }


def _effort(params: Retrieve, resources: Resources) -> Effort:
    return Effort(
        threads=threads_of(resources),
        nprobe=params.nprobe,
        ef_search=params.ef_search,
        k_factor=params.k_factor,
        probe_share=params.probe_share,
        device="cuda" if resources.num_gpus else "cpu",
    )


@dataclass(frozen=True)
class Catalogue:
    """The item side of a search: availability, vectors, shards."""

    items: Committed
    vectors: Committed
    shards: Committed


@dataclass(frozen=True)
class Searched:
    """What a bucket's search reports. n_short: users with fewer than k_prime candidates; limits: the file of
    its deny and allow lists, where there are any; list_counts: what was counted in reading them.
    """

    entry: FileEntry
    n_short: int
    recall: Sample
    limits: FileEntry | None
    list_counts: Metrics


@dataclass(frozen=True)
class RetrieveWork:
    """What travels to an actor; called there, it opens the shards."""

    users: Committed
    interactions: Committed
    catalogue: Catalogue
    attempt: Attempt
    params: Retrieve
    lists: Lists | None
    effort: Effort
    block_users: int

    def __call__(self) -> RetrievePart:
        return RetrievePart(self)


class RetrievePart:
    """Inside an actor: open shards, mapped vectors, and the search of one bucket after another."""

    def __init__(self, work: RetrieveWork) -> None:
        self.work = work
        use_threads(work.effort.threads)
        self.V = mapped_matrix(work.catalogue.vectors)
        items = work.catalogue.items.read(["item_num", "available"])
        self.available = np.zeros(len(self.V), bool)
        self.available[items["item_num"].to_numpy()] = items["available"].to_numpy()
        self.searcher = self._open(work.catalogue.shards)
        self.available &= self.searcher.held()

    def _open(self, shards: Committed) -> Searcher:
        """The shards, searched as the configuration says or, where build_index chose, as it found enough."""
        rows = shards.read(["file", "factory", "sha256"]).to_pylist()
        store = shards.dataset.store
        opened = []
        for row in rows:
            entry = shards.artefact(row["file"])
            if store.is_local:
                opened.append(open_shard(Path(shards.path(entry)), row["sha256"], row["factory"]))
                continue
            with (
                tempfile.NamedTemporaryFile() as local,
                store.open(shards.name_of(entry)) as source,
            ):
                while chunk := source.read(1 << 22):
                    local.write(chunk)
                local.flush()
                # It stays mapped after the name is gone.
                opened.append(open_shard(Path(local.name), row["sha256"], row["factory"]))
        factory = rows[0]["factory"]
        tuned = shards.manifest.metrics.get("effort", {})
        return Searcher(factory, opened, self.V, self.work.effort).tuned(tuned)

    def __call__(self, bucket: int) -> Searched:
        rows = self.work.users.read_part(self.work.users.parts[bucket], ["user_id", "vector"])
        user_ids, U = strings(rows["user_id"]), vectors(rows["vector"])
        histories = read_histories(self.work.interactions, bucket).aligned(user_ids)
        seen = ItemLists(histories.indptr, histories.item_nums) if self.work.params.exclude_seen else None
        limits, written, counts = self._limits(bucket, user_ids)
        tables, n_short, recalls = [], 0, []
        for at in self._blocks(len(U)):
            found = TopK.nothing(len(at), self.work.params.k_prime)
            for mine, filters, few in limits.take(at).parts(seen.take(at) if seen else None, self.available):
                part = self._search(U[at[mine]], filters, few)
                found.put(mine, part)
                recalls.append(
                    self._recall(U[at[mine]], part, filters, np.diff(histories.indptr)[at[mine]], at[mine])
                )
            tables.append(_candidates(user_ids[at], found))
            n_short += int((found.n_found < self.work.params.k_prime).sum())
        entry = self.work.attempt.write_part(bucket, tables)
        return Searched(entry, n_short, Sample.together(recalls), written, counts)

    def _search(self, U: np.ndarray, filters: Filters, few: np.ndarray | None) -> TopK:
        """The best k_prime of everything, or of a few items where a user may get no others."""
        if few is not None:
            return best_among(U, self.V, few, self.work.params.k_prime, filters)
        return self.searcher.search(U, self.work.params.k_prime, filters)

    def _limits(self, bucket: int, user_ids: np.ndarray) -> tuple[Limits, FileEntry | None, Metrics]:
        lists, attempt = self.work.lists, self.work.attempt
        if lists is None:
            return Limits.none(len(user_ids)), None, {}
        written, counts = lists.write_bucket(attempt, bucket)
        return limits_in(attempt, bucket, user_ids), written, counts

    def _blocks(self, n_users: int) -> Iterator[np.ndarray]:
        for start in range(0, n_users, self.work.block_users):
            yield np.arange(start, min(start + self.work.block_users, n_users))

    def _recall(
        self, U: np.ndarray, found: TopK, filters: Filters, activity: np.ndarray, at: np.ndarray
    ) -> Sample:
        """IndexRecall of the sampled users of a block."""
        share = self.work.params.recall_sample / max(self.work.users.manifest.rows, 1)
        # Drawn by position, not by block, so that the sample is the same whatever the block size.
        drawn = np.random.default_rng([self.work.params.seed, len(self.V)]).random(int(at[-1]) + 1)[at]
        chosen = np.flatnonzero(drawn < share)
        if not len(chosen):
            return Sample.none()
        mine = TopK(found.item_nums[chosen], found.scores[chosen], found.n_found[chosen])
        search = self.searcher.search
        return Sample(activity[chosen], *recall_of(search, self.V, U[chosen], filters.take(chosen), mine))


def _candidates(user_ids: np.ndarray, found: TopK) -> pa.Table:
    """One row a user; what stands beyond n_found is cut off."""
    kept = np.arange(found.item_nums.shape[1]) < found.n_found[:, None]
    offsets = pa.array(np.r_[0, np.cumsum(found.n_found)].astype(np.int32))
    return pa.table(
        {
            "user_id": pa.array(user_ids, pa.string()),
            "source": pa.array(["personal"] * len(user_ids), pa.string()),
            "item_nums": pa.ListArray.from_arrays(offsets, pa.array(found.item_nums[kept])),
            "scores": pa.ListArray.from_arrays(offsets, pa.array(found.scores[kept])),
        }
    )
