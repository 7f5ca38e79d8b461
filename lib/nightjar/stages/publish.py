"""The gates between committed and published, and the move of LATEST.json.

The audit reads the lists back and holds them against users, items, interactions and the night's deny and
allow lists, independently of the code that made them. A refusal leaves the night committed and yesterday's
list live.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nightjar.config import Publish, Resources
from nightjar.errors import GateError, NotCommitted
from nightjar.kernels.limits import Limits
from nightjar.kernels.stability import stability
from nightjar.kernels.topk import Filters, ItemLists
from nightjar.published import make_live, opened, publications
from nightjar.stage import Metrics, Night
from nightjar.stages.cleaning.forget_list import forget_list
from nightjar.stages.searching.limits import read_limits
from nightjar.stages.users.buckets import list_matrix, strings
from nightjar.store import Committed
from nightjar.tables import CANDIDATES, EVENTS, INTERACTIONS, ITEMS, METRICS, RECOMMENDATIONS, USERS

OVERLAP_USERS = 100
"""With fewer users who have a list of both nights their mean overlap says little: no gate."""
OVERLAP_DAYS = 31
"""Lists are held against none older than this. Sixty days apart 671 users of MovieLens still share 0.37."""


def publish(night: Night, params: Publish, resources: Resources) -> Metrics:
    """Audits the night's lists and makes them live; GateError names every gate that refuses."""
    del resources
    lists = night.read(RECOMMENDATIONS)
    figures = audit(night, lists)
    if refusals := list(_refusals(figures, params)):
        raise GateError(
            f"publish {night.ds}: {'; '.join(refusals)}; the night stays committed and the published list as "
            "it was; where all is as it should be, move the gate with --set publish.NAME=VALUE"
        )
    rows = [
        {"name": f"publish.{name}", "slice": "all", "value": float(value)} for name, value in figures.items()
    ]
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(METRICS.schema)[:3]))
    for column in ("low", "high"):
        table = table.append_column(column, pa.nulls(len(table), pa.float64()))
    table = table.append_column("unit", pa.nulls(len(table), pa.string()))
    night.wrote(METRICS, [night.write(METRICS).write_part(0, [table])])
    live = make_live(night.store, lists)
    if live.ds != str(night.ds):
        night.report.line(
            f"publish {night.ds}: {live.ds} is live and newer; `nightjar rollback --to {night.ds}` would "
            "make this list live"
        )
    return {**figures, "live": live.ds, "published_at": live.published_at}


def _refusals(figures: dict[str, float], params: Publish) -> Iterator[str]:
    floors = {
        "fill": params.min_fill,
        "user_coverage": params.min_user_coverage,
        "catalogue_coverage": params.min_catalogue_coverage,
        "users_vs_before": params.min_users_vs_before,
    }
    near = figures.get("days_since_before", 0) <= OVERLAP_DAYS
    if near and figures.get("overlap_users", 0) >= OVERLAP_USERS:
        floors["overlap"] = params.min_overlap
    ceilings = {
        "seen_leak": params.max_seen_leak,
        "limit_leak": params.max_limit_leak,
        "unavailable": params.max_unavailable,
        "quarantine_share": params.max_quarantine,
        "forgotten_users": 0,
    }
    if params.max_days_since_last_event is not None:
        ceilings["days_since_last_event"] = params.max_days_since_last_event
    for name, floor in floors.items():
        if name in figures and figures[name] < floor:
            yield f"{name} is {figures[name]:.4f}, below {floor}"
    for name, ceiling in ceilings.items():
        if name in figures and figures[name] > ceiling:
            yield f"{name} is {figures[name]:g}, above {ceiling}"


@dataclass
class _Tally:
    """Sums over buckets of users."""

    users: int = 0
    to_serve: int = 0  # those for whom there is an item that they may get
    with_list: int = 0
    rows: int = 0
    allowed: int = 0
    seen_leak: int = 0
    limit_leak: int = 0
    unavailable: int = 0
    forgotten: int = 0
    before: int = 0
    last_event: datetime | None = None
    overlap: list[np.ndarray] = field(default_factory=list)


