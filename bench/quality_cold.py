"""Items nobody chose yet, ranked among themselves: a fifth of the catalogue withheld, and truly new ones."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import quality_baselines as single
from bench.quality_data import Log, Split, evaluated, moment, newly_chosen, pairs
from bench.quality_measure import csr, history, lists_of
from bench.quality_night import default_config, lists_for, night_of
from nightjar.kernels.metrics import accuracy

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]
SHARE = 0.2
USERS = 2000
KS = (20, 100)


@dataclass(frozen=True)
class Cold:
    """Some users' next choices among items nobody chose before. known: the log without those items' events;
    t0: days, its end; held: `warm` names the cold items here, for they are what may be recommended.
    """

    name: str
    known: Log
    t0: float
    held: Split


def withheld(log: Log, seed: int, among: Mask, name: str = "withheld") -> Cold:
    """SHARE of the items `among` withheld from the whole log; truth is who chose them, history all else."""
    cold = np.zeros(log.n_items, bool)
    pool = np.flatnonzero(among)
    cold[np.random.default_rng(seed).choice(pool, int(SHARE * len(pool)), replace=False)] = True
    usable = among[log.item]
    keys = np.unique((log.user * log.n_items + log.item)[usable & cold[log.item]])
    known = log.where(usable & ~cold[log.item])
    return _cold(name, known, float(log.time.max()) + 1e-6, cold, *np.divmod(keys, log.n_items))


def newcomers(log: Log, t0: float) -> Cold:
    """Items whose first event comes at t0 or later, and what users known by then chose among them."""
    past = log.time < t0
    new = np.bincount(log.item[past], minlength=log.n_items) == 0
    return _cold("new", log.where(past), t0, new, *newly_chosen(log, t0))


def _cold(name: str, known: Log, t0: float, cold: Mask, user: I64, item: I64) -> Cold:
    """user, item: pairs of which those of cold items and users with a history are the truth."""
    liked, ages = pairs(known, np.ones(len(known.time), bool), t0)
    asked = cold[item] & (np.diff(liked.indptr)[user] > 0)
    base = Split(liked, ages, np.zeros(0, np.int64), liked[:0], cold)
    return Cold(name, known, t0, evaluated(base, user[asked], item[asked], USERS))


def recalls(case: Cold, lists: I64) -> tuple[float, float]:
    """Mean Recall@20 and Recall@100."""
    values = accuracy(lists, csr(case.held.truth), list(KS))
    return float(values["Recall@20"].mean()), float(values["Recall@100"].mean())


def ours(case: Cold, E: F32) -> I64:
    """The default night with the cold items alone available, lists of 100."""
    with tempfile.TemporaryDirectory() as folder:
        sizes: dict[str, Any] = {"rank": {"k": KS[-1]}, "retrieve": {"k_prime": KS[-1]}}
        night = night_of(case.known, case.t0, case.held.warm, E, default_config(Path(folder), **sizes))
        return lists_for(night, case.held.users)


def by_scorer(case: Cold, score: single.Scorer) -> I64:
    return lists_of(case.held, lambda users: score(history(case.held, users, None)), KS[-1])


Fit = Callable[[Split], single.Scorer]


def singles(log: Log, V: F32) -> dict[str, list[Fit]]:
    """What a user could run instead, each with what it is tuned over."""
    return {
        "random": [lambda _: single.random(log.n_items)],
        "BM25": [lambda _: single.by_words(log.texts)],
        "text mean, whitened": [lambda _: single.text_profile(V)],
        "text kNN": [lambda _, p=p: single.text_knn(V, 200, p) for p in (2.0, 4.0)],  # type: ignore[misc]
        "linear map": [lambda s, r=r: single.linear_map(s, V, r) for r in (10.0, 100.0)],  # type: ignore[misc]
        "ALS + ridge": [
            lambda s, r=r: single.als_from_text(s, V, 64, 10.0, r)  # type: ignore[misc]
            for r in (1.0, 30.0)
        ],
    }


def cold_table(log: Log, E: F32, V: F32, test_from: float) -> dict[str, float]:
    """Prints Recall@20 and @100 among cold items for us and the usual answers; returns ours.

    Single methods are tuned on another fifth, withheld from what remains.
    """
    everything = np.ones(log.n_items, bool)
    cases = [withheld(log, 0, everything), newcomers(log, moment(log, test_from))]
    inner = withheld(log, 1, ~cases[0].held.warm, "inner")
    best: dict[str, Fit] = {}
    for name, fits in singles(log, V).items():
        values = [
            recalls(inner, by_scorer(inner, fit(_fitted_on(inner))))[0] for fit in fits if len(fits) > 1
        ]
        best[name] = fits[int(np.argmax(values))] if values else fits[0]
    found: dict[str, float] = {}
    for case in cases:
        if not len(case.held.users):
            print(f"{case.name}: no user chose any", flush=True)
            continue
        print(
            f"{case.name}: {int(case.held.warm.sum())} cold items, {len(case.held.users)} users", flush=True
        )
        for name, fit in best.items():
            _line(case, name, recalls(case, by_scorer(case, fit(_fitted_on(case)))))
        mine = recalls(case, ours(case, E))
        _line(case, "Nightjar", mine)
        if case.name == "withheld":
            found = {"cold_recall20": mine[0], "cold_recall100": mine[1]}
    return found


def _fitted_on(case: Cold) -> Split:
    """The split as single methods learn from it: `warm` are the items with an event."""
    held = case.held
    warm = np.asarray(held.liked.sum(axis=0)).ravel() > 0
    return Split(held.liked, held.ages, held.users, held.truth, warm)


def _line(case: Cold, name: str, values: tuple[float, float]) -> None:
    print(f"cold {case.name:9s} {name:20s} R@20 {values[0]:.4f}  R@100 {values[1]:.4f}", flush=True)
