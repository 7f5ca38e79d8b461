"""Exact top-k by fp32 tiles in NumPy: the fallback that is right on every machine and for every filter.

A BLAS product of a user block with an item tile proposes; `rescore` decides. An item is dropped only if its
BLAS score lies below a score that k other items are known to reach, by more than both roundings together can
explain, so the result equals a full sort of all fixed-order scores.
"""

from collections.abc import Iterator

import numpy as np

from nightjar.kernels.topk import (
    F32,
    F64,
    I64,
    Filters,
    Mask,
    TopK,
    item_norms,
    rounding_margin,
    score_pairs,
    select_topk,
    vector_norms,
)

USER_BLOCK = 512
ITEM_TILE = 4096  # 512 × 4096 scores are 8 MB: they stay in the last-level cache until they are compared


def sweep_topk(queries: F32, matrix: F32, k: int, filters: Filters, floor: F32 | None = None) -> TopK:
    """The exact best k allowed items of each user over the whole matrix.

    queries (q, d) float32; matrix (n, d) float32, row = item number, may be a memmap; floor (q,) float32 is a
    score that k allowed items of the user are known to reach (-inf: nothing is known), which saves work only.
    Ties by item number ascending. ContractError on users that `vector_norms` refuses and items that
    `item_norms` does; an item without a vector scores 0 unless a filter leaves it out.
    """
    query_norms = vector_norms(queries, "queries", matrix.shape[1])
    filters = filters.checked(len(queries), len(matrix))
    parts = []
    for start in range(0, len(queries), USER_BLOCK):
        users = np.arange(start, min(start + USER_BLOCK, len(queries)))
        known = np.full(len(users), -np.inf, dtype=np.float32) if floor is None else floor[users]
        narrowed = (filters.take(users), known)
        parts.append(_sweep_block(queries[users], query_norms[users], matrix, k, narrowed))
    if not parts:
        return TopK.nothing(0, k)
    return TopK(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def _sweep_block(queries: F32, query_norms: F64, matrix: F32, k: int, known: tuple[Filters, F32]) -> TopK:
    filters, floor = known
    best = TopK.nothing(len(queries), k)
    listed = _listed_by_item(filters)
    for start, tile in _tiles(matrix):
        item_norm = float(item_norms(tile, f"items from {start}").max())
        margin = rounding_margin(query_norms, item_norm, matrix.shape[1])
        proposed = queries @ tile.T
        _mask(proposed, start, filters, listed)
        cut = np.maximum(best.scores[:, k - 1], floor) - margin
        if not np.isfinite(cut).all() and tile.shape[0] > k:
            # k items of this tile reach the k-th proposed score less a margin; a second one covers the item.
            kth = np.partition(proposed, tile.shape[0] - k, axis=1)[:, tile.shape[0] - k]
            cut = np.maximum(cut, kth - 2 * margin)
        users, at = np.nonzero((proposed >= _below(cut)[:, None]) & (proposed > -np.inf))
        scores = score_pairs(queries, matrix, users, at + start)
        rows, found = pack_rows(users, at + start, scores, len(queries))
        merged = (np.hstack([best.scores, found]), np.hstack([best.item_nums, rows]))
        best = select_topk(*merged, k)
    return best


def _tiles(matrix: F32) -> Iterator[tuple[int, F32]]:
    for start in range(0, len(matrix), ITEM_TILE):
        yield start, np.asarray(matrix[start : start + ITEM_TILE])


def _below(cut: F64) -> F32:
    """The cut as float32, rounded down, so that comparing in fp32 never drops what fp64 would keep."""
    return np.nextafter(cut.astype(np.float32), np.float32(-np.inf))


def _listed_by_item(filters: Filters) -> tuple[I64, I64]:
    """All seen and denied (user, item) pairs, ordered by item so that a tile's pairs are one slice."""
    pairs = [lists.pairs() for lists in (filters.seen, filters.deny) if lists is not None]
    if not pairs:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    users, items = (np.concatenate(column) for column in zip(*pairs, strict=True))
    order = np.argsort(items)
    return users[order], items[order]


def _mask(proposed: F32, start: int, filters: Filters, listed: tuple[I64, I64]) -> None:
    stop = start + proposed.shape[1]
    if filters.eligible is not None:
        eligible: Mask = filters.eligible[..., start:stop]
        if filters.group is None:
            proposed[:, ~eligible] = -np.inf
        else:
            proposed[~eligible[filters.group]] = -np.inf
    users, items = listed
    here = slice(*np.searchsorted(items, [start, stop]))
    proposed[users[here], items[here] - start] = -np.inf


def pack_rows(users: I64, item_nums: I64, scores: F32, n_users: int) -> tuple[I64, F32]:
    """Pairs in user order as rows (n_users, widest) of item numbers and scores, -1 and -inf where absent."""
    counts = np.bincount(users, minlength=n_users)
    width = int(counts.max(initial=0))
    at = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.full((n_users, width), -1, dtype=np.int64)
    found = np.full((n_users, width), -np.inf, dtype=np.float32)
    rows[users, at] = item_nums
    found[users, at] = scores
    return rows, found
