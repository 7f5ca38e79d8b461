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

TINY = 1e-12
VECTOR = "vector"
"""The source that is no relation: the inner product of user and item vectors, as the index has it."""


def start(params: FitBlend, names: tuple[str, ...]) -> Chosen:
    """Where a fit begins, and what is used without one."""
    weights = tuple(float(getattr(params.weights, name)) for name in (*names, VECTOR))
    recipe = Recipe(weights, params.weights.popularity, params.freshness_exponent)
    return Chosen(params.recency_days, params.history_days, recipe)


def cold_weights(begun: Chosen, chosen: Chosen) -> tuple[float, ...]:
    """Weights of the sources for items that nobody liked yet: those a fit begins with, as large in sum as its
    own. A fit only sees items somebody liked, and leans on what cold items lack (docs/log.md)."""
    scale = sum(chosen.recipe.weights) / max(sum(begun.recipe.weights), TINY)
    return tuple(weight * scale for weight in begun.recipe.weights)


def named(chosen: Chosen, cold: tuple[float, ...], names: tuple[str, ...]) -> dict[str, float | None]:
    """The choice as names and numbers, for the manifest and the blend table."""
    return {
        **dict(zip((*names, VECTOR), chosen.recipe.weights, strict=True)),
        **{f"cold_{name}": weight for name, weight in zip((*names, VECTOR), cold, strict=True)},
        "popularity": chosen.recipe.popularity,
        "freshness_exponent": chosen.recipe.exponent,
        "recency_days": chosen.recency_days,
        "history_days": chosen.history_days,
    }


def blend_rows(choice: dict[str, float | None]) -> pa.Table:
    """The blend table of a choice (`named`), by name."""
    rows = sorted(choice.items())
    values = pa.array([value for _, value in rows], pa.float64())
    return pa.table({"name": pa.array([name for name, _ in rows], pa.string()), "value": values})


def read_blend(blend: Committed, names: tuple[str, ...]) -> tuple[Chosen, tuple[float, ...]]:
    """The inverse of `blend_rows`: the choice, and the weights for cold items."""
    rows = blend.read()
    found = dict(zip(rows["name"].to_pylist(), rows["value"].to_pylist(), strict=True))
    weights = tuple(found[name] for name in (*names, VECTOR))
    recipe = Recipe(weights, found["popularity"], found["freshness_exponent"])
    chosen = Chosen(found["recency_days"], found["history_days"], recipe)
    return chosen, tuple(found[f"cold_{name}"] for name in (*names, VECTOR))


def signal_rows(likes: Likes, chosen: Chosen) -> pa.Table:
    """Recent popularity, scaled to length 1 over the catalogue, freshness, and which items nobody liked."""
    recent, ever = likes.counts(chosen.recency_days), likes.counts(None)
    fresh = signals.freshness(recent, ever)
    length = float(np.linalg.norm(recent))
    return pa.table(
        {
            "item_num": pa.array(np.arange(likes.n_items)),
            "popularity": pa.array((recent / (length if length > 0 else 1.0)).astype(np.float32)),
            "freshness": pa.array(fresh.astype(np.float32)),
            "cold": pa.array(ever == 0),
        }
    )
