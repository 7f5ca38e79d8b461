"""Exact bulk top-k by threshold join: propose with int8 products, decide with fp32 scores.

For a block of users:
1. probe: the items of each user's nearest lists, by estimated score; the best k of them, re-scored, give a
   floor, a score that k allowed items are known to reach;
2. sweep: all items in tiles; a pair whose upper bound (`codes`) reaches the larger of the floor and the
   running k-th score is re-scored in the fixed order and enters the user's heap.
An item left out has an upper bound below the k-th score, so the result is the exact one, and since a score
depends on its pair alone, it has the same bytes for any shards, blocks, tiles and threads. The approximate
mode stops after a longer probe.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nightjar.engines.bulk.compiled import (
    GROUP,
    N_HITS,
    TOGETHER,
    choose_lists,
    estimate_lists,
    estimate_rows,
    group_visits,
    keep_best,
    mark_listed,
    score_rows,
    sweep_codes,
    sweep_items,
)
from nightjar.engines.bulk.dense import search_dense
from nightjar.engines.bulk.products import (
    Float32Products,
    Int8Products,
    Products,
    has_bf16,
    has_int8,
    up_to_group,
)
from nightjar.engines.bulk.shard import BulkShard, witness_rows
from nightjar.engines.shards import Effort
from nightjar.errors import ContractError
from nightjar.kernels.topk import F32, F64, I64, Filters, Mask, TopK, select_topk, vector_norms

USER_BLOCK = 8192  # users that share one pass over the items; 25 MB of vectors and heaps at 384 dimensions
ROWS = 512
COLUMNS = 1024  # 512 × 1024 scores are 2 MB, so a tile of torch's is compared before it leaves the cache
FLOOR_SHARE = 0.01  # of the lists probed for the floor; 0.005 and 0.02 take 0 to 3 % longer
MIN_PROBES = 4
SPREAD = 0.3  # halves the lists for recall 0.99 on made vectors; best on two of real titles, raw and whitened
NEAREST_FIRST = 4  # lists of each user that are visited before the rest: 0.5 µs a user dearer at 2 and at 8
USERS_PER_LIST = 8  # with fewer users to share a list's product, the floor costs more than it saves
MANY_USERS = 2048  # from here on copying a tile's vectors together pays
BITS_PER_ITEM = 16
MAX_WORDS = 256
EXTRA = 1.25  # candidates per item wanted in approximate mode: estimates misorder the end; 1.1 loses 0.3 %

Limits = tuple[NDArray[Any], ...]
Items = tuple[F32, I64]
"""terms (4, width) of a tile's items, and their numbers."""


@dataclass(frozen=True)
class Task:
    """One search: what is looked for, in what, for whom it is allowed."""

    shards: list[BulkShard]
    matrix: F32
    k: int
    effort: Effort


