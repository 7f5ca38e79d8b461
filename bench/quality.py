"""Recommendations against every single method a user could run instead (`--data NAME`).

Global temporal split: trained before the 90% quantile of time, tested after it; every method is tuned on the
80–90% window and refitted. The full catalogue of items with an event is ranked, what a user has seen is left
out, users are those with a history and something new chosen later. Appends JSON lines to bench/results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import machine
from bench import quality_baselines as single
from bench import quality_nightjar as nightjar
from bench.quality_baselines import Scorer
from bench.quality_cold import cold_table
from bench.quality_data import Log, Split, embeddings, read_log, split
from nightjar.config import LearnTaste
from nightjar.kernels import relations, taste
from nightjar.kernels.metrics import accuracy
from nightjar.kernels.statistics import bootstrap_mean, paired_difference, paired_ratio
from nightjar.kernels.topk import select_topk
from nightjar.stages.recipe import named
from nightjar.stages.taste_log import learning

RESULTS = Path(__file__).parent / "results" / "quality.jsonl"
BLOCK_USERS = 256
K = 20
TEST_FROM = 0.9
"""Quantile of time at which the test window begins; single methods are tuned on the tenth before it."""
RESAMPLES = 1000
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """A method's result on a split, user by user. coverage: share of the items it may recommend in any
    list.
    """

    recall: F64
    ndcg: F64
    coverage: float


@dataclass(frozen=True)
class Trial:
    """One setting of a method: how it is fitted and how old events of a history count."""

    params: dict[str, Any]
    fit: Callable[[Split], Scorer]
    history_days: float | None = None


def measure(held: Split, score: Scorer, history_days: float | None) -> Measured:
    """Ranks every item that may be recommended for every user of a split by a single method."""
    return lists_of(held, lambda users: score(nightjar.history(held, users, history_days)))


def lists_of(held: Split, scores: Callable[[NDArray[np.int64]], NDArray[np.floating]]) -> Measured:
    """The best K of dense scores (users, n_items), held against what the users of a split chose next."""
    lists = np.full((len(held.users), K), -1, np.int64)
    for start in range(0, len(held.users), BLOCK_USERS):
        users = held.users[start : start + BLOCK_USERS]
        found = np.asarray(scores(users), np.float32)
        found[nightjar.barred(held, users).toarray() != 0] = -np.inf
        lists[start : start + BLOCK_USERS] = ranked(found)
    truth = held.truth.indptr.astype(np.int64), held.truth.indices.astype(np.int64)
    values = accuracy(lists, truth, [K])
    shown = len(np.unique(lists[lists >= 0])) / max(int(held.warm.sum()), 1)
    return Measured(values[f"Recall@{K}"], values[f"nDCG@{K}"], shown)


def ranked(scores: NDArray[np.float32], k: int = K) -> NDArray[np.int64]:
    """The best k items (q, k) of dense scores, −1 where a score is −inf; ties by item number."""
    nums = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    return select_topk(scores, np.where(np.isneginf(scores), -1, nums), k).item_nums


def methods(log: Log, V: NDArray[np.float32], E: NDArray[np.float32]) -> dict[str, list[Trial]]:
    """Every single method with the settings it is tuned over."""
    ages = (None, 120.0, 20.0)
    profile, raw = single.text_profile(V), single.text_profile(E)
    words = single.bm25(log.texts)
    near = {power: single.text_knn(V, 200, power) for power in (2.0,)}
    found = {
        "random": [Trial({}, lambda s: single.random(s.liked.shape[1]))],
        "popular": [Trial({}, lambda s: single.constant(single.popularity(s, None)))],
        "recent popular": [
            Trial({"half_life": days}, lambda s, days=days: single.constant(single.popularity(s, days)))
            for days in (2.0, 7.0, 14.0, 30.0, 120.0, 480.0)
        ],
        "item-kNN": [
            Trial(
                {"shrinkage": c, "user_power": p, "history": age},
                lambda s, c=c, p=p: single.item_knn(s, c, 200, p),
                age,
            )
            for c in (0.003, 0.03, 0.3)
            for p in (0.0, 0.5)
            for age in ages
        ],
        "RP3beta": [
            Trial({"beta": b, "history": age}, lambda s, b=b: single.rp3beta(s, b, 200), age)
            for b in (0.2, 0.4, 0.6)
            for age in ages
        ],
        "iALS": [
            Trial(
                {"factors": d, "alpha": a, "ridge": r},
                lambda s, d=d, a=a, r=r: single.implicit_als(s, d, a, r),
            )
            for d, a, r in ((64, 10.0, 10.0), (64, 2.0, 1.0), (128, 2.0, 10.0))
        ],
        "BM25": [Trial({"history": age}, lambda _: words, age) for age in ages],
        "raw text mean": [Trial({"history": age}, lambda _: raw, age) for age in ages],
        "whitened text mean": [Trial({"history": age}, lambda _: profile, age) for age in ages],
        "text kNN": [
            Trial({"power": p, "history": age}, lambda _, p=p: near[p], age) for p in near for age in ages
        ],
    }
    if log.n_items <= EASE_BASELINE_ITEMS:
        found["EASE"] = [
            Trial({"ridge": r, "history": age}, lambda s, r=r: single.linear_autoencoder(s, r), age)
            for r in (50.0, 200.0, 500.0)
            for age in ages
        ]
    return found


EASE_BASELINE_ITEMS = 13_000


def tuned(trials: list[Trial], validation: Split, test: Split) -> tuple[dict[str, Any], Measured]:
    """The setting with the best nDCG@20 on the validation window, refitted and measured on the test
    window.
    """
    best = trials[0]
    if len(trials) > 1:
        fitted: dict[str, Scorer] = {}
        values = []
        for trial in trials:
            key = json.dumps({name: value for name, value in trial.params.items() if name != "history"})
            fitted.setdefault(key, trial.fit(validation))
            values.append(measure(validation, fitted[key], trial.history_days).ndcg.mean())
        best = trials[int(np.argmax(values))]
    return best.params, measure(test, best.fit(test), best.history_days)


def run(name: str, folder: Path | None, only: Sequence[str]) -> dict[str, Any]:
    """The whole table for one data set; returns what the last line prints."""
    log = read_log(name, folder)
    E = embeddings(log)
    V = taste.whiten(E, taste.fit_whitening(E, 1.0, 0.05))
    validation, test = split(log, 0.8, TEST_FROM, 2000), split(log, TEST_FROM, 1.0, 5000)
    print(
        f"{log.name}: {len(log.time)} events, {log.n_users} users, {log.n_items} items; "
        f"{len(validation.users)} validation users, {len(test.users)} test users",
        flush=True,
    )
    rows: dict[str, tuple[dict[str, Any], Measured]] = {}
    for method, trials in methods(log, V, E).items():
        if not only or method in only:
            rows[method] = tuned(trials, validation, test)
            report(method, *rows[method])
    ours, chosen = default_lists(log, V, test)
    report("Nightjar", chosen, ours)
    best = max(rows, key=lambda method: rows[method][1].ndcg.mean())
    return summary(log, rows, ours, chosen, best) | cold_table(log, V)


def default_lists(log: Log, V: NDArray[np.float32], test: Split) -> tuple[Measured, dict[str, Any]]:
    """Nightjar as it comes: fitted on the newest of what was known before the test window, by itself."""
    text = relations.from_text(V, learning(LearnTaste()))
    ours = nightjar.fitted(nightjar.likes_of(log, TEST_FROM), V, text)
    return lists_of(test, ours.scores), named(ours.chosen, tuple(ours.relations))


def report(method: str, params: dict[str, Any], found: Measured) -> None:
    print(
        f"{method:20s} R@20 {found.recall.mean():.4f}  N@20 {found.ndcg.mean():.4f}  "
        f"cov {found.coverage:.2f}  {params}",
        flush=True,
    )


def summary(
    log: Log,
    rows: dict[str, tuple[dict[str, Any], Measured]],
    ours: Measured,
    chosen: dict[str, Any],
    best: str,
) -> dict[str, Any]:
    """Appends a line for each method and returns the comparison with the best of them on the test window."""
    facts = machine.facts()
    with RESULTS.open("a", encoding="utf-8") as sink:
        for method, (params, found) in [*rows.items(), ("Nightjar", (chosen, ours))]:
            line = {
                "bench": "quality",
                "data": log.name,
                "method": method,
                "params": params,
                "users": len(found.ndcg),
                "coverage": round(found.coverage, 4),
            }
            for metric, values in (("recall20", found.recall), ("ndcg20", found.ndcg)):
                line[metric] = [round(float(value), 5) for value in bootstrap_mean(values, RESAMPLES, 0)]
                if method != "Nightjar":
                    gap = paired_difference(getattr(ours, metric[:-2]), values, RESAMPLES, 0)
                    line[f"nightjar_minus_{metric}"] = [
                        round(gap.difference, 5),
                        round(gap.low, 5),
                        round(gap.high, 5),
                    ]
            sink.write(json.dumps(line | facts) + "\n")
    lift = paired_ratio(ours.ndcg, rows[best][1].ndcg, RESAMPLES, 0)
    recall = max(found.recall.mean() for _, found in rows.values())
    print(f"best single by Recall@20 {recall:.4f}; ours {ours.recall.mean():.4f}")
    return {
        "ndcg20": ours.ndcg.mean(),
        "best_single": f"{best} {rows[best][1].ndcg.mean():.4f}",
        "lift": lift.mean,
        "lift_low": lift.low,
    }


def main() -> None:
    """Reads --data, prints the table, ends with the line that CI reads."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default="online_retail", help="a name, or a folder with interactions and items"
    )
    parser.add_argument("--folder", type=Path, help="where the named data sets are; default NIGHTJAR_DATA")
    parser.add_argument("--only", nargs="*", default=[], help="single methods to run; default all")
    args = parser.parse_args()
    end = run(args.data, args.folder, args.only)
    print(
        f"bench quality: ndcg20={end['ndcg20']:.4f} best_single={end['best_single'].replace(' ', '_')} "
        f"lift={end['lift']:.3f} lift_low={end['lift_low']:.3f} cold_recall20={end['cold_recall20']:.4f}"
    )


if __name__ == "__main__":
    main()
