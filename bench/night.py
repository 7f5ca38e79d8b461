"""Seconds, processor seconds and peak memory of every stage at several sizes of log, on two nights.

    make bench-night                              1x, 4x and 16x of the demo's events
    make bench-night ARGS="--scales 1"            one size
    make bench-night ARGS="--stop-after 300"      begins no stage after 300 s; the same command again goes on

The second night is the day after the first, with a day's worth of new events, items and texts. Every stage
runs as a process of its own (jobs/STAGE.py), as on a cluster: the start of a JVM or of actors is in its
seconds. Memory is the largest sum of resident sizes over the stage's process tree, sampled five times a
second; pages that processes share are counted for each, so it is an upper bound. Processor seconds are those
of the same tree as last seen, so what a process does in its last fifth of a second is missed.

Items and their texts are the same at every scale: the first scale encodes them, the others take its
embeddings over, as any night takes those of the night before. Their encode_items is that of a night without
new texts, and the headline compares nights without it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psutil
import yaml

from bench import machine
from nightjar.generate import GenerateSpec, generate
from nightjar.pipeline import ENCODE_ITEMS, NIGHT
from nightjar.store import Dataset, Store
from nightjar.tables import ITEM_EMBEDDINGS

RESULTS = Path("bench/results/night.jsonl")
WORK = Path("build/bench-night")
SAMPLE_SECONDS = 0.2
NIGHTS = ("first", "second")


@dataclass(frozen=True)
class Figure:
    """One stage of one night. seconds, cpu_seconds, peak_bytes: of its process tree."""

    scale: int
    night: str
    stage: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class World:
    """A size of log under WORK, generated when it is first asked for, and what was measured on it so far."""

    scale: int
    spec: GenerateSpec
    lender: World | None = None  # the smallest size, whose embeddings are taken over

    @property
    def folder(self) -> Path:
        return WORK / f"{self.scale}x-{self.spec.users}-{self.spec.items}-{self.spec.events}"

    @property
    def measured(self) -> Path:
        return self.folder / "figures.jsonl"

    def ds(self, night: str) -> date:
        return self.spec.start + timedelta(days=self.spec.days - 1 + NIGHTS.index(night))

    def figures(self) -> list[Figure]:
        """Those of an earlier call that ended early, too."""
        if not self.measured.exists():
            return []
        return [Figure(**json.loads(line)) for line in self.measured.read_text().splitlines()]

    def measure(self) -> Iterator[Figure]:
        """Runs what is not measured yet, stage by stage."""
        done = {(one.night, one.stage) for one in self.figures()}
        for night in NIGHTS:
            for stage in NIGHT:
                if (night, stage.name) in done:
                    continue
                self.generate(night)
                if stage is ENCODE_ITEMS and night == NIGHTS[0] and self.lender is not None:
                    self.borrow(self.lender)
                figure = _stage(self, night, stage.name, _config(self.folder))
                with self.measured.open("a") as sink:
                    sink.write(json.dumps(asdict(figure)) + "\n")
                yield figure

    def generate(self, night: str) -> None:
        """Writes the world, or the second night's day to it, unless it is there."""
        whole = self.folder / f"generated-{night}"
        if not whole.exists():
            generate(replace(self.spec, next_days=NIGHTS.index(night)), self.folder / "raw")
            whole.touch()

    def borrow(self, other: World) -> None:
        """Puts the other world's embeddings where those of the night before would lie."""
        before = self.ds(NIGHTS[0]) - timedelta(days=1)
        for table in ENCODE_ITEMS.writes:
            source = other.folder / "store" / table.name / f"ds={other.ds(NIGHTS[0])}"
            shutil.copytree(source, self.folder / "store" / table.name / f"ds={before}", dirs_exist_ok=True)

    def encoded(self, night: str) -> int:
        """How many texts of items a night encoded."""
        found = Dataset(Store(str(self.folder / "store")), ITEM_EMBEDDINGS, str(self.ds(night)))
        return int(found.require(ENCODE_ITEMS.name).manifest.metrics["encoded"])


