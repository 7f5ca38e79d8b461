"""Exact and approximate bulk retrieval against its peers and against a bare matrix product.

    python -m bench.topk [--items 200000] [--users 8192] [--vectors titles.npy] [--quick] [--plot FILE]

Seconds are CPU seconds of one thread. Every setting is run once to find its recall; then the exact lanes and
the fastest setting of each family with IndexRecall@k ≥ 0.99 alternate, and the figures are medians. Building
indexes is not counted. Lines go to bench/results/topk.jsonl. `bench.topk_growth` has time and memory against
the numbers of items and users. Eight minutes; `--no-graph --no-spark` are four.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Either would make the peers' BLAS another one than it is by itself on this processor.
os.environ.pop("OPENBLAS_CORETYPE", None)
os.environ.pop("OPENBLAS_L2_SIZE", None)

import faiss
import numpy as np
import torch

from bench import machine, topk_peers
from bench.topk_lanes import (
    I64,
    Lane,
    Search,
    approximate_peers,
    bare_products,
    exact_peers,
    faiss_graph,
    ours,
)
from bench.topk_worlds import Vectors, expanded, made
from nightjar.kernels.topk import Filters, ItemLists

RESULTS = Path(__file__).parent / "results"
GOOD = 0.99
SHARES = [0.01, 0.015, 0.02, 0.022, 0.025, 0.03, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4]
N_SEEN = 1000


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print a table, append to the results, end with the summary line."""
    options = _options(argv)
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    print("OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE are unset for all lanes")
    world = _world(options, options.items)
    lanes = _scout(world, options)
    chosen = _finalists(lanes)
    for _ in range(options.rounds):
        for lane in chosen:
            _run(lane, world)
    _table(lanes)
    summary = _summary(lanes, world, options)
    _record(options, lanes, summary)
    if options.plot:
        _plot(lanes, options, options.plot)
    print(_last_line(summary), flush=True)
    if options.no_spark:
        return
    # The JVM of the last lane would keep this process for seconds.
    sys.stdout.flush()
    os._exit(0)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--users", type=int, default=8192)
    parser.add_argument("--dims", type=int, default=384)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lists", type=int, default=1024, help="lists of faiss's IVF indexes")
    parser.add_argument("--vectors", type=Path, help="a .npy of real vectors, cut or grown to --items")
    parser.add_argument("--no-graph", action="store_true", help="without HNSW, which takes minutes to build")
    parser.add_argument("--no-spark", action="store_true", help="without Spark ALS")
    parser.add_argument("--quick", action="store_true", help="20,000 items, 1,024 users, one round")
    parser.add_argument("--plot", type=Path, help="recall against time, as an .svg or .png")
    options = parser.parse_args(argv)
    if options.quick:
        options.items, options.users, options.rounds, options.lists = 20_000, 1024, 1, 128
    return options


def _world(options: argparse.Namespace, n_items: int) -> Vectors:
    if options.vectors:
        return expanded(np.load(options.vectors), n_items, options.users)
    return made(n_items, options.users, options.dims)


def _scout(world: Vectors, options: argparse.Namespace) -> list[Lane]:
    """Every lane, its recall known from one run."""
    mine, search = ours(world.matrix, options.k, options.users, SHARES)
    search(world.queries[:64])  # compiles
    truth = search(world.queries)
    lanes = []
    for lane in [
        *bare_products(world.matrix),
        *exact_peers(world.matrix, options.k),
        *topk_peers.exact(world.matrix, options.k),
        *mine,
        *_approximate(world, options),
    ]:
        lanes.append(lane)
        found = _run(lane, world)
        if found is not None:
            lane.recall = _recall(found, truth)
        if lane.family in _ALTERNATING:
            lane.seconds.clear()
        print(f"  {lane.name:45s} {lane.recall:.4f}", flush=True)
    for label, first in (("seen", world.own), ("seen, half of the user's topics", list(world.near[:, :500]))):
        filters = _seen(first, len(world.matrix))
        lanes.append(Lane("nightjar exact", f"{N_SEEN} {label}", _excluding(search, filters), options.users))
    return lanes


def _approximate(world: Vectors, options: argparse.Namespace) -> Iterator[Lane]:
    """Peers that need an index; Spark's ALS, which needs a cluster, is searched twice: its JVM warms up."""
    yield from approximate_peers(world.matrix, options.k, options.users, options.lists)
    if not options.no_graph:
        cores = len(os.sched_getaffinity(0))
        yield from faiss_graph(world.matrix, options.k, cores)
        yield from topk_peers.graphs(world.matrix, options.k, cores)
    if not options.no_spark:
        lane = topk_peers.spark_als(world.matrix, options.k, Path(tempfile.mkdtemp(prefix="bench-als-")))
        lane.search(world.queries[: topk_peers.ALS_USERS])
        yield lane


def _excluding(search: Search, filters: Filters) -> Search:
    return lambda queries: search(queries, filters)


_ALTERNATING = ("sgemm", "faiss Flat", "nightjar exact")


