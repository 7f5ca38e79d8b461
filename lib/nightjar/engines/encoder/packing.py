"""Form batches by token budget, so that none outgrows memory and none holds a wasted token."""

from __future__ import annotations

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


class BatchQueue:
    """Rows of tokenised texts handed out in batches of a token budget that may change between two batches.

    Longest rows first, so that what does not fit in memory shows at once; rows of equal length keep their
    order; rows without a token are in no batch. ``padded`` counts a batch as its longest row times its rows.
    A row longer than the budget stands alone.
    """

    def __init__(self, rows: TokenRows, *, padded: bool) -> None:
        """Sort the rows by length."""
        lengths = rows.lengths
        order = np.argsort(-lengths, kind="stable")
        self._order = order[lengths[order] > 0]
        self._rows = rows
        self._padded = padded
        self._lengths = lengths[self._order]
        self._totals = np.concatenate([[0], np.cumsum(self._lengths)])
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._order)

    def take(self, budget: int) -> PackedBatch:
        """The next batch of at most ``budget`` tokens."""
        at = self._at
        if self._padded:
            end = at + max(1, budget // int(self._lengths[at]))
        else:
            fits = int(np.searchsorted(self._totals, self._totals[at] + budget, side="right")) - 1
            end = max(at + 1, fits)
        self._at = min(end, len(self._order))
        chosen = self._order[at : self._at]
        taken = self._rows.take(chosen)
        return PackedBatch(taken.ids, taken.lengths, chosen)
