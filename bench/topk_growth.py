"""How exact retrieval grows with items and users, in time and memory, and what that says of a large night.

    python -m bench.topk_growth [--items 50000,…] [--users 1024,…] [--plot FILE]

Each size is a process of its own that maps item vectors and shard from files, so its anonymous memory is
what the search needs beside the page cache. Seconds are CPU seconds of one thread, the least of the rounds.
The model is time = users · (a + b · items) + c · items · blocks, fitted to relative errors.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from bench import machine
from bench.topk_worlds import made
from nightjar.engines import bulk
from nightjar.engines.bulk.search import USER_BLOCK
from nightjar.engines.shards import Effort

RESULTS = Path(__file__).parent / "results"
DIMS, K = 384, 100
MACHINES, CORES, CORE_HOUR = 100, 32, 0.04
"""What the prediction assumes: machines of so many cores as fast as this one's, dollars a core-hour."""
LARGE = (100_000_000, 10_000_000)


@dataclass(frozen=True)
class Point:
    """One measured search. micros: CPU µs a user; memory: anonymous bytes at its peak; build: CPU seconds of
    making the shard; share: of lists visited, None for exact search.
    """

    items: int
    users: int
    share: float | None
    micros: float
    memory: int
    build: float


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", default="50000,100000,200000,400000,1000000,2000000")
    parser.add_argument("--users", default="1024,4096,8192,16384,32768")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--plot", type=Path, help="an .svg or .png")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.point:
        print(json.dumps([asdict(point) for point in _measure(json.loads(options.point))]))
        return
    points = []
    sizes, crowds = (sorted(map(int, text.split(","))) for text in (options.items, options.users))
    middle = sizes[len(sizes) // 2]
    for n_items in sizes:
        users = crowds if n_items == middle else [min(USER_BLOCK, crowds[-1])]
        points += _in_a_process({"items": n_items, "users": users, "rounds": options.rounds})
    model = _fit([point for point in points if point.share is None])
    _report(points, model)
    RESULTS.mkdir(exist_ok=True)
    line = {"bench": "topk-growth", "points": [asdict(point) for point in points], "model": model}
    with (RESULTS / "topk.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({**line, "machine": machine.facts()}) + "\n")
    if options.plot:
        _plot(points, model, middle, options.plot)


def _in_a_process(what: dict[str, Any]) -> list[Point]:
    command = [sys.executable, "-m", "bench.topk_growth", "--point", json.dumps(what)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = [Point(**point) for point in json.loads(done.stdout.splitlines()[-1])]
    for point in found:
        mode = "exact" if point.share is None else f"lists {point.share}"
        print(
            f"{point.items:>10,} items {point.users:>7,} users {mode:>10s} {point.micros:8.0f} µs/user "
            f"{point.memory >> 20:6,} MiB",
            flush=True,
        )
    return found


def _measure(what: dict[str, Any]) -> list[Point]:
    """Makes a world in files, forgets it, and searches it from there."""
    n_items, crowds = what["items"], what["users"]
    with tempfile.TemporaryDirectory(prefix="bench-topk-") as folder:
        place = Path(folder)
        world = made(n_items, max(crowds), DIMS)
        np.save(place / "items.npy", world.matrix)
        queries = world.queries
        del world
        matrix = np.load(place / "items.npy", mmap_mode="r")
        start = time.process_time()
        facts = bulk.build_shard(matrix, np.arange(n_items), place / "shard")
        build = time.process_time() - start
        shard = bulk.open_shard(place / "shard", facts.sha256)
        bulk.search_shards([shard], queries[:64], K, matrix)
        points = []
        for n_users in crowds:
            for share in (None, 0.1) if n_users == max(crowds) else (None,):
                best = np.inf
                before = _anonymous()
                with _Peak() as peak:
                    for _ in range(what["rounds"]):
                        start = time.process_time()
                        bulk.search_shards(
                            [shard], queries[:n_users], K, matrix, None, Effort(probe_share=share)
                        )
                        best = min(best, (time.process_time() - start) / n_users)
                points.append(Point(n_items, n_users, share, 1e6 * best, peak.most - before, build))
        return points


def _anonymous() -> int:
    """Bytes of this process that are not pages of a file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    return 0


class _Peak:
    """Watches the anonymous memory of this process, a hundred times a second."""

    def __enter__(self) -> _Peak:
        self.most, self._stop = _anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.most = max(self.most, _anonymous())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _terms(items: Any, users: Any) -> np.ndarray:
    """Seconds a user as a sum of three terms: fixed, per item, and per item of a block's share."""
    users = np.asarray(users, float)
    blocks = np.ceil(users / USER_BLOCK)
    return np.stack([np.ones_like(users), np.asarray(items, float), items * blocks / users], axis=-1)


def _fit(points: list[Point]) -> dict[str, float]:
    """a, b, c ≥ 0 of the model in µs, and its largest relative error."""
    from scipy.optimize import nnls

    terms = _terms(np.array([p.items for p in points]), np.array([p.users for p in points]))
    micros = np.array([p.micros for p in points])
    scale = terms.max(axis=0)
    found, _ = nnls(terms / scale / micros[:, None], np.ones(len(points)))
    a, b, c = found / scale
    error = np.abs(terms @ np.array([a, b, c]) / micros - 1).max()
    return {"a": float(a), "b": float(b), "c": float(c), "worst_error": float(error)}


def _report(points: list[Point], model: dict[str, float]) -> None:
    users, items = LARGE
    each = users // (MACHINES * CORES)  # users of one core
    micros = float(_terms(items, each) @ np.array([model[name] for name in "abc"]))
    hours = users * micros * 1e-6 / 3600
    build = max(points, key=lambda point: point.items)
    index = build.build * (items / build.items) ** 1.5 / 3600  # √items lists for each item to be held against
    total = hours + index
    print(
        f"\nµs a user = {model['a']:.0f} + {1e6 * model['b']:.0f} a million items + "
        f"{model['c']:.2f} · items · blocks / users (largest error {100 * model['worst_error']:.0f} %)\n"
        f"{users:,} users × {items:,} items × {DIMS}, k = {K}: {total:,.0f} core-hours, {index:.1f} of them "
        f"for the index; {60 * total / MACHINES / CORES:.0f} minutes on {MACHINES} machines of {CORES} "
        f"cores, {total * CORE_HOUR:,.0f} dollars at {CORE_HOUR} a core-hour"
    )


def _plot(points: list[Point], model: dict[str, float], middle: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "topk"
    import matplotlib.pyplot as plt

    figure, (by_items, by_users, memory) = plt.subplots(1, 3, figsize=(13, 4))
    block = [point for point in points if point.share is None and point.users >= USER_BLOCK]
    largest = {n: [p for p in block if p.items == n][-1] for n in sorted({p.items for p in block})}
    line = np.geomspace(min(largest), max(largest), 50)
    abc = np.array([model[name] for name in "abc"])
    by_items.plot(list(largest), [p.micros for p in largest.values()], "s", label="exact")
    by_items.plot(line, _terms(line, np.full(50, USER_BLOCK)) @ abc, "-", linewidth=0.8, label="model")
    lists = [point for point in points if point.share is not None]
    by_items.plot([p.items for p in lists], [p.micros for p in lists], "o-", label="lists, share 0.1")
    by_items.set(xscale="log", yscale="log", xlabel="items", ylabel="CPU µs a user")
    by_items.legend(fontsize=8)
    mine = [point for point in points if point.share is None and point.items == middle]
    by_users.plot([p.users for p in mine], [p.micros for p in mine], "s-", label=f"exact, {middle:,} items")
    by_users.set(xscale="log", xlabel="users of one search", ylabel="CPU µs a user", ylim=(0, None))
    by_users.legend(fontsize=8)
    memory.plot(list(largest), [p.memory / 2**20 for p in largest.values()], "s-", label="against items")
    memory.set(xscale="log", xlabel="items", ylabel="anonymous MiB of the search", ylim=(0, None))
    memory.set_title(f"{USER_BLOCK:,} users; vectors and codes are mapped", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
