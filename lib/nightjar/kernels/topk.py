"""Select, merge and re-score the best k items of a user so that equal input gives equal bytes.

Two rules make a list independent of shards, blocks and threads. The score of a (user, item) pair is always
`fixed_order_dot`, whose additions happen in one order whatever stands beside the pair; a BLAS product, whose
rounding depends on the tile, only proposes candidates. And the order of a list is total: score descending,
then item number ascending, so the best k are one set and one sequence.

Inside these kernels an absent entry is item number -1 with score -inf, always at the end of a row;
`TopK.n_found` says how many entries of a row are real, and a stage publishes only those.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nightjar.errors import ContractError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

LANES = 64  # four AVX-512 accumulators; part of the definition of a score, so changing it changes bytes
MAX_ITEM_NUM = 2**32 - 2  # an item number shares a 64-bit sort key with its score
MAX_NORM = 1e18  # a product of two such norms is far below the largest fp32 number, so scores stay finite
MIN_NORM = 1e-18  # and one of two such norms far above the smallest, so that no score vanishes by underflow
GATHER_BYTES = 16 << 20
UNIT_ROUNDOFF = 2.0**-24


class TopK(NamedTuple):
    """The best k items of each user: item_nums (q, k) int64, scores (q, k) float32, n_found (q,) int64.

    Sorted by score descending, ties by item number ascending; beyond n_found a row holds -1 and -inf.
    """

    item_nums: I64
    scores: F32
    n_found: I64

    @staticmethod
    def nothing(n_users: int, k: int) -> "TopK":
        """A result in which nobody has found anything yet."""
        absent = np.full((n_users, k), -np.inf, np.float32)
        return TopK(np.full((n_users, k), -1, np.int64), absent, np.zeros(n_users, np.int64))

    def put(self, users: I64, part: "TopK") -> None:
        """Write the rows of some users, given by position, in place."""
        self.item_nums[users], self.scores[users], self.n_found[users] = part


@dataclass(frozen=True)
class ItemLists:
    """One list of items per user, in CSR form: what a user has seen, or must not be shown.

    indptr (q + 1,) int64; item_nums (nnz,) int64, strictly ascending inside each user's row.
    """

    indptr: I64
    item_nums: I64

    def checked(self, n_users: int, what: str) -> "ItemLists":
        """Return these lists after refusing any that are not sorted CSR for n_users (ContractError)."""
        indptr, items = self.indptr, self.item_nums
        if indptr.shape != (n_users + 1,) or indptr[0] != 0 or indptr[-1] != len(items):
            raise ContractError(f"{what} lists: indptr must be {n_users + 1} numbers from 0 to {len(items)}")
        if np.any(np.diff(indptr) < 0):
            raise ContractError(f"{what} lists: indptr decreases; build it from the users' counts in order")
        rising = items[1:] > items[:-1]
        rising[indptr[1:-1][(indptr[1:-1] > 0) & (indptr[1:-1] < len(items))] - 1] = True
        firsts = items[indptr[:-1][indptr[:-1] < indptr[1:]]]
        if not rising.all() or np.any(firsts < 0):
            raise ContractError(f"{what} lists: a user's item numbers must be strictly ascending and ≥ 0")
        return self

    def counts(self) -> I64:
        """Number of listed items of each user, (q,) int64."""
        return np.diff(self.indptr)

    def take(self, users: I64) -> "ItemLists":
        """The lists of the users at these positions, in that order."""
        if len(users) and np.array_equal(users, np.arange(users[0], users[0] + len(users))):
            indptr = self.indptr[users[0] : users[0] + len(users) + 1]
            return ItemLists(indptr - indptr[0], self.item_nums[indptr[0] : indptr[-1]])
        counts = self.counts()[users]
        indptr = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        within = np.arange(indptr[-1]) - np.repeat(indptr[:-1], counts)
        return ItemLists(indptr, self.item_nums[np.repeat(self.indptr[:-1][users], counts) + within])

    def pairs(self) -> tuple[I64, I64]:
        """Every (user position, item number), in user order."""
        return np.repeat(np.arange(len(self.indptr) - 1), self.counts()), self.item_nums


@dataclass(frozen=True)
class Filters:
    """What must not be retrieved: seen and denied items per user, and items nobody may get.

    eligible is (n_items,) bool over item numbers, or (n_groups, n_items) bool with group (q,) int64 giving
    each user's row (region, tenant, age band); None lets every item through.
    """

    seen: ItemLists | None = None
    deny: ItemLists | None = None
    eligible: Mask | None = None
    group: I64 | None = None

    def checked(self, n_users: int, n_items: int) -> "Filters":
        """Return these filters after refusing any whose shape does not fit (ContractError)."""
        for what, lists in (("seen", self.seen), ("deny", self.deny)):
            if lists is not None:
                lists.checked(n_users, what)
        if self.eligible is not None and self.eligible.shape[-1] != n_items:
            raise ContractError(f"eligible covers {self.eligible.shape[-1]} items, the catalogue {n_items}")
        grouped = self.eligible is not None and self.eligible.ndim == 2
        if grouped != (self.group is not None):
            raise ContractError("eligible by group needs a (n_groups, n_items) mask and a group per user")
        if self.eligible is not None and self.group is not None:
            in_range = (self.group >= 0) & (self.group < len(self.eligible))
            if self.group.shape != (n_users,) or not in_range.all():
                raise ContractError(f"group must give each of {n_users} users a row of eligible")
        return self

    def take(self, users: I64) -> "Filters":
        """The same filters for the users at these positions."""
        return Filters(
            None if self.seen is None else self.seen.take(users),
            None if self.deny is None else self.deny.take(users),
            self.eligible,
            None if self.group is None else self.group[users],
        )

    def listed(self, n_users: int) -> ItemLists:
        """Seen and denied items of each user as one set of lists."""
        given = [lists for lists in (self.seen, self.deny) if lists is not None]
        if not given:
            return ItemLists(np.zeros(n_users + 1, dtype=np.int64), np.empty(0, dtype=np.int64))
        if len(given) == 1:
            return given[0]
        users, items = (
            np.concatenate(column) for column in zip(*(each.pairs() for each in given), strict=True)
        )
        span = int(items.max(initial=0)) + 1
        keys = np.unique(users * span + items)
        counts = np.bincount(keys // span, minlength=n_users)
        return ItemLists(np.concatenate(([0], np.cumsum(counts))), keys % span)

    def n_listed(self, n_users: int) -> I64:
        """Seen plus denied items of each user (an item on both lists counts twice), (q,) int64."""
        parts = [lists.counts() for lists in (self.seen, self.deny) if lists is not None]
        return np.sum(parts, axis=0, dtype=np.int64) if parts else np.zeros(n_users, dtype=np.int64)

    def allowed(self, item_nums: I64) -> Mask:
        """Which of the candidates (q, m) a user may get; -1 is never allowed."""
        keep = item_nums >= 0
        safe = np.maximum(item_nums, 0)
        if self.eligible is not None:
            keep &= self.eligible[safe] if self.group is None else self.eligible[self.group[:, None], safe]
        for lists in (self.seen, self.deny):
            if lists is not None:
                keep &= ~is_listed(item_nums, lists)
        return keep


def is_listed(item_nums: I64, lists: ItemLists) -> Mask:
    """Which candidates (q, m) stand on their user's list; (q, m) bool, -1 never does.

    One binary search in the concatenated lists: (user, item) keys ascend because rows and items do.
    """
    if lists.item_nums.size == 0 or item_nums.size == 0:
        return np.zeros(item_nums.shape, dtype=np.bool_)
    span = int(max(item_nums.max(), lists.item_nums.max())) + 1
    users, items = lists.pairs()
    listed = users * span + items
    wanted = np.arange(len(item_nums))[:, None] * span + item_nums
    at = np.minimum(np.searchsorted(listed, wanted), len(listed) - 1)
    found: Mask = (listed[at] == wanted) & (item_nums >= 0)
    return found


def vector_norms(vectors: NDArray[Any], what: str, n_dims: int | None = None) -> F64:
    """Euclidean norms (n,) of finite, non-zero float32 vectors (n, d); the gate every vector passes.

    The norms are upper bounds (rounded up by 1e-4), as error margins need. ContractError names the first row
    that is NaN, infinite, zero or of a length outside MIN_NORM … MAX_NORM, or a wrong shape or type.
    """
    norms = _norms(vectors, what, n_dims)
    _refuse(vectors, np.flatnonzero(~((norms >= MIN_NORM) & (norms <= MAX_NORM))), what)
    return norms * (1 + 1e-4)


def item_norms(vectors: NDArray[Any], what: str) -> F64:
    """As `vector_norms`, but a zero vector passes with norm 0: an item of which nothing is known.

    Such an item stands in no shard, so no search returns it; it keeps its number and its place in the matrix.
    """
    norms = _norms(vectors, what, None)
    _refuse(vectors, np.flatnonzero(~((norms >= MIN_NORM) & (norms <= MAX_NORM) | (norms == 0))), what)
    return norms * (1 + 1e-4)


def _norms(vectors: NDArray[Any], what: str, n_dims: int | None) -> F64:
    if vectors.ndim != 2 or vectors.shape[1] == 0 or (n_dims is not None and vectors.shape[1] != n_dims):
        raise ContractError(f"{what}: expected (n, {n_dims or 'd'}) vectors, got shape {vectors.shape}")
    if vectors.dtype != np.float32:
        raise ContractError(f"{what}: expected float32 vectors, got {vectors.dtype}")
    norms = np.empty(len(vectors))
    step = max(1, GATHER_BYTES // (4 * vectors.shape[1]))
    for start in range(0, len(vectors), step):
        block = np.asarray(vectors[start : start + step])
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("ij,ij->i", block, block).astype(np.float64)
        # Outside this range fp32 squares over- or underflow; such rows are rare and counted again in fp64.
        odd = np.flatnonzero(~((squares > 1e-30) & (squares < 1e36)))
        squares[odd] = np.sum(np.square(block[odd], dtype=np.float64), axis=1)
        norms[start : start + step] = np.sqrt(squares)
    return norms


def _refuse(vectors: NDArray[Any], bad: I64, what: str) -> None:
    if len(bad):
        reason = _what_is_wrong(vectors[bad[0]])
        raise ContractError(f"{what}: row {bad[0]} is {reason} ({len(bad)} bad rows in all)")


def _what_is_wrong(row: NDArray[Any]) -> str:
    if np.isnan(row).any():
        return "NaN"
    if np.isinf(row).any():
        return "infinite"
    if not row.any():
        return "zero"
    return f"not of a length between {MIN_NORM:g} and {MAX_NORM:g}"


def rounding_margin(query_norms: F64, item_norm: float, n_dims: int) -> F64:
    """How far any two fp32 evaluations of one inner product can lie apart, (q,) float64.

    Each is within γ_d·‖u‖‖x‖ of the real number, γ_d = d·2⁻²⁴/(1 - d·2⁻²⁴), in whatever order and with or
    without fused multiply-add (Higham, Accuracy and Stability of Numerical Algorithms, §3.1); the last term
    covers products that underflow.
    """
    gamma = n_dims * UNIT_ROUNDOFF / (1 - n_dims * UNIT_ROUNDOFF)
    return 2 * gamma * query_norms * item_norm + 2 * n_dims * 2.0**-126


def fixed_order_dot(a: F32, b: F32) -> F32:
    """Inner products over the last axis, (..., d) with (..., d) float32, rounded in one fixed order.

    Lane l of 64 adds the products l, l + 64, l + 128 … one after another, then the lanes are added in halves
    (l and l + 32, then 16 …). Every step is an element-wise fp32 operation, so the bits depend on the two
    vectors alone.
    """
    n_dims = a.shape[-1]
    lanes = a[..., :LANES] * b[..., :LANES]
    if n_dims < LANES:
        lanes = np.concatenate([lanes, np.zeros((*lanes.shape[:-1], LANES - n_dims), np.float32)], axis=-1)
    for start in range(LANES, n_dims, LANES):
        part = a[..., start : start + LANES] * b[..., start : start + LANES]
        lanes[..., : part.shape[-1]] += part
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def rescore(queries: F32, matrix: F32, item_nums: I64) -> F32:
    """Scores (q, m) float32 of candidates (q, m) int64: queries (q, d) float32 with rows of matrix (n, d).

    Bit-equal for a pair wherever it stands (see `fixed_order_dot`); -1 scores -inf. The matrix may be a
    memmap, of which only the rows named are read.
    """
    scores = np.full(item_nums.shape, -np.inf, dtype=np.float32)
    if item_nums.size == 0:
        return scores
    users, at = np.nonzero(item_nums >= 0)
    scores[users, at] = score_pairs(queries, matrix, users, item_nums[users, at])
    return scores


def score_pairs(queries: F32, matrix: F32, users: I64, item_nums: I64) -> F32:
    """Scores (p,) float32 of single pairs: queries[users[i]] with matrix[item_nums[i]], as in `rescore`."""
    scores = np.empty(len(users), dtype=np.float32)
    step = max(1, GATHER_BYTES // (4 * queries.shape[1]))
    for start in range(0, len(users), step):
        part = slice(start, start + step)
        scores[part] = fixed_order_dot(queries[users[part]], np.asarray(matrix[item_nums[part]]))
    return scores


def select_topk(scores: F32, item_nums: I64, k: int) -> TopK:
    """The best k of each row of candidates (q, m), by score descending, then item number ascending.

    A candidate with item number -1 is absent. Each row's items are distinct and scores finite; -0.0 counts
    as 0.0. Sorts one 64-bit key per candidate: inverted score bits above, item number below.
    """
    m = scores.shape[1]
    if item_nums.size and int(item_nums.max()) > MAX_ITEM_NUM:
        raise ContractError(f"item number {item_nums.max()} exceeds {MAX_ITEM_NUM}; number items densely")
    bits = (scores + np.float32(0)).view(np.uint32)
    flipped = np.where(bits >> 31, bits, ~bits & np.uint32(0x7FFFFFFF))
    keys = (flipped.astype(np.uint64) << np.uint64(32)) | item_nums.astype(np.uint64)
    keys[item_nums < 0] = np.iinfo(np.uint64).max
    if m > k:
        keys = np.partition(keys, k - 1, axis=1)[:, :k]
    keys = np.sort(keys, axis=1)
    if m < k:
        keys = np.pad(keys, ((0, 0), (0, k - m)), constant_values=np.iinfo(np.uint64).max)
    return _from_keys(keys)


def _from_keys(keys: NDArray[np.uint64]) -> TopK:
    absent = keys == np.iinfo(np.uint64).max
    flipped = (keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(flipped >> 31, flipped, ~flipped & np.uint32(0x7FFFFFFF)).astype(np.uint32)
    scores = bits.view(np.float32)
    scores[absent] = -np.inf
    item_nums = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    item_nums[absent] = -1
    return TopK(item_nums, scores, (~absent).sum(axis=1))


def merge_topk(parts: list[tuple[I64, F32]], k: int) -> TopK:
    """The best k of each user over parts with disjoint items, each (item_nums (q, k_i), scores (q, k_i)).

    The result is the same for any split of the items into parts and any order of the parts.
    """
    if not parts:
        raise ContractError("merge_topk: there is no part to merge; pass at least one shard's result")
    item_nums = np.concatenate([item_nums for item_nums, _ in parts], axis=1)
    return select_topk(np.concatenate([scores for _, scores in parts], axis=1), item_nums, k)


def index_recall(approximate: TopK, exact: TopK) -> F64:
    """IndexRecall@k of each user (q,): the share of the exact list that the approximate one reaches.

    Counted by score, so that an item tied with the k-th one counts as well as the k-th itself; 1 for a user
    with nothing to find.
    """
    kth = np.where(exact.n_found > 0, exact.scores[np.arange(len(exact.scores)), exact.n_found - 1], np.inf)
    hits = ((approximate.scores >= kth[:, None]) & (approximate.item_nums >= 0)).sum(axis=1)
    recall: F64 = np.minimum(hits, exact.n_found) / np.maximum(exact.n_found, 1)
    return np.where(exact.n_found > 0, recall, 1.0)
