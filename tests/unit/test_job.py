"""The files of jobs/ as processes: arguments, exit codes and one sentence on stderr."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nightjar.errors import GateError
from nightjar.job import guarded, main
from nightjar.pipeline import PUBLISH
from nightjar.stage import Night
from nightjar.store import Store
from nightjar.tables import CANDIDATES, EVENTS, INTERACTIONS, ITEMS, METRICS, RECOMMENDATIONS, USERS
from tests.unit.committed_rows import commit
from tests.world import DS, config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "night.yaml"
    path.write_text(yaml.safe_dump(config(tmp_path / "store").model_dump(mode="json")))
    return path


def _inputs(folder: Path) -> None:
    for table in (EVENTS, ITEMS, INTERACTIONS, USERS, CANDIDATES, RECOMMENDATIONS):
        commit(Store(str(folder / "store")), table, DS, [table.schema.empty_table()])


def _left(*arguments: str, run: Any) -> int:
    with pytest.raises(SystemExit) as left:
        main(PUBLISH, run, arguments)
    assert isinstance(left.value.code, int)
    return left.value.code


def test_a_job_runs_its_stage_for_its_date(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _inputs(conf.parent)
    nights: list[Night] = []

    def run(night: Night, params: Any, resources: Any) -> dict[str, Any]:
        nights.append(night)
        assert (params, resources) == (night.config.publish, night.config.publish.resources)
        night.wrote(METRICS, [night.write(METRICS).write_part(0, [])])
        return {}

    options = ("--config", str(conf), "--ds", str(DS))
    assert _left(*options, "--set", "rank.k=7", run=run) == 0
    (seen,) = nights
    assert (seen.ds, seen.stage, seen.config.rank.k) == (DS, "publish", 7)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[0] == f"publish {DS}: running on local"
    assert _left(*options, "--set", "rank.k=7", run=run) == 0
    assert capsys.readouterr().err == f"publish {DS}: up to date\n"
    assert len(nights) == 1


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (GateError("fill is low"), 2, "nightjar: fill is low\n"),
        (KeyboardInterrupt(), 130, "the same command goes on from them\n"),
        (ValueError("odd\nlines"), 1, "nightjar: unexpected ValueError: odd lines; our bug, "),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_how_an_action_ends(
    fault: BaseException,
    code: int,
    said: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NIGHTJAR_DEBUG", raising=False)
    if isinstance(fault, BrokenPipeError):
        monkeypatch.setattr(os, "dup2", lambda *_: None)  # the stdout of the tests stays

    def action() -> int:
        raise fault

    with pytest.raises(SystemExit) as left:
        guarded(action)
    assert left.value.code == code
    assert said in capfd.readouterr().err


def test_an_action_may_name_its_code() -> None:
    for code in (0, 1, None):
        with pytest.raises(SystemExit) as left:
            guarded(lambda code=code: code)  # type: ignore[misc]
        assert left.value.code == (code or 0)


def test_a_job_as_a_process(conf: Path) -> None:
    """`python jobs/publish.py`: the local one, which loads no engine; refused by a missing input."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "lib"), "NIGHTJAR_CONFIG": str(conf)}
    command = [sys.executable, str(ROOT / "jobs/publish.py"), "--ds", str(DS)]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"nightjar: recommendations has no commit for {DS}")
    assert done.stderr.count("\n") == 1
