"""Ray: joining or starting a cluster, and a resumable map over parts on a pool of actors.

The queue belongs to the driver, and only part numbers and small results travel through Ray: texts and vectors
go from file to file, so nothing spills. An actor that dies is replaced and only its part is tried again, a
bounded number of times; finished parts stay finished. A part that runs far longer than the others at the end
may be given to an idle actor too.
"""

from __future__ import annotations

import math
import os
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from nightjar.config import RayConfig, Resources
from nightjar.errors import NightjarError, PartFailed, StageError

Result = TypeVar("Result")
Task = TypeVar("Task", bound=Hashable)
Work = Callable[[Any], Result]
"""What an actor holds: takes a part number, writes the part, returns a small result."""
REISSUE_SECONDS, REISSUE_TIMES = 15.0, 2.0
"""A task is late when it runs for more than this many seconds, which an actor takes to load a model, and for
this many times the median."""
LOOK_SECONDS = 1.0
"""How often idle actors look for one that is late."""
STOP_SECONDS = 10.0
"""How long killed actors may take to be gone."""


def connect(config: RayConfig) -> None:
    """Joins the cluster of `ray.address` or RAY_ADDRESS, or starts one on this machine; once a process.

    Inside a Ray job that is the job's own cluster, whatever the configuration says.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray 2.60 would hide GPUs from tasks that ask for none by setting an empty variable; torch warns on it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = _address(config)
    if address:
        _attempt(lambda: ray.init(address=address, **QUIET), 1, f"at {address}")
        return
    # Ray's default of 15 steps nicer starves the actors beside anything else that runs here.
    os.environ.setdefault("RAY_worker_niceness", "0")
    own: dict[str, Any] = {
        "num_cpus": config.num_cpus or os.cpu_count(),
        "object_store_memory": config.object_store_bytes,
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",  # Ray would listen on the network's address
    }
    _attempt(lambda: ray.init(**own, **QUIET), STARTS, "on this machine")


STARTS = 2
"""Tries of a cluster of our own: Ray gives its parts 15 s to come up, which a busy machine may miss once."""
QUIET: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}


def _attempt(init: Callable[[], Any], times: int, where: str) -> None:
    for left in range(times - 1, -1, -1):
        try:
            init()
            return
        except Exception as error:  # Ray 2.60 raises a plain Exception where a part of it does not come up
            ray.shutdown()
            if not left:
                raise StageError(
                    f"Ray {where} cannot be reached or started ({' '.join(str(error).split())[:300]}); check "
                    "the address and the token (`nightjar doctor`)"
                ) from None


def _address(config: RayConfig) -> str | None:
    """Which cluster to join, or None to start one."""
    given = os.environ.get("RAY_ADDRESS")
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:  # set by Ray, beside RAY_ADDRESS, in a submitted job
        return given
    address = config.address or given
    if address and address.startswith(("http://", "https://")):
        raise StageError(
            f"{address} is where Ray jobs are submitted, which spark-submit.sh does; to join it from "
            "here name its head as host:6379"
        )
    return address


def share(value: Any) -> Any:
    """Puts a read-only value into Ray's shared memory once for all actors; resolve it with `shared`."""
    return ray.put(value)


def shared(reference: Any) -> Any:
    """The value of a reference made by `share`; arrays come without a copy."""
    return ray.get(reference) if isinstance(reference, ray.ObjectRef) else reference


