"""Inside a Spark task: every method's lists for the users of a bucket who have truth, and their worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nightjar.kernels.beyond import Catalogue
from nightjar.kernels.interactions import Histories
from nightjar.kernels.metrics import accuracy
from nightjar.kernels.ranked_lists import Csr, entry_rows
from nightjar.kernels.topk import ItemLists
from nightjar.matrix import mapped_matrix
from nightjar.stages.evaluation.about_lists import Shelf, about
from nightjar.stages.evaluation.single_methods import SingleInputs, SingleMethods
from nightjar.stages.users.buckets import list_matrix, read_histories, strings
from nightjar.store import Attempt, Committed, FileEntry
from nightjar.tables import GROUPS, TARGETS

OURS = "nightjar"
BLOCK_USERS = 1024
WARM, COLD, UNKNOWN = range(len(GROUPS))


@dataclass(frozen=True)
class ItemSide:
    """The catalogue as of t0: items, what is known of them, and what the baselines are made of."""

    items: Committed
    catalogue: Catalogue
    categories: Csr
    single: SingleInputs


@dataclass(frozen=True)
class UserSide:
    """The committed tables of users, and the lists of the night before where they are wanted."""

    recommendations: Committed
    users: Committed
    interactions: Committed
    before: Committed | None
    exclude_seen: bool
    k: int


@dataclass(frozen=True)
class Truth:
    """What some users went on to choose. user_ids: (q,); csr: item numbers, rising; new_scene: (nnz,)."""

    user_ids: np.ndarray
    csr: Csr
    new_scene: np.ndarray

    def kept(self, wanted: np.ndarray) -> Csr:
        """The entries where `wanted` (nnz,) holds, as CSR of the same users."""
        counts = np.bincount(entry_rows(self.csr[0])[wanted], minlength=len(self.user_ids))
        return np.r_[0, np.cumsum(counts)].astype(np.int64), self.csr[1][wanted]

    def take(self, start: int, stop: int) -> Truth:
        """Some consecutive users."""
        indptr, items = self.csr
        part = slice(int(indptr[start]), int(indptr[stop]))
        rows = indptr[start : stop + 1] - indptr[start]
        return Truth(self.user_ids[start:stop], (rows, items[part]), self.new_scene[part])


@dataclass(frozen=True)
class EvaluatePart:
    """What travels to a task; called with a bucket, it writes that bucket's rows of user_metrics."""

    people: UserSide
    shelf: ItemSide
    methods: tuple[str, ...]
    truth_attempt: Attempt
    truth_files: tuple[FileEntry, ...]
    attempt: Attempt
    ks: tuple[int, ...]

    def __call__(self, bucket: int) -> FileEntry:
        return self.attempt.write_part(bucket, self._tables(bucket))

    def _tables(self, bucket: int) -> Iterator[pa.Table]:
        rows = read_attempt(self.truth_attempt, self.truth_files[bucket])
        if not len(rows):
            return
        user_ids, starts = np.unique(strings(rows["user_id"]), return_index=True)
        csr = np.r_[starts, len(rows)].astype(np.int64), rows["item_num"].to_numpy()
        truth = Truth(user_ids, csr, rows["new_scene"].to_numpy())
        work = BucketWork(self, bucket)
        for start in range(0, len(user_ids), BLOCK_USERS):
            yield work.rows(truth.take(start, min(start + BLOCK_USERS, len(user_ids))))


