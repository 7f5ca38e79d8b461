"""Deny and allow lists of `retrieve`: files of ids -> limits of item numbers, bucket by bucket.

The lists are resolved once, while candidates are searched, and lie beside them as artefacts of the same
commit: the sets of all segments in one file, who has which of them in one file a bucket. Whoever fills or
audits lists later reads them with `read_limits` and cannot see other limits than the search did.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nightjar.config import AllowList, DenyList, Members, Retrieve
from nightjar.kernels.limits import Limits
from nightjar.kernels.topk import I64, ItemLists
from nightjar.sources import RawFile
from nightjar.stage import Metrics
from nightjar.stages.plain_lists import SCHEMA, Counts, PlainList
from nightjar.store import Attempt, Committed, FileEntry, Store

SETS = "allow-sets.parquet"
SETS_SCHEMA = pa.schema([("list", pa.int32()), ("segment", pa.string()), ("item_nums", pa.list_(pa.int64()))])
LIMITS_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("denied", pa.list_(pa.int64())),
        ("sets", pa.list_(pa.int32())),
        ("own", pa.list_(pa.list_(pa.int64()))),
    ]
)
"""Users with a limit. sets: rows of SETS, own: sets of the user alone; all of them must hold an item."""


def bucket_file(bucket: int) -> str:
    """The artefact with the limits of a bucket's users."""
    return f"limits-{bucket:05d}.parquet"


@dataclass(frozen=True)
class Lists:
    """The declared lists, their files, and the tables that turn ids into numbers; travels to actors."""

    params: Retrieve
    raw: Mapping[str, tuple[RawFile, ...]]
    users: Committed
    items: Committed

    def deny(self) -> list[PlainList]:
        return [
            self._list(source, f"deny{at}", "user_id", "item_id")
            for at, source in enumerate(self.params.deny)
        ]

    def allow(self, at: int) -> PlainList:
        source = self.params.allow[at]
        return self._list(source, f"allow{at}", "user_id" if is_by_user(source) else "segment", "item_id")

    def members(self, at: int) -> PlainList | None:
        source = self.params.allow[at].members
        return self._list(source, f"members{at}", "user_id", "segment") if source is not None else None

    def _list(self, source: DenyList | AllowList | Members, name: str, who: str, what: str) -> PlainList:
        return PlainList(source, self.raw[name], who, what, f"retrieve.{name[:-1]}.{name[-1]}")

    def write_sets(self, attempt: Attempt) -> tuple[FileEntry, Metrics]:
        """Resolves the lists by segment: a row a set; that of users without one has no name and no items."""
        columns: list[tuple[int, str | None, I64]] = []
        counts = {}
        for at, source in enumerate(self.params.allow):
            if not is_by_user(source):
                found = self.allow(at)
                rows = pa.concat_tables([SCHEMA.empty_table(), *found.batches()])
                nums = item_numbers(self.items, rows["what"])
                counts[f"allow{at}"] = _counted([found.counts], int((nums < 0).sum()))
                columns += [(at, name, nums[mine]) for name, mine in _by_value(rows["who"])]
            if source.others == "nothing":
                columns.append((at, None, np.empty(0, np.int64)))
        sets = [np.unique(nums[nums >= 0]) for _, _, nums in columns]
        table = pa.table(
            [[at for at, _, _ in columns], [name for _, name, _ in columns], sets], schema=SETS_SCHEMA
        )
        return _put(attempt, SETS, table), counts

    def write_bucket(self, attempt: Attempt, bucket: int) -> tuple[FileEntry, Metrics]:
        """Resolves the lists by user and who is in which segment, for one bucket of users."""
        people = self.users.read_part(self.users.parts[bucket], ["user_id", "segment"])
        here = _Bucket(people["user_id"].combine_chunks(), self.items)
        denied = here.listed(self.deny(), "deny")
        chosen: list[list[int]] = [[] for _ in range(len(people))]
        own: list[list[list[int]]] = [[] for _ in range(len(people))]
        for at, source in enumerate(self.params.allow):
            numbers = _numbers_of(attempt, at)
            if is_by_user(source):
                mine = here.listed([self.allow(at)], f"allow{at}")
                for user in mine.named:
                    own[user].append(mine.of(user).tolist())
                rest = set(range(len(people))) - mine.named if None in numbers else set()
                segment: list[str | None] = [None] * len(people)
            else:
                segment = here.segments(self.members(at), f"members{at}", people["segment"])
                rest = set(range(len(people)))
            for user in rest:
                number = numbers.get(segment[user], numbers.get(None))
                if number is not None:
                    chosen[user].append(number)
        limited = [user for user in range(len(people)) if denied.has(user) or chosen[user] or own[user]]
        table = pa.table(
            [
                people["user_id"].take(pa.array(limited, pa.int64())),
                [denied.of(user) for user in limited],
                [chosen[user] for user in limited],
                [own[user] for user in limited],
            ],
            schema=LIMITS_SCHEMA,
        )
        return _put(attempt, bucket_file(bucket), table), here.counts


