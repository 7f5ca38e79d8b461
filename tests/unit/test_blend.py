"""The compiled blend against the dense definition of the score, user by user."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from nightjar.engines.blend import Blended, Ingredients, blend, relation_terms
from nightjar.kernels import fusion
from nightjar.kernels.limits import Limits
from nightjar.kernels.relations import stacked
from nightjar.kernels.topk import ItemLists

N_ITEMS, N_USERS = 30, 12


def relation(rng: np.random.Generator, density: float) -> sparse.csr_matrix:
    found = sparse.random(N_ITEMS, N_ITEMS, density, "csr", np.float32, rng)
    found.data = (rng.integers(-2, 9, found.nnz) / 4).astype(np.float32)  # ties, and what speaks against
    found.eliminate_zeros()
    found.sort_indices()
    return found


class World:
    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.relations = {
            "text": relation(rng, 0.2),
            "ease": relation(rng, 0.1),
            "co_occurrence": relation(rng, 0.3),
        }
        self.x = sparse.random(N_USERS, N_ITEMS, 0.15, "csr", np.float32, rng)
        self.x.data = (rng.integers(-2, 6, self.x.nnz) / 2).astype(np.float32)
        self.x.sort_indices()
        self.newest = self.x.copy()
        self.newest.data = (rng.integers(-2, 6, self.x.nnz) / 4).astype(np.float32)
        self.starts = np.array([0, 0, 1])
        self.cold = rng.random(N_ITEMS) < 0.3
        self.for_cold = (0.25, 2.0, 0.0, 0.5), (1.0, 0.0, 0.0, 0.0)
        self.by_segment = sparse.random(4, N_ITEMS, 0.3, "csr", np.float32, rng)
        self.by_segment.data = (rng.integers(1, 9, self.by_segment.nnz) / 4).astype(np.float32)
        self.belongs = rng.integers(-1, 4, N_USERS)
        self.barred = sparse.random(N_USERS, N_ITEMS, 0.3, "csr", np.float32, rng)
        self.barred.sort_indices()
        # Two sets, and one of another night's numbers; everything, nothing, one set or both.
        self.sets = [np.flatnonzero(rng.random(N_ITEMS + 3) < share) for share in (0.7, 0.5, 0.0)]
        self.groups = ((), (0,), (0, 1), (1,), (2, 0))
        self.group = rng.integers(0, len(self.groups), N_USERS)
        self.available = rng.random(N_ITEMS) < 0.8
        self.fresh = 2.0 ** rng.integers(-2, 3, N_ITEMS)
        self.popularity = np.maximum(rng.integers(-3, 4, N_ITEMS), 0).astype(np.float64)
        weights = (1.0, 0.0, 0.5, 0.0), (0.0, 0.5, 0.25, 0.75)
        self.recipes = fusion.Recipe(weights[0], 0.3, 1.0), fusion.Recipe(weights[1], 0.0, 1.0)
        self.segments = rng.integers(0, 2, N_USERS)
        self.asked = rng.permuted(np.tile(np.arange(N_ITEMS), (N_USERS, 1)), axis=1)[:, :9]
        self.asked[:, -1] = -1

    def dense(self, only_segments: bool = False) -> np.ndarray:
        """Scores by the definition; only_segments: what popularity by segment adds to them."""
        sources = fusion.Sources(
            (
                *(
                    (x @ one).tocsr()
                    for x, one in zip((self.x, self.x, self.newest), self.relations.values(), strict=True)
                ),
                (self.member() @ self.by_segment).tocsr(),
            ),
            self.popularity,
            self.fresh,
        )
        found = []
        for recipe, for_cold in zip(self.recipes, self.for_cold, strict=True):
            parts = []
            for weights in (for_cold, recipe.weights):
                if only_segments:
                    weights = (*(0.0 for _ in weights[1:]), weights[-1])
                mine = replace(recipe, weights=weights, popularity=recipe.popularity * (not only_segments))
                parts.append(fusion.scores(sources, mine))
            found.append(np.where(self.cold, *parts))
        return np.where(self.segments[:, None] == 0, *found)

    def member(self) -> sparse.csr_matrix:
        """(q, 4), 1 at each user's segment."""
        return sparse.csr_matrix((self.belongs[:, None] == np.arange(4)).astype(np.float32))

    def by_popularity(self) -> np.ndarray:
        """What popularity alone adds to each score, (q, n_items)."""
        weights = np.array([recipe.popularity for recipe in self.recipes])[self.segments]
        return weights[:, None] * self.ingredients().popular

    def ingredients(self) -> Ingredients:
        length = max(float(np.linalg.norm(self.popularity)), 1e-12)
        popular = self.popularity / length
        weights = [one.weights for one in self.recipes]
        order = np.argsort(-popular, kind="stable")
        return Ingredients(
            stacked(self.relations),
            self.by_segment,
            np.stack([weights, self.for_cold], axis=2),
            np.array([one.popularity for one in self.recipes]),
            self.cold.astype(np.int64),
            self.starts,
            self.fresh,
            popular,
            order[(popular > 0)[order]],
            self.available,
        )

    def limits(self) -> Limits:
        barred = ItemLists(self.barred.indptr.astype(np.int64), self.barred.indices.astype(np.int64))
        return Limits(barred, tuple(self.sets), self.groups, self.group)

    def open(self) -> np.ndarray:
        """What each user may get, (q, n_items) bool."""
        found = self.available & (self.barred.toarray() == 0)
        for user, group in enumerate(self.group):
            for number in self.groups[group]:
                found[user] &= np.isin(np.arange(N_ITEMS), self.sets[number])
        return found

    def both(self) -> np.ndarray:
        return np.stack([self.x.data, self.newest.data])

    def blended(self, m: int) -> Blended:
        history = self.x.indptr, self.x.indices
        users = self.segments, self.belongs
        return blend(self.ingredients(), history, self.both(), *users, self.limits(), self.asked, m)


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_lists_are_the_best_of_the_dense_scores(seed: int, m: int) -> None:
    world = World(seed)
    found, dense = world.blended(m), world.dense()
    reached = (
        np.abs(world.x) @ (np.abs(world.relations["text"]) + np.abs(world.relations["ease"]))
        + np.abs(world.newest) @ np.abs(world.relations["co_occurrence"])
        + np.abs(world.member()) @ np.abs(world.by_segment)
    ) != 0
    reached = reached.toarray() | (world.by_popularity() > 0)
    allowed = reached & world.open()
    for user in range(N_USERS):
        items = found.item_nums[user][found.item_nums[user] >= 0]
        assert allowed[user, items].all()
        assert len(set(items)) == len(items)
        best = np.sort(dense[user, allowed[user]])[::-1][: len(items)]
        assert found.scores[user, : len(items)] == pytest.approx(best, abs=1e-6)
        assert found.scores[user, : len(items)] == pytest.approx(dense[user, items], abs=1e-6)
        assert len(items) >= min(m, int((allowed[user] & (dense[user] > 0)).sum()))


