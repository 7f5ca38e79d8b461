"""The search for texts that kill the encoder, against a simulated pool that knows who is guilty."""

from __future__ import annotations

import math
from collections import Counter, deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.engines.actors import Failure
from nightjar.errors import PartFailed
from nightjar.stages.encoding.parts import EncodeTask
from nightjar.stages.encoding.suspects import FAILS, KILLS, MOST_GUILTY, Suspects

TRIES = 3


class Pool:
    """Runs tasks one by one; a task fails when it holds a deadly text, or when it is told to stumble."""

    def __init__(self, n_texts: int, deadly: dict[int, bool], stumbles: list[bool] | None = None) -> None:
        self.deadly, self.stumbles = deadly, deque(stumbles or [])
        self.whole = EncodeTask(kind="part", number=4, where=((4, np.arange(n_texts)),))
        self.waiting = deque([self.whole])
        self.tries: Counter[EncodeTask] = Counter()
        self.suspects = Suspects(TRIES, self.waiting.extend)
        self.n_failures = 0

    def run(self) -> EncodeTask | None:
        """The whole task as it went through at last; None where it was given up."""
        while True:
            task = self.waiting.popleft()
            first, end = task.span or (0, task.n_texts)
            refused = {place for place, _ in task.refused}
            fatal = [place for place in self.deadly if first <= place < end and place not in refused]
            if not fatal and not (self.stumbles and self.stumbles.popleft()):
                if task.span is None:
                    assert not self.waiting
                    return task
                self.suspects.passed(task)
                continue
            self.n_failures += 1
            self.tries[task] += 1
            died = self.deadly[fatal[0]] if fatal else True
            if not self.suspects.failed(task, Failure(self.tries[task], died, "it fell over")):
                if self.tries[task] >= TRIES:
                    return None
                self.waiting.append(task)


@given(
    n_texts=st.integers(1, 300),
    deadly=st.dictionaries(st.integers(0, 299), st.booleans(), min_size=1, max_size=MOST_GUILTY),
)
def test_exactly_the_guilty_are_found_in_a_logarithm_of_tries(n_texts: int, deadly: dict[int, bool]) -> None:
    deadly = {place: died for place, died in deadly.items() if place < n_texts}
    pool = Pool(n_texts, deadly)
    done = pool.run()
    assert done is not None
    assert dict(done.refused) == {place: KILLS if died else FAILS for place, died in deadly.items()}
    most = TRIES + len(deadly) * (math.ceil(math.log2(n_texts)) + 1 + TRIES)
    assert pool.n_failures <= most


@given(n_texts=st.integers(1, 60), stumbles=st.lists(st.booleans(), max_size=60))
def test_nodes_that_go_down_at_the_wrong_time_convict_nobody_unless_they_do_it_three_times_over(
    n_texts: int, stumbles: list[bool]
) -> None:
    """A text is convicted only by TRIES failures of its own; without them the whole part must go through."""
    pool = Pool(n_texts, {}, stumbles)
    done = pool.run()
    alone = {
        task.span[0]: n for task, n in pool.tries.items() if task.span and task.span[1] - task.span[0] == 1
    }
    guilty = {place for place, n in alone.items() if n >= TRIES}
    assert done is None or {place for place, _ in done.refused} == guilty


def test_an_encoder_that_dies_without_any_text_convicts_none() -> None:
    pool = Pool(40, {}, [True] * 1000)
    assert pool.run() is None
    assert all(task.span in (None, (0, 0)) for task in pool.tries)


def test_too_many_guilty_texts_are_not_the_texts_fault() -> None:
    with pytest.raises(
        PartFailed, match=r"more than 8 texts of part 4 fail one by one, last by it fell over"
    ):
        Pool(100, dict.fromkeys(range(100), True)).run()
