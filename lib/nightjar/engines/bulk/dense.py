"""Exact bulk top-k on a GPU (or any torch device): fp32 products in tiles, torch's topk, a proof.

The device proposes k and SPARE more items per user; the host re-scores them in the fixed order. The list is
proven when its k-th score exceeds, by more than two roundings can differ, the best score the device did not
return; other users (ties at the boundary, mostly) get the exact sweep. TensorFloat-32 is off for the product,
because its 10-bit mantissa would void the proof.
"""

from dataclasses import dataclass

import numpy as np
import torch

from nightjar.errors import ConfigError, ContractError
from nightjar.kernels.sweep import sweep_topk
from nightjar.kernels.topk import (
    F32,
    F64,
    I64,
    Filters,
    TopK,
    item_norms,
    rescore,
    rounding_margin,
    select_topk,
    vector_norms,
)

SPARE = 16
USERS = 4096
ITEMS = 65_536  # 4096 × 65,536 fp32 scores are 1 GiB of device memory


@dataclass(frozen=True)
class _Proposed:
    """Items (q, m) int64 with their device scores, and the best device score of what was left out (q,)."""

    item_nums: I64
    bound: F64


def search_dense(
    queries: F32, k: int, matrix: F32, filters: Filters | None = None, device: str = "cuda"
) -> TopK:
    """The exact best k allowed items of every user over all of matrix (n, d), as from `search_shards`.

    The items are copied to the device tile by tile, so they may be larger than its memory. ConfigError if
    torch does not know the device; ContractError on bad vectors or filters.
    """
    filters = filters or Filters()
    if k < 1:
        raise ContractError(f"k is {k}; it must be at least 1")
    _check_device(device)
    query_norms = vector_norms(queries, "queries", matrix.shape[1])
    item_norm = float(item_norms(matrix, "items").max(initial=0.0))
    filters = filters.checked(len(queries), len(matrix))
    result = TopK.nothing(len(queries), k)
    for start in range(0, len(queries), USERS):
        users = np.arange(start, min(start + USERS, len(queries)))
        mine = filters.take(users)
        proposed = _propose(queries[users], k, matrix, mine, device)
        scores = rescore(queries[users], matrix, proposed.item_nums)
        found = select_topk(scores, proposed.item_nums, k)
        margin = rounding_margin(query_norms[users], item_norm, matrix.shape[1])
        proven = (found.scores[:, -1] > proposed.bound + margin) | np.isneginf(proposed.bound)
        result.put(users, found)
        unsure = np.flatnonzero(~proven)
        if len(unsure):
            at = users[unsure]
            result.put(
                at, sweep_topk(queries[at], matrix, k, filters.take(at), found.scores[unsure, -1].copy())
            )
    return result


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"torch cannot use the device {device!r} here: {error}") from error


def _propose(queries: F32, k: int, matrix: F32, filters: Filters, device: str) -> _Proposed:
    """Per tile the best k + SPARE allowed items by device score, merged tile by tile on the device."""
    wanted = k + SPARE
    users = torch.from_numpy(queries).to(device)
    best = torch.full((len(queries), 0), -torch.inf, device=device)
    items = torch.empty((len(queries), 0), dtype=torch.int64, device=device)
    bound = torch.full((len(queries),), -torch.inf, device=device)
    listed = filters.listed(len(queries))
    pairs = [torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in listed.pairs()]
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        for start in range(0, len(matrix), ITEMS):
            rows = np.array(matrix[start : start + ITEMS])  # torch takes no read-only memory, and maps are
            scores = users @ torch.from_numpy(rows).to(device).T
            _mask(scores, start, filters, pairs)
            numbers = torch.arange(start, start + len(rows), device=device).expand(len(queries), -1)
            best, items, left = _merge((best, items), (scores, numbers), wanted)
            bound = torch.maximum(bound, left)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    absent = torch.isneginf(best)
    return _Proposed(items.masked_fill(absent, -1).cpu().numpy(), bound.double().cpu().numpy())


def _merge(
    held: tuple[torch.Tensor, torch.Tensor], more: tuple[torch.Tensor, torch.Tensor], wanted: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best `wanted` of what is held and one tile, and the best score left out of either cut."""
    scores, numbers = more
    left = torch.full((len(scores),), -torch.inf, device=scores.device)
    if scores.shape[1] > wanted:
        cut = scores.topk(wanted + 1, dim=1)
        left = torch.maximum(left, cut.values[:, -1])
        scores, numbers = cut.values[:, :-1], numbers.gather(1, cut.indices[:, :-1])
    scores, numbers = torch.cat([held[0], scores], dim=1), torch.cat([held[1], numbers], dim=1)
    if scores.shape[1] > wanted:
        cut = scores.topk(wanted + 1, dim=1)
        left = torch.maximum(left, cut.values[:, -1])
        scores, numbers = cut.values[:, :-1], numbers.gather(1, cut.indices[:, :-1])
    return scores, numbers, left


def _mask(scores: torch.Tensor, start: int, filters: Filters, pairs: list[torch.Tensor]) -> None:
    """Minus infinity where a user must not get an item of the tile that begins at item number start."""
    stop = start + scores.shape[1]
    if filters.eligible is not None:
        eligible = torch.from_numpy(np.ascontiguousarray(filters.eligible[..., start:stop])).to(scores.device)
        if filters.group is not None:
            eligible = eligible[torch.from_numpy(filters.group).to(scores.device)]
        scores.masked_fill_(~eligible, -torch.inf)
    users, items = pairs
    here = (items >= start) & (items < stop)
    scores[users[here], items[here] - start] = -torch.inf
