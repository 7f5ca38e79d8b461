"""Loops in this process in place of the engines, for nights too small to be worth starting one.

What a stage gives its engine is run as it is, with the same bytes as outcome; benchmarks and tests use it.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any
from unittest import mock

from nightjar.engines import actors, spark
from nightjar.store import FileEntry


@contextlib.contextmanager
def loops_for_engines() -> Iterator[None]:
    """Ray's pool and Spark's tasks stood in for by loops in this process."""
    stand_ins = {"session": lambda _: None, "map_parts": _each_part}
    with loops_for_actors(), mock.patch.multiple(spark, **stand_ins):
        yield


@contextlib.contextmanager
def loops_for_actors() -> Iterator[None]:
    """Ray's pool alone stood in for by a loop."""
    stand_ins = {"connect": lambda _: None, "Pool": _Loop, "pool_size": lambda *_: 1}
    with mock.patch.multiple(actors, **stand_ins):
        yield


class _Loop:
    """What `actors.Pool` is to its callers; what fails here ends the stage at once."""

    def __init__(self, make: Any, resources: Any, *_: Any, **__: Any) -> None:
        self.make, self.resources = make, resources
        self.reissued: list[Any] = []
        self._waiting = deque[Any]()

    def __class_getitem__(cls, _: Any) -> Any:
        return cls

    def add(self, tasks: Iterable[Any]) -> None:
        self._waiting.extend(tasks)

    def map(self, tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        self.add(tasks)
        work = self.make()
        while self._waiting:
            task = self._waiting.popleft()
            yield task, work(task)


def _each_part(_: Any, task: Any, attempt: Any, n_parts: int) -> tuple[FileEntry, ...]:
    del attempt
    return tuple(task(part) for part in range(n_parts))
