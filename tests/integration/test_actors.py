"""A pool whose actors die, raise and dawdle: every task ends once, and a finite number of tries later."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from nightjar.config import RayConfig, Resources
from nightjar.engines import actors
from nightjar.errors import ContractError, PartFailed

TWO = Resources(max_attempts=2)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    actors.connect(RayConfig(num_cpus=2, object_store_bytes=80_000_000))
    yield
    ray.shutdown()


@dataclass(frozen=True)
class Noted:
    """Work that notes every call as a file and then does what `act` says for the try at hand."""

    folder: Path
    act: Callable[[Any, int], Any]

    def __call__(self) -> Callable[[Any], Any]:
        return self.run

    def run(self, task: Any) -> Any:
        tries = len(list(self.folder.glob(f"{task}-*")))
        (self.folder / f"{task}-{tries}").write_text(str(os.getpid()))
        return self.act(task, tries)

    def calls(self) -> dict[str, int]:
        return Counter(path.name.split("-")[0] for path in self.folder.iterdir())


def die_on_three(task: int, tries: int) -> str:
    if task == 3:
        os._exit(1)
    return f"{task} after {tries}"


def test_what_keeps_killing_is_handed_over_and_the_rest_goes_on(tmp_path: Path) -> None:
    """The owner of the queue may put other tasks in place of a deadly one while the pool works."""
    told: list[tuple[Any, actors.Failure]] = []

    def instead(task: Any, failure: actors.Failure) -> bool:
        told.append((task, failure))
        if failure.tries == 2:
            pool.add([30, 31])
        return failure.tries == 2

    work = Noted(tmp_path, die_on_three)
    pool: actors.Pool[str] = actors.Pool(work, Resources(max_attempts=9), 2, on_failure=instead)
    done = dict(pool.map([3, 4, 5]))
    assert done == {task: f"{task} after 0" for task in (4, 5, 30, 31)}
    assert [(task, one.tries, one.died) for task, one in told] == [(3, 1, True), (3, 2, True)]
    assert work.calls() == {"3": 2, "4": 1, "5": 1, "30": 1, "31": 1}


def echo(task: int, _tries: int) -> int:
    return task


def name_yourself(_task: int, _tries: int) -> int:
    return os.getpid()


def test_tasks_added_for_a_result_are_done_too(tmp_path: Path) -> None:
    pool: actors.Pool[int] = actors.Pool(Noted(tmp_path, echo), TWO, 2)
    seen = []
    for task, _ in pool.map([4]):
        seen.append(task)
        if task:
            pool.add([task - 1])
    assert seen == [4, 3, 2, 1, 0]


def dawdle_once(task: int, tries: int) -> tuple[int, int]:
    time.sleep(300 if (task, tries) == (2, 0) else 0.05)
    return task, tries


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "REISSUE_SECONDS", 1.0)


@pytest.mark.usefixtures("impatient")
def test_the_slowest_is_given_to_an_idle_actor_and_the_first_to_finish_wins(tmp_path: Path) -> None:
    started = time.monotonic()
    pool: actors.Pool[tuple[int, int]] = actors.Pool(Noted(tmp_path, dawdle_once), TWO, 2, reissue=True)
    done = list(pool.map([1, 2, 3, 4]))
    assert sorted(done) == [(1, (1, 0)), (2, (2, 1)), (3, (3, 0)), (4, (4, 0))]
    assert pool.reissued == [2]
    assert time.monotonic() - started < 250
    loser = int((tmp_path / "2-0").read_text())
    while running(loser):
        assert time.monotonic() - started < 250
        time.sleep(0.05)


def running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def dawdle_then_die(task: int, tries: int) -> int:
    if task == 2 and tries == 1:
        os._exit(1)
    time.sleep(4 if task == 2 else 0.05)
    return tries


@pytest.mark.usefixtures("impatient")
def test_a_copy_that_dies_costs_no_try_and_the_first_goes_on(tmp_path: Path) -> None:
    work = Noted(tmp_path, dawdle_then_die)
    pool: actors.Pool[int] = actors.Pool(work, Resources(max_attempts=1), 2, reissue=True)
    assert dict(pool.map([1, 2, 3])) == {1: 0, 2: 0, 3: 0}
    assert work.calls()["2"] >= 2


class Meeting:
    """Tasks 1 and 2 end when both have begun."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, _task: int, _tries: int) -> int:
        until = time.monotonic() + 60
        while len(list(self.folder.iterdir())) < 2:
            assert time.monotonic() < until
            time.sleep(0.02)
        return os.getpid()


def test_an_actor_may_have_two_tasks_at_a_time(tmp_path: Path) -> None:
    pool: actors.Pool[int] = actors.Pool(Noted(tmp_path, Meeting(tmp_path)), TWO, 1, depth=2)
    pids = dict(pool.map([1, 2]))
    assert set(pids) == {1, 2}
    assert pids[1] == pids[2]


def die_on_three_later(task: int, _tries: int) -> int:
    time.sleep(0.5)
    if task == 3:
        os._exit(1)
    return task


def test_who_dies_beside_a_deadly_task_is_not_blamed(tmp_path: Path) -> None:
    """They are tried again, each with an actor for itself, and only the deadly one dies again."""
    told: list[tuple[int, int]] = []

    def take_over(task: int, failure: actors.Failure) -> bool:
        told.append((task, failure.tries))
        return failure.tries == 3

    work = Noted(tmp_path, die_on_three_later)
    pool: actors.Pool[int] = actors.Pool(work, Resources(max_attempts=9), 1, take_over, depth=2)
    assert dict(pool.map([3, 4, 5, 6])) == {4: 4, 5: 5, 6: 6}
    assert work.calls()["3"] == 3
    assert max(tries for task, tries in told if task == 3) == 3
    assert all(tries == 1 for task, tries in told if task != 3)


def test_what_must_be_alone_is(tmp_path: Path) -> None:
    work = Noted(tmp_path, die_on_three_later)
    pool: actors.Pool[int] = actors.Pool(work, TWO, 1, lambda *_: True, depth=2, alone=lambda task: task == 3)
    assert dict(pool.map([4, 3, 5])) == {4: 4, 5: 5}
    assert work.calls() == {"3": 1, "4": 1, "5": 1}


def raise_it(task: int, tries: int) -> None:
    raise ContractError("rows do not fit") if task == 1 else RuntimeError(f"try {tries}")


@pytest.mark.parametrize(
    ("task", "calls", "error", "says"),
    [
        (1, 1, ContractError, "rows do not fit"),
        (7, 2, PartFailed, "part 7 failed 2 times.*RuntimeError: try 1"),
    ],
)
def test_errors_end_the_map(tmp_path: Path, task: int, calls: int, error: type[Exception], says: str) -> None:
    work = Noted(tmp_path, raise_it)
    with pytest.raises(error, match=says):
        list(actors.Pool(work, TWO, 2).map([task]))
    assert work.calls() == {str(task): calls}


def test_idle_actors_that_died_cost_a_task_one_try(tmp_path: Path) -> None:
    """As when a node goes down: its idle actors are dead too, and a task is not to meet them one by one."""
    pids, pool = {}, actors.Pool(Noted(tmp_path, name_yourself), TWO, 2)
    for task, pid in pool.map([0, 1]):
        pids[task] = pid
        if len(pids) == 2:
            assert len(pool._idle) == 2
            for actor in pool._idle:
                ray.kill(actor)
            time.sleep(0.5)
            pool.add([2])
    assert pids[2] not in (pids[0], pids[1])