def is_by_user(source: AllowList) -> bool:
    """Whether an allow list names users rather than segments."""
    return "user_id" in source.columns


@dataclass(frozen=True)
class _Listed:
    """Item numbers by user position; named: who stands in the files, with known items or without."""

    lists: ItemLists
    named: set[int]

    def of(self, user: int) -> I64:
        return self.lists.item_nums[self.lists.indptr[user] : self.lists.indptr[user + 1]]

    def has(self, user: int) -> bool:
        return bool(self.lists.indptr[user] < self.lists.indptr[user + 1])


@dataclass
class _Bucket:
    """One bucket's users, the catalogue, and what was counted of the lists."""

    people: pa.Array
    items: Committed
    counts: Metrics = field(default_factory=dict)

    def listed(self, lists: Sequence[PlainList], name: str) -> _Listed:
        """The items that some lists of (user_id, item_id) hold for the users of this bucket."""
        users, ids = [np.empty(0, np.int64)], [pa.array([], pa.string())]
        for one in lists:
            for rows in one.batches():
                at = pc.index_in(rows["who"], self.people)
                users.append(at.drop_null().to_numpy().astype(np.int64))
                ids += rows["what"].filter(at.is_valid()).chunks
        user = np.concatenate(users)
        num = item_numbers(self.items, pa.chunked_array(ids, pa.string()))
        known = num >= 0
        if lists:
            counts = _counted([one.counts for one in lists], int((~known).sum()))
            self.counts[name] = {**counts, "of_known_users": len(user)}
        pairs = np.unique(np.stack([user[known], num[known]], axis=1), axis=0)
        lengths = np.bincount(pairs[:, 0], minlength=len(self.people))
        indptr = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        return _Listed(ItemLists(indptr, pairs[:, 1].copy()), set(user.tolist()))

    def segments(self, members: PlainList | None, name: str, declared: pa.ChunkedArray) -> list[str | None]:
        """The segment of each user; the smallest one where members name several."""
        if members is None:
            return list(declared.to_pylist())
        found: list[str | None] = [None] * len(self.people)
        for rows in members.batches():
            at = pc.index_in(rows["who"], self.people)
            names = rows["what"].filter(at.is_valid()).to_pylist()
            for user, segment in zip(at.drop_null().to_pylist(), names, strict=True):
                before = found[user]
                found[user] = segment if before is None else min(before, segment)
        self.counts[name] = _counted([members.counts], None)
        return found


def item_numbers(items: Committed, item_ids: pa.ChunkedArray) -> I64:
    """The number of each id, -1 for one that is not in the catalogue, which is streamed past."""
    wanted = item_ids.unique()
    number_of = np.full(len(wanted) + 1, -1, np.int64)
    if len(wanted):
        for entry in items.parts:
            for rows in items.batches(entry, ["item_id", "item_num"]):
                at = pc.index_in(rows.column("item_id"), wanted)
                hit = at.is_valid()
                number_of[at.filter(hit).to_numpy()] = rows.column("item_num").filter(hit).to_numpy()
    place = pc.index_in(item_ids, wanted) if len(wanted) else pa.array([], pa.int32())
    numbers: I64 = number_of[place.to_numpy()]
    return numbers


