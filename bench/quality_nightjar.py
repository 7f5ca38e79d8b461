"""Nightjar's default on a split: relations, a recipe fitted on the validation window, fused scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from bench.quality_baselines import Scorer, popularity
from bench.quality_data import Split
from nightjar.kernels import fusion, signals, taste

F32 = NDArray[np.float32]

WEIGHTS = {"co_occurrence": 1.0, "smoothed_text": 1.0, "text": 0.5, "ease": 1.0}
EASE_ITEMS = 8192
EASE_RIDGE = 200.0
RECENCY_DAYS = (30.0, 7.0, 2.0, 120.0, 480.0)
HISTORY_DAYS = (120.0, 30.0, 480.0, None)
FIT_USERS = 2000
POOL_DEPTH = 100
K = 20


@dataclass(frozen=True)
class Chosen:
    """What the validation window chose: half-lives in days and the recipe."""

    history_days: float | None
    recency_days: float
    recipe: fusion.Recipe


def default(names: Sequence[str]) -> Chosen:
    """What is used where the log is too short for a validation window."""
    weights = tuple(WEIGHTS[name] for name in names)
    return Chosen(HISTORY_DAYS[0], RECENCY_DAYS[0], fusion.Recipe(weights, 0.3, 0.5))


def relations(split: Split, V: F32, text: sparse.csr_matrix, ease: bool) -> dict[str, sparse.csr_matrix]:
    """The relations of a night by name; text: the relation of whitened text, which no split changes."""
    near = taste.smooth(V, taste.propagate(V, [split.liked]), 1.0)
    found = {
        "co_occurrence": signals.co_occurrence(split.liked, signals.Neighbourhood()),
        "smoothed_text": signals.text_neighbours(near, 200, 3.0),
        "text": text,
    }
    if ease:
        found["ease"] = signals.ease(split.liked, EASE_RIDGE, 400)
    return found


def history(split: Split, users: NDArray[np.int64], half_life_days: float | None) -> sparse.csr_matrix:
    """Histories (len(users), n_items), each item at 2^(−days before the user's own last event /
    half-life).
    """
    ages = split.ages[users].copy()
    if half_life_days is not None and ages.nnz:
        filled = np.diff(ages.indptr) > 0
        newest = np.minimum.reduceat(ages.data, ages.indptr[:-1][filled])
        since = ages.data - np.repeat(newest, np.diff(ages.indptr)[filled])
        ages.data = signals.decay(since, half_life_days)
    else:
        ages.data = np.ones(ages.nnz)
    return ages.astype(np.float32)


def sources(
    split: Split, S: dict[str, sparse.csr_matrix], x: sparse.csr_matrix, days: float
) -> fusion.Sources:
    recent = popularity(split, days)
    fresh = signals.freshness(recent, popularity(split, None))
    return fusion.Sources(tuple((x @ one).tocsr() for one in S.values()), recent, fresh)


def barred(split: Split, users: NDArray[np.int64]) -> sparse.csr_matrix:
    """What these users cannot be recommended: what they have seen, and items without an event."""
    cold = sparse.csr_matrix(np.repeat((~split.warm)[None].astype(np.float32), len(users), axis=0))
    return (split.liked[users] + cold).tocsr()


def fitted(split: Split, S: dict[str, sparse.csr_matrix]) -> Chosen:
    """Half-lives and weights that rank the truth of `split` best: first recency, then the history's
    half-life.
    """
    chosen = default(list(S))
    rows = np.arange(len(split.users))
    if len(rows) > FIT_USERS:
        rows = np.sort(np.random.default_rng(1).choice(rows, FIT_USERS, replace=False))
    users, truth = split.users[rows], split.truth[rows]
    held = truth.indptr.astype(np.int64), truth.indices.astype(np.int64)
    out = barred(split, users)

    def pool(one: Chosen) -> fusion.Pool:
        made = sources(split, S, history(split, users, one.history_days), one.recency_days)
        return fusion.make_pool(made, held, out, POOL_DEPTH)

    by_recency = [replace(chosen, recency_days=days) for days in RECENCY_DAYS]
    at, recipe = fusion.fit([pool(one) for one in by_recency], chosen.recipe, K)
    by_history = [replace(by_recency[at], history_days=days) for days in HISTORY_DAYS]
    at, recipe = fusion.fit([pool(one) for one in by_history], recipe, K)
    chosen = replace(by_history[at], recipe=recipe)
    return chosen


def scorer(split: Split, S: dict[str, sparse.csr_matrix], chosen: Chosen) -> Scorer:
    """Fused scores for histories already weighted by `chosen.history_days`."""
    return lambda x: fusion.scores(sources(split, S, x, chosen.recency_days), chosen.recipe)
