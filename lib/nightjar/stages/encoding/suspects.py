"""Which texts of a part kill the encoder: the part is halved until the guilty ones stand alone.

Everything is decided here, on the driver; probes encode some texts of a part and write nothing. At the end
the part is encoded once more without the guilty, so what is written depends on them alone and not on the way
they were found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from nightjar.errors import PartFailed
from nightjar.stages.encoding.parts import EncodeTask

if TYPE_CHECKING:
    from nightjar.engines.actors import Failure

KILLS, FAILS = "kills_encoder", "fails_in_encoder"
MOST_GUILTY = 8
"""Guilty texts of one part; with more of them it is the model or the machine that is at fault."""


@dataclass
class _Search:
    """A part under suspicion, how many probes are out, and the texts found guilty: (place, reason)."""

    whole: EncodeTask
    out: int = 0
    guilty: list[tuple[int, str]] = field(default_factory=list)


class Suspects:
    """Takes failing tasks off the pool and puts probes in their place; `add` puts tasks in the queue."""

    def __init__(self, max_attempts: int, add: Callable[[Sequence[EncodeTask]], None]) -> None:
        self._max_attempts = max_attempts
        self._add = add
        self._searches: dict[tuple[str, int], _Search] = {}

    def failed(self, task: EncodeTask, failure: Failure) -> bool:
        """Whether the failure is taken care of here; else it counts as a try like any other.

        A whole part and a single text are tried `max_attempts` times before they are suspected or found
        guilty: a node that goes down must convict nobody. Raises PartFailed for too many guilty texts.
        """
        last_try = failure.tries >= self._max_attempts
        if task.span is None:
            if not last_try or task.searched or not task.n_texts:
                return False
            self._search(task)
            return True
        first, end = task.span
        if end == first or (end - first == 1 and not last_try):
            return False  # without any text: it is not a text that is at fault
        search = self._searches[task.kind, task.number]
        if end - first == 1:
            self._convict(search, first, failure)
        else:
            middle = (first + end) // 2
            self._probe(search, (first, middle), (middle, end))
        self._came_back(search)
        return True

    def passed(self, probe: EncodeTask) -> None:
        """A probe went through."""
        search = self._searches[probe.kind, probe.number]
        if probe.span == (0, 0):
            self._probe(search, (0, search.whole.n_texts))
        self._came_back(search)

    def _search(self, whole: EncodeTask) -> None:
        search = self._searches[whole.kind, whole.number] = _Search(whole)
        self._probe(search, (0, 0))

    def _probe(self, search: _Search, *spans: tuple[int, int]) -> None:
        search.out += len(spans)
        self._add([replace(search.whole, span=span) for span in spans])

    def _convict(self, search: _Search, place: int, failure: Failure) -> None:
        search.guilty.append((place, KILLS if failure.died else FAILS))
        if len(search.guilty) > MOST_GUILTY:
            raise PartFailed(
                f"more than {MOST_GUILTY} texts of part {search.whole} fail one by one, last by "
                f"{failure.reason}; look at the model, its libraries and the memory of an actor, then run "
                "the same command again"
            )

    def _came_back(self, search: _Search) -> None:
        search.out -= 1
        if not search.out:
            self._add([replace(search.whole, refused=tuple(sorted(search.guilty)), searched=True)])
