"""The baselines of a back-test: what single methods would have recommended to the same users that night.

All of them rank the whole available catalogue as of t0, leave out what a user has seen as the night does, and
fill what they have nothing to say for with the most popular items, so each is as strong as it can be alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from scipy import sparse

from nightjar.kernels.als import fold_in
from nightjar.kernels.fallback import Fallback, fill
from nightjar.kernels.interactions import Histories
from nightjar.kernels.taste import unit_rows
from nightjar.kernels.topk import ItemLists, select_topk
from nightjar.matrix import mapped_matrix, mapped_stack
from nightjar.store import Committed

SCORES_AT_ONCE = 1 << 23
"""Dense scores in memory: 32 MiB; a block has as many users as that allows, one at least."""
ALS_ALPHA, ALS_RIDGE = 10.0, 0.1
RANDOM_DRAWS = 4
"""`random`: items drawn for each slot, so that seen ones can be left out."""


@dataclass(frozen=True)
class SingleInputs:
    """What the methods are made of, as commits that travel to tasks. popular: available items, best first;
    factors: (n_items, f) float32 item factors of implicit ALS, or None where it is not wanted."""

    neighbours: Committed
    embeddings: Committed
    popular: np.ndarray
    available: np.ndarray
    cold: np.ndarray
    seed: int
    factors: np.ndarray | None = None


class SingleMethods:
    """In a worker: the relations and embeddings mapped, and the lists of some users."""

    def __init__(self, inputs: SingleInputs) -> None:
        self.inputs = inputs
        self.n_items = len(inputs.available)
        self.relations = mapped_stack(inputs.neighbours).matrices()
        self.popular = Fallback(inputs.popular, 0)
        self.open = np.flatnonzero(inputs.available)
        self.rest = Fallback(self.open, 0)
        self._by_name: dict[str, Callable[[Histories, ItemLists, int], np.ndarray]] = {
            "popular": lambda mine, barred, k: self._filled(_nothing(mine, k), barred),
            "item_knn": lambda mine, barred, k: self._related("co_occurrence", mine, barred, k),
            "ease": lambda mine, barred, k: self._related("ease", mine, barred, k),
            "als": self._als,
            "text_mean": self._text_mean,
            "random": self._random,
        }

    def lists(self, method: str, mine: Histories, barred: ItemLists, k: int) -> np.ndarray:
        """The list of every user, (q, k) int64, −1 only where the catalogue is used up."""
        return self._by_name[method](mine, barred, k)

    def _related(self, relation: str, mine: Histories, barred: ItemLists, k: int) -> np.ndarray:
        """Σ over the liked items of one relation learnt from the log alone: cold items have no column."""
        x, S = _liked(mine, self.n_items), self.relations[relation]
        usable = self.inputs.available & ~self.inputs.cold
        return self._best(mine, barred, k, lambda rows: np.asarray((x[rows] @ S).toarray()), usable)

    def _als(self, mine: Histories, barred: ItemLists, k: int) -> np.ndarray:
        """Implicit ALS, each user's factors from what they like; cold items have none."""
        Y = self.inputs.factors
        assert Y is not None
        U = fold_in(_liked(mine, self.n_items), Y, ALS_ALPHA, ALS_RIDGE)
        usable = self.inputs.available & ~self.inputs.cold
        return self._best(mine, barred, k, lambda rows: U[rows] @ Y.T, usable)

    def _text_mean(self, mine: Histories, barred: ItemLists, k: int) -> np.ndarray:
        """The mean of the raw embeddings of the liked items, by cosine."""
        x, E = _liked(mine, self.n_items), mapped_matrix(self.inputs.embeddings)
        U = unit_rows(np.asarray(x @ E, np.float32))
        return self._best(mine, barred, k, lambda rows: U[rows] @ E.T, self.inputs.available)

    def _best(
        self,
        mine: Histories,
        barred: ItemLists,
        k: int,
        scores_of: Callable[[np.ndarray], np.ndarray],
        usable: np.ndarray,
    ) -> np.ndarray:
        """The k items of the highest scores above 0; ties by number; then the most popular."""
        lists = _nothing(mine, k)
        step = max(1, SCORES_AT_ONCE // max(self.n_items, 1))
        nums = np.arange(self.n_items)
        for start in range(0, len(mine), step):
            rows = np.arange(start, min(start + step, len(mine)))
            scores = np.array(scores_of(rows), np.float32)
            scores[:, ~usable] = 0
            user, item = barred.take(rows).pairs()
            scores[user, item] = 0
            ranked = np.where(scores > 0, np.broadcast_to(nums, scores.shape), -1)
            best = select_topk(scores, ranked, min(k, self.n_items)).item_nums
            lists[rows, : best.shape[1]] = best
        return self._filled(lists, barred)

    def _random(self, mine: Histories, barred: ItemLists, k: int) -> np.ndarray:
        n = min(len(self.open), RANDOM_DRAWS * k)
        orders = []
        for user_id in mine.user_ids:
            rng = np.random.default_rng([self.inputs.seed, zlib.crc32(user_id.encode())])
            orders.append((Fallback(rng.choice(self.open, n, replace=False), 0),))
        return fill(_nothing(mine, k), np.zeros((len(mine), k), np.int8), barred, orders)[0]

    def _filled(self, lists: np.ndarray, barred: ItemLists) -> np.ndarray:
        orders = (self.popular, self.rest)
        return fill(lists, np.zeros(lists.shape, np.int8), barred, [orders] * len(lists))[0]


def methods_of(wanted: tuple[str, ...], neighbours: Committed) -> tuple[str, ...]:
    """The baselines that this night can rank: a catalogue too large for EASE has none."""
    learnt: set[str] = set()
    for entry in neighbours.parts:
        learnt.update(pc.unique(neighbours.read_part(entry, ["relation"])["relation"]).to_pylist())
    return tuple(name for name in wanted if name != "ease" or "ease" in learnt)


def _nothing(mine: Histories, k: int) -> np.ndarray:
    return np.full((len(mine), k), -1, np.int64)


def _liked(mine: Histories, n_items: int) -> sparse.csr_matrix:
    """1 for every item that speaks for the user's taste, (q, n_items) float32."""
    x = sparse.csr_matrix(
        ((mine.weights > 0).astype(np.float32), mine.item_nums, mine.indptr), (len(mine), n_items)
    )
    x.eliminate_zeros()
    return x
