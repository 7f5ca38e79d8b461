"""run_stage: when a stage runs again, what it needs, what stays when it fails, and its lock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nightjar.config import RESOURCE, Section
from nightjar.errors import ContractError, NightLocked, NotCommitted, StageError, StorageError
from nightjar.pipeline import NIGHT, RANK
from nightjar.sources import RawFile
from nightjar.stage import Night, Raw, Stage, Window, require_rows, run_stage
from nightjar.tables import EVENTS, INTERACTIONS, ITEMS, POPULARITY, TRUTH, USERS
from tests.unit.committed_rows import commit
from tests.world import DS, event, night

LOCAL = Stage("weigh_events", "local", reads=(Window(EVENTS), Raw("users_raw")), writes=(TRUTH, POPULARITY))
"""A stage of one's own under a name that has a section."""


class Spy:
    """The function of LOCAL: writes one row to each table and remembers what it was called with."""

    def __init__(self, fault: Exception | None = None, weight: int = 1) -> None:
        self.nights: list[Night] = []
        self._fault, self._weight = fault, weight

    def __call__(self, night: Night, params: Section, resources: Section) -> dict[str, Any]:
        del params, resources
        self.nights.append(night)
        truth = pa.table({"user_id": ["u"], "item_num": [self._weight], "new_scene": [False]})
        night.wrote(TRUTH, [night.write(TRUTH).write_part(0, [truth])])
        if self._fault:
            raise self._fault
        popular = pa.table({"segment": [""], "rank": [1], "item_num": [3], "weight": [self._weight]})
        night.wrote(POPULARITY, [night.write(POPULARITY).write_part(0, [popular])])
        return {"weight": self._weight}


@pytest.fixture
def tonight(tmp_path: Path) -> Night:
    found = night(tmp_path)
    _events(found)
    return found


def _events(night: Night, ds: date | None = None, fingerprint: str = "planted", n: int = 1) -> None:
    rows = [event("u", f"i{number}", datetime(2025, 3, 1, tzinfo=UTC)) for number in range(n)]
    ordered = sorted(rows, key=lambda row: str(row["event_id"]))
    commit(night.store, EVENTS, ds or night.ds, [pa.Table.from_pylist(ordered, EVENTS.schema)], fingerprint)


def _raw(modified_ns: int = 1) -> dict[str, dict[str, tuple[RawFile, ...]]]:
    return {"users_raw": {"users0": (RawFile("/x/users.csv", "users.csv", 9, modified_ns),)}}


def _with(night: Night, **sections: dict[str, Any]) -> Night:
    changed = {
        name: getattr(night.config, name).model_copy(update=update) for name, update in sections.items()
    }
    return replace(night, config=night.config.model_copy(update=changed))


def _reruns(first: Night, second: Night, stage: Stage = LOCAL, raw: Any = None) -> bool:
    """Whether a second night runs the stage that the first one ran; the function's calls must agree."""
    run_stage(LOCAL, Spy(), first, _raw())
    spy = Spy(weight=2)
    result = run_stage(stage, spy, second, raw or _raw())
    assert result.ran == bool(spy.nights)
    return result.ran


def test_a_stage_that_is_up_to_date_is_not_called(tonight: Night) -> None:
    ran = run_stage(LOCAL, Spy(), tonight, _raw())
    spy = Spy()
    again = run_stage(LOCAL, spy, tonight, _raw())
    assert (ran.ran, again.ran, spy.nights) == (True, False, [])
    assert again.fingerprint == ran.fingerprint
    assert again.metrics == ran.metrics == {"weight": 1}


def test_what_changes_the_result_runs_it_again(tonight: Night) -> None:
    assert _reruns(tonight, _with(tonight, weigh_events={"half_life_days": 61.0}))
    assert not _reruns(tonight, tonight)


def test_a_later_version_runs_it_again(tonight: Night) -> None:
    assert _reruns(tonight, tonight, replace(LOCAL, version=2))


def test_a_touched_raw_file_runs_it_again(tonight: Night) -> None:
    assert _reruns(tonight, tonight, raw=_raw(modified_ns=2))


def test_another_commit_of_an_input_runs_it_again(tonight: Night) -> None:
    run_stage(LOCAL, Spy(), tonight, _raw())
    _events(tonight, fingerprint="another")
    assert _reruns(tonight, tonight) is False  # the first run inside took the new input
    _events(tonight, fingerprint="planted")
    spy = Spy()
    assert run_stage(LOCAL, spy, tonight, _raw()).ran


def test_a_section_named_in_also_runs_it_again(tonight: Night) -> None:
    other = _with(tonight, rank={"k": 7})
    assert not _reruns(tonight, other)
    assert _reruns(tonight, other, replace(LOCAL, also=("rank",)))


