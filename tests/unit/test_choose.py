"""How `auto` chooses an index: by size, then by what each shard needs to find enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightjar.engines.choose import K, Limits, Trial, made_up_users, plan, settings_of, settled, trials
from nightjar.engines.search import EXACT, LISTS, Searcher, build_shard, is_bulk, open_shard
from nightjar.engines.shards import Effort
from nightjar.kernels.sweep import sweep_topk
from nightjar.kernels.topk import F32, Filters, index_recall
from tests.unit.test_index import gaussian_world, same_bytes

LIMITS = Limits(exact_up_to=1000, memory_bytes=1 << 20, recall_target=0.99)


def planted(n_items: int = 12_000, n_dims: int = 48) -> F32:
    """Item vectors in 60 clusters that overlap, of lengths 0.5 to 2."""
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((60, n_dims))
    matrix = centres[rng.integers(0, 60, n_items)] + 0.8 * rng.standard_normal((n_items, n_dims))
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return (matrix * rng.uniform(0.5, 2, (n_items, 1))).astype(np.float32)


def searcher(matrix: F32, factory: str, folder: Path, n_shards: int = 1, **effort: Any) -> Searcher:
    shards = []
    for shard in range(n_shards):
        items = np.arange(shard, len(matrix), n_shards)
        path = folder / f"{factory.replace(',', '-')}-{n_shards}-{shard}"
        facts = build_shard(matrix[items], items, path, factory)
        assert facts.factory == factory
        shards.append(open_shard(path, facts.sha256, factory))
    return Searcher(factory, shards, matrix, Effort(**effort))


@pytest.mark.parametrize(
    ("n_items", "n_dims", "expected"),
    [
        (0, 384, EXACT),
        (1000, 384, EXACT),
        (1001, 384, LISTS),
        (3000, 384, "IVF154,PQ192x4fs"),
        (12_000, 47, "IVF309,PQ47x4fs"),  # an odd number of dimensions cannot be cut into pairs
        (10**9, 384, EXACT),
    ],
)
def test_a_plan_follows_from_sizes(n_items: int, n_dims: int, expected: str) -> None:
    factory, why = plan(n_items, n_dims, 2, LIMITS)
    assert factory == expected
    assert str(n_items) in why or "bytes" in why


def test_what_a_plan_says_of_memory_is_not_less_than_the_files(tmp_path: Path) -> None:
    matrix = planted()
    for factory, at_most in (
        (LISTS, len(matrix) * (48 + 64)),
        ("IVF64,PQ24x4fs", len(matrix) * (12 + 16) + 64 * 48 * 4),
    ):
        path = tmp_path / "shard"
        # A rotation, centroids and code books do not grow with the items: 40 kB here.
        assert build_shard(matrix, np.arange(len(matrix)), path, factory).bytes < at_most + 60_000


@pytest.mark.parametrize("factory", [EXACT, LISTS, "Flat", "IVF16,Flat"])
def test_a_searcher_of_any_factory_holds_the_filters_and_finds_k(tmp_path: Path, factory: str) -> None:
    matrix, queries, filters = gaussian_world()
    expected = sweep_topk(queries, matrix, 50, filters)
    found = searcher(matrix, factory, tmp_path, 3, nprobe=4, probe_share=0.2).search(queries, 50, filters)
    assert (found.n_found == expected.n_found).all()
    assert filters.allowed(found.item_nums)[found.item_nums >= 0].all()
    assert same_bytes(found, expected) or factory not in (EXACT, "Flat")


def test_exact_leaves_nothing_out_whatever_the_effort(tmp_path: Path) -> None:
    matrix = planted()
    users = made_up_users(matrix, 1)
    one = searcher(matrix, EXACT, tmp_path, probe_share=0.01)
    assert same_bytes(one.search(users, 20), sweep_topk(users, matrix, 20, Filters()))
    lists = Searcher(LISTS, one.shards, matrix, one.effort)
    assert index_recall(lists.search(users, 20), one.search(users, 20)).mean() < 1


def test_made_up_users_lie_where_items_are() -> None:
    matrix = planted()
    users = made_up_users(matrix, 0)
    assert users.dtype == np.float32 and np.allclose(np.linalg.norm(users, axis=1), 1, atol=1e-5)
    directions = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    assert (users @ directions.T).max(axis=1).min() > 0.5
    assert np.array_equal(users, made_up_users(matrix, 0))
    opposite = np.float32([[1, 0], [-1, 0]])  # their mean is nothing, which is no direction to search in
    assert np.allclose(np.linalg.norm(made_up_users(opposite, 0), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("factory", [LISTS, "IVF200,PQ24x4fs"])
def test_the_setting_that_is_taken_reaches_the_target_on_other_users(tmp_path: Path, factory: str) -> None:
    matrix = planted()
    one = searcher(matrix, factory, tmp_path)
    tried = trials(one, slice(0, len(matrix)), 0)
    assert [trial.settings for trial in tried] == settings_of(factory, len(matrix))
    assert tried[0].recall < tried[-1].recall and all(trial.micros > 0 for trial in tried)
    chosen = settled(factory, "sizes", [tried], 0.95)
    assert chosen["factory"] == factory and chosen["effort"] == next(
        trial.settings for trial in tried if trial.recall >= 0.95
    )
    others = made_up_users(matrix, 99)
    found = one.tuned(chosen["effort"]).search(others, K)
    assert index_recall(found, sweep_topk(others, matrix, K, Filters())).mean() > 0.9


def test_the_worst_shard_decides_and_what_is_never_enough_is_searched_exactly() -> None:
    def shard(*recalls: float) -> list[Trial]:
        return [
            Trial({"probe_share": 0.1 * (at + 1)}, recall, 10.0 + at) for at, recall in enumerate(recalls)
        ]

    chosen = settled(LISTS, "sizes", [shard(0.995, 0.999), shard(0.98, 0.992)], 0.99)
    assert chosen["effort"] == {"probe_share": 0.2} and chosen["factory"] == LISTS
    assert chosen["tried"] == {
        "probe_share 0.1": {"recall": 0.98, "micros": 20.0},
        "probe_share 0.2": {"recall": 0.992, "micros": 22.0},
    }
    never = settled(LISTS, "sizes", [shard(0.9, 0.98)], 0.99)
    assert never["factory"] == EXACT and never["effort"] == {} and "0.99" in never["why"]
    # A FAISS file cannot be searched exactly; the gate of retrieve judges its last setting.
    assert settled("IVF9,PQ2x4fs", "sizes", [shard(0.9, 0.98)], 0.99)["effort"] == {"probe_share": 0.2}
    assert settled(EXACT, "sizes", [], 0.99)["effort"] == {}


def test_the_two_factories_of_the_bulk_engine_are_its_own() -> None:
    assert [is_bulk(name) for name in (EXACT, LISTS, "Flat", "IVF8,Flat")] == [True, True, False, False]
