"""The single methods a user could run instead, tuned on the window before the test and never on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from bench import quality_baselines as single
from bench.quality_baselines import F32, Scorer
from bench.quality_data import Log, Split
from bench.quality_measure import Measured, digest, held_against, history, kept, lists_of

EASE_ITEMS = 13_000
"""EASE inverts a matrix of all items: of a larger catalogue it has the most liked ones, which its parameters
then tell. One of 13,000 takes .7 GB, and some are held at once."""
AGES = (None, 120.0, 20.0)
"""Half-lives in days by which a history fades, back from its newest event."""
RECENT_DAYS = (2.0, 7.0, 14.0, 30.0, 120.0, 480.0)


@dataclass(frozen=True)
class Setting:
    """A method with its parameters; history: half-life in days of a user's events, where it matters."""

    params: dict[str, Any]
    history: float | None = None

    def named(self) -> dict[str, Any]:
        return self.params | {"history": self.history}


@dataclass(frozen=True)
class Method:
    """fit(split, **params) gives a scorer; the settings are what it is tuned over."""

    name: str
    fit: Callable[..., Scorer]
    settings: tuple[Setting, ...]


def over(settings: list[dict[str, Any]], ages: tuple[float | None, ...] = (None,)) -> tuple[Setting, ...]:
    """Every setting with every half-life of the history."""
    return tuple(Setting(params, age) for params in settings for age in ages)


def methods(log: Log, V: F32, E: F32, ease_items: int = EASE_ITEMS) -> list[Method]:
    """All single methods; V, E: (n_items, d) whitened and raw unit embeddings of the texts."""
    most = {"items": ease_items} if log.n_items > ease_items else {}

    @cache
    def words() -> Scorer:
        return single.by_words(log.texts)

    @cache
    def near(power: float) -> Scorer:
        return single.text_knn(V, 200, power)

    return [
        Method("random", lambda s: single.random(s.liked.shape[1]), over([{}])),
        Method("popular", lambda s: single.constant(single.popularity(s, None)), over([{}])),
        Method(
            "recent popular",
            lambda s, half_life: single.constant(single.popularity(s, half_life)),
            over([{"half_life": days} for days in RECENT_DAYS]),
        ),
        Method(
            "item-kNN",
            lambda s, shrinkage, user_power: single.item_knn(s, shrinkage, 200, user_power),
            over([{"shrinkage": c, "user_power": p} for c in (0.003, 0.03, 0.3) for p in (0.0, 0.5)], AGES),
        ),
        Method(
            "RP3beta",
            lambda s, beta: single.rp3beta(s, beta, 200),
            over([{"beta": b} for b in (0.2, 0.4, 0.6)], AGES),
        ),
        Method(
            "EASE",
            lambda s, ridge, n_neighbours, items=log.n_items: single.linear_autoencoder(
                s, ridge, items, n_neighbours
            ),
            over(
                [{"ridge": r, "n_neighbours": m} | most for m in (400, None) for r in (50.0, 200.0, 500.0)],
                AGES,
            ),
        ),
        Method(
            "iALS",
            lambda s, factors, alpha, ridge: single.implicit_als(s, factors, alpha, ridge),
            over(
                [
                    {"factors": d, "alpha": a, "ridge": r}
                    for d, a, r in ((64, 10.0, 10.0), (64, 2.0, 1.0), (128, 2.0, 10.0), (128, 10.0, 30.0))
                ]
            ),
        ),
        Method("BM25", lambda _: words(), over([{}], AGES)),
        Method("raw text mean", lambda _: single.text_profile(E), over([{}], AGES)),
        Method("whitened text mean", lambda _: single.text_profile(V), over([{}], AGES)),
        Method("text kNN", lambda _, power: near(power), over([{"power": p} for p in (2.0, 4.0)], AGES)),
        Method(
            "smoothed text",
            lambda s, power: single.smoothed_knn(s, V, power),
            over([{"power": p} for p in (1.0, 3.0)], AGES),
        ),
    ]


def tuned(method: Method, log: Log, validation: Split, test: Split) -> tuple[dict[str, Any], Measured]:
    """The setting with the best nDCG@20 on the validation window, refitted and measured on the test window.

    Fits are made only where a result is not on disk, and shared by settings that differ in the history alone.
    """
    best = method.settings[0]
    if len(method.settings) > 1:
        values = [float(one.ndcg.mean()) for one in measured(method, log, validation, method.settings)]
        best = method.settings[values.index(max(values))]
    (found,) = measured(method, log, test, (best,))
    return best.named(), found


def measured(method: Method, log: Log, held: Split, settings: tuple[Setting, ...]) -> list[Measured]:
    """Results on a split, from disk where they are."""
    of, fits = digest(log, held), dict[str, Scorer]()

    def run(setting: Setting) -> Measured:
        key = str(setting.params)
        if key not in fits:
            fits.clear()
            fits[key] = method.fit(held, **setting.params)
        score = fits[key]
        return held_against(held, lists_of(held, lambda users: score(history(held, users, setting.history))))

    return [kept((method.name, setting.named(), of), lambda s=setting: run(s)) for setting in settings]  # type: ignore[misc]
