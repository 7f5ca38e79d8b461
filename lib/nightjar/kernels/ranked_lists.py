"""Holds the one form in which every evaluation kernel takes ranked lists and sets, and checks it.

Lists are an (n, k) int64 array of item numbers, best first, padded with -1 at the end of a row only. Sets
per row (truth, history, categories) are CSR: `indptr` (n + 1,) int64 and `values` int64, row r being
`values[indptr[r]:indptr[r + 1]]`.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from nightjar.errors import ConfigError, ContractError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Csr = tuple[IntArray, IntArray]

# Slots a block may hold: 2^18 int64 slots are 2 MiB, so the few temporaries of a block stay in the cache.
BLOCK_SLOTS = 1 << 18


def check_lists(lists: npt.NDArray[np.integer], n_items: int | None = None) -> IntArray:
    """Returns the lists as (n, k) int64 once their shape, padding and, given `n_items`, their range hold.

    Raises ContractError naming the first offending row. Repeats are looked for by `check_no_repeats`, which
    sorts.
    """
    if lists.ndim != 2 or not np.issubdtype(lists.dtype, np.integer):
        raise ContractError(
            f"ranked lists must be an (n, k) integer array, not {lists.dtype} of shape {lists.shape}; "
            "pad short lists with -1 at the end"
        )
    checked = lists.astype(np.int64, copy=False)
    for start, stop in row_blocks(len(checked), checked.shape[1]):
        block = checked[start:stop]
        bad = (block < -1) | (block >= n_items) if n_items is not None else block < -1
        if bad.any():
            row = start + int(np.argmax(bad.any(axis=1)))
            raise ContractError(f"list of row {row} holds an item number outside 0…{n_items or 'n_items'}-1")
        gap = (block[:, :-1] < 0) & (block[:, 1:] >= 0)
        if gap.any():
            row = start + int(np.argmax(gap.any(axis=1)))
            raise ContractError(f"list of row {row} has an item after -1; padding may only stand at the end")
    return checked


def check_no_repeats(lists: IntArray) -> None:
    """Raises ContractError when a row names an item twice, which would count one hit or one slot twice."""
    for start, stop in row_blocks(len(lists), lists.shape[1]):
        ordered = np.sort(lists[start:stop], axis=1)
        repeat = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        if repeat.any():
            row = start + int(np.argmax(repeat.any(axis=1)))
            raise ContractError(f"list of row {row} names an item twice; an item may stand once in a list")


def check_ks(ks: Sequence[int]) -> list[int]:
    """Returns the cut-offs, ascending and without repeats; raises ConfigError unless each is at least 1."""
    if len(ks) == 0 or min(ks) < 1:
        raise ConfigError(f"metric cut-offs must be whole numbers from 1 up, not {list(ks)}")
    return sorted({int(k) for k in ks})


def check_csr(rows: Csr, n_rows: int, name: str) -> Csr:
    """Returns the CSR as int64 once it has `n_rows` rows, each with values from 0 up, strictly ascending.

    Raises ContractError saying which of these `name` breaks.
    """
    indptr, values = (np.asarray(part).astype(np.int64, copy=False) for part in rows)
    if indptr.shape != (n_rows + 1,) or values.ndim != 1:
        raise ContractError(f"{name} must have {n_rows} rows, but indptr has shape {indptr.shape}")
    if indptr[0] != 0 or indptr[-1] != len(values) or (np.diff(indptr) < 0).any():
        raise ContractError(f"{name} has an indptr that does not run from 0 up to {len(values)}")
    if len(values) and values.min() < 0:
        raise ContractError(f"{name} holds a number below 0")
    rising = np.diff(values) > 0
    starts = indptr[1:-1]
    rising[starts[(starts > 0) & (starts < len(values))] - 1] = True
    if not rising.all():
        row = int(np.searchsorted(indptr, np.argmin(rising), side="right")) - 1
        raise ContractError(f"{name} of row {row} is not strictly ascending; sort it and drop repeats")
    return indptr, values


def row_blocks(n_rows: int, width: int, n_slots: int = BLOCK_SLOTS) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) of blocks of rows holding about `n_slots` slots of `width` each, in order."""
    step = max(1, n_slots // max(1, width))
    for start in range(0, n_rows, step):
        yield start, min(start + step, n_rows)


def lengths_at(lists: IntArray, k: int) -> IntArray:
    """Number of items among the first `k` slots of each row, (n,) int64."""
    lengths: IntArray = np.count_nonzero(lists[:, :k] >= 0, axis=1).astype(np.int64)
    return lengths


def entry_rows(indptr: IntArray) -> IntArray:
    """Row of each entry of a CSR, (n_entries,) int64."""
    return np.repeat(np.arange(len(indptr) - 1, dtype=np.int64), np.diff(indptr))
