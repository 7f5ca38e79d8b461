"""Lists as of t0 against what users did afterwards: recommendations of a back-test -> metrics.

Definitions are those of kernels/metrics.py. Everything is ranked against the full catalogue as of t0; what a
user had seen before t0 is left out of truth and lists alike, or of neither. Per-user values are kept.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from nightjar.config import Evaluate, Resources
from nightjar.engines import spark
from nightjar.errors import ContractError
from nightjar.kernels.beyond import entropy_bits, exposure, gini
from nightjar.kernels.fallback import Fallback, fill
from nightjar.kernels.interactions import Histories
from nightjar.kernels.metrics import accuracy, eligible
from nightjar.kernels.statistics import bootstrap_mean, paired_difference
from nightjar.kernels.topk import ItemLists
from nightjar.stage import Metrics, Night
from nightjar.stages.buckets import list_matrix, read_histories, strings
from nightjar.stages.weigh_events import event_weight
from nightjar.store import Attempt, Committed, FileEntry
from nightjar.tables import (
    EVENTS,
    GROUPS,
    INTERACTIONS,
    ITEMS,
    METRICS,
    RECOMMENDATIONS,
    TRUTH,
    USER_METRICS,
    USERS,
)

METHODS = ("nightjar", "popular", "random")
RANDOM_DRAWS = 4
"""Random baseline: items drawn for each slot, so that seen ones can be left out."""


def evaluate(night: Night, params: Evaluate, resources: Resources) -> Metrics:
    """Writes truth, per-user metrics and their means with bootstrap intervals for the lists of night.ds."""
    del resources
    session = spark.session(night.config)
    n_parts = len(night.read(USERS).parts)
    truth = spark.write(
        _liked_after(session, night, params), night.write(TRUTH), n_parts, ("user_id", "item_num")
    )
    night.wrote(TRUTH, truth)
    popular = _popular(session, night, params)
    task = EvaluatePart(
        _Lists.of(night), night.write(TRUTH), truth, popular, night.write(USER_METRICS), params
    )
    entries = spark.map_parts(session, task, task.attempt, n_parts)
    night.wrote(USER_METRICS, entries)
    names = metric_names(params)
    rows = [*_means(night, entries, names, params), *_catalogue_rows(night, params)]
    night.wrote(METRICS, [night.write(METRICS).write_part(0, [_metrics_table(rows)])])
    return {"names": names, "truth_rows": sum(e.rows for e in truth), "t0": str(night.ds + timedelta(days=1))}


def metric_names(params: Evaluate) -> list[str]:
    """Names of the accuracy metrics in the order of USER_METRICS.values."""
    none = np.zeros(1, np.int64)
    return list(accuracy(np.full((0, 1), -1), (none, none[:0]), params.ks))


def _liked_after(session: SparkSession, night: Night, params: Evaluate) -> DataFrame:
    """Distinct (user_id, item_num) liked in the test_days after ds, of items the catalogue of ds has."""
    events = spark.read_files(session, EVENTS, [raw.path for raw in night.raw["truth"]["events"]])
    end = night.end + timedelta(days=params.test_days)
    weight = event_weight(night.config.clean_events, night.config.weigh_events, F.col("event_time"))
    liked = events.filter((F.col("event_time") >= night.end) & (F.col("event_time") < end) & (weight > 0))
    items = spark.read(session, night.read(ITEMS)).select("item_id", "item_num")
    pairs = liked.join(items, "item_id").select("user_id", "item_num").distinct()
    if not night.config.retrieve.exclude_seen:
        return pairs
    seen = spark.read(session, night.read(INTERACTIONS)).select("user_id", "item_num")
    return pairs.join(seen, ["user_id", "item_num"], "left_anti")


def _popular(session: SparkSession, night: Night, params: Evaluate) -> np.ndarray:
    """Available items by the number of users who liked them in the last `popular_days`, ties by number."""
    since = night.end - timedelta(days=params.popular_days)
    pairs = spark.read(session, night.read(INTERACTIONS))
    recent = pairs.filter((F.col("last_event_time") >= since) & (F.col("weight") > 0))
    counted = recent.groupBy("item_num").count().orderBy(F.desc("count"), "item_num")
    items = spark.read(session, night.read(ITEMS)).filter("available").select("item_num")
    with spark.spark_errors("evaluate"):
        rows = counted.join(items, "item_num").orderBy(F.desc("count"), "item_num").limit(20_000).collect()
    return np.array([row["item_num"] for row in rows], np.int64)


@dataclass(frozen=True)
class _Lists:
    """The committed inputs of a bucket's evaluation."""

    recommendations: Committed
    users: Committed
    items: Committed
    interactions: Committed
    exclude_seen: bool
    k: int

    @classmethod
    def of(cls, night: Night) -> _Lists:
        return cls(
            night.read(RECOMMENDATIONS),
            night.read(USERS),
            night.read(ITEMS),
            night.read(INTERACTIONS),
            night.config.retrieve.exclude_seen,
            night.config.rank.k,
        )


