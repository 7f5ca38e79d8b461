"""Fills lists up to k from orders that many users share: what a segment likes, what everyone likes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nightjar.kernels.topk import ItemLists


@dataclass(frozen=True)
class Fallback:
    """One order of items to fill from. item_nums: (n,) int64, best first, no repeats; source: its number."""

    item_nums: np.ndarray
    source: int

    @functools.cached_property
    def _by_number(self) -> tuple[np.ndarray, np.ndarray]:
        places = np.argsort(self.item_nums, kind="stable")
        return self.item_nums[places], places

    def within(self, allowed: np.ndarray) -> Fallback:
        """The order of those items that are allowed (m,), each once; takes time by their number, not by n."""
        numbers, places = self._by_number
        at = np.minimum(np.searchsorted(numbers, allowed), len(numbers) - 1)
        kept = places[at[numbers[at] == allowed]] if len(numbers) else places
        return Fallback(self.item_nums[np.sort(kept)], self.source)


def fill(
    lists: np.ndarray, sources: np.ndarray, excluded: ItemLists, orders: Sequence[Sequence[Fallback]]
) -> tuple[np.ndarray, np.ndarray]:
    """Lists (q, k) with their −1 entries filled, and the source (q, k) of each entry.

    lists: (q, k) int64, −1 only at the end of a row; sources: (q, k) int8. excluded: what each user must not
    get. orders: for each user the fallbacks to draw from, one after the other; users who share one pass the
    same object. A row stays short only when all its orders are used up.
    """
    lists, sources = lists.copy(), sources.copy()
    k = lists.shape[1]
    lengths = (lists >= 0).sum(axis=1)
    blank: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for user in np.flatnonzero(lengths < k).tolist():
        length = int(lengths[user])
        mine = excluded.item_nums[excluded.indptr[user] : excluded.indptr[user + 1]]
        if not length and not len(mine):
            # New users of one segment all get the same list: make it once.
            key = id(orders[user])
            if key not in blank:
                blank[key] = _drawn(orders[user], mine, k)
            items, origin = blank[key]
        else:
            items, origin = _drawn(orders[user], np.concatenate([mine, lists[user, :length]]), k - length)
        lists[user, length : length + len(items)] = items
        sources[user, length : length + len(items)] = origin
    return lists, sources


def _drawn(orders: Sequence[Fallback], taken: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The first n items of the orders that are not taken, and the source of each."""
    items, origin = np.empty(0, np.int64), np.empty(0, np.int8)
    for order in orders:
        wanted = n - len(items)
        if not wanted:
            break
        used = np.concatenate([taken, items])
        # At most len(used) of them can be hit, so a prefix decides.
        prefix = order.item_nums[: wanted + len(used)]
        free = prefix[~np.isin(prefix, used)][:wanted]
        items = np.concatenate([items, free])
        origin = np.concatenate([origin, np.full(len(free), order.source, np.int8)])
    return items, origin