def search_shards(
    shards: list[BulkShard],
    queries: F32,
    k: int,
    matrix: F32,
    filters: Filters | None = None,
    effort: Effort | None = None,
) -> TopK:
    """The best k items of every user over all shards: item_nums (q, k), scores (q, k), n_found (q,).

    Same call, order, filters and errors as `engines.index.search_shards`. Exact, and n_found is k wherever k
    allowed items exist in the shards, unless effort.probe_share asks for the approximate mode: then only that
    share of the lists is searched, except for users who would be short. effort.device other than "cpu" hands
    the whole search to `bulk.dense`, always exact.
    """
    filters, effort = filters or Filters(), effort or Effort()
    if k < 1:
        raise ContractError(f"k is {k}; it must be at least 1")
    query_norms = vector_norms(queries, "queries", matrix.shape[1])
    filters = filters.checked(len(queries), len(matrix))
    shards = [shard for shard in shards if len(shard.item_nums)]
    held = _held(shards, matrix)
    if effort.device != "cpu":
        allowed = held if filters.eligible is None else filters.eligible & held
        return search_dense(queries, k, matrix, replace(filters, eligible=allowed), effort.device)
    result = TopK.nothing(len(queries), k)
    task = Task(shards, matrix, k, effort)
    n_blocks = max(effort.threads, -(-len(queries) // USER_BLOCK))
    blocks = [users for users in np.array_split(np.arange(len(queries)), n_blocks) if len(users)]

    def run(users: I64) -> None:
        torch.set_num_threads(1)  # of this worker thread: the blocks are the parallelism
        found = _search_block(
            task, np.ascontiguousarray(queries[users]), query_norms[users], filters.take(users)
        )
        result.put(users, found)

    with ThreadPoolExecutor(effort.threads) as pool:
        list(pool.map(run, blocks))
    return result


def _held(shards: list[BulkShard], matrix: F32) -> Mask:
    """Which items the shards hold; ContractError on shards that do not belong to the matrix or overlap."""
    held = np.zeros(len(matrix), dtype=np.bool_)
    for shard in shards:
        top = int(shard.item_nums.max())
        if shard.centroids.shape[1] != matrix.shape[1] or top >= len(matrix):
            raise ContractError(
                f"a shard of dimension {shard.centroids.shape[1]} with items up to {top} does not belong to "
                f"item vectors of shape {matrix.shape}"
            )
        # A spot check: codes of other vectors would void the bound.
        rows = witness_rows(len(shard.item_nums))
        if not np.array_equal(matrix[shard.item_nums[rows]], shard.witnesses):
            raise ContractError("a shard was built from other item vectors; run build_index again")
        if held[shard.item_nums].any():
            raise ContractError("two shards hold the same item; shards must tile the items")
        held[shard.item_nums] = True
    return held


@dataclass(frozen=True)
class _Block:
    """A block of users, the products of each shard with them, and which items anybody of them may get, where
    that is the same for all."""

    queries: F32
    limits: Limits
    products: list[Products]
    everybody: Mask | None

    @staticmethod
    def of(task: Task, queries: F32, query_norms: F64, filters: Filters) -> "_Block":
        return _Block(
            queries,
            _limits(filters, len(queries)),
            [_products_of(shard, queries, query_norms, task.matrix) for shard in task.shards],
            filters.eligible if filters.group is None else None,
        )

    def items(self, shard: BulkShard, products: Products, first: int, n_items: int) -> Items:
        """What the loops need of a tile's items; those that nobody may get reach no threshold."""
        terms, numbers = products.terms(first, up_to_group(n_items)), shard.item_nums[first : first + n_items]
        if self.everybody is not None:
            terms[3, :n_items][~self.everybody[numbers]] = -np.inf
        return terms, numbers


def _products_of(shard: BulkShard, queries: F32, query_norms: F64, matrix: F32) -> Products:
    """int8 if this processor has it, else fp32; the result of a search is the same."""
    if has_int8():
        return Int8Products.of(shard, queries, query_norms, COLUMNS)
    return Float32Products.of(shard, queries, query_norms, matrix, ROWS, COLUMNS)


def _search_block(task: Task, queries: F32, query_norms: F64, filters: Filters) -> TopK:
    block = _Block.of(task, queries, query_norms, filters)
    share = task.effort.probe_share
    n_kept = task.k if share is None else int(np.ceil(task.k * max(EXTRA, task.effort.k_factor)))
    candidates, order = _probe(task, block, FLOOR_SHARE if share is None else share, n_kept)
    found = select_topk(_score(queries, task.matrix, candidates, order), candidates, task.k)
    if share is None:
        return _sweep(task, block, found.scores[:, -1].copy())
    short = np.flatnonzero(found.n_found < task.k)
    if len(short):
        again = _Block.of(task, queries[short], query_norms[short], filters.take(short))
        swept = _sweep(task, again, np.full(len(short), -np.inf, np.float32))
        found.put(short, swept)
    return found


def _limits(filters: Filters, n_users: int) -> Limits:
    """The filters as plain arrays: eligible (groups, items or 0), group (q,), listed items in CSR, marks."""
    group = np.zeros(n_users, np.int64) if filters.group is None else filters.group.astype(np.int64)
    eligible = np.empty((1, 0), np.bool_) if filters.eligible is None else np.atleast_2d(filters.eligible)
    listed = filters.listed(n_users)
    n_words = 1
    while n_words < MAX_WORDS and n_words * 64 * n_users < BITS_PER_ITEM * len(listed.item_nums):
        n_words *= 2
    marks = np.zeros((n_users, n_words), np.uint64)
    mark_listed(listed.indptr, listed.item_nums, marks)
    return np.ascontiguousarray(eligible), group, listed.indptr, listed.item_nums, marks


def _heaps(n_users: int, k: int) -> tuple[F32, I64]:
    """Heaps full of nothing: score -inf, an item beyond every real one."""
    scores = np.full((n_users, k), -np.inf, np.float32)
    return scores, np.full((n_users, k), np.iinfo(np.int64).max, np.int64)


def _items_of(heaps: tuple[F32, I64]) -> I64:
    return np.where(np.isneginf(heaps[0]), -1, heaps[1])


@dataclass(frozen=True)
class _Kept:
    """Room for the best k of each user and as many again, before they are cut back."""

    scores: F32
    items: I64
    counts: I64
    cuts: F32
    k: int

    @staticmethod
    def room_for(n_users: int, k: int) -> "_Kept":
        room = 2 * k + GROUP
        return _Kept(
            np.empty((n_users, room), np.float32),
            np.empty((n_users, room), np.int64),
            np.zeros(n_users, np.int64),
            np.full(n_users, -np.inf, np.float32),
            k,
        )

    def plain(self) -> tuple[F32, I64, I64, F32, int]:
        return self.scores, self.items, self.counts, self.cuts, self.k

    def tighten(self) -> None:
        """Cut every user's entries back to the best k, and set the score that the next ones must reach."""
        keep_best(self.plain())

    def best(self) -> I64:
        """The best k items of each user, (q, k) int64, -1 where there are fewer."""
        self.tighten()
        absent = np.arange(self.k) >= self.counts[:, None]
        return np.where(absent, -1, self.items[:, : self.k])


def _probe(task: Task, block: _Block, share: float, n_kept: int) -> tuple[I64, I64]:
    """The n_kept best allowed items of the nearest lists by estimate, (q, n_kept) int64, -1 where none; and
    the users (q,) by their nearest list, neighbours side by side.

    List by list: all users that probe a list meet it in one product. The nearest lists of all users come
    first, because what they leave sets a threshold that most of the rest fails at a glance.
    """
    kept, order = _Kept.room_for(len(block.queries), n_kept), np.arange(len(block.queries))
    for shard, products in zip(task.shards, block.products, strict=True):
        n_lists = len(shard.centroids)
        n_probe = min(n_lists, max(MIN_PROBES, round(share * n_lists)))
        if task.effort.probe_share is None and len(block.queries) * n_probe < USERS_PER_LIST * n_lists:
            continue
        n_first = NEAREST_FIRST if n_probe > 2 * NEAREST_FIRST else 0
        nearest = _nearest_lists(block.queries, shard, n_probe, n_first)
        if n_first:
            order = np.argsort(nearest[:, 0], kind="stable")
            _probe_lists(block, (shard, products), nearest[:, :n_first], kept)
            kept.tighten()
        _probe_lists(block, (shard, products), nearest[:, n_first:], kept)
    return kept.best(), order


def _probe_lists(block: _Block, pair: tuple[BulkShard, Products], visits: I64, kept: _Kept) -> None:
    """Bring every user together with the lists of its row of visits (q, m)."""
    shard, products = pair
    starts, users = np.empty(len(shard.centroids) + 1, np.int64), np.empty(visits.size, np.int64)
    group_visits(visits, starts, users)
    if isinstance(products, Int8Products):
        visitors = products.visitors(users)
        items = products.words, shard.terms, shard.item_nums, shard.list_starts
        estimate_lists(starts, visitors, items, products.coefs, kept.plain(), block.limits, products.room)
        return
    for at in np.flatnonzero(np.diff(starts)).tolist():
        _probe_list(block, (shard, products), users[starts[at] : starts[at + 1]], at, kept)


def _nearest_lists(queries: F32, shard: BulkShard, count: int, n_first: int) -> I64:
    """The most promising lists of each user, (q, count), as `choose_lists` orders them.

    A list promises the score of its centroid and, as its best item is what counts, a share of its spread.
    """
    n_lists, n_dims = shard.centroids.shape
    # Half of a float will do to choose lists, in half of the time, a sixth where there are tiles.
    kind = torch.bfloat16 if has_bf16() else torch.float32
    width = up_to_group(n_lists)
    columns, terms = torch.zeros((width, n_dims), dtype=kind), np.ones((2, width), np.float32)
    columns[:n_lists], terms[1, :n_lists] = torch.from_numpy(np.asarray(shard.centroids)), shard.spreads
    shares = (SPREAD * np.linalg.norm(queries, axis=1)).astype(np.float32)
    chosen = np.empty((len(queries), count), np.int64)
    room = np.empty(width, np.float32), np.empty(width, np.int32)
    for row in range(0, len(queries), ROWS):
        users = slice(row, row + ROWS)
        products = (torch.from_numpy(queries[users]).to(kind) @ columns.T).float().numpy()
        choose_lists(products, terms, shares[users], n_lists, n_first, room, chosen[users])
    return chosen


def _probe_list(
    block: _Block, pair: tuple[BulkShard, Float32Products], users: I64, at: int, kept: _Kept
) -> None:
    shard, products = pair
    start, stop = int(shard.list_starts[at]), int(shard.list_starts[at + 1])
    for first in range(start, stop, COLUMNS):
        n_items = min(COLUMNS, stop - first)
        width = up_to_group(n_items)
        facts = products.terms(first, width), shard.item_nums[first : first + n_items]
        items = products.items(first, width)
        for row in range(0, len(users), ROWS):
            some = users[row : row + ROWS]
            padded = np.zeros(up_to_group(len(some)), np.int64)
            padded[: len(some)] = some
            tile = products.by_user(torch.from_numpy(padded), items)
            estimate_rows(tile, n_items, some, facts, products.coefs, kept.plain(), block.limits)


def _score(queries: F32, matrix: F32, item_nums: I64, order: I64) -> F32:
    """`kernels.topk.rescore`, compiled: the same bits, whatever the order of the users."""
    scores, lanes = np.full(item_nums.shape, -np.inf, np.float32), np.empty(GROUP, np.float32)
    flat = np.ascontiguousarray(matrix).reshape(-1)
    score_rows(queries.reshape(-1), flat, item_nums, queries.shape[1], order, scores, lanes)
    return scores


def _sweep(task: Task, block: _Block, floor: F32) -> TopK:
    """The exact best k of all items, given a score that k allowed items of each user reach, (q,) or -inf."""
    heaps = _heaps(len(floor), task.k)
    fetch = _fetcher(task.matrix, len(floor))
    hits, lanes = np.empty((N_HITS, 2), np.int64), np.empty(GROUP, np.float32)
    cuts = np.empty((2, up_to_group(ROWS)), np.float32)
    queries, n_dims = block.queries.reshape(-1), block.queries.shape[1]
    for shard, products in zip(task.shards, block.products, strict=True):
        sweep_tile = _tile_sweep(shard, products, len(floor))
        for first in range(0, len(shard.item_nums), COLUMNS):
            n_items = min(COLUMNS, len(shard.item_nums) - first)
            vectors, places = fetch(shard.item_nums[first : first + n_items])
            length = float(shard.norms[first : first + n_items].max())
            exact = (floor, queries, vectors, places, n_dims, length, hits, lanes)
            terms, numbers = block.items(shard, products, first, n_items)
            facts = terms, numbers, float(terms[2, :n_items].max()), float(terms[3, :n_items].max())
            sweep_tile(first, n_items, facts, (cuts, heaps, block.limits, exact))
    return select_topk(heaps[0], _items_of(heaps), task.k)


def _tile_sweep(shard: BulkShard, products: Products, n_users: int) -> Callable[..., None]:
    """How all users meet a tile of items: with products made on the way, or by torch for a crowd at once."""
    if isinstance(products, Int8Products) and not products.tiles:
        n_words, words, users = shard.rotation.n_swept // TOGETHER, products.words, products.users

        def sweep_here(first: int, n_items: int, facts: Any, rest: Any) -> None:
            sweep_codes((words, first, n_items, n_words, facts), users, products.coefs, products.room, *rest)

        return sweep_here
    crowds = [products.crowd(start, min(start + ROWS, n_users)) for start in range(0, n_users, ROWS)]

    def sweep_crowds(first: int, n_items: int, facts: Any, rest: Any) -> None:
        items = products.items(first, up_to_group(n_items))
        for crowd in crowds:
            tile, users = products.by_item(items, crowd), (crowd.first, crowd.stop)
            sweep_items(tile, n_items, users, facts, products.coefs, crowd.common, *rest)

    return sweep_crowds


def _fetcher(matrix: F32, n_users: int) -> Callable[[I64], tuple[F32, I64]]:
    """How a sweep reads the vectors of a tile: (flat vectors, rows of the tile's items among them)."""
    if n_users < MANY_USERS:
        flat = np.ascontiguousarray(matrix).reshape(-1)
        return lambda numbers: (flat, numbers)
    room, in_order = np.zeros((COLUMNS, matrix.shape[1]), np.float32), np.arange(COLUMNS)

    def gather(numbers: I64) -> tuple[F32, I64]:
        np.take(matrix, numbers, axis=0, out=room[: len(numbers)], mode="clip")
        return room.reshape(-1), in_order

    return gather
