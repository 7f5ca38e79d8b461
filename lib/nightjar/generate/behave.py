"""What people do on one day: sessions by taste, walks through a series, carts, likes, times of day.

A day depends on the seed and on its number alone, never on the days before it, so that any day can be made
by itself and an appended day leaves the others as they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nightjar.generate.block import (
    CART,
    CLICK,
    DISLIKE,
    LIKE,
    PURCHASE,
    RETURN,
    VIEW,
    WATCH,
    Block,
    Kind,
    Scene,
    event_numbers,
    join,
)
from nightjar.generate.catalogue import TOPICS, Bools, Catalogue, Floats, Ints
from nightjar.generate.clock import WEEK, earliest, midnight_ms, space, times
from nightjar.generate.people import People, Plan
from nightjar.generate.spec import GenerateSpec, stream

SCENE_SHARES = (0.5, 0.3, 0.2)  # of sessions
PLAN_SCENE_SHARES = (0.6, 0.3, 0.1)
SESSION_STOP = 0.3  # a session has 1/0.3 visits on average
SAME_SERIES = 0.45  # the next visit of a session stays in the series of the last
LOYAL = 0.6  # sessions that keep to the user's favourite topic of the taste
EXPLORE = 0.07  # sessions in a taste that is not the user's
EVENTS_A_VISIT = 1.18  # ordinary visits, with their carts, purchases and likes
EVENTS_A_PLANNED_VISIT = 1.76
RETURNED = 0.05  # ordinary purchases that come back within ten days
SESSIONS_A_PART = 250_000  # bounds the memory of a day: about a million rows at once


@dataclass(frozen=True)
class Visits:
    """Visits of one part of a day: who looks at what, where, in which session; ``fits`` if to their taste."""

    user: Ints
    item: Ints
    scene: Ints
    session: Ints
    fits: Bools
    planned: Bools

    def take(self, rows: NDArray[np.generic]) -> Visits:
        """The rows named by numbers or by a mask."""
        return Visits(
            self.user[rows],
            self.item[rows],
            self.scene[rows],
            self.session[rows],
            self.fits[rows],
            self.planned[rows],
        )


@dataclass(frozen=True)
class Behaviour:
    """The world in motion."""

    spec: GenerateSpec
    catalogue: Catalogue
    people: People
    plan: Plan

    @cached_property
    def _by_cell(self) -> Ints:
        return np.argsort(self.catalogue.series.cell[self.catalogue.items.series], kind="stable")

    @cached_property
    def _ends(self) -> Ints:
        """Where each cell of taste and topic begins in the order of cells; one more at the end."""
        cells = self.catalogue.series.cell[self.catalogue.items.series][self._by_cell]
        return np.searchsorted(cells, np.arange(self.catalogue.n_tastes * TOPICS + 1))

    @cached_property
    def _planned_a_day(self) -> Ints:
        return np.bincount(self.plan.day, minlength=self.spec.all_days)

    def popularity(self, day: int) -> Floats:
        """Pull of every item on a day: lasting, times novelty, times its series' wave; 0 when absent."""
        items = self.catalogue.items
        age = day - items.first_day
        novelty = 1.0 + 4.0 * np.exp(-np.maximum(age, 0) / 7.0)
        wave = np.exp(0.6 * np.sin(2 * np.pi * day / 45.0 + self.catalogue.series.wave))
        there = (age >= 0) & (day < items.gone_day)
        return np.asarray(items.pull * novelty * wave[items.series] * there, dtype=np.float64)

    def sessions_on(self, day: int) -> int:
        """How many ordinary sessions a day has: what the day's budget leaves beside the planned visits."""
        weekday = (self.spec.start.weekday() + day) % 7
        budget = self.spec.events / self.spec.days * WEEK[weekday]
        spare = max(0.2 * budget, budget - EVENTS_A_PLANNED_VISIT * int(self._planned_a_day[day]))
        return max(1, round(spare * SESSION_STOP / EVENTS_A_VISIT))

    def day(self, day: int) -> Iterator[Block]:
        """The clean rows of a day in parts by user; some of them (returns) are for a later day's file."""
        rng = stream(self.spec, "day", day)
        active = np.where(self.people.signup_day <= day, self.people.activity, 0.0)
        total = np.cumsum(active)
        n = self.sessions_on(day) if total[-1] > 0 else 0
        users = np.searchsorted(total, rng.random(n) * total[-1], side="right")
        weights = np.cumsum(self.popularity(day)[self._by_cell])
        n_parts = 1 + n // SESSIONS_A_PART
        first = 0
        for part in range(n_parts):
            mine = users[users % n_parts == part]
            plan = self._planned(day, rng, n_parts, part)
            visits = _merge(self._ordinary(rng, weights, mine), plan)
            met = visits.item != self.people.withheld[visits.user]
            block = self._events(rng, day, visits.take(met), first)
            first += len(block)
            yield block

    def _planned(self, day: int, rng: np.random.Generator, n_parts: int, part: int) -> Visits:
        low, high = np.searchsorted(self.plan.day, [day, day + 1])
        user, item = self.plan.user[low:high], self.plan.item[low:high]
        mine = user % n_parts == part
        user, item = user[mine], item[mine]
        place = np.unique(user, return_inverse=True)[1]
        scene = rng.choice(3, len(user), p=PLAN_SCENE_SHARES)
        yes = np.ones(len(user), np.bool_)
        return Visits(user, item, scene, place.astype(np.int64), yes, yes)

    def _ordinary(self, rng: np.random.Generator, weights: Floats, users: Ints) -> Visits:
        people, items = self.people, self.catalogue.items
        n = len(users)
        cut = np.cumsum(people.weights[users], axis=1)
        which = (rng.random(n)[:, None] > cut[:, :2]).sum(axis=1)
        explore = rng.random(n) < EXPLORE
        cell = (people.tastes * TOPICS + people.topics)[users, which]
        cell = np.where(explore, rng.integers(0, self.catalogue.n_tastes, n) * TOPICS, cell)
        loyal = (rng.random(n) < LOYAL) & ~explore
        scene = rng.choice(3, n, p=SCENE_SHARES)
        length = np.minimum(rng.geometric(SESSION_STOP, n), 15)
        session = np.repeat(np.arange(n), length)
        opens = np.concatenate([[True], session[1:] != session[:-1]]) if n else np.zeros(0, np.bool_)
        fresh = opens | (rng.random(len(session)) >= SAME_SERIES)
        item = self._draw(rng, weights, cell[session], loyal[session])
        anchor = item[np.maximum.accumulate(np.where(fresh, np.arange(len(session)), 0))]
        series = items.series[anchor]
        start, size = self.catalogue.series.start[series], self.catalogue.series.size[series]
        sibling = start + np.floor(rng.random(len(session)) * size).astype(np.int64)
        there = self._present(weights)[sibling]
        item = np.where(fresh, item, np.where(there, sibling, anchor))
        no = np.zeros(len(session), np.bool_)
        return Visits(users[session], item, scene[session], session, ~explore[session], no)

    def _present(self, weights: Floats) -> Bools:
        there = np.empty(len(weights), np.bool_)
        there[self._by_cell] = np.diff(weights, prepend=0.0) > 0
        return there

    def _draw(self, rng: np.random.Generator, weights: Floats, cell: Ints, loyal: Bools) -> Ints:
        """An item by popularity: of each cell where ``loyal``, else of the whole taste of the cell.

        ``weights`` is the running sum of popularity in the order of cells.
        """
        bounds = np.concatenate([[0.0], weights])[self._ends]
        taste = cell - cell % TOPICS
        loyal = loyal & (bounds[cell + 1] > bounds[cell])  # a small world has empty cells
        low = bounds[np.where(loyal, cell, taste)]
        high = bounds[np.where(loyal, cell + 1, taste + TOPICS)]
        point = np.minimum(low + rng.random(len(cell)) * (high - low), np.nextafter(high, 0.0))
        return np.asarray(self._by_cell[np.searchsorted(weights, point, side="right")], dtype=np.int64)

    def _events(self, rng: np.random.Generator, day: int, visits: Visits, first: int) -> Block:
        """Rows of the visits, with times, and the returns they lead to."""
        which, step = _follow_ups(rng, visits)
        from_s = earliest(self.spec, day)
        at = times(rng, visits.session[which], from_s)
        order, keep, at = space(visits.user[which], at, from_s)
        which, step = which[order][keep], step[order][keep]
        visits = visits.take(which)
        event_type = _event_types(visits, step)
        n = len(which)
        block = Block(
            scene=visits.scene.astype(np.int8),
            user=visits.user,
            item=visits.item,
            event_type=event_type,
            time_ms=midnight_ms(self.spec, day) + np.floor(at[keep] * 1000).astype(np.int64),
            amount=self._amounts(rng, visits, event_type),
            event=event_numbers(self.spec.seed, day, first, n),
            kind=np.full(n, Kind.CLEAN, np.int8),
            deliver=np.full(n, day),
            planned=visits.planned,
        )
        return join([block, self._returns(rng, day, block, first + n)])

    def _amounts(self, rng: np.random.Generator, visits: Visits, event_type: NDArray[np.int8]) -> Floats:
        n = len(event_type)
        fraction = np.where(visits.fits, rng.beta(5, 2, n), rng.beta(1.2, 3, n))
        watched = np.round(fraction * self.catalogue.items.length_s[visits.item], 1)
        quantity = np.minimum(rng.geometric(0.75, n), 6).astype(np.float64)
        amount = np.where(event_type == WATCH, watched, np.nan)
        return np.where((event_type == CART) | (event_type == PURCHASE), quantity, amount)

    def _returns(self, rng: np.random.Generator, day: int, block: Block, first: int) -> Block:
        bought = (block.event_type == PURCHASE) & ~block.planned & (rng.random(len(block)) < RETURNED)
        back = block.take(bought)
        n = len(back)
        later = day + rng.integers(1, 11, n)
        second = np.floor(rng.uniform(6 * 3600, 20 * 3600, n) * 1000).astype(np.int64)
        return Block(
            scene=back.scene,
            user=back.user,
            item=back.item,
            event_type=np.full(n, RETURN, np.int8),
            time_ms=midnight_ms(self.spec, 0) + later * 86_400_000 + second,
            amount=back.amount,
            event=event_numbers(self.spec.seed, day, first, n),
            kind=np.full(n, Kind.CLEAN, np.int8),
            deliver=later,
            planned=back.planned,
        )


