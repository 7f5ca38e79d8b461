"""Reading what relations are learnt from: all likes of the log, and V, the space that texts lie in."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pyarrow as pa
from scipy import sparse

from nightjar.config import LearnTaste
from nightjar.kernels import taste
from nightjar.kernels.likes import Likes
from nightjar.kernels.relations import Learning
from nightjar.kernels.signals import decay
from nightjar.store import Committed
from nightjar.tables import WEIGHT_ONE

COLUMNS = ["user_id", "item_num", "weight", "last_event_time", "first_liked", "last_liked"]


def read_likes(interactions: Committed, n_items: int, half_life_days: float, end: datetime) -> Likes:
    """The pairs that weigh above 0, users numbered bucket by bucket; half_life_days undoes the weights'."""
    parts: list[tuple[np.ndarray, ...]] = []
    n_users = 0
    for entry in interactions.parts:
        rows = interactions.read_part(entry, COLUMNS)
        if not len(rows):
            continue
        user = _codes(rows["user_id"])
        age = ages_days(rows["last_event_time"], end)
        strength = rows["weight"].to_numpy() / WEIGHT_ONE / fading(user, age, half_life_days)
        liked = (rows["weight"].to_numpy() > 0) & rows["last_liked"].is_valid().to_numpy()
        kept = rows.filter(pa.array(liked))
        first, last = (ages_days(kept[name], end) for name in ("first_liked", "last_liked"))
        values = strength[liked].astype(np.float32), first, last
        parts.append((user[liked] + n_users, kept["item_num"].to_numpy(), *values))
        n_users += int(user[-1]) + 1
    kinds = (np.int64, np.int64, np.float32, np.float64, np.float64)
    parts.append(tuple(np.zeros(0, kind) for kind in kinds))
    user, item, strength, first, last = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Likes(user, item, strength, first, last, n_users, n_items)


def _codes(user_ids: pa.ChunkedArray) -> np.ndarray:
    """0, 0, 1, … for sorted ids, int64."""
    encoded = user_ids.combine_chunks().dictionary_encode()
    return np.asarray(encoded.indices.to_numpy(), np.int64)


def fading(user: np.ndarray, age: np.ndarray, half_life_days: float) -> np.ndarray:
    """What a pair still counts, (n,) float64: halved for every half-life back from its user's newest event.

    user: (n,) codes from 0; age: (n,) days. Never 0, so that one may divide by it.
    """
    newest = np.full(int(user.max(initial=-1)) + 1, np.inf)
    np.minimum.at(newest, user, age)
    return np.maximum(decay(age - newest[user], half_life_days), 1e-300)


def ages_days(times: pa.ChunkedArray, end: datetime) -> np.ndarray:
    """Days before `end` of a time column without nulls, float64."""
    micros = times.cast(pa.int64()).to_numpy()
    return np.asarray(end.timestamp() - micros / 1e6, np.float64) / 86_400


def text_space(E: np.ndarray, params: LearnTaste) -> np.ndarray:
    """Unit vectors (n, d) float32 of the texts: the embeddings E, centred and whitened when asked for."""
    if params.transform == "raw":
        return np.asarray(E)
    power = params.whiten_power if params.transform == "whiten" else 0.0
    return taste.whiten(E, taste.fit_whitening(E, power, params.shrinkage))


def smoothed(V: np.ndarray, liked: sparse.csr_matrix, weight: float) -> tuple[np.ndarray, int]:
    """V bent by behaviour, (n, d) float32 unit rows, and how many items behaviour reached."""
    if not weight:
        return V, 0
    near = taste.propagate(V, (liked[rows] for rows in taste.blocks(liked.shape[0])))
    return taste.smooth(V, near, weight), int((near != 0).any(axis=1).sum())


def learning(params: LearnTaste) -> Learning:
    """What the kernel is told of the section."""
    return Learning(
        params.n_neighbours,
        params.text_power,
        params.smoothed_power,
        params.ease_items,
        params.ease_ridge,
        params.ease_neighbours,
    )
