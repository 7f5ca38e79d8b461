"""Progress: what is said where there is no terminal, and that a bar never outlives its block."""

from __future__ import annotations

import contextlib
import io

import pytest

from nightjar import progress
from nightjar.progress import Report


class Clock:
    """Seconds that pass only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def _work(report: Report, clock: Clock, seconds: float, parts: int = 6) -> None:
    with report.task("encode", parts) as task:
        task.started = task._said = clock.now
        for _ in range(parts):
            clock.now += seconds
            task.advance(1, 50, "items")


def test_slow_work_says_a_line_now_and_then(clock: Clock) -> None:
    stream = io.StringIO()
    _work(Report(stream), clock, seconds=6.0)
    assert stream.getvalue().splitlines() == [
        "encode: 2/6 parts, 8 items/s, 24 s left",
        "encode: 4/6 parts, 8 items/s, 12 s left",
        "encode: 6/6 parts, 8 items/s",
    ]


def test_a_note_stands_behind_the_rate(clock: Clock) -> None:
    stream = io.StringIO()
    with Report(stream).task("encode", 4, "texts") as task:
        task.started = task._said = clock.now
        clock.now += 20
        task.note = "7 tokens/s"
        task.advance(1, 50, "items")
    assert stream.getvalue() == "encode: 1/4 texts, 2 items/s, 7 tokens/s, 60 s left\n"


def test_quick_work_and_quiet_reports_say_nothing(clock: Clock) -> None:
    stream = io.StringIO()
    _work(Report(stream), clock, seconds=0.1)
    _work(Report(stream, quiet=True), clock, seconds=60.0)
    Report(stream, quiet=True).line("hello")
    assert stream.getvalue() == ""


def test_lines_are_printed_as_they_are() -> None:
    stream = io.StringIO()
    text = "[red]no markup[/red] :smile: " + "x" * 300
    Report(stream).line(text)
    assert stream.getvalue() == text + "\n"


def test_time_left_at_the_rate_so_far(clock: Clock) -> None:
    with Report(io.StringIO(), quiet=True).task("t", 4) as task:
        task.started = clock.now
        assert (task.seconds_left, task.rate) == (None, "")
        clock.now += 10
        task.advance()
        assert task.seconds_left == pytest.approx(30)
        task.advance(3, 1000, "rows")
        assert task.seconds_left == 0
        assert task.rate == "100 rows/s"


@pytest.mark.parametrize("fails", [False, True])
def test_a_bar_ends_with_its_block(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    monkeypatch.setenv("TERM", "xterm")
    report = Report(Terminal())
    with contextlib.suppress(ZeroDivisionError), report.task("first", 2) as late:
        late.advance(1 // (not fails))
    late.advance()  # after its block: no bar of another task may move or break
    with report.task("second", 3) as second:
        late.advance()
        second.advance()
        assert second.done == 1