@dataclass(frozen=True)
class EvaluatePart:
    """Inside a Spark task: per-user metrics of every method for one bucket."""

    lists: _Lists
    truth_attempt: Attempt
    truth_files: tuple[FileEntry, ...]
    popular: np.ndarray
    attempt: Attempt
    params: Evaluate

    def __call__(self, bucket: int) -> FileEntry:
        return self.attempt.write_part(bucket, self._tables(bucket))

    def _tables(self, bucket: int) -> Iterator[pa.Table]:
        truth = read_attempt(self.truth_attempt, self.truth_files[bucket])
        user_ids, starts = np.unique(strings(truth["user_id"]), return_index=True)
        if not len(user_ids):
            return
        csr = np.r_[starts, len(truth)].astype(np.int64), truth["item_num"].to_numpy()
        items = self.lists.items.read(["item_id", "available"]).combine_chunks()
        histories = read_histories(self.lists.interactions, bucket).aligned(user_ids)
        people = self.lists.users.read_part(self.lists.users.parts[bucket], ["user_id"])["user_id"]
        known = pc.is_in(pa.array(user_ids, pa.string()), people.combine_chunks()).to_numpy(
            zero_copy_only=False
        )
        group = np.where(np.diff(histories.indptr) > 0, 0, np.where(known, 1, 2))
        available = np.flatnonzero(items["available"].to_numpy())
        made = {
            "nightjar": self._ours(bucket, user_ids, items["item_id"]),
            "popular": self._filled(histories, [Fallback(self.popular, 0)] * len(user_ids)),
            "random": self._filled(histories, [self._shuffled(user_id, available) for user_id in user_ids]),
        }
        tables = []
        for method, lists in made.items():
            lists[group == 2] = -1  # nobody can make a list for a user they have never heard of
            values = np.stack(list(accuracy(lists, csr, self.params.ks).values()), axis=1)
            tables.append(_user_rows(user_ids, method, group, np.diff(csr[0]), values))
        yield pa.concat_tables(tables).sort_by([("user_id", "ascending"), ("method", "ascending")])

    def _ours(self, bucket: int, user_ids: np.ndarray, item_ids: pa.ChunkedArray) -> np.ndarray:
        entry = self.lists.recommendations.parts[bucket]
        rows = self.lists.recommendations.read_part(entry, ["user_id", "rank", "item_id"])
        return list_matrix(rows, pa.array(user_ids, pa.string()), item_ids.combine_chunks(), self.lists.k)

    def _filled(self, histories: Histories, orders: list[Fallback]) -> np.ndarray:
        n, k = len(histories), max(self.params.ks)
        seen = ItemLists(histories.indptr, histories.item_nums)
        if not self.lists.exclude_seen:
            seen = ItemLists(np.zeros(n + 1, np.int64), np.empty(0, np.int64))
        lists, _ = fill(
            np.full((n, k), -1, np.int64), np.zeros((n, k), np.int8), seen, [(one,) for one in orders]
        )
        return lists

    def _shuffled(self, user_id: str, available: np.ndarray) -> Fallback:
        rng = np.random.default_rng([self.params.seed, zlib.crc32(user_id.encode())])
        n = min(len(available), RANDOM_DRAWS * max(self.params.ks))
        return Fallback(rng.choice(available, n, replace=False) if n else available, 0)