def _seen(first: list[I64], n_items: int) -> Filters:
    """N_SEEN items a user: those given first, the rest drawn from all items."""
    rng, rows = np.random.default_rng(1), []
    for mine in first:
        rest = np.setdiff1d(rng.choice(n_items, 2 * N_SEEN), mine)
        rows.append(np.sort(np.concatenate([np.unique(mine), rng.permutation(rest)])[:N_SEEN]))
    indptr = np.cumsum([0] + [len(row) for row in rows])
    return Filters(ItemLists(indptr.astype(np.int64), np.concatenate(rows)))


def _run(lane: Lane, world: Vectors) -> I64 | None:
    queries = np.ascontiguousarray(world.queries[: lane.n_users])
    start = lane.clock()
    found = lane.search(queries)
    lane.seconds.append((lane.clock() - start) / len(queries))
    return None if found is None else np.asarray(found)


def _recall(found: I64, truth: I64) -> float:
    """IndexRecall@k: the share of the exact list that was found."""
    pairs = zip(found, truth[: len(found)], strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in pairs]))


def _finalists(lanes: list[Lane]) -> list[Lane]:
    """Lanes that always alternate, and of every other family the fastest setting that finds enough."""
    chosen = [lane for lane in lanes if lane.family in _ALTERNATING]
    for family in sorted({lane.family for lane in lanes} - set(_ALTERNATING)):
        good = [lane for lane in lanes if lane.family == family and lane.recall >= GOOD]
        chosen += sorted(good, key=lambda lane: lane.seconds[0])[:1]
    return chosen


def _micros(lane: Lane) -> float:
    return 1e6 * statistics.median(lane.seconds)


def _summary(lanes: list[Lane], world: Vectors, options: argparse.Namespace) -> dict[str, Any]:
    """The ratios of the last line; approximate is whatever of ours is fastest at enough recall."""
    named = {lane.name: _micros(lane) for lane in lanes}
    good = [lane for lane in lanes if lane.recall >= GOOD]
    mine = min((lane for lane in good if lane.family.startswith("nightjar")), key=_micros)
    best = min((lane for lane in good if lane.family.startswith("faiss")), key=_micros)
    return {
        "exact_vs_flat": named["faiss Flat"] / named["nightjar exact"],
        "exact_vs_sgemm": min(named["sgemm torch"], named["sgemm numpy"]) / named["nightjar exact"],
        "approx_vs_best_faiss": _micros(best) / _micros(mine),
        "approx": mine.name,
        "best_faiss": best.name,
        "index_recall": mine.recall,
        "exclusion_cost": named[f"nightjar exact {N_SEEN} seen"] / named["nightjar exact"],
        "sgemm_gflops": 2e-3
        * len(world.matrix)
        * options.dims
        / min(named["sgemm torch"], named["sgemm numpy"]),
    }


def _table(lanes: list[Lane]) -> None:
    base = min(_micros(lane) for lane in lanes if lane.family == "sgemm")
    print(f"\n{'method':55s} {'recall@k':>8s} {'µs/user':>9s} {'× sgemm':>8s} rounds")
    for lane in sorted(lanes, key=_micros):
        recall, micros = "–" if np.isnan(lane.recall) else f"{lane.recall:.4f}", _micros(lane)
        print(f"{lane.name:55s} {recall:>8s} {micros:9.0f} {base / micros:8.2f} {len(lane.seconds)}")


def _record(options: argparse.Namespace, lanes: list[Lane], summary: dict[str, Any]) -> None:
    line = {
        "bench": "topk",
        "items": options.items,
        "users": options.users,
        "k": options.k,
        "vectors": options.vectors.name if options.vectors else "made",
        "summary": summary,
        "lanes": [{"name": lane.name, "recall": lane.recall, "micros": _micros(lane)} for lane in lanes],
        "machine": machine.facts(),
    }
    _append(line)


def _append(line: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "topk.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def _last_line(summary: dict[str, Any]) -> str:
    ratios = ("exact_vs_flat", "exact_vs_sgemm", "approx_vs_best_faiss")
    shown = [f"{name}={summary[name]:.2f}" for name in ratios]
    shown += [
        f"index_recall={summary['index_recall']:.4f}",
        f"exclusion_cost={summary['exclusion_cost']:.2f}",
    ]
    return "bench topk: " + " ".join(shown)


def _plot(lanes: list[Lane], options: argparse.Namespace, path: Path) -> None:
    """Recall against time for every setting of every family."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "topk"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6))
    base = min(_micros(lane) for lane in lanes if lane.family == "sgemm")
    axes.axvline(base, color="grey", linewidth=0.8, linestyle="--")
    axes.annotate("bare sgemm", (base, 0.905), rotation=90, fontsize=7, ha="right", color="grey")
    for family in sorted({lane.family for lane in lanes if not np.isnan(lane.recall)}):
        points = sorted(
            (_micros(lane), lane.recall) for lane in lanes if lane.family == family and lane.recall > 0
        )
        ours_ = family.startswith("nightjar")
        style = {"marker": "s", "linewidth": 2.5} if ours_ else {"marker": "o", "linewidth": 1}
        axes.plot(*zip(*points, strict=True), label=family, **style)
    title = f"{options.items:,} items × {options.dims}, k = {options.k}, one thread"
    axes.set(xscale="log", xlabel="CPU µs a user", ylabel=f"IndexRecall@{options.k}", title=title)
    axes.set_ylim(0.9, 1.003)
    axes.axhline(GOOD, color="grey", linewidth=0.5)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
