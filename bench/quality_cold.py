"""New items: 20% of the catalogue withheld from training and ranked among themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from bench import quality_baselines as single
from bench import quality_nightjar as nightjar
from bench.quality_data import Log, Split, evaluated, pairs
from nightjar.kernels import fusion, signals
from nightjar.kernels.metrics import accuracy
from nightjar.kernels.topk import select_topk

F32 = NDArray[np.float32]
SHARE = 0.2
USERS = 2000
BLOCK_USERS = 256
COLD_WEIGHTS = (1.0, 1.0, 1.0)


def withheld(log: Log, seed: int, among: NDArray[np.bool_]) -> tuple[Split, NDArray[np.bool_]]:
    """A split by items: SHARE of the items `among` are withheld; truth is who chose them, history all
    else.
    """
    rng = np.random.default_rng(seed)
    cold = np.zeros(log.n_items, bool)
    pool = np.flatnonzero(among)
    cold[rng.choice(pool, int(SHARE * len(pool)), replace=False)] = True
    usable = among[log.item]
    liked, ages = pairs(log, usable & ~cold[log.item], float(log.time.max()))
    keys = np.unique((log.user * log.n_items + log.item)[usable & cold[log.item]])
    user, item = keys // log.n_items, keys % log.n_items
    known = np.diff(liked.indptr)[user] > 0
    base = Split(liked, ages, np.zeros(0, np.int64), liked[:0], ~cold & among)
    return evaluated(base, user[known], item[known], USERS), cold


def cold_table(log: Log, V: F32, chosen: dict[str, Any]) -> dict[str, float]:
    """Prints Recall@20 and @100 among cold items for us and the usual answers; returns ours."""
    del chosen
    everything = np.ones(log.n_items, bool)
    test, cold = withheld(log, 0, everything)
    inner, inner_cold = withheld(log, 1, ~cold)
    text = signals.text_neighbours(V, 200, 2.0)
    settings: dict[str, list[single.Scorer]] = {}
    found: dict[str, tuple[float, float]] = {}

    def add(name: str, fits: list[Any]) -> None:
        best = fits[0]
        if len(fits) > 1:
            values = [among_cold(inner, inner_cold, fit(inner))[0] for fit in fits]
            best = fits[int(np.argmax(values))]
        found[name] = among_cold(test, cold, best(test))
        print(f"cold {name:18s} R@20 {found[name][0]:.4f}  R@100 {found[name][1]:.4f}", flush=True)

    add("random", [lambda _: single.random(log.n_items)])
    words = single.bm25(log.texts)
    add("BM25", [lambda _: words])
    add("text kNN", [lambda _, p=p: single.text_knn(V, 200, p) for p in (2.0, 4.0)])
    add("linear map", [lambda s, r=r: single.linear_map(s, V, r) for r in (10.0, 100.0)])
    add("ALS + ridge", [lambda s, r=r: single.als_from_text(s, V, 64, 10.0, r) for r in (1.0, 30.0)])
    recipes = [
        fusion.Recipe(weights, 0.0, 0.0)
        for weights in (
            (1.0, 1.0, 1.0),
            (1.0, 0.5, 1.0),
            (0.5, 0.5, 1.0),
            (1.0, 0.5, 0.5),
            (0.0, 0.5, 1.0),
            (0.0, 0.0, 1.0),
        )
    ]
    del settings
    made = {id(s): ours(s, V, text, out) for s, out in ((inner, inner_cold), (test, cold))}
    add("Nightjar", [lambda s, recipe=recipe: fused(made[id(s)], recipe) for recipe in recipes])
    return {"cold_recall20": found["Nightjar"][0], "cold_recall100": found["Nightjar"][1]}


def ours(
    split: Split, V: F32, text: sparse.csr_matrix, cold: NDArray[np.bool_]
) -> dict[str, sparse.csr_matrix]:
    """Our relations, with the columns of cold items borrowed from their text neighbours."""
    S = nightjar.relations(split, V, text, ease=False)
    S["co_occurrence"] = signals.borrowed(S["co_occurrence"], text, cold)
    return S


def fused(S: dict[str, sparse.csr_matrix], recipe: fusion.Recipe) -> single.Scorer:
    n_items = next(iter(S.values())).shape[0]

    def score(x: sparse.csr_matrix) -> NDArray[np.floating]:
        relations = tuple((x @ one).tocsr() for one in S.values())
        return fusion.scores(fusion.Sources(relations, np.zeros(n_items), np.ones(n_items)), recipe)

    return score


def among_cold(split: Split, cold: NDArray[np.bool_], score: single.Scorer) -> tuple[float, float]:
    """Mean Recall@20 and Recall@100, only cold items being ranked."""
    lists = np.full((len(split.users), 100), -1, np.int64)
    numbers = np.flatnonzero(cold)
    for start in range(0, len(split.users), BLOCK_USERS):
        x = nightjar.history(split, split.users[start : start + BLOCK_USERS], None)
        found = np.ascontiguousarray(np.asarray(score(x), np.float32)[:, cold])
        best = select_topk(found, np.broadcast_to(np.arange(len(numbers)), found.shape), 100).item_nums
        lists[start : start + BLOCK_USERS] = np.where(best >= 0, numbers[best], -1)
    truth = split.truth.indptr.astype(np.int64), split.truth.indices.astype(np.int64)
    values = accuracy(lists, truth, [20, 100])
    return float(values["Recall@20"].mean()), float(values["Recall@100"].mean())
