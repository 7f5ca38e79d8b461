"""User vectors and shards -> candidates: every user against every shard, merged exactly.

A bucket of users is the unit of work. What a user has seen or must not get and what is not available never
comes back, and every user gets k_prime candidates wherever the catalogue has them. A user with several
vectors is searched for with each, and the lists become one.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from nightjar.config import Resources, Retrieve
from nightjar.engines import actors
from nightjar.engines.search import Searcher, open_shard
from nightjar.engines.shards import Effort
from nightjar.engines.threads import threads_of, use_threads
from nightjar.errors import GateError
from nightjar.kernels.interests import merge
from nightjar.kernels.limits import Limits, best_among
from nightjar.kernels.topk import Filters, ItemLists, TopK
from nightjar.matrix import mapped_matrix
from nightjar.stage import Metrics, Night
from nightjar.stages.searching.index_recall import Sample, drawn, recall_of
from nightjar.stages.searching.limits import Lists, limits_in, total_counts
from nightjar.stages.users.buckets import HistoriesInOrder, stream_vectors, strings
from nightjar.store import Attempt, Committed, FileEntry
from nightjar.tables import (
    CANDIDATES,
    INDEX_SHARDS,
    INTERACTIONS,
    ITEM_VECTORS,
    ITEMS,
    USER_VECTORS,
    USERS,
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
    found = {bucket: one for bucket in range(n_parts) if (one := _done(attempt, bucket)) is not None}
    with night.report.task("retrieve", n_parts, "buckets") as task:
        task.advance(len(found))
        for bucket, result in pool.map(bucket for bucket in range(n_parts) if bucket not in found):
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
        written, counts = self._write_limits(bucket)
        tally = Tally(written, counts)
        entry = self.work.attempt.write_part(bucket, self._tables(bucket, tally))
        return tally.searched(entry)

    def _tables(self, bucket: int, tally: Tally) -> Iterator[pa.Table]:
        """The bucket's candidates block by block; what is reported of them is put beside them at the end."""
        work = self.work
        limits = self._limits(bucket)
        histories = HistoriesInOrder(work.interactions, bucket)
        for block in stream_vectors(work.users, bucket, work.block_users):
            ids, rows = block.user_ids, len(block.user_ids)
            mine = histories.of(ids)
            seen = ItemLists(mine.indptr, mine.item_nums) if work.params.exclude_seen else None
            found = TopK.nothing(rows, work.params.k_prime)
            theirs = Limits.none(rows) if limits is None else limits.take(block.first + np.arange(rows))
            for at, filters, few in theirs.parts(seen, self.available):
                part = self._search(block.vectors[at], filters, few)
                found.put(at, part)
                positions = block.first + at
                recall = self._recall(bucket, positions, block.vectors[at], part, filters)
                tally.recalls.append(Sample(np.diff(mine.indptr)[at][recall[0]], *recall[1:]))
            merged = merge(found, block.interests, work.params.interests == "quotas")
            tally.n_short += int((merged.n_found < work.params.k_prime).sum())
            yield _candidates(ids[block.interests.starts[:-1]], merged)
        work.attempt.dataset.store.put(_report_name(work.attempt, bucket), tally.to_json())

    def _search(self, U: np.ndarray, filters: Filters, few: np.ndarray | None) -> TopK:
        """The best k_prime of everything, or of a few items where a user may get no others."""
        if few is not None:
            return best_among(U, self.V, few, self.work.params.k_prime, filters)
        return self.searcher.search(U, self.work.params.k_prime, filters)

    def _write_limits(self, bucket: int) -> tuple[FileEntry | None, Metrics]:
        lists = self.work.lists
        return (None, {}) if lists is None else lists.write_bucket(self.work.attempt, bucket)

    def _limits(self, bucket: int) -> Limits | None:
        """The deny and allow lists of the bucket's users, by row; None where none are declared."""
        if self.work.lists is None:
            return None
        rows = self.work.users.read_part(self.work.users.parts[bucket], ["user_id"])
        return limits_in(self.work.attempt, bucket, strings(rows["user_id"]))

    def _recall(
        self, bucket: int, positions: np.ndarray, U: np.ndarray, found: TopK, filters: Filters
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which rows are sampled, and their IndexRecall before and after filters.

        Drawn by position, not by block, so that the sample is the same whatever the block size.
        """
        share = self.work.params.recall_sample / max(self.work.users.manifest.rows, 1)
        chosen = drawn([self.work.params.seed, len(self.V), bucket], positions, share)
        if not len(chosen):
            return chosen, np.empty(0), np.empty(0)
        mine = TopK(found.item_nums[chosen], found.scores[chosen], found.n_found[chosen])
        search = self.searcher.search
        return chosen, *recall_of(search, self.V, U[chosen], filters.take(chosen), mine)


@dataclass
class Tally:
    """What grows while a bucket is searched."""

    limits: FileEntry | None
    list_counts: Metrics
    n_short: int = 0
    recalls: list[Sample] = field(default_factory=list)

    def searched(self, entry: FileEntry) -> Searched:
        return Searched(entry, self.n_short, Sample.together(self.recalls), self.limits, self.list_counts)

    def to_json(self) -> bytes:
        recall = Sample.together(self.recalls)
        plain = {
            "n_short": self.n_short,
            "recall": {name: column.tolist() for name, column in vars(recall).items()},
            "limits": None if self.limits is None else asdict(self.limits),
            "list_counts": self.list_counts,
        }
        return json.dumps(plain).encode()


def _report_name(attempt: Attempt, bucket: int) -> str:
    return f"{attempt.folder}/searched-{bucket:05d}.json"


def _done(attempt: Attempt, bucket: int) -> Searched | None:
    """What a killed run reported of a bucket that it finished, or None."""
    entry, store = attempt.done(bucket), attempt.dataset.store
    data = None if entry is None else store.get(_report_name(attempt, bucket))
    if entry is None or data is None:
        return None
    try:
        plain = json.loads(data)
        recall = Sample(*(np.array(plain["recall"][name]) for name in ("activity", "before", "after")))
        limits = None if plain["limits"] is None else FileEntry(**plain["limits"])
    except (ValueError, TypeError, KeyError):
        return None
    if limits is not None and store.size(f"{attempt.folder}/{limits.name}") != limits.bytes:
        return None
    recall = Sample(recall.activity.astype(np.int64), recall.before, recall.after)
    return Searched(entry, plain["n_short"], recall, limits, plain["list_counts"])


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