def main() -> None:
    """Runs the scales asked for, prints the table and the headline, appends to bench/results/night.jsonl."""
    options = _options()
    worlds: list[World] = []
    for scale in sorted(options.scales):
        spec = GenerateSpec(options.users, options.items, options.events * scale)
        worlds.append(World(scale, spec, worlds[0] if worlds else None))
    begun = time.monotonic()
    for world in worlds:
        for figure in world.measure():
            if options.stop_after and time.monotonic() - begun > options.stop_after:
                print(f"stopped after {figure.stage}; the same command goes on from there", file=sys.stderr)
                sys.exit(3)
    figures = [figure for world in worlds for figure in world.figures()]
    print("\n\n".join(_table(figures, night) for night in NIGHTS))
    headline = _headline(worlds)
    _append(figures, headline)
    if not options.keep:
        for world in worlds:
            shutil.rmtree(world.folder, ignore_errors=True)
    print("bench night: " + " ".join(f"{name}={value:.3g}" for name, value in headline.items()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    demo = GenerateSpec()
    parser.add_argument("--scales", type=int, nargs="+", default=[1, 4, 16], metavar="N")
    for name in ("users", "items", "events"):
        default = getattr(demo, name)
        text = f"of 1x; default: the demo's, {default:,}"
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=text)
    parser.add_argument(
        "--stop-after", type=float, metavar="SECONDS", help="end with code 3 after the stage under way then"
    )
    parser.add_argument("--keep", action="store_true", help="leave worlds and stores under build/bench-night")
    return parser.parse_args()


def _config(folder: Path) -> Path:
    text = Path("conf/demo.yaml").read_text().replace("build/demo/raw", str(folder / "raw"))
    content = yaml.safe_load(text)
    content["root"] = str(folder / "store")
    content["extends"] = str(Path("conf/base.yaml").resolve())
    path = folder / "night.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _stage(world: World, night: str, stage: str, config: Path) -> Figure:
    command = [sys.executable, f"jobs/{stage}.py", "--config", str(config), "--ds", str(world.ds(night))]
    said = world.folder / "said.txt"
    started = time.monotonic()
    with said.open("w") as sink:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sink)
        cpu, peak = _watch(process)
    seconds = time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"{stage} at {world.scale}x failed: {said.read_text().strip().splitlines()[-1:]}")
    size = f"{peak / 2**30:5.2f} GiB"
    print(
        f"{world.scale:>3}x {night:<6} {stage:<15} {seconds:7.1f} s {cpu:7.1f} cpu s {size}", file=sys.stderr
    )
    return Figure(world.scale, night, stage, round(seconds, 2), round(cpu, 2), peak)


def _watch(process: subprocess.Popen[bytes]) -> tuple[float, int]:
    """Waits for the process; the processor seconds of its tree and the largest resident size it had."""
    peak, root = 0, psutil.Process(process.pid)
    cpu: dict[tuple[int, float], float] = {}
    while process.poll() is None:
        total = 0
        for one in _tree(root):
            try:
                with one.oneshot():
                    times = one.cpu_times()
                    cpu[one.pid, one.create_time()] = times.user + times.system
                    total += one.memory_info().rss
            except psutil.Error:
                continue
        peak = max(peak, total)
        time.sleep(SAMPLE_SECONDS)
    return sum(cpu.values()), peak


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _table(figures: list[Figure], night: str) -> str:
    """A line a stage; seconds, processor seconds and GiB for each size."""
    scales = sorted({one.scale for one in figures})
    head = "".join(f"  {f'{scale}x':>6} s  cpu s   GiB" for scale in scales)
    lines = [f"{night + ' night':<16}{head}"]
    for stage in NIGHT:
        cells = []
        for scale in scales:
            one = next(f for f in figures if (f.scale, f.night, f.stage) == (scale, night, stage.name))
            cells.append(f"  {one.seconds:>8.1f} {one.cpu_seconds:>6.1f} {one.peak_bytes / 2**30:>5.2f}")
        lines.append(f"{stage.name:<16}{''.join(cells)}")
    totals = []
    for scale in scales:
        mine = [one for one in figures if (one.scale, one.night) == (scale, night)]
        cpu, peak = sum(one.cpu_seconds for one in mine), max(one.peak_bytes for one in mine)
        totals.append(f"  {sum(one.seconds for one in mine):>8.1f} {cpu:>6.1f} {peak / 2**30:>5.2f}")
    return "\n".join([*lines, f"{'the night':<16}{''.join(totals)}"])


def _headline(worlds: list[World]) -> dict[str, float]:
    """Ratios: how the night grows with its log, and what the second night saves."""

    def total(world: World, night: str, what: str = "seconds", without: str = "") -> float:
        figures = (one for one in world.figures() if one.night == night and one.stage != without)
        return sum(float(getattr(one, what)) for one in figures)

    low, high = worlds[0], worlds[-1]
    out = {f"seconds_{low.scale}x": total(low, "first")}
    if high.scale > low.scale:
        for what in ("seconds", "cpu_seconds"):
            encoding = ENCODE_ITEMS.name
            growth = total(high, "first", what, encoding) / total(low, "first", what, encoding)
            out[f"{what}_{high.scale}x_vs_{low.scale}x"] = growth
    out["second_vs_first"] = total(low, "second") / total(low, "first")
    out["encoded_second_vs_first"] = low.encoded("second") / max(low.encoded("first"), 1)
    out["peak_gib"] = max(one.peak_bytes for world in worlds for one in world.figures()) / 2**30
    return out


def _append(figures: list[Figure], headline: dict[str, float]) -> None:
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    row: dict[str, Any] = {
        "machine": machine.facts(),
        "headline": headline,
        "figures": [asdict(one) for one in figures],
    }
    with RESULTS.open("a") as sink:
        sink.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
