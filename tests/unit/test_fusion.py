"""Fusion against a slow reference, and fits on worlds whose best weights are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from nightjar.errors import ContractError
from nightjar.kernels import fusion
from nightjar.kernels.fusion import Recipe, Sources
from nightjar.kernels.metrics import accuracy

N_ITEMS = 40


def world(seed: int, n_users: int = 12, n_relations: int = 3) -> Sources:
    rng = np.random.default_rng(seed)
    relations = tuple(
        sparse.csr_matrix(
            (rng.random((n_users, N_ITEMS)) * (rng.random((n_users, N_ITEMS)) < 0.5)).astype(np.float32)
        )
        for _ in range(n_relations)
    )
    return Sources(relations, rng.random(N_ITEMS), rng.uniform(0.1, 3.0, N_ITEMS))


def truth(seed: int, n_users: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, 1])
    rows = [np.sort(rng.choice(N_ITEMS, rng.integers(1, 5), replace=False)) for _ in range(n_users)]
    return np.r_[0, np.cumsum([len(row) for row in rows])].astype(np.int64), np.concatenate(rows).astype(
        np.int64
    )


def slow(sources: Sources, recipe: Recipe) -> np.ndarray:
    out = np.zeros(sources.relations[0].shape)
    norm = np.sqrt(sum(p * p for p in sources.popularity))
    for user in range(out.shape[0]):
        for item in range(N_ITEMS):
            out[user, item] = recipe.popularity * sources.popularity[item] / norm
        for weight, relation in zip(recipe.weights, sources.relations, strict=True):
            row = [
                float(relation[user, item]) * sources.freshness[item] ** recipe.exponent
                for item in range(N_ITEMS)
            ]
            length = np.sqrt(sum(value * value for value in row))
            for item in range(N_ITEMS):
                out[user, item] += weight * row[item] / length if length else 0.0
    return out


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from(fusion.EXPONENTS), st.sampled_from([0.0, 0.4]))
def test_scores_are_their_definition(seed: int, exponent: float, popularity: float) -> None:
    sources = world(seed, 4)
    recipe = Recipe((1.0, 0.0, 0.7), popularity, exponent)
    assert np.allclose(fusion.scores(sources, recipe), slow(sources, recipe), atol=1e-9)


def test_the_unit_of_a_source_does_not_matter() -> None:
    sources, recipe = world(5), Recipe((1.0, 0.5, 0.7), 0.3, 0.5)
    larger = Sources(
        (sources.relations[0] * 1000, *sources.relations[1:]), sources.popularity * 7, sources.freshness
    )
    assert np.allclose(fusion.scores(sources, recipe), fusion.scores(larger, recipe), atol=1e-7)


def test_users_without_a_history_get_what_is_popular() -> None:
    sources = world(2, 2)
    empty = Sources(tuple(one * 0 for one in sources.relations), sources.popularity, sources.freshness)
    found = fusion.scores(empty, Recipe((1.0, 1.0, 1.0), 0.3, 0.5))
    assert np.array_equal(np.argsort(-found[0]), np.argsort(-sources.popularity))


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from(fusion.EXPONENTS), st.integers(1, 12))
def test_quality_of_a_whole_pool_is_that_of_the_full_ranking(seed: int, exponent: float, k: int) -> None:
    sources, held = world(seed), truth(seed, 12)
    recipe = Recipe((1.0, 0.3, 0.7), 0.4, exponent)
    seen = sparse.csr_matrix((np.random.default_rng(seed).random((12, N_ITEMS)) < 0.2).astype(np.float32))
    pool = fusion.make_pool(sources, held, seen, N_ITEMS)
    scores = fusion.scores(sources, recipe)
    scores[seen.toarray() > 0] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    order[np.take_along_axis(scores, order, axis=1) == -np.inf] = -1
    wanted = accuracy(order, held, [k])
    assert np.allclose(fusion.quality(pool, recipe, k), wanted[f"nDCG@{k}"], atol=1e-6)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_quality_ranks_equal_scores_by_item_number(seed: int, k: int) -> None:
    rng, held, shape = np.random.default_rng(seed), truth(seed, 12), (12, N_ITEMS)
    levels = rng.integers(0, 4, shape).astype(np.float32)
    there = np.sort(np.where(rng.random(shape) < 0.8, np.arange(N_ITEMS), N_ITEMS), axis=1)
    relevant = np.zeros((12, N_ITEMS + 1), bool)
    relevant[np.repeat(np.arange(12), np.diff(held[0])), held[1]] = True
    nums = np.where(there == N_ITEMS, -1, there)
    hit = np.take_along_axis(relevant, there, axis=1)
    ones = np.ones(shape, np.float32)
    norms = (np.ones((len(fusion.EXPONENTS), 12)),)
    pool = fusion.Pool(nums, (levels,), norms, 0 * ones, ones, hit, np.diff(held[0]))
    order = np.argsort(np.where(nums < 0, np.inf, -levels), axis=1, kind="stable")[:, :k]
    wanted = accuracy(np.take_along_axis(nums, order, axis=1), held, [k])
    assert np.allclose(fusion.quality(pool, Recipe((1.0,), 0.0, 0.0), k), wanted[f"nDCG@{k}"])


@pytest.mark.parametrize("levels", [None, 3])
def test_a_pool_holds_the_best_of_every_source_and_nothing_barred(levels: int | None) -> None:
    sources, held = world(9), truth(9, 12)
    if levels:
        sources = replace(sources, relations=tuple((one * levels).ceil() for one in sources.relations))
    seen = sparse.csr_matrix((np.random.default_rng(9).random((12, N_ITEMS)) < 0.3).astype(np.float32))
    pool = fusion.make_pool(sources, held, seen, 3)
    for user in range(12):
        inside = set(pool.item_nums[user][pool.item_nums[user] >= 0].tolist())
        barred = set(seen[user].indices.tolist())
        assert not inside & barred
        for relation in sources.relations:
            values = relation[user].toarray().ravel()
            for scored in (values, values * sources.freshness):
                order = [
                    i
                    for i in np.argsort(-scored, kind="stable").tolist()
                    if i not in barred and scored[i] > 0
                ]
                assert set(order[:3]) <= inside


@pytest.mark.parametrize("threads", [1, 3])
def test_pool_blocks_do_not_show(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, held, none = world(4), truth(4, 12), sparse.csr_matrix((12, N_ITEMS), dtype=np.float32)
    whole = fusion.make_pool(sources, held, none, 5)
    monkeypatch.setattr(fusion, "BLOCK_SCORES", 5 * N_ITEMS)
    parts = fusion.make_pool(sources, held, none, 5, threads)
    assert np.array_equal(whole.item_nums, parts.item_nums) and np.array_equal(whole.hit, parts.hit)
    recipe = Recipe((1.0, 0.3, 0.7), 0.4, 0.5)
    assert np.array_equal(fusion.quality(whole, recipe, 10), fusion.quality(parts, recipe, 10))


def planted(n_users: int, seed: int = 0) -> fusion.Pool:
    """Relation 1 knows what users choose, relation 0 is noise."""
    rng = np.random.default_rng(seed)
    liked = np.sort(np.argsort(rng.random((n_users, N_ITEMS)), axis=1)[:, :3], axis=1)
    right = rng.random((n_users, N_ITEMS)).astype(np.float32) * 0.6
    np.put_along_axis(right, liked, np.take_along_axis(right, liked, axis=1) + 0.5, axis=1)
    noise = rng.random((n_users, N_ITEMS)).astype(np.float32)
    relations = sparse.csr_matrix(noise), sparse.csr_matrix(right)
    sources = Sources(relations, rng.random(N_ITEMS), np.ones(N_ITEMS))
    held = np.arange(n_users + 1, dtype=np.int64) * 3, liked.ravel().astype(np.int64)
    return fusion.make_pool(sources, held, sparse.csr_matrix((n_users, N_ITEMS), dtype=np.float32), N_ITEMS)


def test_a_fit_finds_the_source_that_knows() -> None:
    pool, default = planted(400), Recipe((1.0, 0.25), 1.0, 0.0)
    _, found = fusion.fit([pool], default, 5)
    assert found.weights[1] >= 4 * max(found.weights[0], found.popularity)
    assert fusion.quality(pool, found, 5).mean() > 1.3 * fusion.quality(pool, default, 5).mean()
    other = planted(400, 1)
    assert fusion.quality(other, found, 5).mean() > 1.3 * fusion.quality(other, default, 5).mean()


def test_a_fit_chooses_the_better_pool() -> None:
    good = planted(300)
    noise = replace(good, values=(good.values[0], good.values[0]))
    assert fusion.fit([noise, good], Recipe((1.0, 1.0), 0.1, 0.0), 5)[0] == 1


def test_few_users_and_noise_leave_the_default() -> None:
    default = Recipe((1.0, 1.0), 0.5, 0.5)
    rng = np.random.default_rng(1)
    for seed in range(5):
        sources = world(seed, 8, 2)
        none = sparse.csr_matrix((8, N_ITEMS), dtype=np.float32)
        pool = fusion.make_pool(sources, truth(int(rng.integers(1000)), 8), none, 10)
        assert fusion.fit([pool], default, 5) == (0, default)
        assert fusion.fit_halves(pool, default, 5) == default
    nobody = fusion.make_pool(
        world(0, 0, 2), (np.zeros(1, np.int64), np.zeros(0, np.int64)), sparse.csr_matrix((0, N_ITEMS)), 10
    )
    assert fusion.fit([nobody], default, 5) == (0, default)


def test_a_mean_of_halves_finds_the_source_that_knows() -> None:
    pool, default = planted(400), Recipe((1.0, 0.25), 1.0, 0.0)
    found = fusion.fit_halves(pool, default, 5)
    assert found.weights[1] >= 4 * max(found.weights[0], found.popularity)
    assert sum(found.coordinates()) == pytest.approx(2.25)
    assert fusion.fit_halves(pool, default, 5, threads=3) == found
    freshness = np.where(pool.hit, 4.0, 1.0).astype(np.float32)
    risen = replace(pool, freshness=freshness)
    assert fusion.fit_halves(risen, default, 5).exponent > 0.0
    assert fusion.fit_halves(risen, default, 5, exponent=False).exponent == 0.0


def test_sources_of_equal_worth_share_the_weight() -> None:
    rng = np.random.default_rng(2)
    liked = np.sort(np.argsort(rng.random((300, N_ITEMS)), axis=1)[:, :3], axis=1)
    both = []
    for _ in range(2):
        values = rng.random((300, N_ITEMS)).astype(np.float32)
        np.put_along_axis(values, liked, np.take_along_axis(values, liked, axis=1) + 0.3, axis=1)
        both.append(sparse.csr_matrix(values))
    sources = Sources(tuple(both), np.ones(N_ITEMS), np.ones(N_ITEMS))
    held = np.arange(301, dtype=np.int64) * 3, liked.ravel().astype(np.int64)
    pool = fusion.make_pool(sources, held, sparse.csr_matrix((300, N_ITEMS), dtype=np.float32), N_ITEMS)
    found = fusion.fit_halves(pool, Recipe((1.0, 0.0), 0.0, 0.0), 5)
    assert 1 / 3 < found.weights[0] / found.weights[1] < 3


def test_a_fit_refuses_users_without_truth() -> None:
    none = sparse.csr_matrix((2, N_ITEMS), dtype=np.float32)
    held = np.array([0, 0, 1], np.int64), np.array([3], np.int64)
    pool = fusion.make_pool(world(0, 2, 2), held, none, 10)
    with pytest.raises(ContractError, match="went on to choose"):
        fusion.fit([pool], Recipe((1.0, 1.0), 0.5, 0.5), 5)
    with pytest.raises(ContractError, match="exponent"):
        fusion.fit([planted(5)], Recipe((1.0, 1.0), 0.5, 0.4), 5)


def test_reciprocal_ranks_by_hand() -> None:
    orders = [np.array([[2, 0, -1], [-1, -1, -1]]), np.array([[0, 1, 2], [3, 1, -1]])]
    weights = [np.array([[1.0, 1.0, 1.0]] * 2), np.array([[2.0, 2.0, 2.0], [0.0, 1.0, 1.0]])]
    found = fusion.reciprocal_ranks(orders, weights, 4)
    assert found.item_nums.tolist() == [[0, 2, 1, -1], [1, -1, -1, -1]]
    assert np.allclose(found.scores[0, :3], [1 / 62 + 2 / 61, 1 / 61 + 2 / 63, 2 / 62])
    assert found.scores[1, 0] == np.float32(1 / 62)
    nobody = np.empty((0, 3), np.int64)
    assert fusion.reciprocal_ranks([nobody], [np.empty((0, 3))], 4).item_nums.shape == (0, 4)
