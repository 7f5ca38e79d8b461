"""Items nobody chose yet, ranked among themselves: a fifth of the catalogue withheld, and truly new ones."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import quality_baselines as single
from bench.quality_data import Log, Split, evaluated, moment, newly_chosen, pairs
from bench.quality_measure import by_user, change, csr, difference, history, lists_of
from bench.quality_night import NO_CHANGE, Settings, default_config, lists_for, night_of
from nightjar.conf_files import changed
from nightjar.kernels.metrics import accuracy
from nightjar.variants import Variant

F32, F64, I64 = NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]
Mask = NDArray[np.bool_]
SHARE = 0.2
USERS = 2000
KS = (20, 100)
OURS = "Nightjar"
CASES = ("withheld", "new")


@dataclass(frozen=True)
class Cold:
    """Some users' next choices among items nobody chose before. known: the log without those items' events;
    t0: days, its end; held: `warm` names the cold items here, for they are what may be recommended.
    """

    name: str
    known: Log
    t0: float
    held: Split


@dataclass(frozen=True)
class Found:
    """users: (n,) ids; rows: method -> Recall@20 and Recall@100 (n,) of each user; varied: the same of the
    night with a setting changed.
    """

    users: NDArray[Any]
    rows: dict[str, tuple[F64, F64]]
    varied: dict[str, tuple[F64, F64]]


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


def recalls(case: Cold, lists: I64) -> tuple[F64, F64]:
    """Recall@20 and Recall@100 of each user."""
    values = accuracy(lists, csr(case.held.truth), list(KS))
    return values["Recall@20"], values["Recall@100"]


def ours(case: Cold, E: F32, root: Path, settings: Settings = NO_CHANGE) -> I64:
    """The default night with the cold items alone available, lists of 100.

    root: where it is run; of a night there as of the same t0 it learns nothing anew; settings: what is not as
    the default has it.
    """
    sizes: dict[str, Any] = {"rank": {"k": KS[-1]}, "retrieve": {"k_prime": KS[-1]}}
    config = changed(default_config(root, **sizes), settings)
    night = night_of(case.known, case.t0, case.held.warm, E, config)
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


def cold_table(
    log: Log,
    E: F32,
    V: F32,
    test_from: float,
    names: Sequence[str],
    root: Path,
    variants: Sequence[Variant] = (),
) -> dict[str, Found]:
    """Prints Recall@20 and @100 among cold items for us and the usual answers, and returns them by case.

    Single methods are tuned on another fifth, withheld from what remains. names: of CASES; root: where the
    night as of the quantile `test_from` is; variants: other nights, held against the default one.
    """
    if not names:
        return {}
    everything = np.ones(log.n_items, bool)
    cases = [withheld(log, 0, everything), newcomers(log, moment(log, test_from))]
    inner = withheld(log, 1, ~cases[0].held.warm, "inner")
    best: dict[str, Fit] = {}
    for name, fits in singles(log, V).items():
        values = [
            recalls(inner, by_scorer(inner, fit(_fitted_on(inner))))[0].mean()
            for fit in fits
            if len(fits) > 1
        ]
        best[name] = fits[int(np.argmax(values))] if values else fits[0]
    found: dict[str, Found] = {}
    for case in (case for case in cases if case.name in names):
        if not len(case.held.users):
            print(f"{case.name}: no user chose any", flush=True)
            continue
        print(
            f"{case.name}: {int(case.held.warm.sum())} cold items, {len(case.held.users)} users", flush=True
        )
        rows = {}
        for name, fit in best.items():
            rows[name] = recalls(case, by_scorer(case, fit(_fitted_on(case))))
            _line(case.name, name, rows[name])
        with tempfile.TemporaryDirectory() as aside:
            at = root if case.name == "new" else Path(aside)
            rows[OURS] = recalls(case, ours(case, E, at))
            _line(case.name, OURS, rows[OURS])
            others = {one.name: recalls(case, ours(case, E, at, one.settings)) for one in variants}
        found[case.name] = Found(log.user_ids[case.held.users], rows, others)
        _compared(case.name, found[case.name])
    return found


def cold_together(windows: Sequence[Mapping[str, Found]]) -> dict[str, Found]:
    """Prints the same of several windows of a log, and returns it."""
    found: dict[str, Found] = {}
    for name in dict.fromkeys(name for window in windows for name in window):
        there = [window[name] for window in windows if name in window]
        ids = [one.users for one in there]
        rows = _of_all(ids, [one.rows for one in there])
        varied = _of_all(ids, [one.varied for one in there])
        found[name] = Found(np.unique(np.concatenate(ids)), rows, varied)
        print(f"{name}: {len(found[name].users)} users of {len(there)} windows", flush=True)
        for method, values in rows.items():
            _line(name, method, values)
        _compared(name, found[name])
    return found


def _of_all(
    ids: Sequence[NDArray[Any]], windows: Sequence[Mapping[str, tuple[F64, F64]]]
) -> dict[str, tuple[F64, F64]]:
    """Recall@20 and Recall@100 by method of all windows together."""
    return {
        method: (
            by_user(ids, [one[method][0] for one in windows]),
            by_user(ids, [one[method][1] for one in windows]),
        )
        for method in windows[0]
    }


def _fitted_on(case: Cold) -> Split:
    """The split as single methods learn from it: `warm` are the items with an event."""
    held = case.held
    warm = np.asarray(held.liked.sum(axis=0)).ravel() > 0
    return Split(held.liked, held.ages, held.users, held.truth, warm)


def _line(case: str, method: str, values: tuple[F64, F64]) -> None:
    at_20, at_100 = (one.mean() for one in values)
    print(f"cold {case:9s} {method:20s} R@20 {at_20:.4f}  R@100 {at_100:.4f}", flush=True)


def _compared(case: str, found: Found) -> None:
    """Beside the best single method, chosen by its figure on the test itself, which favours it; and beside
    the night with a setting changed."""
    mine, others = found.rows[OURS], {name: row for name, row in found.rows.items() if name != OURS}
    for at, k in enumerate(KS):
        best = max(others, key=lambda name: others[name][at].mean())
        more = difference(mine[at], others[best][at])
        print(f"cold {case:9s} Nightjar more than {best} at {k}: {more}", flush=True)
    for name, other in found.varied.items():
        told = "; ".join(change(f"R@{k}", mine[at], other[at]) for at, k in enumerate(KS))
        print(f"cold {case:9s} {name}: {told}", flush=True)