def read_attempt(attempt: Attempt, entry: FileEntry) -> pa.Table:
    """A part that this stage wrote moments ago and has not committed yet."""
    store = attempt.dataset.store
    with store.open(f"{attempt.folder}/{entry.name}") as source:
        return pq.read_table(source)


def _user_rows(
    user_ids: np.ndarray, method: str, group: np.ndarray, n_truth: np.ndarray, values: np.ndarray
) -> pa.Table:
    n, width = values.shape
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * width)
    return pa.table(
        {
            "user_id": pa.array(user_ids, pa.string()),
            "method": pa.array([method] * n, pa.string()),
            "group": pa.array([GROUPS[code] for code in group], pa.string()),
            "n_truth": pa.array(n_truth.astype(np.int64)),
            "values": pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1))),
        }
    )


Row = tuple[str, str, float, float | None, float | None]


def _means(night: Night, entries: tuple[FileEntry, ...], names: list[str], params: Evaluate) -> Iterator[Row]:
    """Means over users with intervals, for each method, group and metric, and the lift over `popular`."""
    tables = [read_attempt(night.write(USER_METRICS), entry) for entry in entries]
    table = pa.concat_tables(tables)
    if not len(table):
        raise ContractError(
            f"backtest: nobody touched a known item in the {params.test_days} days after {night.ds}; "
            "choose an earlier ds or more test_days"
        )
    methods, groups = strings(table["method"]), strings(table["group"])
    values = pc.list_flatten(table["values"]).to_numpy().reshape(len(table), len(names))
    slices = {"all": np.ones(len(table), bool), **{group: groups == group for group in GROUPS}}
    for slice_name, inside in slices.items():
        if not inside.any():
            continue
        yield "users", slice_name, float((inside & (methods == METHODS[0])).sum()), None, None
        per_method = {method: values[inside & (methods == method)] for method in METHODS}
        for at, name in enumerate(names):
            for method in METHODS:
                mean = bootstrap_mean(eligible(per_method[method][:, at]), params.n_resamples, params.seed)
                yield f"{method}.{name}", slice_name, *mean
            ours, theirs = per_method["nightjar"][:, at], per_method["popular"][:, at]
            lift = paired_difference(ours, theirs, params.n_resamples, params.seed)
            yield f"nightjar-popular.{name}", slice_name, lift.difference, lift.low, lift.high


def _catalogue_rows(night: Night, params: Evaluate) -> Iterator[Row]:
    """How the lists of all users use the catalogue as of t0, summed bucket by bucket."""
    items = night.read(ITEMS).read(["item_id", "available"]).combine_chunks()
    available = items["available"].to_numpy()
    lists, n_users = night.read(RECOMMENDATIONS), night.read(USERS).manifest.rows
    for k in params.ks:
        counts, rows, with_list = np.zeros(len(items), np.int64), 0, 0
        for entry in lists.parts:
            part = lists.read_part(entry, ["user_id", "rank", "item_id"]).filter(pc.field("rank") <= k)
            nums = pc.index_in(part["item_id"], items["item_id"].combine_chunks()).to_numpy()
            counts += exposure(nums[:, None], 1, len(items))
            rows += len(part)
            with_list += pc.count_distinct(part["user_id"]).as_py()
        yield (
            f"nightjar.CatalogueCoverage@{k}",
            "all",
            float((counts[available] > 0).sum() / max(available.sum(), 1)),
            None,
            None,
        )
        yield f"nightjar.UserCoverage@{k}", "all", with_list / max(n_users, 1), None, None
        yield f"nightjar.Fill@{k}", "all", rows / max(n_users * k, 1), None, None
        yield f"nightjar.Gini@{k}", "all", gini(counts[available]), None, None
        yield f"nightjar.Entropy@{k}", "all", entropy_bits(counts[available]), None, None


def _metrics_table(rows: list[Row]) -> pa.Table:
    names, slices, values, lows, highs = zip(*sorted(rows, key=lambda row: row[:2]), strict=True)
    return pa.table(
        {
            "name": pa.array(names, pa.string()),
            "slice": pa.array(slices, pa.string()),
            "value": pa.array(values, pa.float64()),
            "low": pa.array(lows, pa.float64()),
            "high": pa.array(highs, pa.float64()),
            "unit": pa.nulls(len(names), pa.string()),
        }
    )