def test_resources_and_other_sections_do_not(tonight: Night) -> None:
    more = tonight.config.weigh_events.resources.model_copy(update={"parts": 7, "max_attempts": 9})
    changed = _with(tonight, weigh_events={"resources": more}, retrieve={"k_prime": 99})
    assert not _reruns(tonight, changed)


def test_another_root_path_does_not_change_the_fingerprint(tonight: Night, tmp_path: Path) -> None:
    elsewhere = night(tmp_path / "elsewhere")
    _events(elsewhere)
    prints = {run_stage(LOCAL, Spy(), one, _raw()).fingerprint for one in (tonight, elsewhere)}
    assert len(prints) == 1


def test_one_output_alone_is_not_up_to_date(tonight: Night) -> None:
    """Killed between the commits of its two tables: the next run commits both."""
    run_stage(LOCAL, Spy(), tonight, _raw())
    tonight.store.drop(f"{POPULARITY.name}/ds={tonight.ds}/MANIFEST.json")
    spy = Spy()
    assert run_stage(LOCAL, spy, tonight, _raw()).ran
    assert tonight.dataset(POPULARITY).committed() is not None


@pytest.mark.parametrize(
    ("stage", "table", "writer"), [(RANK, "candidates", "retrieve"), (LOCAL, "events", "clean_events")]
)
def test_a_missing_input_names_what_to_run(tmp_path: Path, stage: Stage, table: str, writer: str) -> None:
    spy = Spy()
    with pytest.raises(NotCommitted) as missing:
        run_stage(stage, spy, night(tmp_path))
    for word in (table, str(DS), str(tmp_path), f"`nightjar {writer} --ds {DS}`"):
        assert word in str(missing.value)
    assert spy.nights == []


@pytest.mark.parametrize("fault", [StageError("mine"), RuntimeError("odd"), MemoryError()])
def test_a_failure_leaves_the_commit_before_it_live(tonight: Night, fault: Exception) -> None:
    run_stage(LOCAL, Spy(), tonight, _raw())
    before = tonight.dataset(TRUTH).require("x").manifest
    changed = _with(tonight, weigh_events={"half_life_days": 1.0})
    with pytest.raises(StageError if isinstance(fault, MemoryError) else type(fault)) as raised:
        run_stage(LOCAL, Spy(fault, weight=5), changed, _raw())
    if isinstance(fault, MemoryError):
        assert "out of memory" in str(raised.value)
    assert tonight.dataset(TRUTH).require("x").manifest == before
    row = {"user_id": "u", "item_num": 1, "new_scene": False}
    assert tonight.dataset(TRUTH).require("x").read().to_pylist() == [row]
    assert run_stage(LOCAL, Spy(weight=5), changed, _raw()).ran  # its lock is gone


def test_an_output_that_was_not_written_is_refused(tonight: Night) -> None:
    def forgets(night: Night, params: Section, resources: Section) -> dict[str, Any]:
        del params, resources
        table = pa.table({"user_id": ["u"], "item_num": [1], "new_scene": [False]})
        night.wrote(TRUTH, [night.write(TRUTH).write_part(0, [table])])
        return {}

    with pytest.raises(ContractError, match="weigh_events did not write popularity"):
        run_stage(LOCAL, forgets, tonight, _raw())
    assert tonight.dataset(TRUTH).committed() is None


def test_the_manifest_says_what_made_it(tonight: Night) -> None:
    result = run_stage(LOCAL, Spy(), tonight, _raw())
    manifest = tonight.dataset(TRUTH).require("x").manifest
    assert (manifest.stage, manifest.ds, manifest.rows) == ("weigh_events", str(DS), 1)
    assert manifest.fingerprint == result.fingerprint
    assert set(manifest.inputs) == {f"events@{DS}", "users_raw/users0"}
    assert manifest.params["weigh_events"] == tonight.config.weigh_events.identity()
    assert {"version", "pyarrow", "numpy"} <= set(manifest.code)


def test_nights_end_where_the_next_begins(tonight: Night) -> None:
    assert tonight.end == datetime(2025, 4, 1, tzinfo=UTC)


DAILY = {"history": "daily", "window_days": 4}


def _window_dates(config: Night) -> list[str]:
    spy = Spy()
    run_stage(LOCAL, spy, config, _raw())
    (seen,) = spy.nights
    assert seen.read(EVENTS).manifest.ds == str(DS)
    return [one.manifest.ds for one in seen.window(EVENTS)]


