"""When people act: the rhythm of the hours and the week, and the spacing of one person's events."""

from __future__ import annotations

from datetime import datetime, time
from zoneinfo import ZoneInfo

import numpy as np

from nightjar.generate.catalogue import Bools, Floats, Ints
from nightjar.generate.spec import GenerateSpec

SHOP_ZONE = "Europe/Berlin"
SEARCH_ZONE = "America/New_York"
MOST_A_DAY = 150  # events of a person on a day; a bot's day lies far above it
GAP_S = 12.0  # least time between two events of a person, so that only planted double clicks look like one
WEEK = (0.93, 0.9, 0.93, 0.97, 1.04, 1.14, 1.09)  # Monday first
HOURS = "1 .6 .4 .3 .4 .8 1.6 2.6 3.2 3.4 3.5 3.7 4 3.8 3.6 3.7 4.1 5 6 6.4 6 4.6 2.8 1.6"  # from 0 h UTC
DAY_S = 86_400.0


def midnight_ms(spec: GenerateSpec, day: int) -> int:
    return int(datetime.combine(spec.date_of(day), time(), ZoneInfo("UTC")).timestamp()) * 1000


def earliest(spec: GenerateSpec, day: int) -> float:
    """The first second of a UTC day on which people are awake.

    When a zone's clock goes back, an hour of local time comes twice and cannot be read back; nobody acts
    before seven hours UTC on such a day, when all zones are past it.
    """
    for zone in (SHOP_ZONE, SEARCH_ZONE):
        noon = [datetime.combine(spec.date_of(day + k), time(12), ZoneInfo("UTC")) for k in (-1, 0)]
        before, after = (moment.astimezone(ZoneInfo(zone)).utcoffset() for moment in noon)
        if before != after:
            return 7 * 3600.0
    return 0.0


def times(rng: np.random.Generator, session: Ints, from_s: float) -> Floats:
    """Second of the day of every event: its session's start and the pauses up to it; sessions come sorted."""
    n_sessions = int(session.max()) + 1 if len(session) else 0
    weights = np.array(HOURS.split(), np.float64)
    share = weights / weights.sum()
    start = (rng.choice(24, n_sessions, p=share) + rng.random(n_sessions)) * 3600.0
    pause = GAP_S + rng.exponential(45.0, len(session))
    passed = np.cumsum(pause)
    head = np.searchsorted(session, np.arange(n_sessions))
    base = passed[np.minimum(head, len(passed) - 1)] if n_sessions else passed
    return np.maximum(start[session] + passed - base[session], from_s) if n_sessions else passed


def space(user: Ints, at: Floats, from_s: float) -> tuple[Ints, Bools, Floats]:
    """Order by user and time, rows within the day's most, and times at least ``GAP_S`` apart in the day."""
    order = np.lexsort((at, user))
    user, at = user[order], at[order]
    first = np.searchsorted(user, user, side="left")
    place = np.arange(len(user)) - first
    keep = place < MOST_A_DAY
    count = np.minimum(np.searchsorted(user, user, side="right") - first, MOST_A_DAY)
    group = np.cumsum(place == 0) * 1e6  # larger than any second of the day: groups cannot mix
    flat = np.maximum.accumulate(np.maximum(at, from_s) - GAP_S * place + group) - group
    spaced = np.minimum(flat + GAP_S * place, DAY_S - 10.0 - GAP_S * (count - 1 - place))
    return order, keep, spaced
