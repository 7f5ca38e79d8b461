"""Re-ranking: against a slow greedy oracle, its guarantees as properties, and known small cases."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightjar.errors import ConfigError, ContractError
from nightjar.kernels import diversity
from nightjar.kernels.diversity import Diversity, ItemTraits, rerank
from nightjar.kernels.ranked_lists import FloatArray, IntArray
from tests.unit.ranked_cases import padded

N_ITEMS = 14
# Lambda and scores on coarse grids make ties common; vectors on axes keep their cosines free of rounding.
AXES = np.array([[1, 0, 0], [0, 3, 0], [0, 0, 2], [-4, 0, 0], [0, 0, 0]], dtype=np.float32)


class World:
    """Few items of few kinds, with equal scores and equal vectors among them."""

    def __init__(self, seed: int, n_users: int = 6, width: int = 9) -> None:
        rng = np.random.default_rng(seed)
        self.vectors = AXES[rng.integers(0, len(AXES), N_ITEMS)]
        self.category = rng.integers(-1, 3, N_ITEMS)
        self.cold = rng.random(N_ITEMS) < 0.3
        self.ranked = [list(rng.permutation(N_ITEMS)[: rng.integers(0, width + 1)]) for _ in range(n_users)]
        self.item_nums = padded(self.ranked, width)
        self.scores = rng.integers(-2, 3, self.item_nums.shape).astype(np.float32)
        self.scores[self.item_nums < 0] = -np.inf

    @property
    def traits(self) -> ItemTraits:
        return ItemTraits(self.vectors, self.category, self.cold)

    def chosen(self, params: Diversity, k: int) -> list[list[int]]:
        columns = rerank(self.item_nums, self.scores, self.traits, k, params)
        assert columns.shape == (len(self.ranked), k)
        return items_of(self.item_nums, columns)


def items_of(item_nums: IntArray, columns: IntArray) -> list[list[int]]:
    return [
        [int(item_nums[row, column]) for column in picks if column >= 0] for row, picks in enumerate(columns)
    ]


def cosine(a: FloatArray, b: FloatArray) -> float:
    norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0


def slow_rerank(world: World, row: int, k: int, params: Diversity) -> list[int]:
    """One user, item by item, from the rules in words."""
    score = {int(item): float(world.scores[row, at]) for at, item in enumerate(world.ranked[row])}
    low, high = min(score.values(), default=0), max(score.values(), default=0)
    relevance = {item: (s - low) / ((high - low) or 1) for item, s in score.items()}
    category, chosen = world.category.tolist(), []
    while len(chosen) < min(k, len(score)):
        left = [item for item in score if item not in chosen]
        due = math.floor(Fraction(str(params.cold_share)) * (len(chosen) + 1))
        if sum(world.cold[item] for item in chosen) < due and any(world.cold[item] for item in left):
            left = [item for item in left if world.cold[item]]
        if params.max_per_category is not None:
            filled = {c: sum(category[item] == c for item in chosen) for c in range(3)} | {-1: 0}
            below = [item for item in left if filled[category[item]] < params.max_per_category]
            fewest = min(filled[category[item]] for item in left)
            left = below or [item for item in left if filled[category[item]] == fewest]

        def key(item: int) -> tuple[float, float, int]:
            nearest = max(
                (cosine(world.vectors[item], world.vectors[other]) for other in chosen), default=0.0
            )
            weight = params.relevance_weight
            return -(weight * relevance[item] - (1 - weight) * nearest), -score[item], item

        chosen.append(min(left, key=key))
    return chosen


all_params = st.builds(
    Diversity,
    relevance_weight=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    max_per_category=st.sampled_from([None, 1, 2]),
    cold_share=st.sampled_from([0.0, 0.2, 0.29, 0.5, 1.0]),
)
worlds = st.builds(World, st.integers(0, 2**32 - 1))


@settings(max_examples=200)
@given(worlds, all_params, st.integers(1, 12))
def test_every_list_equals_the_oracles(world: World, params: Diversity, k: int) -> None:
    expected = [slow_rerank(world, row, k, params) for row in range(len(world.ranked))]
    assert world.chosen(params, k) == expected


@given(worlds, all_params, st.integers(1, 12))
def test_a_list_is_full_of_candidates_each_once_whatever_the_rules(
    world: World, params: Diversity, k: int
) -> None:
    for chosen, ranked in zip(world.chosen(params, k), world.ranked, strict=True):
        assert len(chosen) == len(set(chosen)) == min(k, len(ranked))
        assert set(chosen) <= set(ranked)


@given(worlds, st.sampled_from([0.1, 0.29, 0.5]), st.integers(1, 12))
def test_every_prefix_keeps_its_share_of_cold_items(world: World, share: float, k: int) -> None:
    params = Diversity(relevance_weight=0.5, max_per_category=1, cold_share=share)
    for chosen, ranked in zip(world.chosen(params, k), world.ranked, strict=True):
        n_cold = sum(world.cold[item] for item in ranked)
        for length in range(1, len(chosen) + 1):
            shown = sum(world.cold[item] for item in chosen[:length])
            assert shown >= min(n_cold, math.floor(Fraction(str(share)) * length))


@given(worlds, st.sampled_from([1, 2]), st.integers(1, 12))
def test_the_cap_gives_way_only_when_nothing_else_is_left(world: World, cap: int, k: int) -> None:
    for chosen, ranked in zip(world.chosen(Diversity(0.5, cap), k), world.ranked, strict=True):
        counts = {c: sum(world.category[item] == c for item in chosen) for c in range(3)}
        if max(counts.values()) > cap:
            passed_over = set(ranked) - set(chosen)
            assert all(
                counts[world.category[item]] >= cap for item in passed_over if world.category[item] >= 0
            )
            assert all(world.category[item] >= 0 for item in passed_over)


@given(worlds, st.integers(1, 12))
def test_relevance_alone_is_the_order_of_scores(world: World, k: int) -> None:
    for row, chosen in enumerate(world.chosen(Diversity(), k)):
        ranked = world.ranked[row]
        order = sorted(range(len(ranked)), key=lambda at: (-world.scores[row, at], ranked[at]))
        assert chosen == [ranked[at] for at in order[:k]]


@given(worlds, all_params, st.integers(0, 100))
def test_the_order_in_which_candidates_arrive_does_not_matter(
    world: World, params: Diversity, seed: int
) -> None:
    expected = world.chosen(params, 5)
    rng = np.random.default_rng(seed)
    for row, ranked in enumerate(world.ranked):
        order = rng.permutation(len(ranked))
        world.item_nums[row, : len(ranked)] = world.item_nums[row, order]
        world.scores[row, : len(ranked)] = world.scores[row, order]
    assert world.chosen(params, 5) == expected


def test_real_vectors_follow_the_rule_to_the_rounding_of_the_grid() -> None:
    rng = np.random.default_rng(7)
    n_users, m, k, d = 20, 40, 10, 96
    vectors = rng.normal(size=(200, d)).astype(np.float32) * rng.uniform(0.1, 30, (200, 1)).astype(np.float32)
    vectors[100:] = vectors[:100] + rng.normal(size=(100, d)).astype(np.float32)
    item_nums = np.stack([rng.permutation(200)[:m] for _ in range(n_users)])
    scores = rng.normal(size=(n_users, m)).astype(np.float32)
    columns = rerank(item_nums, scores, ItemTraits(vectors), k, Diversity(0.6))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row in range(n_users):
        relevance = (scores[row] - scores[row].min()) / np.ptp(scores[row])
        for slot in range(k):
            before = unit[item_nums[row, columns[row, :slot]]]
            nearest = (unit[item_nums[row]] @ before.T).max(axis=1) if slot else np.zeros(m)
            value = 0.6 * relevance - 0.4 * nearest
            left = np.setdiff1d(np.arange(m), columns[row, :slot])
            assert value[columns[row, slot]] >= value[left].max() - 2e-3


def test_a_copy_of_the_best_item_yields_to_a_different_one() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    item_nums, scores = np.array([[0, 1, 2]]), np.array([[1.0, 0.9, 0.5]], dtype=np.float32)
    by_weight = {
        weight: rerank(item_nums, scores, ItemTraits(vectors), 3, Diversity(weight)).tolist()[0]
        for weight in (1.0, 0.9, 0.4)
    }
    assert by_weight == {1.0: [0, 1, 2], 0.9: [0, 1, 2], 0.4: [0, 2, 1]}


def test_nobody_and_no_candidates_give_empty_lists() -> None:
    traits, params = (
        ItemTraits(AXES, np.zeros(5, dtype=np.int64), np.ones(5, dtype=bool)),
        Diversity(0.5, 1, 0.5),
    )
    for shape in ((0, 4), (3, 0), (0, 0)):
        nothing = np.full(shape, -1, dtype=np.int64)
        columns = rerank(nothing, np.zeros(shape, dtype=np.float32), traits, 2, params)
        np.testing.assert_array_equal(columns, np.full((shape[0], 2), -1))


def test_blocks_of_users_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(60, 48)).astype(np.float32)
    item_nums = np.stack([rng.permutation(60)[:30] for _ in range(23)])
    scores = np.round(rng.normal(size=item_nums.shape), 1).astype(np.float32)
    whole = rerank(item_nums, scores, ItemTraits(vectors), 12, Diversity(0.5))
    monkeypatch.setattr(diversity, "BLOCK_FLOATS", 5 * 30 * 48)
    np.testing.assert_array_equal(rerank(item_nums, scores, ItemTraits(vectors), 12, Diversity(0.5)), whole)
    alone = [
        rerank(item_nums[[row]], scores[[row]], ItemTraits(vectors), 12, Diversity(0.5))[0]
        for row in range(23)
    ]
    np.testing.assert_array_equal(np.stack(alone), whole)


def test_similarities_are_exact_whatever_the_order_of_addition() -> None:
    rng = np.random.default_rng(3)
    for d in (3, 384, 4096):
        vectors = rng.normal(size=(1, 50, d)).astype(np.float32)
        vectors[0, 0] *= 1e30
        grid = diversity._on_grid(vectors, np.arange(50)[None])[0]
        exact = grid.astype(np.int64) @ grid.astype(np.int64).T
        np.testing.assert_array_equal(grid @ grid.T, exact)
        np.testing.assert_array_equal(grid[:, ::-1] @ grid[:, ::-1].T, exact)
        assert np.abs(np.diag(exact) / 2.0**22 - 1).max() < 5e-3


def test_what_cannot_be_reranked_is_refused() -> None:
    items, scores = np.array([[0, 1]]), np.ones((1, 2), dtype=np.float32)
    unknown = np.array([[1.0, np.nan], [1.0, 0.0]], dtype=np.float32)
    cases: list[tuple[IntArray, FloatArray, ItemTraits, Diversity, str]] = [
        (items, scores, ItemTraits(), Diversity(0.5, 1, 0.1), "vectors and category and cold"),
        (items, scores, ItemTraits(np.ones((2, 1)), cold=np.ones(3, dtype=bool)), Diversity(), "one length"),
        (items, scores, ItemTraits(np.ones((1, 1))), Diversity(), "row 0 holds an item number outside"),
        (np.array([[1, 1]]), scores, ItemTraits(), Diversity(), "names an item twice"),
        (items, np.array([[1.0, np.nan]]), ItemTraits(), Diversity(), "must be finite"),
        (items, scores[:, :1], ItemTraits(), Diversity(), "of shape"),
        (items, scores, ItemTraits(unknown), Diversity(0.5), "vector of item number 0 is not finite"),
    ]
    for item_nums, given_scores, traits, params, says in cases:
        with pytest.raises(ContractError, match=says):
            rerank(item_nums, given_scores, traits, 1, params)
    with pytest.raises(ConfigError, match="k of at least 1"):
        rerank(items, scores, ItemTraits(), 0, Diversity())
    for bad in ({"relevance_weight": 1.5}, {"cold_share": -0.1}, {"max_per_category": 0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Diversity(**bad)  # type: ignore[arg-type]
