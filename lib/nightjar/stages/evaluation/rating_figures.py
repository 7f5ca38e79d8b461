"""Ratings predicted on the temporal split, and how far off each method is: MAE and RMSE with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nightjar.config import Evaluate
from nightjar.kernels.metrics import rating_errors
from nightjar.kernels.ratings import Ratings, Settings, fit, means
from nightjar.kernels.resampling import bounds, resampled
from nightjar.matrix import mapped_stack
from nightjar.stages.evaluation.part import OURS
from nightjar.stages.evaluation.user_means import Figure
from nightjar.stages.users.buckets import strings
from nightjar.store import Committed

ALS = "als"
SLICES = (
    ("ratings", None, None),
    ("ratings: known users, known items", True, True),
    ("ratings: known users, new items", True, False),
    ("ratings: new users, known items", False, True),
    ("ratings: new users, new items", False, False),
)


def predicted(
    rows: pa.Table, neighbours: Committed, n_items: int
) -> tuple[pa.Table, list[str], Settings | None]:
    """The held ratings with every method's prediction, the methods, and the settings chosen.

    ALS has no factors for new users and items; there it predicts the item's mean, for a new item the user's.
    """
    held = rows["held"].to_numpy()
    user = rows["user_id"].combine_chunks().dictionary_encode()
    code = (user.combine_chunks() if isinstance(user, pa.ChunkedArray) else user).indices.to_numpy()
    code, item, value = code.astype(np.int64), rows["item_num"].to_numpy(), rows["value"].to_numpy()
    time = rows["rated_at"].cast(pa.int64()).to_numpy()
    n_users = int(code.max(initial=-1)) + 1
    known = Ratings(code, item, value, time, n_users, n_items).kept(~held)
    if not held.any() or not len(known.value):
        return _table(rows.slice(0, 0), np.zeros((0, 1)), np.zeros((0, 2), bool)), [], None
    text = mapped_stack(neighbours).matrices()["text"].astype(np.float64)
    model = fit(known, text)
    made = {OURS: model.predict(code[held], item[held]), **means(known, code[held], item[held])}
    familiar = np.stack([np.isin(code[held], known.user), np.isin(item[held], known.item)], axis=1)
    als = rows["als"].to_numpy()[held]
    if not np.isnan(als).all():
        fallback = np.where(familiar[:, 1], made["item_mean"], made["user_mean"])
        made[ALS] = np.where(np.isnan(als), fallback, als)
    values = np.stack(list(made.values()), axis=1)
    return _table(rows.filter(pa.array(held)), values, familiar), list(made), model.settings


def _table(rows: pa.Table, values: np.ndarray, familiar: np.ndarray) -> pa.Table:
    offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * values.shape[1])
    made = rows.select(["user_id", "item_num", "value"])
    for at, name in enumerate(("known_user", "known_item")):
        made = made.append_column(name, pa.array(familiar[:, at]))
    lists = pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)))
    made = made.append_column("predicted", lists)
    return made.sort_by([("user_id", "ascending"), ("item_num", "ascending")])


def rating_figures(rows: pa.Table, methods: list[str], params: Evaluate) -> Iterator[Figure]:
    """MAE and RMSE of each method, of all held ratings and by cells of users and items; users are drawn."""
    for name, known_user, known_item in SLICES:
        inside = np.ones(len(rows), bool)
        for column, wanted in (("known_user", known_user), ("known_item", known_item)):
            if wanted is not None:
                inside &= rows[column].to_numpy() == wanted
        if inside.any():
            yield from _slice(name, rows.filter(pa.array(inside)), methods, params)


def _slice(name: str, rows: pa.Table, methods: list[str], params: Evaluate) -> Iterator[Figure]:
    values = pc.list_flatten(rows["predicted"]).to_numpy().reshape(len(rows), len(methods))
    actual = rows["value"].to_numpy()
    _, user = np.unique(strings(rows["user_id"]), return_inverse=True)
    yield Figure("users", name, float(user.max() + 1), unit="users")
    yield Figure("ratings", name, float(len(rows)), unit="ratings")
    off = values - actual[:, None]
    errors = np.concatenate([np.abs(off), off**2], axis=1)
    totals = np.stack([np.bincount(user, column) for column in errors.T], axis=1)
    counts = np.repeat(np.bincount(user)[:, None], totals.shape[1], axis=1)
    _, drawn = resampled(np.asarray(totals, np.float64), counts, params.n_resamples, params.seed)
    n = len(methods)
    drawn = np.concatenate([drawn[:, :n], np.sqrt(drawn[:, n:])], axis=1)
    ours = rating_errors(values[:, 0], actual)
    for at, method in enumerate(methods):
        theirs = rating_errors(values[:, at], actual)
        for shift, metric in ((0, "MAE"), (n, "RMSE")):
            mine = drawn[:, shift + at]
            yield Figure(f"{method}.{metric}", name, *bounds(theirs[metric], mine), "rating")
            if at:
                lift = bounds(ours[metric] - theirs[metric], drawn[:, shift] - mine)
                if not math.isnan(lift.low):
                    yield Figure(f"{OURS}-{method}.{metric}", name, *lift, "rating")
