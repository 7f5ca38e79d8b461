"""How long work shows itself: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from nightjar.masking import masked

SECONDS_BETWEEN_LINES = 10.0


@dataclass
class Task:
    """One stretch of work in parts; `advance` is called as parts finish, `note` stands behind the rate."""

    report: Report
    label: str
    total: int
    unit: str
    started: float = field(default_factory=time.monotonic)
    done: int = 0
    rate_done: float = 0.0
    rate_unit: str = ""
    note: str = ""
    _said: float = field(default_factory=time.monotonic)

    def advance(self, parts: int = 1, amount: float = 0.0, unit: str = "") -> None:
        """Counts finished parts and, for the rate, an amount of something (rows, tokens)."""
        self.done += parts
        self.rate_done += amount
        self.rate_unit = unit or self.rate_unit
        self.report._moved(self, parts)

    @property
    def rate(self) -> str:
        """For example `1,234 items/s`, and what else is to be said of it; empty before anything is done."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        rate = f"{self.rate_done / seconds:,.0f} {self.rate_unit}/s" if self.rate_done else ""
        return ", ".join(word for word in (rate, self.note) if word)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end at the rate so far; None before the first part."""
        if not self.done:
            return None
        return (time.monotonic() - self.started) / self.done * (self.total - self.done)


class Report:
    """Where a night says what it does. Lines go to stderr; stdout stays free for results."""

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._console = Console(file=self._stream, highlight=False, emoji=False)
        self._live = self._console.is_terminal and not quiet
        self._bar: RichProgress | None = None
        self._bar_id: dict[int, int] = {}

    def line(self, text: str) -> None:
        """One plain line."""
        if not self._quiet:
            self._console.print(masked(text), markup=False, soft_wrap=True)

    @contextmanager
    def task(self, label: str, total: int, unit: str = "parts") -> Iterator[Task]:
        """Shows a stretch of `total` parts while the block runs."""
        task = Task(self, label, total, unit)
        if not self._live:
            yield task
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=self._console, transient=True) as self._bar:
            self._bar_id[id(task)] = self._bar.add_task(label, total=total, rate="")
            try:
                yield task
            finally:
                self._bar = None

    def _moved(self, task: Task, parts: int) -> None:
        if self._bar is not None:
            self._bar.update(self._bar_id[id(task)], advance=parts, rate=task.rate)  # type: ignore[arg-type]
            return
        now = time.monotonic()
        if now - task._said < SECONDS_BETWEEN_LINES and task.done < task.total:
            return
        if now - task.started < SECONDS_BETWEEN_LINES:
            return
        task._said = now
        left = task.seconds_left
        words = [f"{task.label}: {task.done}/{task.total} {task.unit}", task.rate]
        words.append(f"{left:.0f} s left" if left else "")
        self.line(", ".join(word for word in words if word))


QUIET = Report(quiet=True)
