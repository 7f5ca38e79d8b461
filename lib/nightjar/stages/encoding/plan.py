"""Where every row's vector comes from: an earlier night, a text that other parts have too, or its own part.

Decided by the driver from hashes alone, for all parts at once, so that no text is encoded twice in a night.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nightjar.errors import ContractError

KEY = np.dtype("S16")
"""The first 16 bytes of a text's sha256: with a billion texts, two share one with a chance of 1e-21."""


def hash_keys(column: pa.ChunkedArray) -> np.ndarray:
    """Hex sha256 strings as (n,) keys of 16 bytes."""
    if not len(column):
        return np.empty(0, KEY)
    heads = pc.utf8_slice_codeunits(column, 0, 32).combine_chunks()
    if pc.any(pc.less(pc.utf8_length(heads), 32)).as_py():
        raise ContractError("text_hash holds something that is no sha256 in hex")
    start = heads.offset
    offsets = np.frombuffer(heads.buffers()[1], np.int32)[start : start + len(heads) + 1]
    letters = np.frombuffer(heads.buffers()[2], np.uint8)[offsets[0] : offsets[-1]].reshape(-1, 32)
    digits = (letters & 15) + 9 * (letters >> 6)  # "0" is 0x30, "a" is 0x61
    return np.ascontiguousarray((digits[:, 0::2] << 4) | digits[:, 1::2]).view(KEY).ravel()


@dataclass(frozen=True)
class Pair:
    """rows[i] (k,) of a part get row places[i] of a matrix, int64 both."""

    rows: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.rows.tolist(), self.places.tolist(), strict=True)


@dataclass(frozen=True)
class Sources:
    """Where the rows of one part get their vectors. Each row stands in one of the three.

    earlier, repeated: rows of the matrices of those names. fresh: places in `texts`, the rows (t,) of this
    part where a text stands first that is to be encoded with it.
    """

    earlier: Pair
    repeated: Pair
    fresh: Pair
    texts: np.ndarray


@dataclass(frozen=True)
class Plan:
    """The sources of all rows, counted through the parts in order.

    offsets: (p+1,) the first row of each part. earlier: (n,) row of the earlier matrix or -1. repeated: (n,)
    number of the text among those in several parts, or -1. first: (n,) the row where the same text stands
    first. repeated_at: (m,) the row where each repeated text stands first, ascending.
    """

    offsets: np.ndarray
    earlier: np.ndarray
    repeated: np.ndarray
    first: np.ndarray
    repeated_at: np.ndarray

    @property
    def n_parts(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_new(self) -> int:
        """Distinct texts to encode."""
        return int(((self.earlier < 0) & (self.first == np.arange(len(self.first)))).sum())

    def of_part(self, part: int) -> Sources:
        """The sources of one part's rows."""
        start, end = self.offsets[part], self.offsets[part + 1]
        earlier, repeated = self.earlier[start:end], self.repeated[start:end]
        rows = np.flatnonzero((earlier < 0) & (repeated < 0))
        texts, places = np.unique(self.first[start:end][rows] - start, return_inverse=True)
        taken, lent = np.flatnonzero(earlier >= 0), np.flatnonzero(repeated >= 0)
        return Sources(Pair(taken, earlier[taken]), Pair(lent, repeated[lent]), Pair(rows, places), texts)

    def places(self, numbers: slice) -> tuple[tuple[int, np.ndarray], ...]:
        """Where some repeated texts stand first, in their order: (part, rows in it), …"""
        at = self.repeated_at[numbers]
        parts = np.searchsorted(self.offsets, at, side="right") - 1
        return tuple((int(p), at[parts == p] - self.offsets[p]) for p in np.unique(parts))


def make_plan(keys: np.ndarray, offsets: np.ndarray, known: np.ndarray) -> Plan:
    """The plan for rows of `keys` (n,) cut by `offsets` (p+1,) into parts; `known` (k,) are there already."""
    n = len(keys)
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1]][:n])
    group = np.empty(n, np.int64)
    group[order] = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, n]))
    first, last = order[starts], order[np.r_[starts[1:], n][: len(starts)] - 1]
    found = _find(keys[first], known)
    parts = np.searchsorted(offsets, np.stack([first, last]), side="right") - 1
    in_several = (found < 0) & (parts[0] != parts[1])
    repeated_at = np.sort(first[in_several])
    number = np.where(in_several, np.searchsorted(repeated_at, first), -1)
    return Plan(offsets, found[group], number[group], first[group], repeated_at)


def _find(wanted: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The first place of each wanted key in `known`, or -1; (m,) int64."""
    if not len(known):
        return np.full(len(wanted), -1)
    order = np.argsort(known, kind="stable")
    at = np.minimum(np.searchsorted(known[order], wanted), len(known) - 1)
    place = order[at]
    return np.where(known[place] == wanted, place, -1)