def audit(night: Night, lists: Committed) -> dict[str, float]:
    """Figures of the gates, from the committed files, matched by the ids of users and items."""
    items = night.read(ITEMS).read(["item_id", "available"]).combine_chunks()
    excluding = night.config.retrieve.exclude_seen
    users, interactions, candidates = (night.read(table) for table in (USERS, INTERACTIONS, CANDIDATES))
    before, forget = _before(night), forget_list(night)
    tally, shown = _Tally(), np.zeros(len(items), bool)
    for bucket, entry in enumerate(lists.parts):
        rows = lists.read_part(entry, ["user_id", "rank", "item_id"])
        known = users.read_part(users.parts[bucket], ["user_id", "last_event_time"])
        tally.last_event = _later(tally.last_event, pc.max(known["last_event_time"]).as_py())
        people = known["user_id"].combine_chunks()
        seen = interactions.read_part(interactions.parts[bucket], ["user_id", "item_num"])
        limits = read_limits(candidates, bucket, strings(people))
        view = _Bucket.of(rows, people, seen, items["item_id"], night.config.rank.k, limits)
        view.count(tally, items["available"].to_numpy(), excluding)
        if forget is not None:
            named = pa.concat_arrays([people, rows["user_id"].unique()]).unique()
            tally.forgotten += int(pc.sum(pc.is_in(named, value_set=forget)).as_py() or 0)
        shown[view.item_nums[view.known(len(items))]] = True
        if before is not None:
            earlier = before.read_part(before.parts[bucket], ["user_id", "rank", "item_id"])
            tally.before += pc.sum(pc.equal(earlier["rank"], 1)).as_py() or 0
            tally.overlap.append(view.overlap(earlier, items))
    available = items["available"].to_numpy()
    figures: dict[str, float] = {
        "users": tally.users,
        "rows": tally.rows,
        "fill": tally.rows / max(tally.allowed, 1),
        "user_coverage": tally.with_list / max(tally.to_serve, 1),
        "catalogue_coverage": float((shown & available).sum() / max(available.sum(), 1)),
        "limit_leak": tally.limit_leak,
        "unavailable": tally.unavailable,
        "quarantine_share": _quarantine_share(night.read(EVENTS)),
    }
    if excluding:
        figures["seen_leak"] = tally.seen_leak
    if forget is not None:
        figures["forgotten_users"] = tally.forgotten
    if tally.last_event is not None:
        figures["days_since_last_event"] = (night.end - tally.last_event).total_seconds() / 86_400
    if before is not None:
        overlap = np.concatenate(tally.overlap)
        figures["days_since_before"] = (night.ds - date.fromisoformat(before.dataset.ds)).days
        figures["overlap_users"] = len(overlap)
        if len(overlap):  # nobody has both lists where all users are new
            figures["overlap"] = float(overlap.mean())
        if tally.before:
            figures["users_vs_before"] = tally.with_list / tally.before
    return figures


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return max((time for time in (one, other) if time is not None), default=None)


def _before(night: Night) -> Committed | None:
    """The last published list of an earlier night with the same buckets, to measure change against."""
    for publication in publications(night.store):
        if publication.ds < str(night.ds):
            try:
                found = opened(night.store, publication)
            except NotCommitted:  # removed by hand: the one before it is as good
                continue
            return found if len(found.parts) == len(night.read(RECOMMENDATIONS).parts) else None
    return None


def _quarantine_share(events: Committed) -> float:
    counts = events.manifest.metrics
    rejected = sum(amount for reason, amount in counts.get("quarantine", {}).items() if reason != "future")
    return float(rejected / max(counts.get("raw", 0), 1))


@dataclass(frozen=True)
class _Bucket:
    """One bucket's lists as numbers. item_nums (q, k): −1 beyond a list's end, n_items up for unknown ids."""

    people: pa.Array
    item_nums: np.ndarray
    seen: ItemLists
    limits: Limits

    @classmethod
    def of(
        cls,
        rows: pa.Table,
        people: pa.Array,
        seen: pa.Table,
        item_ids: pa.ChunkedArray,
        k: int,
        limits: Limits,
    ) -> _Bucket:
        lists = list_matrix(rows, people, item_ids, k)
        user_of = pc.index_in(seen["user_id"], people).to_numpy()
        item_of = seen["item_num"].to_numpy()
        order = np.lexsort((item_of, user_of))
        counts = np.bincount(user_of, minlength=len(people))
        mine = ItemLists(np.r_[0, np.cumsum(counts)].astype(np.int64), item_of[order])
        return cls(people, lists, mine, limits)

    def known(self, n_items: int) -> np.ndarray:
        mask: np.ndarray = (self.item_nums >= 0) & (self.item_nums < n_items)
        return mask

    def count(self, tally: _Tally, available: np.ndarray, excluding: bool) -> None:
        n_users, k = self.item_nums.shape
        listed = self.item_nums != -1
        tally.users += n_users
        tally.with_list += int(listed.any(axis=1).sum())
        tally.rows += int(listed.sum())
        known = self.known(len(available))
        tally.unavailable += int((listed & ~known).sum() + (~available[self.item_nums[known]]).sum())
        nums = np.where(known, self.item_nums, -1)
        tally.limit_leak += int((known & ~self.limits.permits(nums, len(available))).sum())
        if excluding:
            tally.seen_leak += int((known & ~Filters(self.seen).allowed(nums)).sum())
        open_items = self.limits.with_seen(self.seen if excluding else None).n_open(available)
        tally.to_serve += int((open_items > 0).sum())
        tally.allowed += int(np.minimum(open_items, k).sum())

    def overlap(self, rows: pa.Table, items: pa.Table) -> np.ndarray:
        """Jaccard overlap with another night's lists, for users who have both."""
        old = list_matrix(rows, self.people, items["item_id"], self.item_nums.shape[1])
        both = (old != -1).any(axis=1) & (self.item_nums != -1).any(axis=1)
        k = self.item_nums.shape[1]
        # Ids gone from the catalogue have no number today: give the old ones numbers that match nothing.
        gone = old >= len(items)
        old[gone] += k * len(old)
        return stability(self.item_nums[both], old[both], [k])[f"Jaccard@{k}"]
