"""Seconds and peak memory of every stage at several sizes of log, on a first night and on the one after it.

    make bench-night                     1x, 4x and 16x of the demo's events
    make bench-night ARGS="--scales 1"   one size

Every stage runs as a process of its own (jobs/STAGE.py), as on a cluster: the start of a JVM or actor is in
its seconds. Memory is the largest sum of resident sizes over the stage's process tree, sampled ten times a
second; pages that processes share are counted for each, so it is an upper bound.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import yaml

from bench.machine import machine_facts
from nightjar.generate import GenerateSpec, generate
from nightjar.pipeline import NIGHT
from nightjar.store import Dataset, Store
from nightjar.tables import ITEM_EMBEDDINGS

RESULTS = Path("bench/results/night.jsonl")
WORK = Path("build/bench-night")
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Figure:
    """One stage of one night. seconds, cpu_seconds, peak_bytes: of its process tree."""

    scale: int
    night: str
    stage: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def main() -> None:
    """Runs the scales asked for, prints the table and the headline, appends to bench/results/night.jsonl."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scales", type=int, nargs="+", default=[1, 4, 16], metavar="N")
    parser.add_argument(
        "--keep", action="store_true", help="leave the worlds and stores under build/bench-night"
    )
    options = parser.parse_args()
    figures: list[Figure] = []
    encoded: dict[int, tuple[int, int]] = {}
    for scale in options.scales:
        spec = GenerateSpec(users=options.users, items=options.items, events=options.events * scale)
        made, counts = _scale(scale, spec)
        figures += made
        encoded[scale] = counts
        if not options.keep:
            shutil.rmtree(WORK, ignore_errors=True)
    print(_table(figures))
    headline = _headline(figures, encoded)
    _append(figures, headline)
    print("bench night: " + " ".join(f"{name}={value:.3g}" for name, value in headline.items()))


def _scale(scale: int, spec: GenerateSpec) -> tuple[list[Figure], tuple[int, int]]:
    """Both nights of one size, and how many texts each of them encoded."""
    folder = WORK / f"{scale}x"
    shutil.rmtree(folder, ignore_errors=True)
    last = spec.start + timedelta(days=spec.days - 1)
    config = _config(folder)
    generate(spec, folder / "raw")
    figures = [_stage(scale, "first", stage.name, config, last) for stage in NIGHT]
    generate(replace(spec, next_days=1), folder / "raw")
    second = last + timedelta(days=1)
    figures += [_stage(scale, "second", stage.name, config, second) for stage in NIGHT]
    return figures, (_encoded(folder, last), _encoded(folder, second))


def _config(folder: Path) -> Path:
    text = Path("conf/demo.yaml").read_text().replace("build/demo/raw", str(folder / "raw"))
    content = yaml.safe_load(text)
    content["root"] = str(folder / "store")
    content["extends"] = str(Path("conf/base.yaml").resolve())
    path = folder / "night.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


def _encoded(folder: Path, ds: date) -> int:
    committed = Dataset(Store(str(folder / "store")), ITEM_EMBEDDINGS, str(ds)).require("encode_items")
    return int(committed.manifest.metrics["encoded"])


def _stage(scale: int, night: str, stage: str, config: Path, ds: date) -> Figure:
    command = [sys.executable, f"jobs/{stage}.py", "--config", str(config), "--ds", str(ds)]
    before = os.times()
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak = _watch(process)
    seconds = time.monotonic() - started
    if process.returncode:
        said = process.stderr.read() if process.stderr else ""
        raise SystemExit(f"{stage} at {scale}x failed: {said.strip().splitlines()[-1:]}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"{scale:>3}x {night:<6} {stage:<15} {seconds:7.1f} s  {peak / 2**30:5.2f} GiB", file=sys.stderr)
    return Figure(scale, night, stage, round(seconds, 2), round(cpu, 2), peak)


def _watch(process: subprocess.Popen[str]) -> int:
    """Waits for the process; the largest resident size its tree had, in bytes."""
    peak, root = 0, psutil.Process(process.pid)
    while process.poll() is None:
        try:
            tree = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        total = 0
        for one in tree:
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        peak = max(peak, total)
        time.sleep(SAMPLE_SECONDS)
    process.wait()
    return peak


def _table(figures: list[Figure]) -> str:
    nights = sorted({(one.scale, one.night) for one in figures})
    head = f"{'stage':<16}" + "".join(f"{scale:>5}x {night:<6} s   GiB" for scale, night in nights)
    lines = [head]
    for stage in NIGHT:
        cells = []
        for scale, night in nights:
            one = next(f for f in figures if (f.scale, f.night, f.stage) == (scale, night, stage.name))
            cells.append(f"{one.seconds:>13.1f} {one.peak_bytes / 2**30:>6.2f}")
        lines.append(f"{stage.name:<16}" + "".join(cells))
    totals = [_total(figures, scale, night) for scale, night in nights]
    lines.append(f"{'the night':<16}" + "".join(f"{total:>13.1f}       " for total in totals))
    return "\n".join(lines)


def _total(figures: list[Figure], scale: int, night: str) -> float:
    return sum(one.seconds for one in figures if (one.scale, one.night) == (scale, night))


def _headline(figures: list[Figure], encoded: dict[int, tuple[int, int]]) -> dict[str, float]:
    """Ratios: how the night grows with its log, and what the second night saves."""
    scales = sorted({one.scale for one in figures})
    low, high = scales[0], scales[-1]
    first = {scale: _total(figures, scale, "first") for scale in scales}
    out = {f"seconds_{low}x": first[low]}
    if high > low:
        out[f"seconds_{high}x_vs_{low}x"] = first[high] / first[low]
    out["second_vs_first"] = _total(figures, low, "second") / first[low]
    out["encoded_second_vs_first"] = encoded[low][1] / max(encoded[low][0], 1)
    out["peak_gib"] = max(one.peak_bytes for one in figures) / 2**30
    return out


def _append(figures: list[Figure], headline: dict[str, float]) -> None:
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    row: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "headline": headline,
        "figures": [asdict(one) for one in figures],
    }
    with RESULTS.open("a") as sink:
        sink.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
