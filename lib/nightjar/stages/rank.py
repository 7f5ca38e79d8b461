"""Candidates -> the list of every known user: blend all sources, diversify, cut to k, fill, and say why.

A bucket of users is one Spark task; all tables of users share their buckets, so nothing is shuffled. Users
without a usable history, and lists the candidates cannot fill, get what is popular in their segment, then
with everyone, then whatever is available: every known user has exactly k items unless the catalogue is
smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nightjar.config import Rank, Resources
from nightjar.engines import spark
from nightjar.kernels.diversity import Diversity, ItemTraits, rerank
from nightjar.kernels.fallback import Fallback, fill
from nightjar.kernels.interactions import Histories
from nightjar.kernels.limits import Limits
from nightjar.kernels.reasons import Reasons
from nightjar.kernels.topk import ItemLists, TopK
from nightjar.stage import Metrics, Night
from nightjar.stages.blending.blender import Asked, Blender, BlendInputs
from nightjar.stages.searching.limits import read_limits
from nightjar.stages.users.buckets import read_histories, strings
from nightjar.stages.users.words import BucketWords, UserWords
from nightjar.store import Attempt, Committed, FileEntry
from nightjar.tables import (
    BLEND,
    CANDIDATES,
    EVERYONE,
    INTERACTIONS,
    ITEM_SIGNALS,
    ITEM_VECTORS,
    ITEMS,
    NEIGHBOURS,
    POPULARITY,
    QUERY_VECTORS,
    RECOMMENDATIONS,
    SOURCES,
    USER_TEXTS,
    USERS,
)

PERSONAL, SEGMENT, POPULAR, INTERESTS = range(len(SOURCES))
BLOCK_USERS = 2048


def rank(night: Night, params: Rank, resources: Resources) -> Metrics:
    """Writes exactly k rows for every known user, fewer only where the catalogue has fewer to give."""
    del resources
    users, attempt = night.read(USERS), night.write(RECOMMENDATIONS)
    blended = (ITEMS, ITEM_VECTORS, NEIGHBOURS, BLEND, ITEM_SIGNALS, POPULARITY)
    inputs = BlendInputs(*(night.read(table) for table in blended))
    cold = _untouched(night.read(ITEMS), night.read(INTERACTIONS)) if params.cold_share else None
    task = RankPart(
        users,
        night.read(CANDIDATES),
        night.read(INTERACTIONS),
        inputs,
        attempt,
        params,
        night.config.retrieve.exclude_seen,
        night.config.retrieve.k_prime,
        UserWords.of(night.read(USER_TEXTS), night.read(QUERY_VECTORS)),
        cold,
    )
    entries = spark.map_parts(spark.session(night.config), task, attempt, len(users.parts))
    night.wrote(RECOMMENDATIONS, entries)
    return {"users": users.manifest.rows, "rows": sum(entry.rows for entry in entries), "k": params.k}


def _untouched(items: Committed, interactions: Committed) -> np.ndarray:
    """Items without an interaction so far, (n_items,) bool, read part by part."""
    cold = np.ones(items.manifest.rows, bool)
    for entry in interactions.parts:
        cold[interactions.read_part(entry, ["item_num"])["item_num"].to_numpy()] = False
    return cold


@dataclass(frozen=True)
class Catalogue:
    """The item side of ranking in memory; row = item number.

    item_ids: (n,) strings; category: (n,) int64, −1 for none; fallbacks: for each segment the orders to fill
    from; blender: what scores.
    """

    item_ids: np.ndarray
    category: np.ndarray
    fallbacks: dict[str, tuple[Fallback, ...]]
    blender: Blender

    @property
    def default(self) -> tuple[Fallback, ...]:
        return self.fallbacks[EVERYONE]


_loaded: dict[str, Catalogue] = {}


def _load(inputs: BlendInputs) -> Catalogue:
    """Once a worker process and catalogue: Spark reuses its Python workers for all buckets."""
    commits = vars(inputs).values()
    key = " ".join(one.dataset.store.root + one.manifest.fingerprint for one in commits)
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = _read_catalogue(inputs)
    return _loaded[key]


def _read_catalogue(inputs: BlendInputs) -> Catalogue:
    items = inputs.items.read(["item_id", "available", "category"])
    available = items["available"].to_numpy()
    category = items["category"].combine_chunks().dictionary_encode()
    codes = (category.combine_chunks() if isinstance(category, pa.ChunkedArray) else category).indices
    popular = inputs.popularity.read().sort_by([("segment", "ascending"), ("rank", "ascending")])
    rest = Fallback(np.flatnonzero(available), POPULAR)
    orders: dict[str, tuple[Fallback, ...]] = {EVERYONE: (rest,)}
    segment_of = strings(popular["segment"])
    nums = popular["item_num"].to_numpy()
    everyone = segment_of == EVERYONE
    if everyone.any():
        orders[EVERYONE] = (Fallback(nums[everyone], POPULAR), rest)
    for segment in np.unique(segment_of[~everyone]):
        mine = Fallback(nums[segment_of == segment], SEGMENT)
        orders[str(segment)] = (mine, *orders[EVERYONE])
    codes = codes.fill_null(-1).to_numpy().astype(np.int64)
    return Catalogue(strings(items["item_id"]), codes, orders, Blender.load(inputs))


@dataclass(frozen=True)
class RankPart:
    """Inside a Spark task: the lists of one bucket of users."""

    users: Committed
    candidates: Committed
    interactions: Committed
    inputs: BlendInputs
    attempt: Attempt
    params: Rank
    exclude_seen: bool
    depth: int
    words: UserWords | None
    cold: np.ndarray | None

    def __call__(self, bucket: int) -> FileEntry:
        return self.attempt.write_part(bucket, self._tables(bucket))

    def _tables(self, bucket: int) -> Iterator[pa.Table]:
        catalogue = _load(self.inputs)
        people = self.users.read_part(self.users.parts[bucket], ["user_id", "segment"])
        candidates = self.candidates.read_part(self.candidates.parts[bucket], ["user_id", "item_nums"])
        histories = read_histories(self.interactions, bucket)
        limits = read_limits(self.candidates, bucket, strings(people["user_id"]))
        words = self.words.bucket(bucket) if self.words else None
        for start in range(0, len(people), BLOCK_USERS):
            block = people.slice(start, BLOCK_USERS)
            user_ids = strings(block["user_id"])
            mine = histories.aligned(user_ids)
            bars = limits.take(np.arange(start, start + len(block))).with_seen(self._seen(mine))
            retrieved = _padded(candidates, block["user_id"].combine_chunks())
            depth = kept = max(self.depth, self.params.k)
            if self.cold is not None:
                new = catalogue.blender.best_of(self.cold, mine, bars, self.params.k)
                known = np.asarray((retrieved >= 0).any(axis=1))[:, None]
                retrieved = np.concatenate([retrieved, np.where(known, new, -1)], axis=1)
                kept += retrieved.shape[1]  # so that no cold candidate is cut off by warmer ones
            sums = words.sums(mine, catalogue.blender.chosen.history) if words else None
            segments = block["segment"].to_pylist()
            asked = Asked(mine, segments, bars, retrieved, sums)
            by_ranks = self.params.fusion == "reciprocal_ranks"
            scored = catalogue.blender.best(asked, depth, kept, by_ranks)
            lists, scores = self._ordered(scored.best, catalogue)
            reasons = catalogue.blender.reasons(scored, lists, self.params.n_reasons)
            filled, sources = self._filled(lists, bars, segments, catalogue)
            rows = _rows(user_ids, filled, _scores(scores, filled, sources), sources, reasons, catalogue)
            yield _stated(rows, words, mine) if words else rows

    def _seen(self, histories: Histories) -> ItemLists | None:
        """What each user of a block has seen, where that is excluded."""
        return ItemLists(histories.indptr, histories.item_nums) if self.exclude_seen else None

    def _ordered(self, best: TopK, catalogue: Catalogue) -> tuple[np.ndarray, np.ndarray]:
        """Lists (q, k) and their scores, diversified when asked for."""
        params = self.params
        if params.mmr_lambda == 1.0 and params.max_per_category is None and self.cold is None:
            return _cut(best.item_nums, params.k, -1), _cut(best.scores, params.k, -np.inf)
        how = Diversity(params.mmr_lambda, params.max_per_category, params.cold_share)
        traits = ItemTraits(catalogue.blender.vectors, catalogue.category, self.cold)
        order = rerank(best.item_nums, best.scores, traits, params.k, how)
        at = np.maximum(order, 0)
        rows = np.arange(len(at))[:, None]
        return (
            np.where(order >= 0, best.item_nums[rows, at], -1),
            np.where(order >= 0, best.scores[rows, at], -np.inf).astype(np.float32),
        )

    def _filled(
        self, lists: np.ndarray, bars: Limits, segments: Sequence[str | None], catalogue: Catalogue
    ) -> tuple[np.ndarray, np.ndarray]:
        orders = [catalogue.fallbacks.get(segment or EVERYONE, catalogue.default) for segment in segments]
        short = np.flatnonzero((lists < 0).any(axis=1))
        cut = bars.for_fill(orders, short, len(catalogue.item_ids))
        return fill(lists, np.full(lists.shape, PERSONAL, np.int8), bars.denied, cut)


def _stated(rows: pa.Table, words: BucketWords, mine: Histories) -> pa.Table:
    """Rows of users who did nothing yet say that they come from stated interests."""
    stated = words.said.only_stated(mine.user_ids) & (np.diff(mine.indptr) == 0)
    who = pc.is_in(rows["user_id"], pa.array(mine.user_ids[stated], pa.string()))
    named = pc.and_(who, pc.equal(rows["source"], SOURCES[PERSONAL]))
    column = pc.if_else(named, SOURCES[INTERESTS], rows["source"])
    return rows.set_column(rows.schema.get_field_index("source"), "source", column)


def _padded(candidates: pa.Table, user_ids: pa.Array) -> np.ndarray:
    """Candidate lists of the given users as a (q, m) int64 array, −1 beyond the end of a list."""
    at = pc.index_in(user_ids, candidates["user_id"].combine_chunks())
    rows = candidates.take(at.drop_null())
    found = np.flatnonzero(at.is_valid().to_numpy(zero_copy_only=False))
    if not len(found):
        return np.full((len(user_ids), 0), -1, np.int64)
    lengths = pc.list_value_length(rows["item_nums"]).to_numpy()
    nums = np.full((len(user_ids), int(lengths.max())), -1, np.int64)
    row_of = np.repeat(found, lengths)
    column_of = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    nums[row_of, column_of] = pc.list_flatten(rows["item_nums"]).to_numpy()
    return nums


def _cut(values: np.ndarray, k: int, blank: float) -> np.ndarray:
    """The first k columns, padded where there are fewer."""
    out = np.full((len(values), k), blank, values.dtype)
    out[:, : values.shape[1]] = values[:, :k]
    return out


def _scores(personal: np.ndarray, lists: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """(q, k) float32 scores that fall along every list, so that score order is list order.

    Where diversity or a guarantee has moved an item up, those after it count no more than it does. A filled
    row has no personal score; it gets one below all personal ones by its place. Scores compare
    within a user's list, not between users.
    """
    personal = np.minimum.accumulate(np.where(sources == PERSONAL, personal, np.inf), axis=1)
    last = personal.min(axis=1, initial=np.inf)
    floor = np.where(np.isfinite(last), np.minimum(last, 0.0), 1.0)[:, None]
    place = np.arange(lists.shape[1], dtype=np.float32) + 1
    return np.where(sources == PERSONAL, personal, floor - place / lists.shape[1]).astype(np.float32)


def _rows(
    user_ids: np.ndarray,
    lists: np.ndarray,
    scores: np.ndarray,
    sources: np.ndarray,
    reasons: Reasons,
    catalogue: Catalogue,
) -> pa.Table:
    kept = lists >= 0
    lengths = kept.sum(axis=1)
    ranks = np.broadcast_to(np.arange(1, lists.shape[1] + 1, dtype=np.int32), lists.shape)
    return pa.table(
        {
            "user_id": pa.array(np.repeat(user_ids, lengths), pa.string()),
            "rank": ranks[kept],
            "item_id": pa.array(catalogue.item_ids[lists[kept]], pa.string()),
            "score": scores[kept],
            "source": pa.array(np.array(SOURCES, object)[sources[kept]], pa.string()),
            "reason": _reason_column(reasons, kept & (sources == PERSONAL), kept, catalogue.item_ids),
        }
    )


def _reason_column(
    reasons: Reasons, personal: np.ndarray, kept: np.ndarray, item_ids: np.ndarray
) -> pa.Array:
    """A list of (history item, share of the score) for each kept row; empty where the row is not personal."""
    named = (reasons.contributions > 0) & personal[:, :, None]
    shares = reasons.contributions / np.where(reasons.positive > 0, reasons.positive, 1.0)[:, :, None]
    offsets = np.r_[0, np.cumsum(named.sum(axis=2)[kept])].astype(np.int32)
    flat = named[kept]
    values = pa.StructArray.from_arrays(
        [
            pa.array(item_ids[reasons.item_nums[kept][flat]], pa.string()),
            pa.array(shares[kept][flat].astype(np.float32)),
        ],
        names=["item_id", "share"],
    )
    return pa.ListArray.from_arrays(pa.array(offsets), values)
