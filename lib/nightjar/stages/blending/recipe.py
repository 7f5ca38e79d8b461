"""What a night blends, as the tables that say so: from the configuration, to rows, and back."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from nightjar.config import FitBlend
from nightjar.kernels import by_segment, signals
from nightjar.kernels.fitting import Chosen
from nightjar.kernels.fusion import Recipe
from nightjar.kernels.likes import Likes
from nightjar.kernels.signals import Fading
from nightjar.store import Committed

TINY = 1e-12
VECTOR = "vector"
"""The source that is no relation: the inner product of user and item vectors, as the index has it."""


def source_names(relations: tuple[str, ...]) -> tuple[str, ...]:
    """Every source but the vectors, in the order of a recipe's weights."""
    return (*relations, by_segment.NAME)


def start(params: FitBlend, names: tuple[str, ...]) -> Chosen:
    """Where a fit begins, and what is used without one."""
    weights = tuple(float(getattr(params.weights, name)) for name in (*names, VECTOR))
    recipe = Recipe(weights, params.weights.popularity, params.freshness_exponent)
    return Chosen(params.recency_days, Fading(params.history_days, params.history_floor), recipe)


def cold_start(params: FitBlend, names: tuple[str, ...]) -> tuple[float, ...]:
    """Weights of the sources for items that nobody liked yet: those a fit begins with, but for `cold_…`."""
    weights = params.weights.model_dump()
    return tuple(float(weights.get(f"cold_{name}", weights[name])) for name in (*names, VECTOR))


def cold_weights(cold: tuple[float, ...], chosen: Recipe) -> tuple[float, ...]:
    """`cold_start` made as large in sum as the weights a fit chose. A fit only sees items somebody liked, and
    leans on what cold items lack (docs/log.md)."""
    scale = sum(chosen.weights) / max(sum(cold), TINY)
    return tuple(weight * scale for weight in cold)


Choice = dict[tuple[int, str], float | None]
"""What is blended: (liked items from which it holds, name) -> number; how the past fades and the
exponent hold for everyone, from 0."""


def choice_of(cold: tuple[float, ...], chosen: Chosen, names: tuple[str, ...]) -> Choice:
    """What a fit chose, with the weights for cold items (`cold_start`) beside the others."""
    found: Choice = {
        (0, "freshness_exponent"): chosen.recipe.exponent,
        (0, "recency_days"): chosen.recency_days,
        (0, "history_days"): chosen.history.half_life_days,
        (0, "history_floor"): chosen.history.floor,
    }
    for start, recipe in chosen.recipes():
        found[start, "popularity"] = recipe.popularity
        all_cold = cold_weights(cold, recipe)
        for name, weight, for_cold in zip((*names, VECTOR), recipe.weights, all_cold, strict=True):
            found[start, name], found[start, f"cold_{name}"] = weight, for_cold
    return found


def told(choice: Choice) -> dict[str, float | None]:
    """A choice for the manifest: what holds from 5 liked items ends in `_from_5`."""
    return {f"{name}_from_{start}" if start else name: value for (start, name), value in choice.items()}


def blend_rows(choice: Choice) -> pa.Table:
    """The blend table of a choice."""
    rows = sorted(choice.items())
    starts = pa.array([start for (start, _), _ in rows], pa.int64())
    names = pa.array([name for (_, name), _ in rows], pa.string())
    values = pa.array([value for _, value in rows], pa.float64())
    return pa.table({"from_items": starts, "name": names, "value": values})


def read_blend(blend: Committed, names: tuple[str, ...]) -> tuple[Chosen, tuple[tuple[float, ...], ...]]:
    """The inverse of `blend_rows`: the choice, and the weights for cold items of each of its recipes."""
    rows = blend.read()
    keys = zip(rows["from_items"].to_pylist(), rows["name"].to_pylist(), strict=True)
    found: Choice = dict(zip(keys, rows["value"].to_pylist(), strict=True))

    def numbers(start: int, *wanted: str) -> tuple[float, ...]:
        return tuple(found[start, name] or 0.0 for name in wanted)

    def recipe(start: int) -> Recipe:
        (popularity,), (exponent,) = numbers(start, "popularity"), numbers(0, "freshness_exponent")
        return Recipe(numbers(start, *names, VECTOR), popularity, exponent)

    starts = sorted({start for start, _ in found})
    recency_days, floor = numbers(0, "recency_days", "history_floor")
    segments = tuple((start, recipe(start)) for start in starts[1:])
    chosen = Chosen(recency_days, Fading(found[0, "history_days"], floor), recipe(0), segments)
    return chosen, tuple(numbers(start, *(f"cold_{name}" for name in (*names, VECTOR))) for start in starts)


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
