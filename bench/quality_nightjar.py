"""Nightjar's default on a log: what learn_taste, fit_blend and rank do, over the same kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from bench.quality_data import Log, Split
from nightjar.config import FitBlend, LearnTaste
from nightjar.kernels import fitting, fusion, relations
from nightjar.kernels.likes import Likes, truth_window
from nightjar.stages.recipe import start
from nightjar.stages.taste_log import learning, smoothed

F32 = NDArray[np.float32]
BLOCK_USERS = 256


@dataclass(frozen=True)
class Fitted:
    """A log learnt: its likes, relations, item directions (n_items, d), and what the fit chose."""

    likes: Likes
    relations: dict[str, sparse.csr_matrix]
    directions: F32
    chosen: fitting.Chosen

    def sources(self, users: NDArray[np.int64]) -> fusion.Sources:
        return fitting.sources(self.likes, users, self.relations, self.directions, self.chosen)

    def scores(self, users: NDArray[np.int64]) -> NDArray[np.float64]:
        """Fused scores (len(users), n_items) of a block of users."""
        return fusion.scores(self.sources(users), self.chosen.recipe)


def likes_of(log: Log, before: float) -> Likes:
    """The likes of a log up to the `before` quantile of its time; strength is the number of events."""
    t0 = np.quantile(log.time, before) if before < 1 else np.inf
    past = log.time < t0
    end = float(t0) if before < 1 else float(log.time.max())
    keys = log.user[past] * log.n_items + log.item[past]
    pairs, first, counts = np.unique(keys, return_index=True, return_counts=True)
    # The log is in the order of time: the first index of a key is its first event.
    last = len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1]
    ages = end - log.time[past]
    strength = counts.astype(np.float32)
    return Likes(
        pairs // log.n_items,
        pairs % log.n_items,
        strength,
        ages[first],
        ages[last],
        log.n_users,
        log.n_items,
    )


def fitted(likes: Likes, V: F32, text: sparse.csr_matrix, params: FitBlend | None = None) -> Fitted:
    """Learns relations and fits the blend on the newest likes of the log itself, as a night does."""
    params = params or FitBlend()
    directions, found = _learnt(likes, V, text)
    chosen = start(params, tuple(found))
    fit = fitting.Fit(params.users, params.doubt, params.pool_depth, True, params.seed)
    window = truth_window(likes, params.users, params.max_share)
    held = fitting.hold_back(likes, window, fit)
    if params.fit and len(held.users) >= params.min_users:
        bent, before = _learnt(held.known, V, text)
        chosen = fitting.fit(held, {name: before[name] for name in found}, bent, chosen, fit)
    return Fitted(likes, found, directions, chosen)


def _learnt(likes: Likes, V: F32, text: sparse.csr_matrix) -> tuple[F32, dict[str, sparse.csr_matrix]]:
    params = LearnTaste()
    liked = likes.matrix()
    bent, _ = smoothed(V, liked, params.smooth_weight)
    return bent, {"text": text, **relations.from_behaviour(liked, bent, text, learning(params))}


def barred(split: Split, users: NDArray[np.int64]) -> sparse.csr_matrix:
    """What these users cannot be recommended: what they have seen, and items without an event."""
    cold = sparse.csr_matrix(np.repeat((~split.warm)[None].astype(np.float32), len(users), axis=0))
    return (split.liked[users] + cold).tocsr()


def history(split: Split, users: NDArray[np.int64], half_life_days: float | None) -> sparse.csr_matrix:
    """Histories (len(users), n_items) for the single methods: 2^(−days before the user's own last event /
    half-life).
    """
    ages = split.ages[users].copy()
    if half_life_days is not None and ages.nnz:
        filled = np.diff(ages.indptr) > 0
        newest = np.minimum.reduceat(ages.data, ages.indptr[:-1][filled])
        since = ages.data - np.repeat(newest, np.diff(ages.indptr)[filled])
        ages.data = np.exp2(-since / half_life_days)
    else:
        ages.data = np.ones(ages.nnz)
    return ages.astype(np.float32)
