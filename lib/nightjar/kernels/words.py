"""What users wrote, as vectors: for each user the sum of their texts' directions, by strength and age."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from nightjar.kernels.interactions import Histories, joined
from nightjar.kernels.signals import Fading

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

AGELESS = np.iinfo(np.int64).max
"""The time of a text that does not grow old: a stated interest."""
BLOCK_USERS = 8192
MOST_HALVINGS = 64.0
"""A text that much newer than the newest item leaves nothing of the history, in float32 as in float64."""


@dataclass(frozen=True)
class Spoken:
    """Texts of some users, in CSR form.

    user_ids: (q,) strings, rising; indptr: (q + 1,) int64; text_nums: (n,) int64; strengths: (n,) float32,
    1.0 is one event of weight 1 and negative speaks against; times: (n,) int64, microseconds, or AGELESS.
    """

    user_ids: np.ndarray
    indptr: I64
    text_nums: I64
    strengths: F32
    times: I64

    def only_stated(self, user_ids: np.ndarray) -> NDArray[np.bool_]:
        """Whether a user wrote stated interests and nothing else, for each of `user_ids`."""
        rows, counts = self._rows(user_ids)
        aged = np.r_[0, np.cumsum(self.times[rows] != AGELESS)]
        ends = np.cumsum(counts)
        return np.asarray((counts > 0) & (aged[ends] == aged[ends - counts]))

    def sums(self, mine: Histories, T: F32, fading: Fading) -> F32:
        """For each user of `mine` Σ strength · what is left at its age · T[text], (q, d) float32.

        T: (n_texts, d) float32 unit rows. Ages count back from the newest event of the user's history, so
        that texts and items fade alike; a text newer than that counts more than its strength. Where there is
        no history they count from the newest text.
        """
        rows, counts = self._rows(mine.user_ids)
        times = self.times[rows]
        newest = np.repeat(_newest(mine, times, counts), counts)
        ages = np.where(times == AGELESS, 0.0, (newest - times) / 86_400e6)
        if fading.half_life_days is not None:
            ages = np.maximum(ages, -MOST_HALVINGS * fading.half_life_days)
        left = (self.strengths[rows] * fading.left(ages)).astype(np.float32)
        indptr = np.r_[0, np.cumsum(counts)]
        weights = sparse.csr_matrix((left, self.text_nums[rows], indptr), (len(mine), len(T)))
        return np.asarray(weights @ T, np.float32)

    def _rows(self, user_ids: np.ndarray) -> tuple[I64, I64]:
        """The texts of the given users, one user after the other, and how many each has."""
        if not len(self.user_ids):
            return np.zeros(0, np.int64), np.zeros(len(user_ids), np.int64)
        at = np.minimum(np.searchsorted(self.user_ids, user_ids), len(self.user_ids) - 1)
        counts = np.where(self.user_ids[at] == user_ids, np.diff(self.indptr)[at], 0).astype(np.int64)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(self.indptr[:-1][at], counts) + within, counts


def _newest(mine: Histories, times: I64, counts: I64) -> I64:
    """What ages count back from, (q,) int64: the newest item event, else the newest text, else 0."""
    newest = np.zeros(len(mine), np.int64)
    aged = np.where(times == AGELESS, 0, times)
    np.maximum.at(newest, np.repeat(np.arange(len(mine)), counts), aged)
    has_items = np.diff(mine.indptr) > 0
    of_items = np.zeros(len(mine), np.int64)
    np.maximum.at(of_items, np.repeat(np.arange(len(mine)), np.diff(mine.indptr)), mine.times)
    return np.where(has_items, of_items, newest)


def spoken(user_ids: np.ndarray, text_nums: I64, strengths: F32, times: I64) -> Spoken:
    """Rows sorted by user as Spoken."""
    starts = np.flatnonzero(np.r_[True, user_ids[1:] != user_ids[:-1]][: len(user_ids)])
    indptr = np.r_[starts, len(user_ids)].astype(np.int64)
    return Spoken(user_ids[starts], indptr, text_nums, strengths, times)


def with_speakers(blocks: Iterator[Histories], speakers: np.ndarray) -> Iterator[Histories]:
    """The blocks of histories, and in their places (empty ones) users who only wrote; order stays by id.

    speakers: (s,) ids, rising. A block without any such user is passed on as it is.
    """
    done = 0
    for block in blocks:
        end = int(np.searchsorted(speakers, block.user_ids[-1], side="right"))
        ids = np.union1d(block.user_ids, speakers[done:end]) if end > done else block.user_ids
        done = end
        if len(ids) == len(block):
            yield block
        else:
            yield from _aligned(block, ids)
    yield from _aligned(joined([]), speakers[done:])


def _aligned(block: Histories, ids: np.ndarray) -> Iterator[Histories]:
    for start in range(0, len(ids), BLOCK_USERS):
        yield block.aligned(ids[start : start + BLOCK_USERS])