def pool_size(resources: Resources, n_parts: int) -> int:
    """How many actors to start: as told, else as many as the cluster's cores or GPUs carry."""
    if resources.actors is not None:
        return max(1, min(resources.actors, n_parts))
    have = ray.cluster_resources()
    fits = math.inf
    if resources.num_cpus:
        fits = min(fits, have.get("CPU", 1) // resources.num_cpus)
    if resources.num_gpus:
        fits = min(fits, have.get("GPU", 0) // resources.num_gpus)
        if fits < 1:
            raise StageError(
                f"an actor asks for {resources.num_gpus} GPUs, the Ray cluster has {have.get('GPU', 0):.0f}; "
                "set num_gpus: 0 to run on CPUs"
            )
    return max(1, int(min(fits, n_parts)))


def _cores_of_a_node() -> float:
    """Of the largest node: an actor that asks for more would wait for ever. A head without cores bounds
    nothing, since an autoscaler brings nodes for what is asked."""
    cores = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return max(cores, default=0.0) or math.inf


@ray.remote(max_restarts=0, max_task_retries=0)
class _Host:
    """One actor: makes its work with the first part, so that what `make` raises comes back as it is."""

    def __init__(self, make: Callable[[], Work[Any]]) -> None:
        self._make = make
        self._work: Work[Any] | None = None
        self._making = threading.Lock()

    def ready(self) -> bool:
        """Answers while the actor lives."""
        return True

    def run(self, task: Any) -> Any:
        with self._making:
            if self._work is None:
                self._work = self._make()
        return self._work(task)


@dataclass
class _Running:
    """A task that an actor has now, since when by the clock of `time.monotonic`."""

    actor: Any
    task: Any
    since: float


@dataclass(frozen=True)
class Failure:
    """How often a task has failed by now, whether its process died this time, and what was said."""

    tries: int
    died: bool
    reason: str


OnFailure = Callable[[Any, Failure], bool]
"""(task, failure) -> True where the task is taken care of otherwise."""


@dataclass
class Pool(Generic[Result]):
    """A pool of actors working off tasks: part numbers, or anything that hashes and pickles.

    make: called once in each actor; must pickle (a frozen dataclass with __call__ does).
    on_failure: asked first when a task died with its actor or raised; what it takes over counts as done.
    reissue: once nothing waits, idle actors get copies of the tasks that run longest. The first to finish
    wins and the others are killed, so a task must be one that may be done twice.
    depth: tasks that an actor has at a time, in threads of its own: one reads or writes while another
    computes. A task that failed before, or for which `alone` is true, has its actor for itself, so that it
    alone is to blame for a death.
    """

    make: Callable[[], Work[Result]]
    resources: Resources
    n_actors: int
    on_failure: OnFailure | None = None
    reissue: bool = False
    depth: int = 1
    alone: Callable[[Any], bool] = field(default=lambda _task: False)
    reissued: list[Any] = field(default_factory=list)
    _waiting: deque[Any] = field(default_factory=deque)
    _idle: list[Any] = field(default_factory=list)
    _busy: dict[Any, _Running] = field(default_factory=dict)
    _open: set[Any] = field(default_factory=set)
    _tries: dict[Any, int] = field(default_factory=dict)
    _seconds: list[float] = field(default_factory=list)
    _dead: list[Any] = field(default_factory=list)

    def map(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """Yields (task, result) as tasks finish, in no particular order.

        Raises PartFailed after `max_attempts` tries of a task, and at once what a task raised on purpose
        (a NightjarError): trying again would not mend bad data.
        """
        self.add(tasks)
        try:
            while self._open:
                self._hand_out()
                finished, _ = ray.wait(list(self._busy), num_returns=1, timeout=self._patience())
                for reference in finished:
                    yield from self._finish(reference)
        finally:
            self._stop()

    def add(self, tasks: Iterable[Any]) -> None:
        """Puts tasks in the queue, also while `map` goes on."""
        for task in tasks:
            self._waiting.append(task)
            self._open.add(task)

    def _hand_out(self) -> None:
        while self._waiting and (actor := self._free_for(self._waiting[0])) is not None:
            self._give(self._waiting.popleft(), actor)
        if self.reissue and self._idle and (slowest := self._slowest()) is not None:
            self.reissued.append(slowest)
            self._give(slowest, self._idle.pop())

    def _free_for(self, task: Any) -> Any | None:
        """An actor that may have the task now; None where it has to wait."""
        if self._idle:
            return self._idle.pop()
        tasks: dict[Any, list[Any]] = {}
        for running in self._busy.values():
            if running.actor not in self._dead:
                tasks.setdefault(running.actor, []).append(running.task)
        if len(tasks) < self.n_actors:
            return self._start()
        if self._is_alone(task):
            return None
        shared = [a for a, given in tasks.items() if not any(map(self._is_alone, given))]
        freest = min(shared, key=lambda actor: len(tasks[actor]), default=None)
        return freest if freest is not None and len(tasks[freest]) < self.depth else None

    def _is_alone(self, task: Any) -> bool:
        return task in self._tries or self.alone(task)

    def _give(self, task: Any, actor: Any) -> None:
        self._busy[actor.run.remote(task)] = _Running(actor, task, time.monotonic())

    def _patience(self) -> float | None:
        """Seconds to wait for a task before looking again for one that takes too long."""
        return LOOK_SECONDS if self.reissue and self._idle else None

    def _slowest(self) -> Any | None:
        """The task that runs longest, if that is far longer than usual and it has no copy yet."""
        copies = Counter(running.task for running in self._busy.values())
        alone = [one for one in self._busy.values() if copies[one.task] == 1 and one.task in self._open]
        if not alone:
            return None
        oldest = min(alone, key=lambda running: running.since)
        usual = statistics.median(self._seconds) if self._seconds else math.inf
        late = time.monotonic() - oldest.since > max(REISSUE_SECONDS, REISSUE_TIMES * usual)
        return oldest.task if late else None

    def _finish(self, reference: Any) -> Iterator[tuple[Any, Result]]:
        running = self._busy.pop(reference)
        try:
            result = ray.get(reference)
        except RayError as error:
            if isinstance(error, RayTaskError):  # only the task failed
                self._rest(running.actor)
            else:
                self._dead.append(running.actor)
                self._drop_dead()
            self._failed(running.task, error)
            return
        self._rest(running.actor)
        if running.task in self._open:
            self._open.remove(running.task)
            self._seconds.append(time.monotonic() - running.since)
            yield running.task, result

    def _rest(self, actor: Any) -> None:
        """Counts an actor as idle, unless it has another task."""
        if all(running.actor != actor for running in self._busy.values()):
            self._idle.append(actor)

    def _drop_dead(self) -> None:
        """Forgets idle actors that died too, with their node say: each would cost a task one of its tries."""
        asked = {actor.ready.remote(): actor for actor in self._idle}
        answered = ray.wait(list(asked), num_returns=len(asked), timeout=STOP_SECONDS)[0] if asked else []
        for reference in answered:
            try:
                ray.get(reference)
            except RayActorError:
                self._idle.remove(asked[reference])

    def _start(self) -> Any:
        options: dict[str, Any] = {"num_cpus": min(self.resources.num_cpus, _cores_of_a_node())}
        options["num_gpus"] = self.resources.num_gpus
        options["max_concurrency"] = self.depth
        return _Host.options(**options).remote(self.make)  # type: ignore[attr-defined]

    def _failed(self, task: Any, error: RayError) -> None:
        """Puts a task back in the queue; raises when it was the last try or when the task said itself
        that it cannot be done."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, NightjarError):
            raise type(cause)(str(cause)) from None
        if task not in self._open or any(running.task == task for running in self._busy.values()):
            return  # a copy is done, or still at it
        self._tries[task] = tries = self._tries.get(task, 0) + 1
        reason = f"{type(cause).__name__}: {' '.join(str(cause).split())[:400]}"
        failure = Failure(tries, not isinstance(error, RayTaskError), reason)
        if self.on_failure is not None and self.on_failure(task, failure):
            self._open.discard(task)
        elif tries < self.resources.max_attempts:
            self._waiting.append(task)
        else:
            raise PartFailed(
                f"part {task} failed {tries} times, last by {reason}; "
                "finished parts are kept, mend the cause and run the same command again"
            ) from None

    def _stop(self) -> None:
        for actor in [*self._idle, *(running.actor for running in self._busy.values())]:
            ray.kill(actor)
        if self._busy:  # a copy that lost must not go on writing
            ray.wait(list(self._busy), num_returns=len(self._busy), timeout=STOP_SECONDS)
        self._idle, self._busy, self._open, self._dead = [], {}, set(), []
        self._waiting.clear()
