"""What a user could run instead: single methods, each tuned on the validation window by the benchmark.

A method is fitted on a Split and returns a function from a (q, n_items) CSR history to dense (q, n_items)
scores.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from bench.quality_data import Split
from nightjar.kernels import als, taste
from nightjar.kernels.bm25 import bm25, word_counts
from nightjar.kernels.relations import most_liked
from nightjar.kernels.signals import (
    Neighbourhood,
    co_occurrence,
    cosine_neighbours,
    decay,
    ease,
    inverse_gram,
)

F32 = NDArray[np.float32]
Scorer = Callable[[sparse.csr_matrix], NDArray[np.floating]]


def relation(S: sparse.csr_matrix | F32) -> Scorer:
    """Scores x @ S for an item–item relation."""

    def score(history: sparse.csr_matrix) -> NDArray[np.floating]:
        found = history @ S
        return np.asarray(found.toarray() if sparse.issparse(found) else found, np.float32)

    return score


def constant(values: NDArray[np.floating]) -> Scorer:
    """The same scores for everybody."""
    return lambda history: np.repeat(values[None].astype(np.float32), history.shape[0], axis=0)


def random(n_items: int) -> Scorer:
    """Scores drawn anew for every user, with a fixed seed."""
    rng = np.random.default_rng(0)
    return lambda history: rng.random((history.shape[0], n_items), np.float32)


def popularity(split: Split, half_life_days: float | None) -> NDArray[np.float64]:
    """Users who liked each item, each counted by the age of the last time."""
    return np.bincount(split.ages.indices, decay(split.ages.data, half_life_days), split.ages.shape[1])


def item_knn(split: Split, shrinkage: float, n_neighbours: int, user_power: float) -> Scorer:
    return relation(co_occurrence(split.liked, Neighbourhood(n_neighbours, user_power, shrinkage)))


def rp3beta(split: Split, beta: float, n_neighbours: int) -> Scorer:
    """Three steps of a random walk, divided by popularity^β (Paudel et al. 2017)."""
    return relation(co_occurrence(split.liked, Neighbourhood(n_neighbours, 1.0, 0.0, 1.0, beta)))


def linear_autoencoder(split: Split, ridge: float, most_items: int, n_neighbours: int | None) -> Scorer:
    """EASE (Steck 2019) of the `most_items` items that most users liked; the others get no score.

    n_neighbours: strongest weights kept of each item, which serves thin logs better; None: all, as published.
    """
    liked = most_liked(split.liked, most_items)
    if n_neighbours is not None:
        return relation(ease(liked, ridge, n_neighbours))
    used, weights = inverse_gram(liked, ridge)
    weights /= -np.diag(weights).copy()
    np.fill_diagonal(weights, 0)

    def score(history: sparse.csr_matrix) -> NDArray[np.floating]:
        found = np.zeros(history.shape, np.float32)
        found[:, used] = history[:, used] @ weights
        return found

    return score


def smoothed_knn(split: Split, V: F32, power: float) -> Scorer:
    """Text vectors bent towards their co-occurrence neighbours, then kNN: the strongest
    single method on sparse logs with telling texts."""
    near = taste.propagate(V, (split.liked[rows] for rows in taste.blocks(split.liked.shape[0])))
    return relation(cosine_neighbours(taste.smooth(V, near, 1.0), 200, power))


def implicit_als(split: Split, n_factors: int, alpha: float, ridge: float) -> Scorer:
    """Weighted matrix factorisation of implicit feedback; a history is folded in by the same solver."""
    how = als.Factorisation(n_factors, alpha, ridge, sweeps=16)
    return folded(items := als.item_factors(split.liked, how), items, how)


def folded(items: F32, proposed: F32, how: als.Factorisation) -> Scorer:
    """Users by their likes in the factors `items`, their products with the factors `proposed`."""

    def score(history: sparse.csr_matrix) -> NDArray[np.floating]:
        pattern = (history > 0).astype(np.float32)
        nothing = np.zeros((history.shape[0], items.shape[1]), np.float32)
        return als.solve(pattern, items, nothing, how, n_steps=12) @ proposed.T

    return score


def text_profile(V: F32) -> Scorer:
    """Cosine with the weighted mean of the history's vectors."""
    return lambda history: np.asarray((history @ V) @ V.T)


def text_knn(V: F32, n_neighbours: int, power: float) -> Scorer:
    return relation(cosine_neighbours(V, n_neighbours, power))


def by_words(texts: tuple[str, ...]) -> Scorer:
    """BM25 of each history item's text as a query, all its words looked up; scores are added up."""
    counts = word_counts(texts)
    return relation(bm25(counts, 400, len(texts), query_words=counts.shape[1]))


def linear_map(split: Split, V: F32, ridge: float) -> Scorer:
    """x @ V @ W @ Vᵀ with W in closed form: the text profile mapped to what its owner chose."""
    profiles = (split.liked @ V).astype(np.float64)
    warm = V[split.warm].astype(np.float64)
    eye = np.eye(V.shape[1])
    left = np.linalg.solve(profiles.T @ profiles + ridge * eye, profiles.T @ (split.liked @ V))
    W = (left @ np.linalg.inv(warm.T @ warm + ridge * eye)).astype(np.float32)
    return lambda history: np.asarray((history @ V) @ W @ V.T)


def als_from_text(split: Split, V: F32, n_factors: int, alpha: float, text_ridge: float) -> Scorer:
    """ALS whose factors of all items are a ridge regression from text: the usual answer to cold items."""
    how = als.Factorisation(n_factors, alpha, 10.0, sweeps=16)
    items = als.item_factors(split.liked, how)
    mapped = als.from_text(items, V, split.warm, text_ridge)
    return folded(items, mapped, how)
