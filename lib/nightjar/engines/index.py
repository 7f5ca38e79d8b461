"""FAISS behind three calls: build a shard of the item index, open it mapped, search all shards in bulk.

This file is the only importer of faiss. FAISS proposes candidates; the score that is returned, and every
decision between two items, is `kernels.topk.rescore`, so with the factory "Flat" the result is the exact fp32
top-k and has the same bytes for any number of shards, threads and query blocks. Other factories are
approximate in which items they find, never in the scores, the filters or the number of items returned.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from faiss.contrib.inspect_tools import get_invlist

from nightjar.engines.shards import Effort, ShardFacts, check_items, check_sha256, write_whole
from nightjar.errors import ConfigError, ContractError
from nightjar.kernels.sweep import sweep_topk
from nightjar.kernels.topk import (
    F32,
    F64,
    I64,
    Filters,
    TopK,
    index_recall,
    rescore,
    rounding_margin,
    select_topk,
    vector_norms,
)

__all__ = ["Effort", "Shard", "ShardFacts", "build_shard", "index_recall", "open_shard", "search_shards"]

api: Any = faiss  # its stubs lack the keyword parameters that the package adds at import

QUERY_BLOCK = 1024
SLACK = 16  # fetched beyond k and the listed items, so that a tie at the boundary rarely needs a second pass
QUERIES_PER_LIST = 4  # a list shared by fewer is not worth a matrix product of its own
MAX_FETCH = 4096  # a longer FAISS result list costs more than the sweep of that user


@dataclass(frozen=True)
class Shard:
    """One open shard: the FAISS index, its item numbers (n,) int64 ascending, and whether it is exact.

    item_norm bounds the length of its vectors; 0 for an approximate shard, where no margin is needed.
    """

    index: Any
    item_nums: I64
    exact: bool
    item_norm: float
    sha256: str


def build_shard(
    vectors: F32, item_nums: I64, path: Path, factory: str = "Flat", metric: str = "ip", seed: int = 0
) -> ShardFacts:
    """Write one FAISS file of vectors (n, d) float32 with item_nums (n,) int64, ascending; return its facts.

    The item numbers are stored inside the file (IndexIDMap), which appears under its name complete or not at
    all. A shard may be empty. Training is single-threaded where FAISS's threads would change the result
    (HNSW), and seeded. ConfigError on a factory FAISS does not know or a metric other than "ip" (inner
    product); ContractError on vectors or item numbers that cannot be served.
    """
    if metric != "ip":
        raise ConfigError(f"metric {metric!r} is not supported; scores are inner products, use 'ip'")
    check_items(vectors, item_nums, path)
    index = _new_index(factory, vectors.shape[1], len(vectors), seed)
    if len(vectors):
        vectors = np.ascontiguousarray(vectors)
        _train_and_add(index, vectors, item_nums, path)
    digest = write_whole(path, lambda name: faiss.write_index(index, str(name)))
    return ShardFacts(len(vectors), factory, metric, digest, path.stat().st_size)


def _new_index(factory: str, n_dims: int, n_vectors: int, seed: int) -> Any:
    try:
        inner = faiss.index_factory(n_dims, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigError(f"faiss does not know the index factory {factory!r}: {error}") from error
    ivf = _ivf_of(inner)
    if ivf is not None:
        if 0 < n_vectors < ivf.nlist:
            raise ConfigError(f"{factory!r} wants {ivf.nlist} lists, the shard has only {n_vectors} vectors")
        ivf.cp.seed = seed
    return faiss.IndexIDMap(inner)


def _train_and_add(index: Any, vectors: F32, item_nums: I64, path: Path) -> None:
    """Train and fill; HNSW links depend on the order threads insert in, so it is built by one thread."""
    threads = faiss.omp_get_max_threads()
    if isinstance(faiss.downcast_index(index.index), faiss.IndexHNSW):
        faiss.omp_set_num_threads(1)
    try:
        index.train(vectors)
        index.add_with_ids(vectors, item_nums)
    except RuntimeError as error:
        raise ConfigError(f"shard {path.name}: faiss cannot build this index: {error}") from error
    finally:
        faiss.omp_set_num_threads(threads)


def _ivf_of(index: Any) -> Any | None:
    found = faiss.try_extract_index_ivf(index)
    return faiss.downcast_index(found) if found is not None else None


def open_shard(path: Path, sha256: str) -> Shard:
    """Open a shard memory-mapped, after checking that the file has the sha256 of its manifest.

    StorageError if it cannot be read; ContractError if its bytes are not those committed. A FAISS file is
    parsed by native code, so one that no manifest vouches for is never opened.
    """
    check_sha256(path, sha256)
    index: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    inner: Any = faiss.downcast_index(index.index)
    exact = isinstance(inner, faiss.IndexFlat)
    item_norm = 0.0
    if exact and inner.ntotal:
        stored = faiss.rev_swig_ptr(inner.get_xb(), inner.ntotal * inner.d).reshape(inner.ntotal, inner.d)
        item_norm = float(vector_norms(stored, f"shard {path.name}").max())
    return Shard(index, faiss.vector_to_array(index.id_map), exact, item_norm, sha256)


def search_shards(
    shards: list[Shard],
    queries: F32,
    k: int,
    matrix: F32,
    filters: Filters | None = None,
    effort: Effort | None = None,
) -> TopK:
    """The best k items of every user over all shards: item_nums (q, k), scores (q, k), n_found (q,).

    queries (q, d) float32; matrix (n_items, d) float32 in item-number order, may be a memmap; shards hold
    disjoint items of it. Seen, denied and ineligible items never appear, and n_found is k wherever k allowed
    items exist in the shards. Score descending, ties by item number ascending, entries beyond n_found -1.

    Every query goes to every shard with a list as long as its own exclusions need. A user who is then short,
    or whose boundary is too close to call (see `_certain`), gets a second pass: a wider one for approximate
    indexes, and in the end the exact sweep of `kernels.sweep`. ContractError on bad vectors or shapes.
    """
    filters, effort = filters or Filters(), effort or Effort()
    if k < 1:
        raise ContractError(f"k is {k}; it must be at least 1")
    query_norms = vector_norms(queries, "queries", matrix.shape[1])
    searchers = _Searchers([shard for shard in shards if len(shard.item_nums)], matrix, k)
    filters = searchers.within(filters.checked(len(queries), len(matrix)))
    faiss.omp_set_num_threads(effort.threads)
    result = TopK.nothing(len(queries), k)
    for users in _by_need(filters.n_listed(len(queries))):
        found, open_users = searchers.search(queries[users], query_norms[users], filters.take(users), effort)
        result.put(users, found)
        if len(open_users):
            at = users[open_users]
            floor = found.scores[open_users, k - 1] if searchers.exact else None
            swept = sweep_topk(queries[at], matrix, k, filters.take(at), floor)
            result.put(at, swept)
    return result


def _by_need(n_listed: I64) -> list[I64]:
    """User positions in blocks of similar list length: FAISS takes one result length for a whole call."""
    order = np.argsort(n_listed, kind="stable")
    levels = np.ceil(np.log2(1 + n_listed[order] / 64)).astype(np.int64)
    blocks = np.split(order, np.flatnonzero(np.diff(levels)) + 1) if len(order) else []
    return [block[at : at + QUERY_BLOCK] for block in blocks for at in range(0, len(block), QUERY_BLOCK)]


@dataclass(frozen=True)
class _Searchers:
    """The non-empty shards of one search, the vectors they index, and the number of items wanted."""

    shards: list[Shard]
    matrix: F32
    k: int
    exact: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "exact", all(shard.exact for shard in self.shards))
        for shard in self.shards:
            if shard.index.d != self.matrix.shape[1] or shard.item_nums[-1] >= len(self.matrix):
                raise ContractError(
                    f"a shard of dimension {shard.index.d} with items up to {shard.item_nums[-1]} does not "
                    f"belong to item vectors of shape {self.matrix.shape}"
                )
            if shard.exact and not self._is_built_from_matrix(shard):
                raise ContractError("a shard was built from other item vectors; run build_index again")

    def _is_built_from_matrix(self, shard: Shard) -> bool:
        """Spot check of three rows: stale vectors would void the proof that a list is exact."""
        inner = faiss.downcast_index(shard.index.index)
        rows = {0, len(shard.item_nums) // 2, len(shard.item_nums) - 1}
        return all(np.array_equal(inner.reconstruct(row), self.matrix[shard.item_nums[row]]) for row in rows)

    def within(self, filters: Filters) -> Filters:
        """The filters narrowed to the items that some shard holds; ContractError if two shards share one."""
        held = np.zeros(len(self.matrix), dtype=np.bool_)
        for shard in self.shards:
            held[shard.item_nums] = True
        n_held = sum(len(shard.item_nums) for shard in self.shards)
        if int(held.sum()) != n_held:
            raise ContractError("two shards hold the same item; shards must tile the items")
        if held.all():
            return filters
        return replace(filters, eligible=held if filters.eligible is None else filters.eligible & held)

    def search(self, queries: F32, query_norms: F64, filters: Filters, effort: Effort) -> tuple[TopK, I64]:
        """FAISS passes for one block of users, and the positions of those it leaves short or uncertain."""
        n_fetch = int(effort.k_factor * self.k) + int(filters.n_listed(len(queries)).max()) + SLACK
        if filters.eligible is not None:
            n_fetch = int(n_fetch / max(1e-9, float(filters.eligible.mean())))
        if n_fetch > MAX_FETCH or not self.shards:
            return TopK.nothing(len(queries), self.k), np.arange(len(queries)) if self.shards else np.empty(
                0, np.int64
            )
        found, bound = self._candidates(queries, n_fetch, filters, effort)
        if self.exact:
            margin = rounding_margin(query_norms, max(s.item_norm for s in self.shards), self.matrix.shape[1])
            return found, np.flatnonzero(~_certain(found, bound, margin))
        short = np.flatnonzero(found.n_found < self.k)
        if len(short) and not self._all_probed(effort):
            wider = replace(effort, nprobe=effort.nprobe * 8, ef_search=effort.ef_search * 4)
            n_wider = min(4 * n_fetch, MAX_FETCH)
            again, _ = self._candidates(queries[short], n_wider, filters.take(short), wider)
            found.put(short, again)
            short = short[again.n_found < self.k]
        return found, short

    def _all_probed(self, effort: Effort) -> bool:
        lists = [ivf.nlist for s in self.shards if (ivf := _ivf_of(s.index.index)) is not None]
        return bool(lists) and effort.nprobe >= max(lists)

    def _candidates(self, queries: F32, n_fetch: int, filters: Filters, effort: Effort) -> tuple[TopK, F64]:
        """The best k allowed of what the shards return, and the FAISS score no other item exceeds (q,)."""
        columns, bound = [], np.full(len(queries), -np.inf)
        for shard in self.shards:
            wanted = min(n_fetch, len(shard.item_nums))
            proposed, item_nums = _propose(shard, queries, wanted, effort)
            if wanted < len(shard.item_nums):
                bound = np.maximum(bound, proposed[:, -1])
            columns.append(np.where(filters.allowed(item_nums), item_nums, -1))
        item_nums = np.hstack(columns)
        return select_topk(rescore(queries, self.matrix, item_nums), item_nums, self.k), bound


def _certain(found: TopK, bound: F64, margin: F64) -> Any:
    """Users whose list is proven exact: their k-th score exceeds what any unreturned item can reach.

    An item a Flat shard did not return has a BLAS score of at most that shard's last one, hence a fixed-order
    score of at most that plus the rounding margin; equality is not enough, because a tie goes to the lower
    item number. A bound of -inf says that everything was returned.
    """
    return (found.scores[:, -1] > bound + margin) | np.isneginf(bound)


def _propose(shard: Shard, queries: F32, wanted: int, effort: Effort) -> tuple[F32, I64]:
    """FAISS's best `wanted` items of each query and their scores, list by list where that is faster."""
    inner = faiss.downcast_index(shard.index.index)
    if type(inner) is faiss.IndexIVFFlat:
        n_probe = min(effort.nprobe, inner.nlist)
        if len(queries) * n_probe >= QUERIES_PER_LIST * inner.nlist:
            return _search_by_list(inner, shard.item_nums, queries, wanted, n_probe)
    found: tuple[F32, I64] = shard.index.search(queries, wanted, params=_parameters(shard, effort))
    return found


