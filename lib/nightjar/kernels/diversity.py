"""Re-ranks candidates so that a list is not twenty times the same thing and new items get their share."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nightjar.errors import ConfigError, ContractError
from nightjar.kernels.ranked_lists import (
    BoolArray,
    FloatArray,
    IntArray,
    check_lists,
    check_no_repeats,
    row_blocks,
)

# Unit vectors are rounded to this grid: integers up to 2^11 whose products add up to less than 2^24 by
# Cauchy-Schwarz, so every fp32 sum is exact whatever the order. A cosine typically moves by 2e-4.
GRID = np.float32(1 << 11)
# Floats of candidates' vectors at once: 2^20 float32 are 4 MiB, 27 users of 100 candidates in 384 dimensions.
# Blocks of 64 users were no faster at 100 candidates and twice as slow at 500.
BLOCK_FLOATS = 1 << 20
# Blocks without vectors are bound by candidates instead.
BLOCK_CANDIDATES = 1 << 16


@dataclass(frozen=True)
class Diversity:
    """What a list must be beside relevant; the default changes nothing.

    relevance_weight: lambda of MMR, 1 for relevance alone, 0 for diversity alone. max_per_category: items
    of one category in a list, None for no cap. cold_share: share of the slots guaranteed to cold items, 0
    to 1.
    """

    relevance_weight: float = 1.0
    max_per_category: int | None = None
    cold_share: float = 0.0

    def __post_init__(self) -> None:
        """Raises ConfigError for a value outside its range."""
        for name, value in (("relevance_weight", self.relevance_weight), ("cold_share", self.cold_share)):
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name} must lie between 0 and 1, not {value}")
        if self.max_per_category is not None and self.max_per_category < 1:
            raise ConfigError(
                f"max_per_category must be at least 1, not {self.max_per_category}; None lifts it"
            )


@dataclass(frozen=True)
class ItemTraits:
    """What re-ranking looks at, by item number; what the parameters do not ask for may be None.

    vectors: (n_items, d) floats of any length, an array or a memmap. category: (n_items,) int64, -1 for an
    item without one, which no cap counts. cold: (n_items,) bool, items without an interaction so far.
    """

    vectors: npt.NDArray[np.floating] | None = None
    category: IntArray | None = None
    cold: BoolArray | None = None


def rerank(
    item_nums: npt.NDArray[np.integer],
    scores: npt.NDArray[np.floating],
    traits: ItemTraits,
    k: int,
    params: Diversity,
) -> IntArray:
    """Chooses and orders k candidates of each user by maximal marginal relevance, with a cap and a guarantee.

    item_nums: (q, m) integers, -1 padding at the end, no repeats. scores: (q, m) floats, bigger is better,
    in any order. Slot by slot the candidate with the largest

        lambda · relevance - (1 - lambda) · (largest cosine with an item already chosen, nothing for the
        first)

    is taken, relevance being the score scaled to 0…1 within the user's candidates (Carbonell & Goldstein
    1998, doi:10.1145/290941.291025). Ties go to the higher score, then to the lower item number, so lambda
    = 1 gives pure relevance order. A zero vector has cosine 0 with every other. The guarantee: among the
    first p slots at least floor(cold_share · p) are cold, as long as cold candidates are left. The cap: an
    item whose category fills max_per_category slots is passed over; where only such are left, those of the
    category with fewest slots come first. The guarantee outranks the cap.

    Returns (q, k) int64 columns of `item_nums` in the new order; each row holds min(k, candidates) of them,
    without repeats, then -1. A row depends on its own candidates alone, whatever the blocks and threads.
    Raises ContractError for malformed candidates, a score or vector that is not finite, or a trait that is
    missing, ConfigError for k below 1.
    """
    if k < 1:
        raise ConfigError(f"a list needs k of at least 1, not {k}")
    _check_traits(traits, params)
    candidates = check_lists(item_nums, _n_items(traits))
    check_no_repeats(candidates)
    if scores.shape != candidates.shape or not np.isfinite(scores[candidates >= 0]).all():
        raise ContractError(f"scores must be finite and of shape {candidates.shape}, not {scores.shape}")
    chosen = np.full((len(candidates), k), -1, dtype=np.int64)
    n_dims = traits.vectors.shape[1] if params.relevance_weight < 1 and traits.vectors is not None else 0
    n_slots = BLOCK_FLOATS if n_dims else BLOCK_CANDIDATES
    for start, stop in row_blocks(len(candidates), candidates.shape[1] * max(1, n_dims), n_slots):
        present = candidates[start:stop] >= 0
        worth = np.where(present, scores[start:stop], -np.inf).astype(np.float64)
        order = np.lexsort((candidates[start:stop], -worth), axis=1)
        sorted_items = np.take_along_axis(candidates[start:stop], order, axis=1)
        block = _Block(sorted_items, np.take_along_axis(worth, order, axis=1), traits, params)
        picks = block.choose(min(k, candidates.shape[1]))
        columns = np.take_along_axis(order, np.maximum(picks, 0), axis=1)
        chosen[start:stop, : picks.shape[1]] = np.where(picks >= 0, columns, -1)
    return chosen


def _check_traits(traits: ItemTraits, params: Diversity) -> None:
    wanted = {
        "vectors": params.relevance_weight < 1 and traits.vectors is None,
        "category": params.max_per_category is not None and traits.category is None,
        "cold": params.cold_share > 0 and traits.cold is None,
    }
    missing = [name for name, lacks in wanted.items() if lacks]
    if missing:
        raise ContractError(f"re-ranking with {params} needs the items' {' and '.join(missing)}")


def _n_items(traits: ItemTraits) -> int | None:
    lengths = {len(trait) for trait in (traits.vectors, traits.category, traits.cold) if trait is not None}
    if len(lengths) > 1:
        raise ContractError(f"the items' traits must have one length, not {sorted(lengths)}")
    return next(iter(lengths), None)


class _Block:
    """Some users' candidates, sorted by score and item number, while their lists grow slot by slot."""

    def __init__(self, items: IntArray, worth: FloatArray, traits: ItemTraits, params: Diversity) -> None:
        self.params = params
        self.remaining: BoolArray = items >= 0
        self.rows = np.arange(len(items))
        at = np.maximum(items, 0)
        self.relevance = _scaled(worth, self.remaining)
        diverse = params.relevance_weight < 1 and traits.vectors is not None and items.size > 0
        self.vectors = _on_grid(traits.vectors[at], items) if diverse and traits.vectors is not None else None
        self.nearest: FloatArray = np.full(items.shape, -np.inf)
        self.category: IntArray | None = None
        if params.max_per_category is not None and traits.category is not None and items.size:
            self.category = np.where(items >= 0, traits.category[at], -1)
        self.of_category = np.zeros(items.shape, dtype=np.int64)
        self.cold = np.zeros(items.shape, dtype=np.bool_)
        if params.cold_share > 0 and traits.cold is not None and items.size:
            self.cold = traits.cold[at]
        self.n_cold = np.zeros(len(items), dtype=np.int64)

    def choose(self, n_slots: int) -> IntArray:
        """Positions chosen for each slot, (b, n_slots) int64, -1 once a user has no candidate left."""
        chosen = np.full((len(self.rows), n_slots), -1, dtype=np.int64)
        for slot in range(n_slots):
            value = np.where(self._allowed(slot), self._marginal_relevance(slot), -np.inf)
            # argmax takes the first of equals, which is the higher score, then the lower item number.
            pick = np.argmax(value, axis=1)
            live = self.remaining[self.rows, pick]
            chosen[live, slot] = pick[live]
            self._take(pick)
        return chosen

    def _marginal_relevance(self, slot: int) -> FloatArray:
        if self.vectors is None or slot == 0:
            return self.relevance
        weight = self.params.relevance_weight
        marginal: FloatArray = weight * self.relevance - (1.0 - weight) * self.nearest
        return marginal

    def _allowed(self, slot: int) -> BoolArray:
        allowed = self.remaining
        if self.params.cold_share > 0:
            # The 1e-9 keeps 0.29 · 100 at 29: the product falls just below in binary.
            due = int(np.floor(self.params.cold_share * (slot + 1) + 1e-9))
            cold = allowed & self.cold
            must = (self.n_cold < due) & cold.any(axis=1)
            allowed = allowed & (cold | ~must[:, None])
        if self.category is not None and self.params.max_per_category is not None:
            below: BoolArray = allowed & (self.of_category < self.params.max_per_category)
            filled = np.where(allowed, self.of_category, np.iinfo(np.int64).max)
            fewest = allowed & (filled == filled.min(axis=1, keepdims=True))
            allowed = np.where(below.any(axis=1, keepdims=True), below, fewest)
        return allowed

    def _take(self, pick: IntArray) -> None:
        self.remaining[self.rows, pick] = False
        self.n_cold += self.cold[self.rows, pick]
        if self.category is not None:
            taken = self.category[self.rows, pick][:, None]
            self.of_category += (self.category == taken) & (taken >= 0)
        if self.vectors is not None:
            similar = np.matmul(self.vectors, self.vectors[self.rows, pick][:, :, None])[:, :, 0]
            np.maximum(self.nearest, similar / (GRID * GRID), out=self.nearest)


def _scaled(worth: FloatArray, present: BoolArray) -> FloatArray:
    lowest = np.where(present, worth, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    highest = worth.max(axis=1, keepdims=True, initial=-np.inf)
    span = np.where(highest > lowest, highest - lowest, 1.0)
    return np.where(present, np.where(present, worth - lowest, 0.0) / span, 0.0)


def _on_grid(vectors: npt.NDArray[np.floating], items: IntArray) -> npt.NDArray[np.float32]:
    wide = vectors.astype(np.float32)
    # Divided by the largest part first, so that no square over- or underflows.
    largest = np.abs(wide).max(axis=2, keepdims=True)
    unknown = items[~np.isfinite(largest[:, :, 0]) & (items >= 0)]
    if len(unknown):
        raise ContractError(f"vector of item number {unknown[0]} is not finite; encode it again")
    wide /= np.where(largest > 0, largest, 1)
    norms = np.sqrt(np.square(wide).sum(axis=2, keepdims=True))
    wide *= GRID / np.where(norms > 0, norms, 1)
    return np.rint(wide, out=wide)