def _merge(ordinary: Visits, planned: Visits) -> Visits:
    shift = int(ordinary.session[-1]) + 1 if len(ordinary.session) else 0
    return Visits(
        np.concatenate([ordinary.user, planned.user]),
        np.concatenate([ordinary.item, planned.item]),
        np.concatenate([ordinary.scene, planned.scene]),
        np.concatenate([ordinary.session, planned.session + shift]),
        np.concatenate([ordinary.fits, planned.fits]),
        np.concatenate([ordinary.planned, planned.planned]),
    )


def _follow_ups(rng: np.random.Generator, visits: Visits) -> tuple[Ints, Ints]:
    """Visit number and step (0: the visit itself, 1 and 2: what follows from it) of every event."""
    n = len(visits.user)
    first, second = rng.random(n), rng.random(n)
    cart = (visits.scene == Scene.SHOP) & (first < np.where(visits.planned, 0.6, 0.18))
    buy = cart & (second < np.where(visits.planned, 0.7, 0.5))
    react = np.where(visits.planned, 0.5, np.where(visits.fits, 0.16, 0.22))
    voice = (visits.scene == Scene.VIDEO) & (first < react)
    count = 1 + cart + buy + voice
    which = np.repeat(np.arange(n), count)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)


def _event_types(visits: Visits, step: Ints) -> NDArray[np.int8]:
    shop = np.array([VIEW, CART, PURCHASE])[step]
    # One in eight reactions to a fitting film, and nine in ten to another, is a dislike; a hash of the visit
    # decides, so that the reaction does not depend on how rows are ordered.
    draw = (visits.item * 7919 + visits.user * 104_729) % 1000
    dislike = ~visits.planned & (draw < np.where(visits.fits, 125, 900))
    video = np.where(step == 0, WATCH, np.where(dislike, DISLIKE, LIKE))
    scene = visits.scene
    types = np.where(scene == Scene.SHOP, shop, np.where(scene == Scene.VIDEO, video, CLICK))
    return types.astype(np.int8)
