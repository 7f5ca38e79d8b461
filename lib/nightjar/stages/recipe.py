"""What a night blends, as the tables that say so: from the configuration, to rows, and back."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from nightjar.config import FitBlend
from nightjar.kernels import signals
from nightjar.kernels.fitting import Chosen
from nightjar.kernels.fusion import Recipe
from nightjar.kernels.likes import Likes
from nightjar.store import Committed

VECTOR = "vector"
"""The source that is no relation: the inner product of user and item vectors, as the index has it."""


def start(params: FitBlend, names: tuple[str, ...]) -> Chosen:
    """Where a fit begins, and what is used without one."""
    weights = tuple(float(getattr(params.weights, name)) for name in (*names, VECTOR))
    recipe = Recipe(weights, params.weights.popularity, params.freshness_exponent)
    return Chosen(params.recency_days, params.history_days, recipe)


def named(chosen: Chosen, names: tuple[str, ...]) -> dict[str, float | None]:
    """The choice as names and numbers, for the manifest and the blend table."""
    return {
        **dict(zip((*names, VECTOR), chosen.recipe.weights, strict=True)),
        "popularity": chosen.recipe.popularity,
        "freshness_exponent": chosen.recipe.exponent,
        "recency_days": chosen.recency_days,
        "history_days": chosen.history_days,
    }


def blend_rows(chosen: Chosen, names: tuple[str, ...]) -> pa.Table:
    """The blend table, by name."""
    rows = sorted(named(chosen, names).items())
    values = pa.array([value for _, value in rows], pa.float64())
    return pa.table({"name": pa.array([name for name, _ in rows], pa.string()), "value": values})


def read_blend(blend: Committed, names: tuple[str, ...]) -> Chosen:
    """The inverse of `blend_rows`."""
    rows = blend.read()
    found = dict(zip(rows["name"].to_pylist(), rows["value"].to_pylist(), strict=True))
    weights = tuple(found[name] for name in (*names, VECTOR))
    recipe = Recipe(weights, found["popularity"], found["freshness_exponent"])
    return Chosen(found["recency_days"], found["history_days"], recipe)


def signal_rows(likes: Likes, chosen: Chosen) -> pa.Table:
    """Recent popularity, scaled to length 1 over the catalogue, and freshness of every item."""
    recent = likes.counts(chosen.recency_days)
    fresh = signals.freshness(recent, likes.counts(None))
    length = float(np.linalg.norm(recent))
    return pa.table(
        {
            "item_num": pa.array(np.arange(likes.n_items)),
            "popularity": pa.array((recent / (length if length > 0 else 1.0)).astype(np.float32)),
            "freshness": pa.array(fresh.astype(np.float32)),
        }
    )
