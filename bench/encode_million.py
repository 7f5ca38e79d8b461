"""A million short texts through encode_items, killed twice on the way, and a second night with 1% new texts.

    python -m bench.encode_million [--texts 1000000] [--words 3 9] [--precision int8] [--actors 2]
                                   [--rows-per-part 5000]

A text is `--words` (least, most) words of a made-up language, by Zipf's law, and its number.

Each run is a process of its own that starts its own Ray; it is killed with SIGKILL when a third and when two
thirds of the parts are done. Every actor notes what it starts to encode and its largest resident size, so
what was encoded more than once is counted and not inferred. Lines go to bench/results/encode_million.jsonl.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from bench import machine
from nightjar.config import NightConfig
from nightjar.engines.encoder import Encoder, EncoderSpec, load_encoder
from nightjar.pipeline import ENCODE_ITEMS
from nightjar.stage import Night, run_stage
from nightjar.stages.encode_items import REPEATED_TEXTS, encode_items
from nightjar.store import Dataset, FileEntry, Manifest, Store
from nightjar.tables import ITEM_EMBEDDINGS, ITEM_TEXT

RESULTS = Path(__file__).parent / "results" / "encode_million.jsonl"
FIRST = date(2026, 1, 1)
NEW, REPEATED = 0.01, 0.1
"""Shares of texts that are new on the second night, and that more than one item has."""
WORDS = 30_000
KEPT = ("encoded", "resumed", "reused", "repeated", "tokens", "tokens_per_second", "actor_seconds")
"""Metrics of a night's last run that the result keeps."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs both nights and prints what they took; with --night, one run of one night."""
    options = _options(argv)
    if options.night is not None:
        _night(options)
        return
    folder = Path(tempfile.mkdtemp(prefix="encode-million-", dir=options.folder))
    options.root = str(folder)
    try:
        _report(options, _measure(options, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _options(argv: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--words", type=int, nargs=2, default=[3, 9], metavar=("LEAST", "MOST"))
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--actors", type=int, default=os.cpu_count())
    parser.add_argument("--rows-per-part", type=int, default=5000)
    parser.add_argument("--folder", default=None, help="where 2 GB for a million texts are free")
    parser.add_argument("--root", default="", help=argparse.SUPPRESS)
    parser.add_argument("--night", type=int, default=None, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Noting:
    """Loads the encoder; what it is given is noted under `notes`, 8 bytes a text, before it is encoded."""

    notes: str

    def __call__(self, spec: EncoderSpec) -> NotingEncoder:
        return NotingEncoder(load_encoder(spec), Path(self.notes))


class NotingEncoder:
    """An encoder that says what it did."""

    def __init__(self, encoder: Encoder, notes: Path) -> None:
        self._encoder, self._notes = encoder, notes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """As the encoder does."""
        keys = b"".join(hashlib.sha256(text.encode()).digest()[:8] for text in texts)
        with (self._notes / f"{os.getpid()}.texts").open("ab") as file:
            file.write(keys)
        vectors: np.ndarray = self._encoder.encode(texts)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        (self._notes / f"{os.getpid()}.peak").write_text(str(peak))
        return vectors


def _night(options: Any) -> None:
    """One run of one night, to its end unless it is killed; prints the metrics."""
    night = Night(_config(options), FIRST + timedelta(days=options.night))
    load = Noting(f"{options.root}/notes-{options.night}")
    result = run_stage(ENCODE_ITEMS, functools.partial(encode_items, load=load), night)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({**result.metrics, "driver_peak_mib": peak >> 10}))


def _config(options: Any) -> NightConfig:
    scene = {"path": "-", "format": "csv", "columns": {"user_id": "u", "event_type": "t", "event_time": "a"}}
    sections = {
        "root": f"{options.root}/store",
        "ray": {"num_cpus": options.actors},
        "clean_events": {"scenes": {"none": {**scene, "event_types": {"view": {}}}}},
        "build_items": {"sources": [{"path": "-", "format": "csv", "columns": {"item_id": "i"}}]},
        "encode_items": {"precision": options.precision, "resources": {"actors": options.actors}},
    }
    return NightConfig.model_validate(sections)


def _measure(options: Any, folder: Path) -> dict[str, Any]:
    n_distinct, rows = _write_texts(options, 0)
    n_parts = -(-rows // options.rows_per_part)
    for night in (0, 1):
        (folder / f"notes-{night}").mkdir()
    started = time.monotonic()
    done_at_kills = [_killed_after(options, n_parts * third // 3) for third in (1, 2)]
    first = _whole(options, 0)
    seconds = time.monotonic() - started
    counts, peaks = _notes(folder / "notes-0")
    n_new, _ = _write_texts(options, 1)
    started = time.monotonic()
    second = _whole(options, 1)
    return {
        "texts": rows,
        "distinct": n_distinct,
        "encoded": len(counts),
        "encoded_more_than_once": int((counts > 1).sum()),
        "most_in_flight": 2 * options.actors * max(options.rows_per_part, REPEATED_TEXTS),
        "parts_done_at_kills": done_at_kills,
        "first_seconds": round(seconds, 1),
        "peak_mib_of_each_actor": sorted(peak >> 10 for peak in peaks),
        "driver_peak_mib": first["driver_peak_mib"],
        "last_run": {name: first[name] for name in KEPT},
        "second_seconds": round(time.monotonic() - started, 1),
        "second_new": n_new - n_distinct,
        "second": {name: second[name] for name in KEPT},
        "second_driver_peak_mib": second["driver_peak_mib"],
    }


def _write_texts(options: Any, night: int) -> tuple[int, int]:
    """Commits item_text of a night: the texts of the first, and 1% more; (distinct texts so far, rows)."""
    dataset = Dataset(Store(f"{options.root}/store"), ITEM_TEXT, str(FIRST + timedelta(days=night)))
    attempt = dataset.attempt("planted")
    n_rows = int(options.texts * (1 + NEW * night))
    files: list[FileEntry] = []
    numbers: set[int] = set()
    for part, texts in enumerate(_texts(n_rows, options)):
        start = part * options.rows_per_part
        numbers.update(number for number, _ in texts)
        columns = {
            "item_id": [f"i{number:09d}" for number in range(start, start + len(texts))],
            "item_num": range(start, start + len(texts)),
            "text": [text for _, text in texts],
            "text_hash": [hashlib.sha256(text.encode()).hexdigest() for _, text in texts],
            "image": [None] * len(texts),
        }
        table = pa.table({name: list(values) for name, values in columns.items()}, ITEM_TEXT.schema)
        files.append(attempt.write_part(part, [table]))
    manifest = Manifest(ITEM_TEXT.name, dataset.ds, "planted", "planted", tuple(files), n_rows, ())
    attempt.commit(manifest)
    return len(numbers), n_rows


def _texts(n: int, options: Any) -> Iterator[list[tuple[int, str]]]:
    """Parts of (number of the text, text): mostly row i has text i, whatever n is."""
    syllables = ["ba", "ce", "di", "fo", "gu", "la", "me", "ni", "po", "ru", "sta", "tre", "vi", "qui", "zu"]
    rng, (least, most) = np.random.default_rng(0), options.words
    rows_per_part = options.rows_per_part
    words = ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(WORDS)]

    def text(i: int) -> str:
        own = np.random.default_rng(i)
        ranks = (WORDS ** own.random(int(own.integers(least, most + 1)))).astype(int) - 1  # Zipf's law
        return " ".join([*(words[rank] for rank in ranks), str(i)])

    for start in range(0, n, rows_per_part):
        part = []
        for i in range(start, min(start + rows_per_part, n)):
            chance = np.random.default_rng([i, 1])
            number = int(chance.integers(i)) if i and chance.random() < REPEATED else i
            part.append((number, text(number)))
        yield part


def _start(options: Any, night: int) -> subprocess.Popen[str]:
    given = {"texts": options.texts, "precision": options.precision, "actors": options.actors}
    given |= {"rows-per-part": options.rows_per_part, "root": options.root, "night": night}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "bench.encode_million", *words]
    env = {**os.environ, "NIGHTJAR_CACHE": f"{options.root}/cache"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)


def _killed_after(options: Any, n_parts: int) -> int:
    """Starts the first night and kills it when so many parts are done; returns how many were."""
    process = _start(options, 0)
    folder = Path(options.root) / "store" / ITEM_EMBEDDINGS.name
    while process.poll() is None and len(list(folder.glob("ds=*/*/*.done.json"))) < n_parts:
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    process.wait()
    psutil.wait_procs(family, timeout=120)
    return len(list(folder.glob("ds=*/*/*.done.json")))


def _whole(options: Any, night: int) -> dict[str, Any]:
    process = _start(options, night)
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit("encode_items failed; what it said stands above")
    metrics: dict[str, Any] = json.loads(said.splitlines()[-1])
    return metrics


def _notes(folder: Path) -> tuple[np.ndarray, list[int]]:
    """How often each distinct text was given to an encoder, and the peak KiB of each actor."""
    keys = [np.fromfile(path, "<u8") for path in folder.glob("*.texts")]
    counts = np.unique(np.concatenate(keys), return_counts=True)[1]
    return counts, [int(path.read_text()) for path in folder.glob("*.peak")]


def _report(options: Any, figures: dict[str, Any]) -> None:
    for name, value in figures.items():
        print(f"{name:24} {value}")
    RESULTS.parent.mkdir(exist_ok=True)
    line = {
        "bench": "encode_million",
        **machine.facts(),
        "precision": options.precision,
        "words": options.words,
        **figures,
    }
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    second = figures["second"]["encoded"] / figures["encoded"]
    print(
        f"bench encode_million: texts={figures['texts']} peak_mib={max(figures['peak_mib_of_each_actor'])} "
        f"encoded_more_than_once={figures['encoded_more_than_once']} "
        f"most_in_flight={figures['most_in_flight']} second_night_share={second:.4f}"
    )


if __name__ == "__main__":
    main()