def _search_by_list(ivf: Any, item_nums: I64, queries: F32, wanted: int, n_probe: int) -> tuple[F32, I64]:
    """Search an IVF-Flat list by list: one matrix product for all queries that visit a list.

    The method of faiss.contrib.big_batch_search, which prints a line for every list and whose inner products
    (faiss.pairwise_distances) are no matrix product: 11 ms a list of 195 vectors and 192 queries, here 0.3.
    """
    _, lists = ivf.quantizer.search(queries, n_probe)
    visits = lists.reshape(-1)
    order = np.argsort(visits, kind="stable")
    starts = np.searchsorted(visits[order], np.arange(ivf.nlist + 1))
    heap = faiss.ResultHeap(len(queries), wanted, keep_max=True)
    for at in np.flatnonzero(np.diff(starts)):
        users = order[starts[at] : starts[at + 1]] // n_probe
        positions, codes = get_invlist(ivf.invlists, int(at))
        if len(positions):
            vectors = codes.view(np.float32)
            heap.add_result_subset(users, queries[users] @ vectors.T, positions)
    heap.finalize()
    return heap.D, np.where(heap.I >= 0, item_nums[heap.I], -1)


def _parameters(shard: Shard, effort: Effort) -> Any | None:
    inner = faiss.downcast_index(shard.index.index)
    ivf = _ivf_of(inner)
    if ivf is not None:
        return _ivf_parameters(inner, ivf, min(effort.nprobe, ivf.nlist))
    if isinstance(inner, faiss.IndexHNSW):
        return api.SearchParametersHNSW(efSearch=effort.ef_search)
    return None


def _ivf_parameters(inner: Any, ivf: Any, nprobe: int) -> Any:
    kind = api.IVFPQSearchParameters if isinstance(ivf, faiss.IndexIVFPQ) else api.SearchParametersIVF
    parameters = kind(nprobe=nprobe)
    if isinstance(inner, faiss.IndexPreTransform):
        parameters = api.SearchParametersPreTransform(index_params=parameters)
    return parameters