def _by_value(column: pa.ChunkedArray) -> list[tuple[str, I64]]:
    """Each value, in order, and where it stands."""
    if not len(column):
        return []
    values = np.array(column.to_pylist(), dtype=object)
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(values[order][1:] != values[order][:-1]) + 1
    return [(str(values[mine[0]]), mine) for mine in np.split(order, starts)]


def _counted(counts: Sequence[Counts], n_unknown: int | None) -> Metrics:
    found = {"rows": sum(one.rows for one in counts), "unusable": sum(one.unusable for one in counts)}
    return found if n_unknown is None else {**found, "of_unknown_items": n_unknown}


def _put(attempt: Attempt, name: str, table: pa.Table) -> FileEntry:
    scratch = attempt.dataset.store.scratch(attempt.folder)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".tmp-") as folder:
        aside = Path(folder) / name
        pq.write_table(table, aside)
        return attempt.put_artefact(aside, name)


def _numbers_of(attempt: Attempt, at: int) -> dict[str | None, int]:
    """The sets of one allow list: segment -> row of SETS; None: the set of users whom it does not name."""
    with attempt.dataset.store.open(f"{attempt.folder}/{SETS}") as source:
        rows = pq.read_table(source, columns=["list", "segment"]).to_pylist()
    return {row["segment"]: number for number, row in enumerate(rows) if row["list"] == at}


def total_counts(counts: Sequence[Metrics]) -> Metrics:
    """What was counted in all buckets: every bucket read all rows, and knows its own users."""
    out: Metrics = {}
    for name in sorted({name for one in counts for name in one}):
        each = [one[name] for one in counts if name in one]
        own = {key: sum(one[key] for one in each) for key in each[0] if key.startswith("of_")}
        out[name] = {**each[0], **own}
    return out


def read_limits(candidates: Committed, bucket: int, user_ids: np.ndarray) -> Limits:
    """The limits of some users of a bucket, in their order, as the search for these candidates had them."""
    if SETS not in {entry.name for entry in candidates.manifest.files}:
        return Limits.none(len(user_ids))
    return limits_in(candidates.dataset.attempt(candidates.manifest.fingerprint), bucket, user_ids)


def limits_in(attempt: Attempt, bucket: int, user_ids: np.ndarray) -> Limits:
    """As `read_limits`, from lists that were written and are perhaps not committed yet."""
    store = attempt.dataset.store
    with store.open(f"{attempt.folder}/{bucket_file(bucket)}") as source:
        rows = pq.read_table(source)
    at = pc.index_in(pa.array(user_ids, pa.string()), rows["user_id"].combine_chunks())
    limited = np.flatnonzero(at.is_valid().to_numpy(zero_copy_only=False))
    mine = rows.take(at.drop_null())
    lengths = np.zeros(len(user_ids), np.int64)
    lengths[limited] = pc.list_value_length(mine["denied"]).to_numpy()
    denied = pc.list_flatten(mine["denied"]).to_numpy().astype(np.int64)
    sets = list(_sets(store.root, f"{attempt.folder}/{SETS}"))
    groups: dict[tuple[int, ...], int] = {(): 0}
    group = np.zeros(len(user_ids), np.int64)
    for user, shared, own in zip(limited, mine["sets"].to_pylist(), mine["own"].to_pylist(), strict=True):
        numbers = (*shared, *range(len(sets), len(sets) + len(own)))
        sets += [np.array(one, np.int64) for one in own]
        group[user] = groups.setdefault(numbers, len(groups))
    indptr = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return Limits(ItemLists(indptr, denied), tuple(sets), tuple(groups), group)


@functools.lru_cache(maxsize=1)
def _sets(root: str, name: str) -> tuple[I64, ...]:
    """The sets of all segments, once a process: a name holds a fingerprint, so its content never changes."""
    with Store(root).open(name) as source:
        column = pq.read_table(source, columns=["item_nums"])["item_nums"]
    flat = pc.list_flatten(column).to_numpy().astype(np.int64)
    lengths = pc.list_value_length(column).to_numpy()
    return tuple(np.split(flat, np.cumsum(lengths)[:-1])) if len(lengths) else ()
