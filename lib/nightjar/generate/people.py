"""The planted users: tastes, activity, and who works through which series and never meets one item of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nightjar.generate.catalogue import NEVER, SERIES_SIZES, TOPICS, Catalogue, Floats, Ints
from nightjar.generate.spec import GenerateSpec, stream

SEGMENTS = ("DE", "FR", "GB", "US", "JP", "BR", "PL", "")  # the last is a segment that was never filled in
SEGMENT_SHARES = (0.24, 0.15, 0.16, 0.2, 0.08, 0.09, 0.07, 0.01)
SILENT = 0.06  # users who never do anything
LATE_SIGNUP = 0.12
ACTIVITY_SIGMA = 1.0  # log-normal: the busiest hundredth does about a tenth of everything
COLLECTORS = 0.68  # the busier share of the users signed up early who work through a series
PLAN_SHARE = 0.40  # at most this share of the events is spent on series worked through
EVENTS_A_PLAN = 19.0  # what one collector costs on average, revisits, carts, likes and decoys included
DECOYS = 0.18  # collectors with a second series of which they have not reached one item either
SLOW = 0.10  # collectors who have not reached two more items of the series they work through


@dataclass(frozen=True)
class People:
    """One row a user, in user number order; bots are the last ``n_bots`` users."""

    tastes: Ints  # (users, 3), strongest first
    weights: Floats  # (users, 3), summing to 1; 0 where a user has fewer tastes
    topics: Ints  # (users, 3), the favourite topic within each taste
    activity: Floats  # 0 for silent users and bots
    signup_day: Ints
    segment: Ints
    n_bots: int
    withheld: Ints  # item number never logged for that user, or -1
    second: Ints  # a second series that ends one item short, or -1

    def __len__(self) -> int:
        return len(self.segment)


@dataclass(frozen=True)
class Plan:
    """Planned visits, sorted by day: ``user`` meets ``item`` on ``day``."""

    user: Ints
    item: Ints
    day: Ints


def build_people(spec: GenerateSpec, catalogue: Catalogue) -> tuple[People, Plan]:
    """Users of the first days; appended days know the same users."""
    rng = stream(spec, "users")
    n = spec.users
    n_bots = max(1, min(n // 5000, spec.events // 150_000)) if spec.dirt > 0 else 0
    tastes, weights = _tastes(rng, n, catalogue.n_tastes)
    activity = np.exp(rng.normal(0.0, ACTIVITY_SIGMA, n))
    activity[rng.random(n) < SILENT] = 0.0
    activity[n - n_bots :] = 0.0
    late = rng.random(n) < LATE_SIGNUP
    signup = np.where(late, rng.integers(1, spec.days, n), -rng.integers(1, 900, n))
    segment = rng.choice(len(SEGMENTS), n, p=SEGMENT_SHARES)
    topics = rng.integers(0, TOPICS, (n, 3))
    plan_rng = stream(spec, "plan")
    users = _collectors(plan_rng, spec, activity, signup)
    users, chosen, hole, second = _choose_series(
        plan_rng, spec, catalogue, users, (tastes * TOPICS + topics)[users, 0]
    )
    withheld = np.full(n, -1, np.int64)
    withheld[users] = hole
    seconds = np.full(n, -1, np.int64)
    seconds[users] = second
    people = People(tastes, weights, topics, activity, signup, segment, n_bots, withheld, seconds)
    return people, _plan(plan_rng, spec, catalogue, users, np.stack([chosen, second, hole]))


def _tastes(rng: np.random.Generator, n: int, n_tastes: int) -> tuple[Ints, Floats]:
    """One to three distinct tastes a user; the first carries at least half."""
    share = 1.0 / np.sqrt(np.arange(n_tastes) + 3.0)
    first = rng.choice(n_tastes, n, p=share / share.sum())
    step = 1 + np.floor(rng.random((n, 2)) * (n_tastes - 1)).astype(np.int64)
    second = (first + step[:, 0]) % n_tastes
    third = (first + step[:, 1]) % n_tastes
    how_many = rng.choice([1, 2, 3], n, p=[0.25, 0.45, 0.3])
    how_many = np.where((third == second) & (how_many == 3), 2, how_many)
    rest = np.column_stack([np.ones(n), rng.uniform(0.25, 0.7, n), rng.uniform(0.1, 0.3, n)])
    rest *= np.arange(3) < how_many[:, None]
    return np.column_stack([first, second, third]), rest / rest.sum(axis=1, keepdims=True)


def _collectors(rng: np.random.Generator, spec: GenerateSpec, activity: Floats, signup: Ints) -> Ints:
    """Users active enough to have a history that means something, as many as the events allow."""
    able = np.flatnonzero((activity > 0) & (signup <= spec.days * 0.3))
    busy = able[np.argsort(-activity[able], kind="stable")][: int(COLLECTORS * spec.users)]
    most = int(PLAN_SHARE * spec.events / EVENTS_A_PLAN)
    return np.sort(busy if len(busy) <= most else rng.choice(busy, most, replace=False))


def _choose_series(
    rng: np.random.Generator, spec: GenerateSpec, catalogue: Catalogue, users: Ints, cell: Ints
) -> tuple[Ints, Ints, Ints, Ints]:
    """A series of their first taste for each user, the item withheld, and a second series or -1.

    It is of their favourite topic (``cell``) where that has two series at least, else of any topic.

    Users whose taste has no series old enough, or whose withheld item would be unavailable, drop out.
    """
    series, items = catalogue.series, catalogue.items
    newest = np.maximum.reduceat(items.first_day, series.start[:-1])
    whole = (newest <= spec.days * 0.25) & (series.size >= SERIES_SIZES[0])
    pool = np.flatnonzero(whole)
    pool = pool[np.argsort(series.cell[pool], kind="stable")]
    ends = np.searchsorted(series.cell[pool], np.arange(catalogue.n_tastes * TOPICS + 1))
    alone = ends[cell + 1] - ends[cell] < 2
    taste = cell - cell % TOPICS
    low = np.where(alone, ends[taste], ends[cell])
    count = np.where(alone, ends[taste + TOPICS], ends[cell + 1]) - low
    place = np.floor(rng.random(len(users)) * count).astype(np.int64)
    step = 1 + np.floor(rng.random(len(users)) * np.maximum(count - 1, 0)).astype(np.int64)
    with_second = (rng.random(len(users)) < DECOYS) & (count > 1)
    inside = rng.random(len(users))
    keep = count > 0
    users, low, count, place = users[keep], low[keep], count[keep], place[keep]
    chosen = pool[low + place]
    second = np.where(with_second[keep], pool[low + (place + step[keep]) % count], -1)
    hole = series.start[chosen] + np.floor(inside[keep] * series.size[chosen]).astype(np.int64)
    fine = items.gone_day[hole] == NEVER
    return users[fine], chosen[fine], hole[fine], second[fine]


def _plan(
    rng: np.random.Generator, spec: GenerateSpec, catalogue: Catalogue, users: Ints, chosen: Ints
) -> Plan:
    """Visits to all items of the chosen series but the withheld one; ``chosen`` is (series, second, hole)."""
    series, second, hole = chosen
    slow = rng.random(len(users)) < SLOW
    start = rng.uniform(0.3, 0.72, len(users)) * spec.days
    span = rng.uniform(0.06, 0.28, len(users)) * spec.days
    parts = [_walk(rng, catalogue, users, series, hole, np.where(slow, 2, 0))]
    two = np.flatnonzero(second >= 0)
    size = catalogue.series.size[second[two]]
    unread = catalogue.series.start[second[two]] + np.floor(rng.random(len(two)) * size).astype(np.int64)
    parts.append(_walk(rng, catalogue, users[two], second[two], unread, np.zeros(len(two), np.int64)))
    who = np.concatenate([parts[0][0], two[parts[1][0]]])
    item = np.concatenate([parts[0][1], parts[1][1]])
    when = np.concatenate([parts[0][2], parts[1][2]])
    day = np.floor(start[who] + span[who] * when).astype(np.int64)
    again = rng.random(len(who)) < 0.2
    day = np.concatenate([day, day[again] + rng.integers(1, 6, int(again.sum()))])
    user, item = (np.concatenate([column, column[again]]) for column in (users[who], item))
    day = np.clip(day, 0, spec.days - 1)
    order = np.lexsort((item, user, day))
    return Plan(user[order], item[order], day[order])


def _walk(
    rng: np.random.Generator, catalogue: Catalogue, users: Ints, series: Ints, hole: Ints, skip: Ints
) -> tuple[Ints, Ints, Floats]:
    """Items of a series in a random order without the hole and without ``skip`` more.

    Returns position in ``users``, item, and when on the way (0 to 1).
    """
    size = catalogue.series.size[series]
    who = np.repeat(np.arange(len(users)), size)
    first = np.repeat(np.cumsum(size) - size, size)
    item = catalogue.series.start[series[who]] + np.arange(len(who)) - first
    key = rng.random(len(who))
    key[item == hole[who]] = 2.0  # sorts last, so that dropping from the end drops the hole first
    order = np.lexsort((key, who))
    who, item = who[order], item[order]
    place = np.arange(len(who)) - first
    keep = place < (size - 1 - skip)[who]
    return who[keep], item[keep], (place / size[who])[keep]
