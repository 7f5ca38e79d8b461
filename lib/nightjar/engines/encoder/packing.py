"""Form batches by token budget, so that none outgrows memory and none holds a wasted token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]


@dataclass(frozen=True)
class TokenRows:
    """Tokenised texts as flat arrays: row i is ``ids[offsets[i]:offsets[i + 1]]`` (int32, int64)."""

    ids: NDArray[np.int32]
    offsets: Int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int:
        """Tokens of each row, special tokens included."""
        return np.diff(self.offsets)

    def take(self, rows: Int) -> TokenRows:
        """The given rows, in the given order, copied together."""
        lengths = self.lengths[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        source = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return TokenRows(self.ids[source], offsets)


@dataclass(frozen=True)
class PackedBatch:
    """Sequences laid end to end: ``ids`` (T,), ``lengths`` (n,), and the row number each came from (n,)."""

    ids: NDArray[np.int32]
    lengths: Int
    rows: Int

    @property
    def n_tokens(self) -> int:
        """Real tokens in the batch."""
        return len(self.ids)

    @property
    def starts(self) -> Int:
        """First token of each sequence (n,)."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def cu_lengths(self) -> NDArray[np.int32]:
        """Cumulative lengths with a leading zero (n + 1,), as variable-length attention kernels want them."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int32)

    @property
    def positions(self) -> Int:
        """Place of each token in its sequence, from 0 (T,)."""
        return np.arange(self.n_tokens) - np.repeat(self.starts, self.lengths)

    def runs(self) -> list[tuple[int, int, int]]:
        """Runs of equal length as (first token, number of sequences, length); sorted batches have few."""
        edges = np.flatnonzero(np.diff(self.lengths)) + 1
        starts = self.starts
        return [
            (int(starts[a]), int(b - a), int(self.lengths[a]))
            for a, b in zip(np.r_[0, edges], np.r_[edges, len(self.lengths)], strict=True)
        ]

    def split(self) -> tuple[PackedBatch, PackedBatch]:
        """Two halves by number of sequences, for when the whole did not fit in memory."""
        half = len(self.rows) // 2
        cut = int(self.lengths[:half].sum())
        return (
            PackedBatch(self.ids[:cut], self.lengths[:half], self.rows[:half]),
            PackedBatch(self.ids[cut:], self.lengths[half:], self.rows[half:]),
        )


def plan_batches(lengths: Int, budget: int, *, padded: bool) -> list[Int]:
    """Row numbers of each batch, longest rows first; rows of no token are in none.

    A batch holds at most ``budget`` tokens, counted with their padding when ``padded``; a row longer than the
    budget stands alone. Equal lengths keep their order, so the plan depends on the lengths only.
    """
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    batches, at = [], 0
    sorted_lengths = lengths[order]
    totals = np.cumsum(sorted_lengths)
    while at < len(order):
        if padded:
            n = max(1, budget // int(sorted_lengths[at]))
        else:
            before = totals[at - 1] if at else 0
            n = max(1, int(np.searchsorted(totals, before + budget, side="right")) - at)
        batches.append(order[at : at + n])
        at += n
    return batches


def iter_batches(rows: TokenRows, budget: int, *, padded: bool) -> Iterator[PackedBatch]:
    """The batches of ``plan_batches``, gathered."""
    lengths = rows.lengths
    for chosen in plan_batches(lengths, budget, padded=padded):
        taken = rows.take(chosen)
        yield PackedBatch(taken.ids, taken.lengths, chosen)
