"""Reading what relations are learnt from: all likes of the log, and V, the space that texts lie in."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from nightjar.config import LearnTaste, RelateItems
from nightjar.kernels import als, by_segment, taste
from nightjar.kernels.likes import Likes
from nightjar.kernels.relations import Learning
from nightjar.kernels.signals import Neighbourhood
from nightjar.store import Committed
from nightjar.tables import EVERYONE, WEIGHT_ONE

COLUMNS = ["user_id", "item_num", "weight", "strength", "first_liked", "last_liked"]


def read_likes(
    interactions: Committed,
    n_items: int,
    end: datetime,
    users: Committed | None = None,
    most: int | None = None,
) -> Likes:
    """The pairs that weigh above 0, users numbered bucket by bucket, with the segments of `users` if any.

    most: of a log of more pairs about as many, all those of users drawn by a hash of their ids, so that the
    next night draws the same users.
    """
    share = 1.0 if most is None else min(most / max(interactions.manifest.rows, 1), 1.0)
    parts, n_users, segment_of = [_of_nobody(n_items)], 0, Segments()
    for bucket in range(len(interactions.parts)):
        likes, user_ids = bucket_likes(interactions, bucket, n_items, end, share)
        parts.append(replace(likes, user=likes.user + n_users))
        n_users += likes.n_users
        if users is not None:
            segment_of.read(users, bucket, user_ids)
    return Likes(
        np.concatenate([part.user for part in parts]),
        np.concatenate([part.item for part in parts]),
        np.concatenate([part.strength for part in parts]),
        np.concatenate([part.first for part in parts]),
        np.concatenate([part.last for part in parts]),
        n_users,
        n_items,
        segment_of.codes(),
    )


def bucket_likes(
    interactions: Committed, bucket: int, n_items: int, end: datetime, share: float = 1.0
) -> tuple[Likes, pa.Array]:
    """The pairs of one bucket that weigh above 0, and the ids of its users in the order of their numbers."""
    rows = interactions.read_part(interactions.parts[bucket], COLUMNS)
    liked = (rows["weight"].to_numpy() > 0) & (rows["strength"].to_numpy() > 0)
    rows = rows.filter(pa.array(liked & rows["last_liked"].is_valid().to_numpy()))
    if share < 1:
        rows = rows.filter(pc.is_in(rows["user_id"], drawn(pc.unique(rows["user_id"]), share)))
    if not len(rows):
        return _of_nobody(n_items), pa.array([], pa.string())
    strength = (rows["strength"].to_numpy() / WEIGHT_ONE).astype(np.float32)
    first, last = (ages_days(rows[name], end) for name in ("first_liked", "last_liked"))
    encoded = rows["user_id"].combine_chunks().dictionary_encode()
    user, user_ids = np.asarray(encoded.indices.to_numpy(), np.int64), encoded.dictionary
    return Likes(user, rows["item_num"].to_numpy(), strength, first, last, len(user_ids), n_items), user_ids


def drawn(user_ids: pa.Array, share: float) -> pa.Array:
    """About this share of the ids, each kept or not by its own hash."""
    bound = int(share * 2**64)
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in user_ids.to_pylist())
    return user_ids.filter(pa.array([int.from_bytes(digest) < bound for digest in digests], pa.bool_()))


def _of_nobody(n_items: int) -> Likes:
    whole, real = np.zeros(0, np.int64), np.zeros(0, np.float64)
    return Likes(whole, whole, np.zeros(0, np.float32), real, real, 0, n_items)


class Segments:
    """The segments of users as numbers, from 1 in the order in which they are met; 0 for none."""

    def __init__(self) -> None:
        self._numbers = {EVERYONE: 0}
        self._codes: list[np.ndarray] = []

    def read(self, users: Committed, bucket: int, user_ids: pa.Array) -> None:
        """Adds these users of a bucket, in their order."""
        rows = users.read_part(users.parts[bucket], ["user_id", "segment"])
        at = pc.index_in(user_ids, rows["user_id"].combine_chunks())
        found = rows["segment"].take(at).fill_null(EVERYONE).combine_chunks().dictionary_encode()
        names = found.dictionary.to_pylist()
        numbers = [self._numbers.setdefault(name, len(self._numbers)) for name in names]
        self._codes.append(np.array(numbers, np.int64)[found.indices.to_numpy()])

    def codes(self) -> np.ndarray | None:
        """(n_users,) int64, those of the largest segments alone; None where nobody belongs to any."""
        if len(self._numbers) < 2:
            return None
        found = np.concatenate(self._codes)
        rows = by_segment.rows_of(np.bincount(found, minlength=len(self._numbers)))
        return np.asarray(rows[found])


def ages_days(times: pa.ChunkedArray, end: datetime) -> np.ndarray:
    """Days before `end` of a time column without nulls, float64."""
    micros = times.cast(pa.int64()).to_numpy()
    return np.asarray(end.timestamp() - micros / 1e6, np.float64) / 86_400


def text_space(E: np.ndarray, params: LearnTaste) -> np.ndarray:
    """Unit vectors (n, d) float32 of the texts: the embeddings E, centred and whitened when asked for."""
    whitening = fit_text_space(E, params)
    return np.asarray(E) if whitening is None else taste.whiten(E, whitening)


def fit_text_space(E: np.ndarray, params: LearnTaste) -> taste.Whitening | None:
    """The transform of `text_space`, for other texts too; None where embeddings stay as they are."""
    if params.transform == "raw":
        return None
    power = params.whiten_power if params.transform == "whiten" else 0.0
    return taste.fit_whitening(E, power, params.shrinkage)


def smoothed(V: np.ndarray, liked: sparse.csr_matrix, weight: float) -> tuple[np.ndarray, int]:
    """V bent by behaviour, (n, d) float32 unit rows, and how many items behaviour reached."""
    if not weight:
        return V, 0
    near = taste.propagate(V, (liked[rows] for rows in taste.blocks(liked.shape[0])))
    return taste.smooth(V, near, weight), int((near != 0).any(axis=1).sum())


def counting(params: RelateItems) -> Neighbourhood:
    """What the kernel of co-occurrence is told of the section."""
    return Neighbourhood(n_neighbours=params.n_neighbours)


def learning(params: LearnTaste) -> Learning:
    """What the kernel is told of the section."""
    return Learning(
        params.n_neighbours,
        params.text_power,
        params.smoothed_power,
        params.degree_power,
        params.ease_items,
        params.ease_ridge,
        params.ease_neighbours,
        als.Factorisation(
            params.als_factors,
            params.als_confidence,
            params.als_ridge,
            params.als_sweeps,
            params.als_text_ridge,
        ),
        params.bm25_items,
    )
