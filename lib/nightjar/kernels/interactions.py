"""A bucket of users' interactions as sparse matrices: rows are users, columns item numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from nightjar.kernels.signals import Fading, newness


@dataclass(frozen=True)
class Histories:
    """Interactions of some users, in CSR form.

    user_ids: (q,) strings in order; indptr: (q + 1,) int64; item_nums: (n,) int64, rising inside a user;
    weights: (n,) float32, 1.0 is one fresh event of weight 1; strengths: (n,) float32, the same before it
    faded; in_profile: (n,) bool, within the history cap; times: (n,) int64, microseconds of the last event.
    """

    user_ids: np.ndarray
    indptr: np.ndarray
    item_nums: np.ndarray
    weights: np.ndarray
    strengths: np.ndarray
    in_profile: np.ndarray
    times: np.ndarray

    def __len__(self) -> int:
        return len(self.user_ids)

    def profile(self, n_items: int) -> sparse.csr_matrix:
        """The (q, n_items) float32 weights that shape the profile; what lies outside the cap is left out."""
        return self._inside_cap(self.weights, n_items)

    def left(self, fading: Fading) -> np.ndarray:
        """What is left of each pair's strength, (n,) float64, back from the user's newest event."""
        newest = np.maximum.reduceat(np.r_[self.times, 0], self.indptr[:-1]) if len(self) else self.times
        return fading.left((np.repeat(newest, np.diff(self.indptr)) - self.times) / 86_400e6)

    def relation_weights(self, left: np.ndarray, n_items: int) -> sparse.csr_matrix:
        """What relations start from, (q, n_items) float32: ±√|strength| · left (kernels/likes.py: why)."""
        root = np.sign(self.strengths) * np.sqrt(np.abs(self.strengths))
        return self._inside_cap((root * left).astype(np.float32), n_items)

    def n_liked(self) -> np.ndarray:
        """Liked items of each user within the cap, (q,) int64, however old."""
        users = np.repeat(np.arange(len(self)), np.diff(self.indptr))
        return np.bincount(users[self.in_profile & (self.strengths > 0)], minlength=len(self))

    def newest_weights(self, n_items: int) -> sparse.csr_matrix:
        """What the relation `followers` starts from, ±newness (Likes.recent); pattern of relation_weights."""
        users = np.repeat(np.arange(len(self)), np.diff(self.indptr))
        found = np.sign(self.strengths) * newness(users, -self.times.astype(np.float64))
        return self._inside_cap(found.astype(np.float32), n_items)

    def vector_weights(self, left: np.ndarray, norms: np.ndarray) -> sparse.csr_matrix:
        """What vectors start from, strength · left / norm; the same pattern as `relation_weights`."""
        weights = self._inside_cap((self.strengths * left).astype(np.float32), len(norms))
        weights.data /= norms[weights.indices]
        return weights

    def _inside_cap(self, values: np.ndarray, n_items: int) -> sparse.csr_matrix:
        kept = self.in_profile
        counts = (
            np.add.reduceat(np.r_[kept.astype(np.int64), 0], self.indptr[:-1]) if len(self) else np.zeros(0)
        )
        counts = np.where(np.diff(self.indptr) > 0, counts, 0)
        indptr = np.r_[0, np.cumsum(counts)].astype(np.int64)
        return sparse.csr_matrix((values[kept], self.item_nums[kept], indptr), (len(self), n_items))

    def profile_of_directions(self, norms: np.ndarray) -> sparse.csr_matrix:
        """The profile for item vectors of the given lengths (n_items,): weights / norms, so that a history
        sums directions whatever the items count now.
        """
        weights = self.profile(len(norms))
        weights.data /= norms[weights.indices]
        return weights

    def aligned(self, user_ids: np.ndarray) -> Histories:
        """The histories of the given users in their order; a user without one gets an empty row."""
        order = np.argsort(self.user_ids, kind="stable")
        if not len(self):
            return Histories(
                user_ids, np.zeros(len(user_ids) + 1, np.int64), *self._entries(np.zeros(0, np.int64))
            )
        at = order[np.minimum(np.searchsorted(self.user_ids, user_ids, sorter=order), len(self) - 1)]
        found = self.user_ids[at] == user_ids
        counts = np.where(found, np.diff(self.indptr)[at], 0)
        indptr = np.r_[0, np.cumsum(counts)].astype(np.int64)
        within = np.arange(indptr[-1]) - np.repeat(indptr[:-1], counts)
        return Histories(user_ids, indptr, *self._entries(np.repeat(self.indptr[:-1][at], counts) + within))

    def _entries(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        columns = self.item_nums, self.weights, self.strengths, self.in_profile, self.times
        return tuple(column[at] for column in columns)


def joined(parts: Sequence[Histories]) -> Histories:
    """Histories of different users one after the other; of nobody where there are no parts."""
    if len(parts) == 1:
        return parts[0]
    none = np.zeros(0, np.int64)
    blank = np.zeros(0, object), none, none.astype(np.float32), none.astype(np.float32), none != 0, none
    columns = [(one.user_ids, *one._entries(np.arange(len(one.item_nums)))) for one in parts]
    starts = np.cumsum([0, *(len(one.item_nums) for one in parts)])
    ends = [start + one.indptr[1:] for start, one in zip(starts[:-1], parts, strict=True)]
    whole = [np.concatenate(column) for column in zip(*(columns or [blank]), strict=True)]
    return Histories(whole[0], np.concatenate([[0], *ends]).astype(np.int64), *whole[1:])


Columns = tuple[np.ndarray, ...]
"""user_ids, item_nums, weights, strengths, in_profile, times of consecutive rows, by user and item."""


def whole_users(batches: Iterable[Columns]) -> Iterator[Histories]:
    """Histories batch by batch; a user that crosses a batch edge is carried over to the next one whole."""
    carried: Columns | None = None
    for batch in batches:
        columns = batch if carried is None else _joined(carried, batch)
        if not len(columns[0]):
            continue
        cut = int(np.flatnonzero(columns[0] == columns[0][-1])[0])
        carried = tuple(column[cut:] for column in columns)
        if cut:
            yield histories(tuple(column[:cut] for column in columns))
    if carried is not None:
        yield histories(carried)


def _joined(first: Columns, second: Columns) -> Columns:
    return tuple(np.concatenate(pair) for pair in zip(first, second, strict=True))


def histories(columns: Columns) -> Histories:
    """Rows sorted by user as Histories."""
    user_ids = columns[0]
    starts = np.flatnonzero(np.r_[True, user_ids[1:] != user_ids[:-1]]) if len(user_ids) else np.zeros(0, int)
    indptr = np.r_[starts, len(user_ids)].astype(np.int64)
    return Histories(user_ids[starts], indptr, *columns[1:])
