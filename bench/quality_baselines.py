"""What a user could run instead: single methods, each tuned on the validation window by the benchmark.

A method is fitted on a Split and returns a function from a (q, n_items) CSR history to dense (q, n_items)
scores.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from bench.quality_data import Split
from nightjar.kernels import als, taste
from nightjar.kernels.signals import (
    Neighbourhood,
    co_occurrence,
    cosine_neighbours,
    decay,
    ease,
    top_entries,
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


def linear_autoencoder(split: Split, ridge: float, most_items: int) -> Scorer:
    """EASE (Steck 2019) of the `most_items` items that most users liked; the others get no score."""
    counts = np.asarray(split.liked.sum(axis=0)).ravel()
    kept = np.zeros(len(counts), np.float32)
    kept[np.argsort(-counts, kind="stable")[:most_items]] = 1
    liked = (split.liked @ sparse.diags(kept)).tocsr()
    liked.eliminate_zeros()
    return relation(ease(liked, ridge, 400))


def smoothed_knn(split: Split, V: F32, power: float) -> Scorer:
    """Text vectors bent towards their co-occurrence neighbours, then kNN: the strongest
    single method on sparse logs with telling texts."""
    near = taste.propagate(V, (split.liked[rows] for rows in taste.blocks(split.liked.shape[0])))
    return relation(cosine_neighbours(taste.smooth(V, near, 1.0), 200, power))


def implicit_als(split: Split, n_factors: int, alpha: float, ridge: float) -> Scorer:
    """Weighted matrix factorisation of implicit feedback; a history is folded in by the same solver."""
    how = als.Factorisation(n_factors, alpha, ridge)
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


def bm25(texts: tuple[str, ...], n_neighbours: int = 400, k1: float = 1.2, b: float = 0.75) -> Scorer:
    """BM25 (Robertson & Zaragoza 2009) of each history item's text as a query; scores are added up."""
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    vocabulary = {word: at for at, word in enumerate(sorted({word for row in words for word in row}))}
    counts = [Counter(row) for row in words]
    indptr = np.r_[0, np.cumsum([len(row) for row in counts])]
    indices = np.array([vocabulary[word] for row in counts for word in row], np.int64)
    data = np.array([float(n) for row in counts for n in row.values()])
    tf = sparse.csr_matrix((data, indices, indptr), (len(texts), max(len(vocabulary), 1)))
    lengths = np.asarray(tf.sum(axis=1)).ravel()
    n_with = np.bincount(tf.indices, minlength=tf.shape[1])
    idf = np.log(1 + (len(texts) - n_with + 0.5) / (n_with + 0.5))
    norm = k1 * (1 - b + b * lengths / max(lengths.mean(), 1e-9))
    rows = np.repeat(np.arange(len(texts)), np.diff(tf.indptr))
    weighted = tf.copy()
    weighted.data = idf[tf.indices] * tf.data * (k1 + 1) / (tf.data + norm[rows])
    return relation(_products(tf, weighted.T.tocsr(), n_neighbours))


def _products(
    queries: sparse.csr_matrix, documents: sparse.csr_matrix, n_neighbours: int
) -> sparse.csr_matrix:
    rows = []
    for start in range(0, queries.shape[0], 512):
        block = (queries[start : start + 512] @ documents).tocoo()
        other = block.row + start != block.col
        entries = block.row[other].astype(np.int64), block.col[other].astype(np.int64), block.data[other]
        rows.append(top_entries(entries, block.shape, n_neighbours))
    return sparse.vstack(rows, "csr")


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
    how = als.Factorisation(n_factors, alpha, 10.0, sweeps=12)
    items = als.item_factors(split.liked, how)
    mapped = als.from_text(items, V, split.warm, text_ridge)
    return folded(items, mapped, how)