class BucketWork:
    """One bucket's inputs in memory."""

    def __init__(self, part: EvaluatePart, bucket: int) -> None:
        self.part = part
        shelf, people = part.shelf, part.people
        ids = shelf.items.read(["item_id"])["item_id"].combine_chunks()
        self.item_ids = ids if isinstance(ids, pa.Array) else pa.concat_arrays(ids.chunks)
        self.single = SingleMethods(shelf.single)
        self.shelf = Shelf(shelf.catalogue, shelf.categories, mapped_matrix(shelf.single.embeddings))
        self.histories = read_histories(people.interactions, bucket)
        known = people.users.read_part(people.users.parts[bucket], ["user_id"])["user_id"]
        self.known = known.combine_chunks()
        self.published = _list_rows(people.recommendations, bucket)
        self.before = None if people.before is None else _list_rows(people.before, bucket)

    def rows(self, truth: Truth) -> pa.Table:
        """The rows of some users: every method, every target that they have truth for."""
        user_ids, ks = pa.array(truth.user_ids, pa.string()), self.part.ks
        mine = self.histories.aligned(truth.user_ids)
        known = pc.is_in(user_ids, self.known).to_numpy(zero_copy_only=False)
        n_history = np.diff(mine.indptr)
        group = np.where(n_history > 0, WARM, np.where(known, COLD, UNKNOWN))
        before = None if self.before is None else self._matrix(self.before, user_ids)
        targets = dict(zip(TARGETS, self._targets(truth), strict=True))
        tables = []
        for method in self.part.methods:
            lists = self._lists(method, user_ids, mine)
            lists[group == UNKNOWN] = -1  # nobody can make a list for a user they have never heard of
            said = about(lists, before if method == OURS else None, self.shelf, mine, ks)
            for target, csr in targets.items():
                n_truth = np.diff(csr[0])
                has = n_truth > 0
                scored = np.stack(list(accuracy(lists, csr, ks).values()), axis=1)[has]
                whole = target == "all"
                listed = np.stack(list(said.values()), axis=1)[has] if whole else None
                columns = {
                    "user_id": user_ids.filter(pa.array(has)),
                    "method": _same(method, has),
                    "target": _same(target, has),
                    "group": pa.array(np.array(GROUPS, object)[group[has]], pa.string()),
                    "n_history": n_history[has],
                    "n_truth": n_truth[has],
                    "accuracy": _lists_column(scored),
                    "about_list": _lists_column(np.zeros((int(has.sum()), 0)) if listed is None else listed),
                    "item_nums": _item_column(lists[has] if whole else lists[has][:, :0]),
                }
                tables.append(pa.table(columns))
        order = [(name, "ascending") for name in ("user_id", "method", "target")]
        return pa.concat_tables(tables).sort_by(order)

    def _targets(self, truth: Truth) -> tuple[Csr, ...]:
        """The truth cut as TARGETS names it."""
        cold = self.shelf.catalogue.cold[truth.csr[1]]
        return truth.csr, truth.kept(cold), truth.kept(truth.new_scene), truth.kept(~cold)

    def _lists(self, method: str, user_ids: pa.Array, mine: Histories) -> np.ndarray:
        if method == OURS:
            return self._matrix(self.published, user_ids)
        barred = ItemLists(mine.indptr, mine.item_nums)
        if not self.part.people.exclude_seen:
            barred = ItemLists(np.zeros(len(mine) + 1, np.int64), np.empty(0, np.int64))
        return self.single.lists(method, mine, barred, max(self.part.ks))

    def _matrix(self, rows: pa.Table, user_ids: pa.Array) -> np.ndarray:
        return list_matrix(rows, user_ids, self.item_ids, max(self.part.ks))


def _list_rows(recommendations: Committed, bucket: int) -> pa.Table:
    return recommendations.read_part(recommendations.parts[bucket], ["user_id", "rank", "item_id"])


def read_attempt(attempt: Attempt, entry: FileEntry) -> pa.Table:
    """A part that this stage wrote moments ago and has not committed yet."""
    store = attempt.dataset.store
    with store.open(f"{attempt.folder}/{entry.name}") as source:
        return pq.read_table(source)


def _same(text: str, has: np.ndarray) -> pa.Array:
    return pa.array([text] * int(has.sum()), pa.string())


def _lists_column(values: np.ndarray) -> pa.Array:
    n, width = values.shape
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1).astype(np.float64)))


def _item_column(lists: np.ndarray) -> pa.Array:
    kept = lists >= 0
    offsets = pa.array(np.r_[0, np.cumsum(kept.sum(axis=1))].astype(np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(lists[kept]))
