"""What a generated world is asked to be."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from nightjar.errors import ConfigError

LEAST_ITEMS = 100
MAX_ITEMS = 4_000_000  # item numbers above this name the unknown items; the ids have seven digits


@dataclass(frozen=True)
class GenerateSpec:
    """The size and the seed of a generated world; equal specs give equal bytes.

    ``events`` counts the behaviour rows over the first ``days`` days, near enough (it is an expectation, and
    dirt comes on top). ``next_days`` appends days at the same daily rate without touching a byte of the files
    of the first ``days``. ``dirt`` multiplies every rate of dirt; 0 gives clean logs without bots.
    ``bot_events`` is the least a bot does on a day it is awake. ``test_days`` is the window at the end of
    the first ``days`` for which the back-test's ceiling is worked out.
    """

    users: int = 20_000
    items: int = 20_000
    events: int = 600_000
    days: int = 60
    seed: int = 7
    start: date = date(2025, 9, 1)
    next_days: int = 0
    test_days: int = 7
    dirt: float = 1.0
    bot_events: int = 1500

    def __post_init__(self) -> None:
        """Raise ``ConfigError`` for a world that cannot be built."""
        bounds = {
            "users": (20, 50_000_000),
            "items": (LEAST_ITEMS, MAX_ITEMS),
            "events": (100, 10_000_000_000),
            "days": (4, 730),
            "next_days": (0, 60),
            "test_days": (1, self.days - 1),
            "bot_events": (1, 7000),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"generate: {name} is {value}; give a value from {low} to {high}")
        if not 0.0 <= self.dirt <= 10.0:
            raise ConfigError(f"generate: dirt is {self.dirt}; give a factor from 0 to 10")

    @property
    def all_days(self) -> int:
        """Days of logs written, the appended ones included."""
        return self.days + self.next_days

    def date_of(self, day: int) -> date:
        """The calendar date of a day number; day 0 is ``start``, negative days lie before it."""
        return self.start + timedelta(days=int(day))


# One random stream a purpose, so that a change in one draw never moves another.
STREAMS = {"series": 1, "items": 2, "users": 3, "plan": 4, "day": 5, "dirt": 6, "bots": 7, "catalogue": 8,
           "text": 9, "ceiling": 10, "next": 11, "triples": 12, "asked": 13}  # fmt: skip


def stream(spec: GenerateSpec, purpose: str, *numbers: int) -> np.random.Generator:
    """The random generator for a purpose (and a day, a part …): independent of every other."""
    return np.random.default_rng([spec.seed, STREAMS[purpose], *numbers])