@pytest.mark.parametrize("history", ["daily", "snapshot"])
def test_a_window_holds_the_dates_that_count(tmp_path: Path, history: str) -> None:
    """Days 0, 1, 3, 4 and 9 back and one ahead are there; the window is four days, day 2 has a crash."""
    tonight = night(tmp_path, clean_events={**DAILY, "history": history})
    for back in (0, 1, 3, 4, 9, -1):
        _events(tonight, DS - timedelta(days=back))
    tonight.store.put(f"events/ds={DS - timedelta(days=2)}/half/part-00000.parquet", b"")
    wanted = [3, 1, 0] if history == "daily" else [0]
    assert _window_dates(tonight) == [str(DS - timedelta(days=back)) for back in wanted]


def test_an_earlier_day_that_changes_runs_the_window_again(tmp_path: Path) -> None:
    tonight, yesterday = night(tmp_path, clean_events=DAILY), DS - timedelta(days=1)
    for ds in (DS, yesterday):
        _events(tonight, ds)
    assert not _reruns(tonight, tonight)
    _events(tonight, yesterday, fingerprint="cleaned again")
    assert run_stage(LOCAL, Spy(), tonight, _raw()).ran


def test_a_window_needs_the_night_itself(tmp_path: Path) -> None:
    tonight = night(tmp_path, clean_events=DAILY)
    _events(tonight, DS - timedelta(days=1))
    with pytest.raises(NotCommitted, match=f"events has no commit for {DS}"):
        run_stage(LOCAL, Spy(), tonight, _raw())


def test_an_empty_input_can_be_refused(tonight: Night) -> None:
    commit(tonight.store, ITEMS, DS, [ITEMS.schema.empty_table()])
    with pytest.raises(NotCommitted, match=f"items of {DS} has no rows, so there is nothing"):
        require_rows(tonight.dataset(ITEMS).require("build_items"), "so there is nothing to do")
    require_rows(tonight.dataset(EVENTS).require("clean_events"), "it has")


HOLD = """
import sys, time
from pathlib import Path
from tests.unit.test_stage import LOCAL, Spy, _raw
from tests.world import night
from nightjar.stage import run_stage

class Slow(Spy):
    def __call__(self, night, params, resources):
        Path(sys.argv[2]).touch()
        time.sleep(120)

run_stage(LOCAL, Slow(), night(sys.argv[1]), _raw())
"""


@pytest.fixture
def holder(tonight: Night, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process inside the stage."""
    started = tmp_path / "started"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tonight.config.root, str(started)], env=_environment()
    )
    for _ in range(600):
        if started.exists():
            break
        assert process.poll() is None
        time.sleep(0.1)
    yield process
    process.kill()
    process.wait()


def _environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "lib"), str(root)])}


def test_a_second_process_is_locked_out_until_the_first_is_killed(
    tonight: Night, holder: subprocess.Popen[bytes]
) -> None:
    spy = Spy()
    with pytest.raises(NightLocked, match=f"weigh_events {DS} is being run by another process under"):
        run_stage(LOCAL, spy, tonight, _raw())
    assert spy.nights == []
    other_date = replace(tonight, ds=DS + timedelta(days=1))
    _events(other_date)
    assert run_stage(LOCAL, Spy(), other_date, _raw()).ran  # another date is another lock
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert run_stage(LOCAL, spy, tonight, _raw()).ran


def test_a_lock_that_cannot_be_made_is_one_sentence(tonight: Night) -> None:
    tonight.store.put("_locks", b"")  # a file where the folder should be
    with pytest.raises(StorageError, match="_locks"):
        run_stage(LOCAL, Spy(), tonight, _raw())


def test_object_stores_have_no_lock_and_work(tmp_path: Path) -> None:
    tonight = night(f"memory://stage{os.getpid()}/{tmp_path.name}")
    _events(tonight)
    results = [run_stage(LOCAL, Spy(), tonight, _raw()).ran for _ in range(2)]
    assert results == [True, False]


@pytest.mark.parametrize("stage", NIGHT, ids=lambda stage: str(stage.name))
def test_every_field_of_a_section_is_a_param_or_a_resource(tonight: Night, stage: Stage) -> None:
    """Nothing that the configuration of a stage says is forgotten by its fingerprint."""
    section = getattr(tonight.config, stage.name)
    resources = {
        name for name, field in type(section).model_fields.items() if field.json_schema_extra == RESOURCE
    }
    assert set(section.identity()) | resources == set(type(section).model_fields)
    assert "resources" in resources


def test_the_declared_tables_are_read_by_name(tonight: Night) -> None:
    spy = Spy()
    run_stage(LOCAL, spy, tonight, _raw())
    (seen,) = spy.nights
    assert seen.raw["users_raw"]["users0"][0].name == "users.csv"
    for table in (USERS, INTERACTIONS):
        with pytest.raises(KeyError):
            seen.read(table)  # not declared, so it would not be in the fingerprint
