"""Ray: joining or starting a cluster, and a resumable map over parts on a pool of actors.

The queue of parts belongs to the driver, and only part numbers and small results travel through Ray: texts
and vectors go from file to file, so nothing spills. An actor that dies is replaced and only its part is tried
again, a bounded number of times; finished parts stay finished.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from nightjar.config import RayConfig, Resources
from nightjar.errors import NightjarError, PartFailed, StageError

Result = TypeVar("Result")
Work = Callable[[int], Result]
"""What an actor holds: takes a part number, writes the part, returns a small result."""


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


@ray.remote(max_restarts=0, max_task_retries=0)
class _Host:
    """One actor: makes its work with the first part, so that what `make` raises comes back as it is."""

    def __init__(self, make: Callable[[], Work[Any]]) -> None:
        self._make = make
        self._work: Work[Any] | None = None

    def run(self, part: int) -> Any:
        if self._work is None:
            self._work = self._make()
        return self._work(part)


@dataclass
class Pool(Generic[Result]):
    """A pool of actors working off parts.

    make: called once in each actor; must pickle (a frozen dataclass with __call__ does).
    """

    make: Callable[[], Work[Result]]
    resources: Resources
    n_actors: int
    _idle: list[Any] = field(default_factory=list)
    _busy: dict[Any, tuple[Any, int]] = field(default_factory=dict)
    _tries: dict[int, int] = field(default_factory=dict)

    def map(self, parts: Sequence[int]) -> Iterator[tuple[int, Result]]:
        """Yields (part, result) as parts finish, in no particular order.

        Raises PartFailed after `max_attempts` tries of a part, and at once what a part raised on purpose
        (a NightjarError): trying again would not mend bad data.
        """
        waiting = deque(parts)
        self._idle = [self._start() for _ in range(min(self.n_actors, len(waiting)))]
        try:
            while waiting or self._busy:
                while waiting and self._idle:
                    self._give(self._idle.pop(), waiting.popleft())
                finished, _ = ray.wait(list(self._busy), num_returns=1)
                actor, part = self._busy.pop(finished[0])
                try:
                    result = ray.get(finished[0])
                except RayError as error:
                    self._failed(part, error)
                    waiting.append(part)
                    self._idle.append(self._replacement(actor, error))
                    continue
                self._idle.append(actor)
                yield part, result
        finally:
            self._stop()

    def _start(self) -> Any:
        options: dict[str, Any] = {"num_cpus": self.resources.num_cpus, "num_gpus": self.resources.num_gpus}
        return _Host.options(**options).remote(self.make)  # type: ignore[attr-defined]

    def _give(self, actor: Any, part: int) -> None:
        self._busy[actor.run.remote(part)] = (actor, part)

    def _failed(self, part: int, error: RayError) -> None:
        """Counts a try; raises when it was the last one or the part said itself that it cannot be done."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, NightjarError):
            raise type(cause)(str(cause)) from None
        self._tries[part] = self._tries.get(part, 0) + 1
        if self._tries[part] >= self.resources.max_attempts:
            reason = " ".join(str(cause).split())[:400] or type(cause).__name__
            raise PartFailed(
                f"part {part} failed {self._tries[part]} times, last by {type(cause).__name__}: {reason}; "
                "finished parts are kept, mend the cause and run the same command again"
            ) from None

    def _replacement(self, actor: Any, error: RayError) -> Any:
        """A new actor where the old one died; the old one where only its task failed."""
        return self._start() if isinstance(error, RayActorError) else actor

    def _stop(self) -> None:
        for actor in [*self._idle, *(actor for actor, _ in self._busy.values())]:
            ray.kill(actor)
        self._idle, self._busy = [], {}
