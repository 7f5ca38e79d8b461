"""kill -9, Ctrl-C, a second start: the same command again ends in the same bytes and leaves nobody behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from nightjar.night import stage_named
from nightjar.pipeline import NIGHT
from nightjar.store import Dataset, Store
from nightjar.tables import ITEM_EMBEDDINGS
from tests.conftest import ROOT
from tests.small_night import Undisturbed, command, environment, mentioning, nightjar, published

pytestmark = pytest.mark.timeout(1500)  # fixtures run whole nights; a busy machine takes minutes for one

STAGES = tuple(stage.name for stage in NIGHT)
QUICK = ("clean_events", "encode_items", "publish")
"""Where the short version kills: Spark while it writes, Ray between two parts, the last step."""
SECONDS_TO_GO = 150
"""The most that processes may take to go by themselves. It is two seconds as a rule; where a starved raylet
died while it came up, its agent looks for the cluster for another minute."""


@dataclass(frozen=True)
class Running:
    """A `nightjar run` under way. cache: a folder of its own, by which its processes are known."""

    process: subprocess.Popen[str]
    root: Path
    cache: Path

    def said(self, text: str) -> bool:
        """Reads what it says until `text` is in a line; False where it ended before."""
        assert self.process.stderr is not None
        return any(text in line for line in self.process.stderr)

    def wrote_a_part(self, stage: str) -> bool:
        """Waits until a part of the stage is done; False where the run ended before."""
        folders = [self.root / table.name for table in stage_named(stage).writes]
        while self.process.poll() is None:
            if any(marker for folder in folders for marker in folder.glob("ds=*/*/*.done.json")):
                return True
            time.sleep(0.005)
        return False


@contextmanager
def running(config: Path, cache: Path) -> Iterator[Running]:
    """`nightjar run` in a process group of its own; afterwards all it started must go by themselves."""
    process = subprocess.Popen(
        command("run", "--config", config),
        env=environment(cache),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Running(process, config.with_suffix(""), cache)
    finally:
        process.kill()
        process.wait()
    give_up = time.monotonic() + SECONDS_TO_GO
    while left := [str(one) for one in mentioning(str(cache))]:  # cmdline() raises once it is a zombie
        assert time.monotonic() < give_up, f"left behind: {left}"
        time.sleep(0.2)


def kill_in(stage: str, config: Path, cache: Path) -> bool:
    """Kills the driver inside a stage, once the first part of it is there; True where it was in time."""
    with running(config, cache) as run:
        assert run.said(f"{stage} "), "the night ended before the stage began"
        if stage != "publish":  # one part, and the stage is over with it
            run.wrote_a_part(stage)
        run.process.send_signal(signal.SIGKILL)
        return run.process.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    "stages", [pytest.param(QUICK, id="some"), pytest.param(STAGES, id="all", marks=pytest.mark.slow)]
)
def test_killed_in_a_stage_and_run_again(undisturbed: Undisturbed, stages: tuple[str, ...]) -> None:
    root = undisturbed.folder / f"killed-{len(stages)}"
    config = undisturbed.world.config(root)
    for stage in stages:
        assert kill_in(stage, config, undisturbed.folder / f"cache-{len(stages)}-{stage}"), stage
    last = nightjar("run", "--config", config, cache=undisturbed.folder / "cache-last")
    assert last.returncode == 0, last.stderr
    assert published(root) == undisturbed.files
    encoded = Dataset(Store(str(root)), ITEM_EMBEDDINGS, undisturbed.world.facts["last_day"]).committed()
    assert encoded is not None
    metrics = encoded.manifest.metrics
    assert 1 <= metrics["resumed_parts"] < len(encoded.parts), "killed after the first part, before the last"
    resumed = sum(entry.rows for entry in encoded.parts) - metrics["encoded"] - metrics["reused"]
    assert resumed > 0, "parts that were done were encoded again"


@pytest.mark.slow
def test_stopped_by_ctrl_c_then_two_at_once(undisturbed: Undisturbed) -> None:
    root = undisturbed.folder / "stopped"
    config = undisturbed.world.config(root)
    with running(config, undisturbed.folder / "cache-stopped") as run:
        assert run.said("encode_items ")
        assert run.wrote_a_part("encode_items")
        os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does: to the whole group
        _, said = run.process.communicate(timeout=60)
        assert run.process.returncode == 130, said
        assert said.strip().splitlines()[-1].startswith("nightjar: stopped; finished parts are kept")
        assert "Traceback" not in said
    two_at_once(undisturbed, config)
    assert published(root) == undisturbed.files


def two_at_once(undisturbed: Undisturbed, config: Path) -> None:
    """One of two runs gets through; the other is told so, or finds everything up to date."""
    with (
        running(config, undisturbed.folder / "cache-one") as one,
        running(config, undisturbed.folder / "cache-two") as two,
    ):
        ends = []
        for run in (one, two):
            _, said = run.process.communicate(timeout=900)
            ends.append(run.process.returncode)
            assert run.process.returncode in (0, 2), said
            assert run.process.returncode == 0 or "is being run by another process" in said
    assert 0 in ends
