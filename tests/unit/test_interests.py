"""Merging what several vectors of a user retrieved, against one user at a time in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightjar.errors import ContractError
from nightjar.kernels.interests import Interests, merge, quotas
from nightjar.kernels.topk import TopK, select_topk

Row = list[tuple[int, float]]


def rows_of(rng: np.random.Generator, n_rows: int, k: int, n_items: int) -> tuple[TopK, list[Row]]:
    """Lists of 0 to k items with scores full of ties, as a search returns them."""
    scores = (rng.integers(-8, 9, (n_rows, n_items)) / 8).astype(np.float32)
    items = np.tile(np.arange(n_items), (n_rows, 1))
    items[rng.random(items.shape) < rng.choice([0, 0.5, 0.95], (n_rows, 1))] = -1
    found = select_topk(np.where(items >= 0, scores, -np.inf).astype(np.float32), items, k)
    plain = [
        list(zip(nums[:n].tolist(), values[:n].tolist(), strict=True))
        for nums, values, n in zip(*found, strict=True)
    ]
    return found, plain


def by_importance(rows: list[Row], weights: list[float], k: int) -> Row:
    if len(rows) == 1:
        return rows[0]
    weights = weights if max(weights) > 0 else [1.0] * len(weights)
    best: dict[int, float] = {}
    for row, weight in zip(rows, weights, strict=True):
        for item, score in row:
            if weight > 0:
                value = float(np.float32(score) * np.float32(weight / max(weights)))
                best[item] = max(best.get(item, -np.inf), value)
    return sorted(best.items(), key=lambda pair: (-pair[1], pair[0]))[:k]


def by_quotas(rows: list[Row], weights: list[float], k: int) -> Row:
    weights = weights if sum(weights) > 0 else [1.0] * len(weights)
    exact = [k * weight / sum(weights) for weight in weights]
    places = [int(np.floor(value + 1e-9)) for value in exact]
    rest = sorted(range(len(rows)), key=lambda i: (-(exact[i] - places[i]), i))
    for i in rest[: k - sum(places)]:
        places[i] += 1
    taken: dict[int, float] = {}
    for allowed in (places, [k] * len(rows)):
        for i in sorted(range(len(rows)), key=lambda i: (-weights[i], i)):
            free = [(item, score) for item, score in rows[i] if item not in taken]
            taken.update(free[: min(allowed[i], k - len(taken))])
    return sorted(taken.items(), key=lambda pair: (-pair[1], pair[0]))


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 8]), st.booleans())
def test_merging_equals_one_user_at_a_time(seed: int, k: int, share_out: bool) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, 6)
    starts = np.r_[0, np.cumsum(counts)]
    found, rows = rows_of(rng, int(starts[-1]), k, 12)
    # Eighths, so that a plain sum of weights rounds as the kernel's does.
    importance = rng.choice([0, 0.125, 0.25, 0.5, 1], starts[-1]).astype(np.float32)
    merged = merge(found, Interests(starts, importance), by_quotas=share_out)
    for user in range(6):
        mine = slice(starts[user], starts[user + 1])
        oracle = by_quotas if share_out else by_importance
        expected = oracle(rows[mine], importance[mine].tolist(), k)
        n = int(merged.n_found[user])
        assert (merged.item_nums[user, n:] == -1).all()
        got = list(zip(merged.item_nums[user, :n].tolist(), merged.scores[user, :n].tolist(), strict=True))
        assert got == expected, user


def test_a_small_interest_keeps_its_places() -> None:
    """Three quarters and a quarter of eight places, although every item of the first is nearer."""
    items = np.array([[*range(8)], [7, *range(20, 27)]])
    scores = np.array([np.linspace(0.9, 0.8, 8), np.linspace(0.5, 0.4, 8)], np.float32)
    found = TopK(items, scores, np.array([8, 8]))
    interests = Interests(np.array([0, 2]), np.array([0.75, 0.25], np.float32))
    shared = merge(found, interests, by_quotas=True)
    assert shared.item_nums[0].tolist() == [0, 1, 2, 3, 4, 5, 7, 20]
    assert merge(found, interests, by_quotas=False).item_nums[0].tolist() == list(range(8))


def test_places_by_largest_remainders() -> None:
    assert quotas(np.array([[0.5, 0.3, 0.2], [1 / 3, 1 / 3, 1 / 3], [1, 0, 0]]), 4).tolist() == [
        [2, 1, 1],
        [2, 1, 1],
        [4, 0, 0],
    ]


def test_blocks_part_no_user() -> None:
    ids = np.array(["a", "a", "b", "c", "c", "c", "d"], object)
    interests = Interests.of(ids, np.ones(7, np.float32))
    assert interests.counts().tolist() == [2, 1, 3, 1]
    assert interests.blocks(3) == [(0, 2), (2, 3), (3, 4)]
    assert interests.blocks(1) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert interests.blocks(100) == [(0, 4)]
    assert interests.take(1, 3).starts.tolist() == [0, 1, 4]
    assert Interests.of(ids[:0], np.ones(0, np.float32)).blocks(5) == []
    with pytest.raises(ContractError, match="do not stand side by side"):
        Interests.of(np.array(["a", "b", "a"], object), np.ones(3, np.float32))
