"""Deny lists of users, and allow lists of users or of segments, as arrays that search and filling can use.

An allow list is a set of items; what a user may get is the intersection of the user's sets, so a region, a
tenant and an age band are three sets, and a list of one's own is a fourth. Users with the same sets are a
group and share one mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nightjar.kernels.fallback import Fallback
from nightjar.kernels.topk import F32, I64, Filters, ItemLists, Mask, TopK, rescore, select_topk

MASK_BYTES = 128 << 20
"""Of masks held at once; more groups than fit are searched one batch after the other."""
FEW = 2048
"""Allowed items up to which scoring them one by one beats a search: 0.5 ms a user at 384 dimensions."""


@dataclass(frozen=True)
class Limits:
    """What some users must not get. denied: their deny lists (q rows); sets: allow lists, item numbers
    ascending; groups: each the numbers of the sets whose intersection is allowed, () for no restriction;
    group: (q,) int64, of each user.
    """

    denied: ItemLists
    sets: tuple[I64, ...]
    groups: tuple[tuple[int, ...], ...]
    group: I64

    @classmethod
    def none(cls, n_users: int) -> Limits:
        """Nothing denied, everything allowed."""
        empty = ItemLists(np.zeros(n_users + 1, np.int64), np.empty(0, np.int64))
        return cls(empty, (), ((),), np.zeros(n_users, np.int64))

    def take(self, users: I64) -> Limits:
        """The limits of the users at these positions."""
        return Limits(self.denied.take(users), self.sets, self.groups, self.group[users])

    def allowed(self, group: int, n_items: int) -> I64 | None:
        """Item numbers that a group may get, ascending; None for all of them."""
        mine = sorted((self.sets[number] for number in self.groups[group]), key=len)
        if not mine:
            return None
        kept = mine[0]
        for other in mine[1:]:
            kept = kept[np.isin(kept, other, assume_unique=True)]
        return kept[kept < n_items]

    def barred(self, seen: ItemLists | None) -> ItemLists:
        """What each user has seen or must not get, ascending in each row; allow lists are no part of it."""
        return Filters(seen, self.denied).listed(len(self.group))

    def by_group(self, available: Mask) -> Iterator[tuple[I64, Mask]]:
        """The users of each group, and which items the group may get of those available, (n_items,) bool."""
        for group in np.unique(self.group).tolist():
            allowed = self.allowed(group, len(available))
            mask = available if allowed is None else _within(allowed, available)
            yield np.flatnonzero(self.group == group), mask

    def parts(self, seen: ItemLists | None, available: Mask) -> Iterator[tuple[I64, Filters, I64 | None]]:
        """All users in parts that one search can serve: positions (m,), filters, and few candidates or None.

        Where a group may get only a few items, they come as candidates (m, at most FEW), -1 where fewer.
        """
        batch: list[tuple[int, Mask]] = []
        room = max(1, MASK_BYTES // max(1, len(available)))
        for group in np.unique(self.group).tolist():
            allowed = self.allowed(group, len(available))
            mask = available if allowed is None else _within(allowed, available)
            if allowed is not None and len(allowed) <= FEW:
                users = np.flatnonzero(self.group == group)
                rows = np.broadcast_to(allowed, (len(users), len(allowed)))
                yield users, self._filters(users, seen, mask), rows
                continue
            batch.append((group, mask))
            if len(batch) == room:
                yield self._together(batch, seen)
                batch = []
        if batch:
            yield self._together(batch, seen)

    def _together(
        self, batch: Sequence[tuple[int, Mask]], seen: ItemLists | None
    ) -> tuple[I64, Filters, None]:
        numbers = np.array([group for group, _ in batch])
        if len(batch) == 1:
            users = np.flatnonzero(self.group == numbers[0])
            return users, self._filters(users, seen, batch[0][1]), None
        users = np.flatnonzero(np.isin(self.group, numbers))
        filters = self._filters(users, seen, np.stack([mask for _, mask in batch]))
        group = np.searchsorted(numbers, self.group[users])
        return users, Filters(filters.seen, filters.deny, filters.eligible, group), None

    def _filters(self, users: I64, seen: ItemLists | None, eligible: Mask) -> Filters:
        deny = self.denied.take(users) if len(self.denied.item_nums) else None
        return Filters(None if seen is None else seen.take(users), deny, eligible)

    def permits(self, item_nums: I64, n_items: int) -> Mask:
        """Which of the candidates (q, m) a user may get by these limits; -1 is never permitted."""
        keep = Filters(deny=self.denied).allowed(item_nums)
        for group in np.unique(self.group).tolist():
            allowed = self.allowed(group, n_items)
            if allowed is not None:
                users = np.flatnonzero(self.group == group)
                keep[users] &= np.isin(item_nums[users], allowed)
        return keep

    def with_seen(self, seen: ItemLists | None) -> Limits:
        """These limits with what the users have seen among the denied, which ascend in each row."""
        return Limits(self.barred(seen), self.sets, self.groups, self.group)

    def n_open(self, available: Mask) -> I64:
        """How many items each user may get, (q,) int64; of what is denied each stands once."""
        found = np.zeros(len(self.group), np.int64)
        for users, mask in self.by_group(available):
            mine, items = self.denied.take(users).pairs()
            found[users] = int(mask.sum()) - np.bincount(mine[mask[items]], minlength=len(users))
        return found

    def for_fill(
        self, orders: Sequence[Sequence[Fallback]], users: I64, n_items: int
    ) -> list[Sequence[Fallback]]:
        """The orders that `fallback.fill` takes for all q users, those of the users named cut to what is
        allowed; users of one group who shared an order share the cut one.
        """
        found = list(orders)
        cut: dict[tuple[int, int], Sequence[Fallback]] = {}
        for user in users[np.argsort(self.group[users], kind="stable")].tolist():
            group = int(self.group[user])
            key = group, id(orders[user])
            if key not in cut:
                allowed = self.allowed(group, n_items)
                cut[key] = (
                    orders[user] if allowed is None else tuple(one.within(allowed) for one in orders[user])
                )
            found[user] = cut[key]
        return found


def _within(allowed: I64, available: Mask) -> Mask:
    mask = np.zeros_like(available)
    mask[allowed] = available[allowed]
    return mask


def best_among(queries: F32, matrix: F32, candidates: I64, k: int, filters: Filters) -> TopK:
    """The exact best k allowed items of each user among candidates (q, m), -1 where fewer."""
    kept = np.where(filters.allowed(candidates), candidates, -1)
    return select_topk(rescore(queries, matrix, kept), kept, k)
