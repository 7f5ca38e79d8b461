"""One list for a user with several vectors: what each interest retrieved, merged by quotas or by importance.

By importance a user's score of an item is max_i w_i · (u_i · x), the multi-interest score of MIND (Li et al.,
CIKM 2019) weighted with w_i = importance / the largest of the user's: an interest that counts half gets an
item in only where the item suits it twice as well. The best k of each interest hold the best k of that score,
so the merge is exact. By quotas the k places are shared out by importance (largest remainders), so that a
small interest keeps its share however near the items of a large one are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nightjar.errors import ContractError
from nightjar.kernels.topk import F32, F64, I64, ItemLists, Mask, TopK, is_listed, select_topk


@dataclass(frozen=True)
class Interests:
    """The vectors of q users, those of a user side by side. starts: (q + 1,) int64, where each user's begin;
    importance: (rows,) float32, finite, counted as 0 below 0; a user's are equal where none is above 0.
    """

    starts: I64
    importance: F32

    @classmethod
    def of(cls, user_ids: np.ndarray, importance: F32) -> Interests:
        """From rows in user order; ContractError where a user's rows do not stand side by side."""
        firsts = np.flatnonzero(np.r_[True, user_ids[1:] != user_ids[:-1]][: len(user_ids)])
        starts = np.r_[firsts, len(user_ids)].astype(np.int64)
        if len(set(user_ids.tolist())) != len(starts) - 1:
            raise ContractError("user vectors: the rows of a user do not stand side by side")
        return cls(starts, importance)

    def counts(self) -> I64:
        """How many vectors each user has, (q,) int64."""
        return np.diff(self.starts)

    def blocks(self, n_rows: int) -> list[tuple[int, int]]:
        """Users (first, end) in runs of about n_rows vectors that part no user's."""
        found, start = [], 0
        while start < len(self.starts) - 1:
            stop = int(np.searchsorted(self.starts, self.starts[start] + n_rows, side="right")) - 1
            found.append((start, max(stop, start + 1)))
            start = found[-1][1]
        return found

    def take(self, start: int, stop: int) -> Interests:
        """The vectors of users start … stop - 1."""
        rows = slice(int(self.starts[start]), int(self.starts[stop]))
        return Interests(self.starts[start : stop + 1] - self.starts[start], self.importance[rows])


def merge(found: TopK, interests: Interests, by_quotas: bool) -> TopK:
    """The k items of each user, (q, k), from those of each vector, (rows, k), best first.

    Scores are those of the vector that brought the item, by importance times its w_i. Users with one vector
    keep its list. n_found is k wherever the user's vectors found k items together.
    """
    counts, k = interests.counts(), found.item_nums.shape[1]
    out = TopK.nothing(len(counts), k)
    for count in np.unique(counts).tolist():
        users = np.flatnonzero(counts == count)
        rows = interests.starts[users][:, None] + np.arange(count)
        if count == 1:
            only = rows[:, 0]
            part = TopK(found.item_nums[only], found.scores[only], found.n_found[only])
        else:
            shares = _shares(interests.importance[rows])
            items, scores = found.item_nums[rows], found.scores[rows]
            part = _by_quotas(items, scores, shares, k) if by_quotas else _by_best(items, scores, shares, k)
        out.put(users, part)
    return out


def _shares(importance: F32) -> F64:
    """(g, m) float64, of each interest among its user's."""
    kept = np.maximum(importance.astype(np.float64), 0)
    kept = np.where(kept.sum(axis=1, keepdims=True) > 0, kept, 1.0)
    return np.asarray(kept / kept.sum(axis=1, keepdims=True))


def _by_best(items: I64, scores: F32, shares: F64, k: int) -> TopK:
    weights = (shares / shares.max(axis=1, keepdims=True)).astype(np.float32)
    kept = np.where(weights[:, :, None] > 0, items, -1)
    flat = kept.reshape(len(items), -1)
    values = (np.where(kept >= 0, scores, 0) * weights[:, :, None]).astype(np.float32).reshape(flat.shape)
    order = np.lexsort((-values, flat), axis=1)
    flat, values = np.take_along_axis(flat, order, axis=1), np.take_along_axis(values, order, axis=1)
    flat[:, 1:][flat[:, 1:] == flat[:, :-1]] = -1
    return select_topk(np.where(flat >= 0, values, -np.inf), flat, k)


def quotas(shares: F64, k: int) -> I64:
    """k places by largest remainders, (g, m) int64; equal remainders to the lower interest."""
    exact = shares * k
    whole = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(-(exact - whole), axis=1, kind="stable")
    left = k - whole.sum(axis=1)
    np.put_along_axis(
        whole,
        order,
        np.take_along_axis(whole, order, axis=1) + (np.arange(shares.shape[1]) < left[:, None]),
        axis=1,
    )
    return whole


def _by_quotas(items: I64, scores: F32, shares: F64, k: int) -> TopK:
    """The most important interest chooses first; what one leaves empty goes round again."""
    allowed = quotas(shares, k)
    turns = np.argsort(-shares, axis=1, kind="stable")
    at = np.arange(len(items))
    taken = np.full((len(items), 0), -1, np.int64)
    values = np.empty((len(items), 0), np.float32)
    for all_that_is_left in (False, True):
        for turn in range(items.shape[1]):
            mine = turns[:, turn]
            room = k - (taken >= 0).sum(axis=1)
            limit = room if all_that_is_left else np.minimum(allowed[at, mine], room)
            candidates, theirs = items[at, mine], scores[at, mine]
            free = (candidates >= 0) & ~_among(candidates, taken)
            chosen = free & (np.cumsum(free, axis=1) <= limit[:, None])
            taken = np.concatenate([taken, np.where(chosen, candidates, -1)], axis=1)
            values = np.concatenate([values, np.where(chosen, theirs, -np.inf)], axis=1)
        if ((taken >= 0).sum(axis=1) == k).all():
            break
    return select_topk(values.astype(np.float32), taken, k)


def _among(candidates: I64, taken: I64) -> Mask:
    """Which candidates (g, k) stand among what the row has taken (g, t)."""
    rows = np.sort(taken, axis=1)
    held = rows >= 0
    indptr = np.r_[0, np.cumsum(held.sum(axis=1))].astype(np.int64)
    return is_listed(candidates, ItemLists(indptr, rows[held]))