@given(st.integers(0, 10_000))
def test_items_asked_for_have_their_dense_score(seed: int) -> None:
    world = World(seed)
    found, dense = world.blended(3), world.dense()
    asked = world.asked[:, :-1]
    assert found.at[:, :-1] == pytest.approx(np.take_along_axis(dense, asked, axis=1), abs=1e-6)
    assert np.isneginf(found.at[:, -1]).all()


def test_a_user_alone_has_the_same_bytes() -> None:
    world = World(3)
    whole = world.blended(10)
    for user in range(N_USERS):
        x = world.x[user]
        alone = blend(
            world.ingredients(),
            (x.indptr, x.indices),
            world.both()[:, world.x.indptr[user] : world.x.indptr[user + 1]],
            world.segments[user : user + 1],
            world.belongs[user : user + 1],
            world.limits().take(np.array([user])),
            world.asked[user : user + 1],
            10,
        )
        for part, expected in zip(vars(alone).values(), vars(whole).values(), strict=True):
            assert part.tobytes() == expected[user : user + 1].tobytes()


def test_terms_add_up_to_the_score_without_popularity() -> None:
    world = World(7)
    found, dense = world.blended(5), world.dense() - world.by_popularity() - world.dense(only_segments=True)
    for user in range(N_USERS):
        row, part = world.x[user], slice(world.x.indptr[user], world.x.indptr[user + 1])
        wanted = np.arange(N_ITEMS)
        terms = relation_terms(
            world.ingredients(),
            row.indices.astype(np.int64),
            world.both()[:, part],
            found.factors[user],
            int(world.segments[user]),
            wanted,
        )
        assert terms.sum(axis=0) == pytest.approx(dense[user], abs=1e-9)
