"""Reasons: exact sums, the brute-force terms, and the order of history items."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.errors import ConfigError, ContractError
from nightjar.kernels import reasons
from nightjar.kernels.ranked_lists import Csr, FloatArray, IntArray
from nightjar.kernels.reasons import contributions
from tests.unit.ranked_cases import csr, padded

N_ITEMS = 15


class World:
    """Users with histories, empty ones too, weights of both signs, and lists of every length."""

    def __init__(self, seed: int, coarse: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self.seen = [sorted(rng.permutation(N_ITEMS)[: rng.integers(0, 9)]) for _ in range(7)]
        self.ranked = [list(rng.permutation(N_ITEMS)[: rng.integers(0, 6)]) for _ in range(7)]
        n_entries = sum(map(len, self.seen))
        if coarse:  # small integers: many equal contributions, every sum exact
            self.vectors = rng.integers(-1, 2, (N_ITEMS, 2)).astype(np.float32)
            self.weights = rng.integers(-1, 3, n_entries).astype(np.float32)
        else:
            self.vectors = (rng.normal(size=(N_ITEMS, 6)) * rng.uniform(0, 9, (N_ITEMS, 1))).astype(
                np.float32
            )
            self.weights = rng.normal(size=n_entries).astype(np.float32)

    @property
    def history(self) -> Csr:
        return csr(self.seen)

    @property
    def lists(self) -> IntArray:
        return padded(self.ranked, 5)

    def weight(self, user: int) -> FloatArray:
        indptr = self.history[0]
        return self.weights[indptr[user] : indptr[user + 1]].astype(np.float64)

    def slots(self) -> list[tuple[int, int, int]]:
        return [(u, slot, item) for u, ranked in enumerate(self.ranked) for slot, item in enumerate(ranked)]


seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.booleans(), st.integers(1, 10))
def test_the_named_items_are_the_largest_terms(seed: int, coarse: bool, n: int) -> None:
    world = World(seed, coarse)
    found = contributions(world.history, world.weights, world.vectors, world.lists, n)
    wide = world.vectors.astype(np.float64)
    for user, slot, item in world.slots():
        terms = [
            w * float(wide[h] @ wide[item]) for h, w in zip(world.seen[user], world.weight(user), strict=True)
        ]
        norms = np.linalg.norm(wide, axis=1)
        scale = np.abs(world.weight(user)) @ norms[world.seen[user]] * norms[item] + 1e-30
        named = [int(h) for h in found.item_nums[user, slot] if h >= 0]
        values = found.contributions[user, slot, : len(named)]
        assert len(named) == len(set(named)) == min(n, len(terms))
        assert not found.contributions[user, slot, len(named) :].any()
        expected = sorted(terms, reverse=True)[:n]
        np.testing.assert_allclose(values, expected, atol=1e-7 * scale)
        by_item = dict(zip(world.seen[user], terms, strict=True))
        np.testing.assert_allclose(values, [by_item[h] for h in named], atol=1e-7 * scale)
        if coarse:
            order = sorted(by_item, key=lambda h: (-by_item[h], h))
            assert named == order[:n]


@given(seeds, st.randoms(use_true_random=False))
def test_the_terms_add_up_to_the_score_exactly_in_any_order(seed: int, random: Random) -> None:
    world = World(seed)
    found = contributions(world.history, world.weights, world.vectors, world.lists, 9)
    for user, slot, item in world.slots():
        terms = found.contributions[user, slot].tolist()
        random.shuffle(terms)
        assert sum(terms) == found.scores[user, slot]
        assert sum(max(term, 0) for term in terms) == found.positive[user, slot]
        vectors = world.vectors.astype(np.float64)
        profile = world.weight(user) @ vectors[world.seen[user]]
        scale = np.abs(world.weight(user)) @ np.linalg.norm(vectors[world.seen[user]], axis=1)
        assert found.scores[user, slot] == pytest.approx(
            profile @ vectors[item], abs=1e-7 * scale * np.linalg.norm(vectors[item]) + 1e-30
        )


def test_empty_slots_and_users_without_history_have_no_reason() -> None:
    found = contributions(
        csr([[], [1, 2]]), np.ones(2, dtype=np.float32), np.eye(3, dtype=np.float32), padded([[0], [1]], 2), 3
    )
    np.testing.assert_array_equal(found.item_nums, [[[-1] * 3] * 2, [[1, 2, -1], [-1] * 3]])
    np.testing.assert_array_equal(found.contributions, [[[0] * 3] * 2, [[1, 0, 0], [0] * 3]])
    np.testing.assert_array_equal(found.scores, [[0, 0], [1, 0]])


def test_a_dislike_counts_against_and_stands_last() -> None:
    vectors = np.array([[1, 0], [0.6, 0.8], [0.8, 0.6]], dtype=np.float32)
    weights = np.array([2, -1], dtype=np.float32)
    found = contributions(csr([[0, 1]]), weights, vectors, padded([[2]], 1), 2)
    np.testing.assert_array_equal(found.item_nums[0, 0], [0, 1])
    np.testing.assert_allclose(found.contributions[0, 0], [1.6, -0.96], rtol=1e-6)
    assert found.scores[0, 0] == pytest.approx(0.64)
    assert found.positive[0, 0] == pytest.approx(1.6)


def test_equal_vectors_with_equal_weights_contribute_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    vectors = np.tile(rng.normal(size=384).astype(np.float32), (40, 1))
    vectors[39] = rng.normal(size=384)
    history = csr([list(range(37)), [3]])
    found = contributions(history, np.full(38, 0.1, np.float32), vectors, padded([[39, 38], [39]], 2), 37)
    np.testing.assert_array_equal(found.item_nums[0], [range(37)] * 2)
    assert len(np.unique(found.contributions[0, 0])) == 1


def test_slices_and_memmaps_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(200, 384)).astype(np.float32)
    history = csr([sorted(rng.permutation(200)[:150]), sorted(rng.permutation(200)[:20])])
    weights, lists = rng.normal(size=170).astype(np.float32), np.stack([rng.permutation(200)[:20]] * 2)
    whole = contributions(history, weights, vectors, lists, 150)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    for size in (1, 7, 64):
        monkeypatch.setattr(reasons, "SLICE", size)
        for part, expected in zip(contributions(history, weights, mapped, lists, 150), whole, strict=True):
            np.testing.assert_array_equal(part, expected)


def test_what_has_no_reason_is_refused() -> None:
    vectors, weights = np.eye(3, dtype=np.float32), np.ones(1, dtype=np.float32)
    with pytest.raises(ConfigError, match="at least one history item"):
        contributions(csr([[0]]), weights, vectors, padded([[1]], 1), 0)
    with pytest.raises(ContractError, match="finite weights"):
        contributions(csr([[0]]), np.array([np.nan], dtype=np.float32), vectors, padded([[1]], 1), 1)
    with pytest.raises(ContractError, match="names item number 3"):
        contributions(csr([[3]]), weights, vectors, padded([[1]], 1), 1)
    with pytest.raises(ContractError, match="outside"):
        contributions(csr([[0]]), weights, vectors, padded([[3]], 1), 1)
    with pytest.raises(ContractError, match="vector of item number 1 is not finite"):
        contributions(csr([[0]]), weights, np.full((3, 1), np.nan), padded([[1]], 1), 1)
