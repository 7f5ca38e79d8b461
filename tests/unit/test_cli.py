"""The command line on wrong input: one sentence, exit code 2, never a traceback; and on right input."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from nightjar import __version__, cli
from nightjar.published import make_live
from nightjar.store import Dataset, Store
from nightjar.tables import ITEMS, RECOMMENDATIONS
from tests.unit.committed_rows import commit
from tests.world import DS, config

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("ls", "items")`: exit code, stdout and stderr of the command on a configuration of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NIGHTJAR_CONFIG", "night.yaml")
    content = config(tmp_path / "store").model_dump(mode="json")
    (tmp_path / "night.yaml").write_text(yaml.safe_dump(content))

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        said = capsys.readouterr()
        code = left.value.code
        assert isinstance(code, int)
        return code, said.out, said.err

    return call


def _items(root: Path) -> None:
    row = {"item_id": "i", "item_num": 0, "title": "t", "available": True}
    blank = dict.fromkeys(("fields", "category", "first_seen", "updated_at"))
    commit(Store(str(root)), ITEMS, DS, [pa.Table.from_pylist([{**row, **blank}], ITEMS.schema)])


WRONG = {
    "run --from nosuch": "there is no stage 'nosuch'; known: clean_events, ",
    "run --until nosuch": "there is no stage 'nosuch'",
    "run --from rank --until retrieve": "--from rank comes after --until retrieve; the order is",
    "run --ds tomorrow": "--ds tomorrow: write a date as YYYY-MM-DD",
    "run --ds 2025-02-30": "--ds 2025-02-30: write a date as YYYY-MM-DD",
    "run --ds=": "write a date as YYYY-MM-DD",
    "run --ds 0001-01-01": "--ds 0001-01-01: name a date from 1970-01-01 to",
    "run --ds 9999-12-31": "--ds 9999-12-31: name a date from",
    "run --config none.yaml": "there is no configuration file none.yaml; name one with --config",
    "run --config .": "cannot be read",
    "run --config bad.yaml": "bad.yaml is no valid YAML",
    "run --set rank.k": "--set rank.k: write it as section.key=value",
    "run --set rank.kk=3": "unknown key rank.kk; did you mean 'k'?",
    "run --set rank.k=many": "rank.k: Input should be a valid integer",
    "runs --set root=nosuch://x": "no library here reads nosuch://",
    "run --ds 2025-03-31": "clean_events.scenes.shop: no file matches unused",
    "clean_events --ds 1970-01-01": "no file matches unused",
    "build_items --ds 2025-03-31": "no file matches unused",
    "publish --ds 2025-03-31": "recommendations has no commit for 2025-03-31 under ",
    "learn_taste --ds 2025-03-31": "run `nightjar build_items --ds 2025-03-31` first",
    "encode_items --ds 2025-03-31 --set encode_items.model=package:no-such-model": "no-such-model",
    "encode_items --ds 2025-03-31 --set encode_items.model=/nowhere": "/nowhere",
    "show nobody": "nothing is published under",
    "show nobody --ds 2025-03-31": "recommendations has no commit for 2025-03-31",
    "show nobody --ds ../../etc": "--ds ../../etc: write a date as YYYY-MM-DD",
    "summary": "no stage is committed for",
    "summary --ds x": "--ds x: write a date",
    "runs": "no night is committed under",
    "rollback": "nothing rolled back",
    "rollback --to 2025-03-31": "no other published list of 2025-03-31",
    "rollback --to lastweek": "lastweek: write a date as YYYY-MM-DD",
    "verify": "nothing is committed under",
    "verify --ds 2025-03-31": "nothing is committed for 2025-03-31",
    "verify --ds x": "--ds x: write a date",
    "ls nosuch": "there is no table 'nosuch'; known: events",
    "ls items": "items has no commit for",
    "ls ../items": "there is no table '../items'",
    "ls items --set root=/dev/null/x": "/dev/null/x",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_input_is_one_sentence_and_exit_code_2(run: Run, tmp_path: Path, line: str) -> None:
    (tmp_path / "bad.yaml").write_text("a: [1")
    code, out, err = run(*line.split())
    assert (code, out) == (2, "")
    assert err.startswith("nightjar: ")
    assert err.count("\n") == 1
    assert WRONG[line] in err
    assert "unexpected" not in err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nosuch", "invalid choice: 'nosuch'"),
        ("clean_evnts", "clean_events"),
        ("show", "the following arguments are required: USER"),
        ("ls", "the following arguments are required: TABLE"),
        ("run --nosuch", "unrecognized arguments: --nosuch"),
        ("generate", "--out"),
        ("generate --out x --users many", "invalid int value: 'many'"),
        ("", "COMMAND"),
    ],
)
def test_wrong_words_show_the_usage(run: Run, line: str, said: str) -> None:
    code, out, err = run(*line.split())
    assert code == 2
    assert said in out + err
    assert "usage: nightjar" in out + err


def test_help_lists_every_stage_in_order(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    words = out.split()
    stages = ["clean_events", "build_items", "encode_items", "weigh_events", "learn_taste", "aggregate_users"]
    places = [
        words.index(name) for name in [*stages, "build_index", "retrieve", "rank", "publish", "backtest"]
    ]
    assert places == sorted(places)
    assert run("--version")[:2] == (0, f"nightjar {__version__}\n")


def test_files_are_listed_a_path_a_line(run: Run, tmp_path: Path) -> None:
    _items(tmp_path / "store")
    code, out, err = run("ls", "items", "--ds", str(DS))
    assert (code, err) == (0, "")
    (path,) = out.splitlines()
    assert Path(path).is_file()


def test_verify_counts_and_exits_1_on_a_fault(run: Run, tmp_path: Path) -> None:
    _items(tmp_path / "store")
    assert run("verify")[:2] == (0, "1 files checked, 0 faults\n")
    part = next((tmp_path / "store").rglob("*.parquet"))
    part.write_bytes(part.read_bytes() + b"x")
    code, out, err = run("verify")
    assert (code, err) == (1, "")
    assert out.splitlines()[0].startswith(f"{part} has changed")
    assert out.splitlines()[1] == "1 files checked, 1 faults"


def test_rolling_back_names_what_is_live(run: Run, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    for fingerprint in ("first", "second"):
        commit(store, RECOMMENDATIONS, DS, [RECOMMENDATIONS.schema.empty_table()], fingerprint)
        make_live(store, Dataset(store, RECOMMENDATIONS, str(DS)).require("rank"))
    assert run("rollback")[:2] == (0, f"live: {DS} (first)\n")
    assert run("rollback")[0] == 2


def test_a_bug_of_ours_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise KeyError("some\nthing")

    monkeypatch.setattr(cli.inspect, "runs", broken)
    monkeypatch.delenv("NIGHTJAR_DEBUG", raising=False)
    code, _, err = run("runs")
    assert code == 1
    assert err.startswith("nightjar: unexpected KeyError: ")
    assert err.count("\n") == 1
    monkeypatch.setenv("NIGHTJAR_DEBUG", "1")
    assert "Traceback" in run("runs")[2]


@pytest.mark.parametrize("fault", [KeyboardInterrupt()])
def test_stopping_says_that_work_is_kept(
    run: Run, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def stopped(_: object) -> None:
        raise fault

    monkeypatch.setattr(cli.inspect, "runs", stopped)
    code, _, err = run("runs")
    assert code == 130
    assert "finished parts are kept" in err


def _process(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "lib")}
    command = [sys.executable, "-c", "from nightjar.cli import main; main()", *arguments]
    return subprocess.run(command, env=environment, text=True, capture_output=True, check=False, **more)  # type: ignore[call-overload,no-any-return]


def test_as_a_process_from_any_folder(tmp_path: Path) -> None:
    done = _process("runs", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "nightjar: there is no configuration file conf/demo.yaml; name one with --config\n"
    )


def test_a_closed_pipe_is_no_error(run: Run, tmp_path: Path) -> None:
    """`nightjar ls items | head -0`: what is left in the buffer must not fail at exit."""
    _items(tmp_path / "store")
    assert run("ls", "items", "--ds", str(DS))[0] == 0
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "from nightjar.cli import main; main()", "ls", "items", "--ds", str(DS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "lib")}
    process = subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, env=environment, cwd=tmp_path)
    os.close(writer)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, b"")
