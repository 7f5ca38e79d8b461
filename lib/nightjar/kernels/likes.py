"""Who liked what and when, as of any earlier moment: what relations are learnt from, fits held against."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from nightjar.kernels.signals import F64, I64, Fading, decay, newness


@dataclass(frozen=True)
class Likes:
    """Pairs of a user and an item that events speak for, rising by user, then item.

    user: (n,) int64 codes below n_users; item: (n,) int64 numbers below n_items; strength: (n,) float32 above
    0, undecayed; first, last: (n,) float64, days from the pair's first and last liking event to the end of
    the log, first ≥ last; segment: (n_users,) int64, which segment a user belongs to, 0 for none; None where
    nobody belongs to any.
    """

    user: I64
    item: I64
    strength: NDArray[np.float32]
    first: F64
    last: F64
    n_users: int
    n_items: int
    segment: I64 | None = None

    def __len__(self) -> int:
        return len(self.user)

    def kept(self, which: NDArray[np.bool_]) -> Likes:
        """These pairs alone, of the same users and items."""
        return replace(
            self,
            user=self.user[which],
            item=self.item[which],
            strength=self.strength[which],
            first=self.first[which],
            last=self.last[which],
        )

    def newest(self, most: int) -> Likes:
        """Of each user the `most` pairs liked last, ties to the lower item number."""
        if not len(self) or np.bincount(self.user).max() <= most:
            return self
        order = np.lexsort((self.item, self.last, self.user))
        place = np.empty(len(self), np.int64)
        place[order] = np.arange(len(self)) - np.searchsorted(self.user, self.user)
        return self.kept(place < most)

    def before(self, days: float) -> Likes:
        """What was known `days` before the end. A pair that was liked again later counts from its first time,
        since the times between are not kept."""
        known = self.kept(self.first >= days)
        last = np.where(known.last >= days, known.last, known.first)
        return replace(known, first=known.first - days, last=last - days)

    def matrix(self) -> sparse.csr_matrix:
        """(n_users, n_items) float32, 1.0 for a pair: repeated clicks say little about what goes together."""
        return self._csr(np.ones(len(self), np.float32))

    def weights(self, fading: Fading) -> sparse.csr_matrix:
        """(n_users, n_items) float32: strength, faded by how long before the user's newest like it was."""
        return self._csr((self.strength * self._left(fading)).astype(np.float32))

    def histories(self, fading: Fading) -> sparse.csr_matrix:
        """(n_users, n_items) float32 of what relations start from: as `weights`, but with √strength, since
        the tenth event of a pair says less than the first."""
        return self._csr((np.sqrt(self.strength) * self._left(fading)).astype(np.float32))

    def recent(self) -> sparse.csr_matrix:
        """(n_users, n_items) float32 of what the relation `followers` starts from: newness alone."""
        return self._csr(newness(self.user, self.last).astype(np.float32))

    def _left(self, fading: Fading) -> F64:
        newest = np.full(self.n_users, np.inf)
        np.minimum.at(newest, self.user, self.last)
        return fading.left(self.last - newest[self.user])

    def counts(self, half_life_days: float | None) -> F64:
        """Users of each item, (n_items,) float64, each halved for every half-life since its last like."""
        found: F64 = np.bincount(
            self.item, weights=decay(self.last, half_life_days), minlength=self.n_items
        ).astype(np.float64)
        return found

    def unliked(self) -> NDArray[np.bool_]:
        """(n_items,) bool: the items that nobody likes."""
        none: NDArray[np.bool_] = np.bincount(self.item, minlength=self.n_items) == 0
        return none

    def _csr(self, values: NDArray[np.float32]) -> sparse.csr_matrix:
        indptr = np.searchsorted(self.user, np.arange(self.n_users + 1)).astype(np.int64)
        return sparse.csr_matrix((values, self.item, indptr), (self.n_users, self.n_items))


def truth_window(likes: Likes, users_wanted: int, most: float) -> float:
    """Days before the end from which on what was newly liked serves as truth for a fit.

    The shortest window in which `users_wanted` users with a history before it liked something new, but never
    one with more than the share `most` of all pairs.
    """
    if not len(likes):
        return 0.0
    bound = float(np.quantile(likes.first, most))
    oldest = np.zeros(likes.n_users)
    np.maximum.at(oldest, likes.user, likes.first)
    # A user joins the truth when the window reaches their newest pair, provided it is not also their oldest.
    newest = np.full(likes.n_users, np.inf)
    np.minimum.at(newest, likes.user, likes.first)
    joins = np.sort(newest[newest < oldest])
    if len(joins) > users_wanted:
        return float(min(joins[users_wanted - 1], bound))
    return bound
