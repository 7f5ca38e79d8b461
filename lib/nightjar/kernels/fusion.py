"""Fuses relations and recent popularity into one score for each user and item, with weights fitted on a log.

score(u, i) = g_i^a · Σ_s w_s · r_s(u, i) / ‖r_s(u, ·)‖ + w_pop · p_i / ‖p‖

with r_s = x_u @ S_s the score by relation s (signals.py), g the freshness of items, p their recent popularity
and ‖·‖ the length over the whole catalogue of the row r_s∘g^a. Dividing by it makes sources comparable user
by user, whatever their unit, as a z-score would: subtracting a mean would move all items of a user alike and
leave their order as it is. The score stays a sum over the history, so its reasons are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from nightjar.errors import ContractError
from nightjar.kernels.ranked_lists import Csr, entry_rows, row_blocks
from nightjar.kernels.signals import F64, I64
from nightjar.kernels.topk import TopK, select_topk

Terms: TypeAlias = tuple[NDArray[np.float32], ...]

TINY = 1e-12
STEPS = (0.0, 0.25, 0.5, 2.0, 4.0)
"""Factors tried for a weight; one that is 0 is tried at REVIVED instead."""
REVIVED = (0.25, 1.0)
EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
BLOCK_SCORES = 1 << 21
"""Scores of one source held at once while candidates are pooled: 8 MB."""
RECIPROCAL_K = 60.0
"""Damping of reciprocal rank fusion, of Cormack, Clarke & Büttcher 2009."""


HALVES = 8
"""Random halves of the users whose fits are averaged."""
FAINT = 0.01
"""Share of all weights below which a mean is 0: it would cost a pass of its own and change little."""
FEW_USERS = 40
"""Users at which a fit doubts a gain twice as much as with many; 16 of a small log chose weights of 0."""


@dataclass(frozen=True)
class Recipe:
    """What a night blends. weights: of each relation, in their order; popularity: of recent popularity;
    exponent: how strongly freshness acts."""

    weights: tuple[float, ...]
    popularity: float
    exponent: float

    def coordinates(self) -> tuple[float, ...]:
        """Weights, popularity and exponent as one tuple, in the order in which they are searched."""
        return (*self.weights, self.popularity, self.exponent)

    @classmethod
    def of(cls, coordinates: Sequence[float]) -> Recipe:
        """The inverse of `coordinates`."""
        return cls(tuple(coordinates[:-2]), coordinates[-2], coordinates[-1])


@dataclass(frozen=True)
class Product:
    """A source that is an inner product, (q, n_items): left (q, d) @ right (n_items, d)ᵀ, both float32."""

    left: NDArray[np.float32]
    right: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.left), len(self.right)

    def __getitem__(self, rows: slice) -> Product:
        return Product(self.left[rows], self.right)

    def toarray(self) -> NDArray[np.float32]:
        product: NDArray[np.float32] = self.left @ self.right.T
        return product


Source: TypeAlias = sparse.csr_matrix | Product


@dataclass(frozen=True)
class Sources:
    """What the score of a block of users is made of.

    relations: each source's scores (q, n_items), the CSR of x @ S or a product; popularity, freshness:
    (n_items,) float64.
    """

    relations: tuple[Source, ...]
    popularity: F64
    freshness: F64


def scores(sources: Sources, recipe: Recipe) -> F64:
    """The fused score of every item, (q, n_items) float64: for small blocks of users, and as the
    reference.
    """
    fresh = sources.freshness**recipe.exponent
    total = np.zeros(sources.relations[0].shape)
    for weight, relation in zip(recipe.weights, sources.relations, strict=True):
        if weight:
            factor = weight / np.maximum(lengths(relation, fresh), TINY)
            total += factor[:, None] * relation.toarray().astype(np.float64)
    total *= fresh
    return total + recipe.popularity * sources.popularity / max(
        float(np.linalg.norm(sources.popularity)), TINY
    )


def lengths(relation: Source, fresh: F64) -> F64:
    """Euclidean length (q,) float64 of each row of relation ∘ fresh; 0 for an empty row."""
    if isinstance(relation, Product):
        weighed = relation.toarray() * fresh.astype(np.float32)
        inner: F64 = np.sqrt(np.einsum("ui,ui->u", weighed, weighed, dtype=np.float64))
        return inner
    squares = (relation.data.astype(np.float64) * fresh[relation.indices]) ** 2
    sums = np.concatenate([[0.0], np.cumsum(squares)])
    found: F64 = np.sqrt(np.maximum(sums[relation.indptr[1:]] - sums[relation.indptr[:-1]], 0.0))
    return found


def _lengths(dense: NDArray[np.float32], relation: Source, freshness: F64) -> F64:
    """`lengths` of a relation under every exponent, (EXPONENTS, q) float64, in one product; its scores stand
    in `dense` already."""
    squares = np.stack([freshness ** (2 * power) for power in EXPONENTS], axis=1)
    if isinstance(relation, Product):
        # float32 rounds a length by 1e-5 at most, and only weights are fitted by these.
        found = (dense * dense) @ squares.astype(np.float32)
    else:
        # Squared by hand: `power` would sort each row first, which costs as much as all the rest here.
        entries = relation.data.astype(np.float64) ** 2, relation.indices, relation.indptr
        found = sparse.csr_matrix(entries, relation.shape) @ squares
    made: F64 = np.sqrt(np.maximum(found, 0.0)).T.astype(np.float64)
    return made


def reciprocal_ranks(orders: Sequence[I64], weights: Sequence[F64], m: int) -> TopK:
    """Reciprocal rank fusion: the best m items of each user by Σ_s w_s / (60 + rank of the item in source s),
    ties to the lower number.

    orders: of each source (q, c) int64 items, best first, −1 padding; weights: (q, c) float64, w_s of each of
    them; one of 0 is left out. Needs no common unit; loses how far apart the scores are.
    """
    points = [
        weight / (RECIPROCAL_K + 1 + np.arange(order.shape[1]))
        for order, weight in zip(orders, weights, strict=True)
    ]
    total = np.concatenate(points, axis=1)
    nums = np.where(total > 0, np.concatenate(orders, axis=1), -1)
    at = np.argsort(nums, axis=1, kind="stable")
    nums, total = np.take_along_axis(nums, at, axis=1), np.take_along_axis(total, at, axis=1)
    first = np.ones(nums.shape, bool)
    first[:, 1:] = nums[:, 1:] != nums[:, :-1]
    if nums.size:
        total[first] = np.add.reduceat(total.ravel(), np.flatnonzero(first))
    return select_topk(total.astype(np.float32), np.where(first, nums, -1), m)


@dataclass(frozen=True)
class Pool:
    """The candidates of a sample of users with everything a fit needs, so that a trial costs no sparse
    product.

    item_nums: (q, c) int64, −1 padding; values: for each relation (q, c) float32; norms: for each relation
    and entry of EXPONENTS (q,) float64; popularity: (q, c) float32, already divided by its length; freshness:
    (q, c) float32; hit: (q, c) bool, items of the truth; n_truth: (q,) int64, those outside the pool
    included.
    """

    item_nums: I64
    values: tuple[NDArray[np.float32], ...]
    norms: tuple[F64, ...]
    popularity: NDArray[np.float32]
    freshness: NDArray[np.float32]
    hit: NDArray[np.bool_]
    n_truth: I64

    @cached_property
    def places_of_hits(self) -> tuple[I64, I64]:
        """Row and column of each item of the truth, row by row."""
        row, column = np.nonzero(self.hit)
        return row, column


def make_pool(
    sources: Sources, truth: Csr, excluded: sparse.csr_matrix, depth: int, threads: int = 1
) -> Pool:
    """Pools the best `depth` items of every source, with and without freshness, for each user.

    truth: CSR of what each user went on to choose. excluded: (q, n_items), non-zero where an item must not be
    recommended (seen, unavailable, not known then). Of equals the pool takes those that stand
    first in a source's row. threads: blocks of users worked on at once, the same pool for any number.
    """
    n_users, n_items = excluded.shape

    def part(block: tuple[int, int]) -> Pool:
        start, stop = block
        indptr = truth[0][start : stop + 1]
        mine = indptr - indptr[0], truth[1][indptr[0] : indptr[-1]]
        relations = tuple(relation[start:stop] for relation in sources.relations)
        mine_alone = Sources(relations, sources.popularity, sources.freshness)
        return _pool_block(mine_alone, mine, excluded[start:stop], depth)

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(part, list(row_blocks(n_users, n_items, BLOCK_SCORES)) or [(0, 0)]))
    width = max((part.item_nums.shape[1] for part in parts), default=0)
    return _stacked([_widened(part, width) for part in parts], len(sources.relations))


def part_of(pool: Pool, users: NDArray[np.bool_] | I64) -> Pool:
    """The pool of some of its users: (q,) bool, or places."""
    return Pool(
        pool.item_nums[users],
        tuple(one[users] for one in pool.values),
        tuple(one[:, users] for one in pool.norms),
        pool.popularity[users],
        pool.freshness[users],
        pool.hit[users],
        pool.n_truth[users],
    )


def _pool_block(sources: Sources, truth: Csr, excluded: sparse.csr_matrix, depth: int) -> Pool:
    q, n_items = excluded.shape
    barred = excluded.toarray() != 0
    dense = [relation.toarray() for relation in sources.relations]
    share = sources.popularity / max(float(np.linalg.norm(sources.popularity)), TINY)
    chosen = np.zeros((q, n_items), bool)
    rows = np.arange(q)[:, None]
    fresh = sources.freshness.astype(np.float32)
    for relation, values in zip(sources.relations, dense, strict=True):
        _choose(chosen, relation, values, fresh, barred, depth)
    _choose_dense(chosen, np.broadcast_to(share.astype(np.float32), (q, n_items)), barred, depth)
    chosen &= ~barred
    counts = chosen.sum(axis=1)
    user, item = np.nonzero(chosen)
    item_nums = np.full((q, int(counts.max(initial=0))), -1, np.int64)
    item_nums[user, np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)] = item
    at = np.maximum(item_nums, 0)
    relevant = np.zeros((q, n_items), bool)
    relevant[entry_rows(truth[0]), truth[1]] = True
    return Pool(
        item_nums,
        tuple(one[rows, at].astype(np.float32) for one in dense),
        tuple(
            _lengths(one, relation, sources.freshness)
            for one, relation in zip(dense, sources.relations, strict=True)
        ),
        share[at].astype(np.float32),
        sources.freshness[at].astype(np.float32),
        relevant[rows, at] & (item_nums >= 0),
        np.diff(truth[0]).astype(np.int64),
    )


def _choose(
    chosen: NDArray[np.bool_],
    relation: Source,
    dense: NDArray[np.float32],
    fresh: NDArray[np.float32],
    barred: NDArray[np.bool_],
    depth: int,
) -> None:
    """Marks the best `depth` allowed items of each row of a relation, which stands in `dense` too, and of
    relation ∘ fresh. Of a sparse row only what stands in it is looked at: a fifth of the time where a row
    fills a fifth of the catalogue."""
    if isinstance(relation, Product):
        _choose_dense(chosen, dense, barred, depth)
        _choose_dense(chosen, dense * fresh, barred, depth)
        return
    closed = barred[entry_rows(relation.indptr.astype(np.int64)), relation.indices]
    values = np.where(closed, np.float32(0), relation.data)
    weighed = values * fresh[relation.indices]
    for row, (start, stop) in enumerate(pairwise(relation.indptr.tolist())):
        for scored in (values, weighed):
            best = _highest(scored[start:stop], depth)
            chosen[row, relation.indices[start:stop][best]] = True


def _choose_dense(
    chosen: NDArray[np.bool_], values: NDArray[np.float32], barred: NDArray[np.bool_], depth: int
) -> None:
    for row, mine in enumerate(np.where(barred, np.float32(0), values)):
        chosen[row, _highest(mine, depth)] = True


def _highest(values: NDArray[np.float32], depth: int) -> I64:
    """Places of the `depth` highest positive values, ascending; of equal ones the first. By the value of the
    last that is taken: to partition the places themselves takes twice as long."""
    if len(values) <= depth:
        return np.flatnonzero(values > 0)
    least = np.partition(values, -depth)[-depth]
    at = np.flatnonzero(values >= least) if least > 0 else np.flatnonzero(values > 0)
    if len(at) > depth:
        equal = np.flatnonzero(values[at] == least)
        at = np.delete(at, equal[depth - len(at) :])
    return at


def _widened(pool: Pool, width: int) -> Pool:
    def wide(values: NDArray[Any], blank: float) -> NDArray[Any]:
        return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=blank)

    return Pool(
        wide(pool.item_nums, -1),
        tuple(wide(one, 0) for one in pool.values),
        pool.norms,
        wide(pool.popularity, 0),
        wide(pool.freshness, 1),
        wide(pool.hit, False),
        pool.n_truth,
    )


def _stacked(parts: Sequence[Pool], n_relations: int) -> Pool:
    return Pool(
        np.concatenate([part.item_nums for part in parts]),
        tuple(np.concatenate([part.values[at] for part in parts]) for at in range(n_relations)),
        tuple(np.concatenate([part.norms[at] for part in parts], axis=1) for at in range(n_relations)),
        np.concatenate([part.popularity for part in parts]),
        np.concatenate([part.freshness for part in parts]),
        np.concatenate([part.hit for part in parts]),
        np.concatenate([part.n_truth for part in parts]),
    )


def quality(pool: Pool, recipe: Recipe, k: int) -> F64:
    """nDCG@k of each pooled user, (q,) float64; ties go to the lower item number."""
    return _ndcg(pool, _total(_terms(pool, recipe.exponent), recipe), k)


def _terms(pool: Pool, exponent: float) -> Terms:
    """What each weight of a recipe is multiplied with, of the relations and then of popularity, (q, c)
    each."""
    fresh = pool.freshness ** np.float32(exponent) if exponent else None
    terms = []
    for value, norm in zip(pool.values, pool.norms, strict=True):
        shares = 1 / np.maximum(norm[EXPONENTS.index(exponent)], TINY)
        terms.append(value * shares.astype(np.float32)[:, None])
        if fresh is not None:
            terms[-1] *= fresh
    return (*terms, pool.popularity)


def _total(terms: Terms, recipe: Recipe) -> NDArray[np.float32]:
    """The fused score of every candidate, (q, c)."""
    total = np.zeros(terms[0].shape, np.float32)
    for weight, term in zip(recipe.coordinates(), terms, strict=False):
        if weight:
            total += np.float32(weight) * term
    return total


def _ndcg(pool: Pool, total: NDArray[np.float32], k: int) -> F64:
    """nDCG@k (q,) float64 of candidates with these scores. Only where the items of the truth come to stand is
    looked up, in sorted scores: to sort the items costs four times as much."""
    ordered = np.sort(np.where(pool.item_nums < 0, np.float32(-np.inf), total), axis=1)
    row, at = pool.places_of_hits
    score, width = total[row, at], total.shape[1]
    above = width - _not_above(ordered, row, score)
    tied = np.flatnonzero(ordered[row, np.maximum(width - above - 2, 0)] == score)
    # Items of a pool ascend.
    above[tied] += ((total[row[tied]] == score[tied, None]) & (np.arange(width) < at[tied, None])).sum(axis=1)
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    gained = np.where(above < k, discount[np.minimum(above, k - 1)], 0.0)
    ideal = np.cumsum(discount)[np.minimum(pool.n_truth, k) - 1]
    found: F64 = np.bincount(row, gained, len(total)) / ideal
    return found


def _not_above(ordered: NDArray[np.float32], row: I64, score: NDArray[np.float32]) -> I64:
    """How many entries of an ascending row are at most `score`, for each (row, score), by bisection."""
    low, high = np.zeros(len(row), np.int64), np.full(len(row), ordered.shape[1])
    for _ in range(ordered.shape[1].bit_length()):
        middle = (low + high) // 2
        beyond = (middle >= high) | (ordered[row, np.minimum(middle, ordered.shape[1] - 1)] > score)
        low, high = np.where(beyond, low, middle + 1), np.where(beyond, middle, high)
    return low


def fit(
    pools: Sequence[Pool],
    default: Recipe,
    k: int,
    doubt: float = 0.5,
    rounds: int = 3,
    exponent: bool = True,
) -> tuple[int, Recipe]:
    """The pool (one a setting of half-lives) and recipe that rank the pooled users' truth best.

    Coordinate ascent from `pools[0]` and `default`: a step is taken only when its mean gain over the same
    users exceeds `doubt` standard errors of that gain, so few users leave the default as it is.
    Deterministic; the pools must hold the same users in the same order. exponent: whether it is searched
    too. Raises ContractError for a pool whose users have no truth.
    """
    if any((pool.n_truth < 1).any() for pool in pools):
        raise ContractError("a fit needs users with something they went on to choose; leave the others out")
    if default.exponent not in EXPONENTS:
        raise ContractError(f"a freshness exponent is one of {EXPONENTS}, not {default.exponent}")
    if not len(pools[0].n_truth):
        return 0, default
    search = _Search(pools, k, doubt)
    state = search.state(0, default)
    for _ in range(rounds):
        before = state[:2]
        state = search.better_pool(state)
        for place in range(len(default.coordinates()) - (not exponent)):
            state = search.better_weight(state, place)
        if state[:2] == before:
            break
    return state[0], state[1]


def fit_halves(
    pool: Pool,
    default: Recipe,
    k: int,
    doubt: float = 0.5,
    exponent: bool = True,
    seed: int = 0,
    threads: int = 1,
) -> Recipe:
    """The mean of the recipes that `fit` finds for HALVES random halves of the users, at the default's total.

    A greedy search on a few thousand users follows their accidents; averaged, it does less (bagging, Breiman
    1996; figures in docs/log.md). Weights are averaged as shares of their sum with popularity, of exponents
    the one nearest to the mean is taken. Deterministic for any number of threads.
    """
    n_users = len(pool.n_truth)
    rng = np.random.default_rng(seed)
    halves = [np.sort(rng.permutation(n_users)[: (n_users + 1) // 2]) for _ in range(HALVES)]

    def found(users: I64) -> Recipe:
        return fit([part_of(pool, users)], default, k, doubt, exponent=exponent)[1]

    with ThreadPoolExecutor(threads) as workers:
        recipes = list(workers.map(found, halves))
    if all(recipe == default for recipe in recipes):
        return default
    amounts = np.array([recipe.coordinates()[:-1] for recipe in recipes])
    mean = (amounts / amounts.sum(axis=1, keepdims=True)).mean(axis=0)
    mean = np.where(mean < FAINT, 0.0, mean)
    mean *= sum(default.coordinates()[:-1]) / mean.sum()
    power = float(np.mean([recipe.exponent for recipe in recipes]))
    return Recipe.of([*mean.tolist(), min(EXPONENTS, key=lambda one: abs(one - power))])


State = tuple[int, Recipe, F64]


class _Found:
    """The users of a pool who can find something: whom it gives nothing, no weight does."""

    def __init__(self, at: int, pool: Pool) -> None:
        self.at = at
        self.users = np.flatnonzero(pool.hit.any(axis=1))
        self.pool = part_of(pool, self.users)
        self._newest: tuple[float, Terms] | None = None

    def terms(self, exponent: float) -> Terms:
        if self._newest is None or self._newest[0] != exponent:
            self._newest = exponent, _terms(self.pool, exponent)
        return self._newest[1]


class _Search:
    def __init__(self, pools: Sequence[Pool], k: int, doubt: float) -> None:
        self._pools, self._k = pools, k
        self._n_users = len(pools[0].n_truth)
        self._doubt = doubt * (1 + FEW_USERS / self._n_users)
        self._newest = _Found(0, pools[0])

    def state(self, at: int, recipe: Recipe) -> State:
        return self._state(at, recipe, _total(self._found(at).terms(recipe.exponent), recipe))

    def better_pool(self, state: State) -> State:
        others = (at for at in range(len(self._pools)) if at != state[0])
        return self._best(state, (self.state(at, state[1]) for at in others))

    def better_weight(self, state: State, place: int) -> State:
        at, recipe, _ = state
        now, terms = recipe.coordinates()[place], self._found(at).terms(recipe.exponent)
        if place == len(terms):
            others = (_with(recipe, place, value) for value in EXPONENTS if value != now)
            return self._best(state, (self.state(at, one) for one in others))
        if place < len(recipe.weights) and not terms[place].any():
            return state  # a source that says nothing, whatever it weighs
        rest = _with(recipe, place, 0.0)
        without = _total(terms, rest)
        tried = REVIVED if now == 0 else tuple(now * step for step in STEPS)
        weights = (value for value in tried if value != now and sum(rest.coordinates()[:-1]) + value > 0)
        return self._best(
            state,
            (
                self._state(at, _with(recipe, place, value), without + np.float32(value) * terms[place])
                for value in weights
            ),
        )

    def _found(self, at: int) -> _Found:
        """One pool's at a time: pools are large, and all are looked at only when one of them is chosen."""
        if self._newest.at != at:
            self._newest = _Found(at, self._pools[at])
        return self._newest

    def _state(self, at: int, recipe: Recipe, total: NDArray[np.float32]) -> State:
        values = np.zeros(self._n_users)
        found = self._found(at)
        values[found.users] = _ndcg(found.pool, total, self._k)
        return at, recipe, values

    def _best(self, state: State, trials: Iterable[State]) -> State:
        best = state
        for one in trials:
            gain = one[2] - state[2]
            error = float(gain.std()) / max(len(gain), 1) ** 0.5
            if gain.mean() > self._doubt * error + TINY and one[2].mean() > best[2].mean():
                best = one
        return best


def _with(recipe: Recipe, place: int, value: float) -> Recipe:
    coordinates = list(recipe.coordinates())
    coordinates[place] = value
    return Recipe.of(coordinates)
