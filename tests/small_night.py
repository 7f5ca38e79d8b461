"""A small generated world on disk, a configuration for it, and `nightjar` as a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from nightjar.generate import GenerateSpec, generate
from nightjar.published import latest
from nightjar.store import Store
from tests.conftest import ROOT

SMALL: dict[str, Any] = {
    "spark": {
        "master": "local[2]",
        "driver_memory": "1g",
        "shuffle_partitions": 2,
        # Code made for queries this small costs more than it saves; the undisturbed night has it.
        "conf": {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"},
    },
    "ray": {"num_cpus": 2, "object_store_bytes": 80_000_000},
    "clean_events": {"max_events_per_day": 140, "resources": {"parts": 2}},
    "build_items": {"rows_per_part": 30},
    "encode_items": {"precision": "fp32", "max_length": 32},
    "weigh_events": {"user_parts": 3},
    "relate_items": {"block_items": 50},
    "encode_queries": {"resources": {"actors": 1}},
    "build_index": {"resources": {"actors": 1}},
    "retrieve": {"k_prime": 30, "recall_sample": 50, "resources": {"actors": 1}},
    "rank": {"k": 10},
    "evaluate": {"test_days": 2, "ks": [5, 10], "n_resamples": 50},
}
"""Everything in several parts, so that a kill can fall between them, little memory, and no more actors than
the parts of interest need: each loads torch and FAISS."""


@dataclass(frozen=True)
class Undisturbed:
    """A world and an undisturbed night of it. files: what it published; said: what it printed."""

    folder: Path
    world: SmallWorld
    config: Path
    files: dict[str, str]
    said: str

    @property
    def root(self) -> Path:
        return self.config.with_suffix("")


@dataclass(frozen=True)
class SmallWorld:
    """A generated world under `folder`; equal arguments give equal bytes."""

    folder: Path
    facts: dict[str, Any]

    def copied(self, folder: Path) -> SmallWorld:
        """The same files elsewhere, times of change included: days added there disturb nobody."""
        shutil.copytree(self.folder, folder)
        return SmallWorld(folder, self.facts)

    def config(self, root: Path, **sections: Any) -> Path:
        """Writes conf/demo.yaml over this world and `root`, all paths absolute; returns the file."""
        text = (ROOT / "conf" / "demo.yaml").read_text().replace("build/demo/raw", str(self.folder))
        loaded = yaml.safe_load(text)
        loaded |= {"extends": str(ROOT / "conf" / "base.yaml"), "root": str(root)}
        loaded["ds"] = self.facts["last_day"]
        for given in (SMALL, sections):
            for name, section in given.items():
                loaded[name] = {**loaded.get(name, {}), **section}
        path = root.with_suffix(".yaml")
        path.write_text(yaml.safe_dump(loaded, sort_keys=False))
        return path


def small_world(folder: Path, **spec: Any) -> SmallWorld:
    """120 users, 200 items and some 2,500 events of six days, three times as dirty as usual."""
    given: dict[str, Any] = {
        "users": 120,
        "items": 200,
        "events": 2500,
        "days": 6,
        "test_days": 2,
        "dirt": 3.0,
        "bot_events": 150,
    }
    given |= spec
    facts = generate(GenerateSpec(**given), folder)
    return SmallWorld(folder, json.loads(json.dumps(facts, default=str)))


def undisturbed_night(folder: Path) -> Undisturbed:
    """Runs a night on a small world under `folder`; `conftest.undisturbed` shares one among all tests."""
    world = small_world(folder / "raw")
    config = world.config(folder / "store", spark={"conf": {}})
    ran = nightjar("run", "--config", config, cache=folder / "cache")
    assert ran.returncode == 0, ran.stderr
    return Undisturbed(folder, world, config, published(folder / "store"), ran.stdout + ran.stderr)


def command(*arguments: str | Path) -> list[str]:
    """The command line of the `nightjar` installed beside this interpreter."""
    return [str(Path(sys.executable).with_name("nightjar")), *map(str, arguments)]


def environment(cache: Path, **more: str) -> dict[str, str]:
    """This process' environment without what would steer Spark, Ray or Nightjar from outside."""
    steering = ("RAY_", "SPARK_", "PYSPARK_", "NIGHTJAR_", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    # Short jobs end before the JVM's optimising compiler has paid for itself.
    kept["JDK_JAVA_OPTIONS"] = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
    return {**kept, "PYTHONPATH": str(ROOT / "lib"), "NIGHTJAR_CACHE": str(cache), **more}


def nightjar(*arguments: str | Path, cache: Path, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """Runs `nightjar` to its end and returns what it said and its exit code."""
    return subprocess.run(
        command(*arguments),
        env=environment(cache),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def published(root: Path) -> dict[str, str]:
    """The files of the live list: name -> sha256, from the manifest that LATEST.json names."""
    return {entry.name: entry.sha256 for entry in latest(Store(str(root))).manifest.files}


def mentioning(text: str) -> Iterable[psutil.Process]:
    """Living processes whose environment holds `text`: what a run left behind, whoever its parent is now."""
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.pid != os.getpid() and text in process.environ().values():
                yield process
        except psutil.Error:
            continue
