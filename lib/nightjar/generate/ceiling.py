"""How well an oracle could do on a generated world: the ceilings a system's figures are read against."""

from __future__ import annotations

from collections import Counter

import numpy as np

from nightjar.generate.behave import EXPLORE, LOYAL, SAME_SERIES, SESSION_STOP, Behaviour
from nightjar.generate.block import Block, Kind
from nightjar.generate.catalogue import TOPICS, Bools, Floats, Ints
from nightjar.generate.spec import stream

WITHHELD_SAMPLE = 3000  # users whose open items are counted: a standard error of the hit rate below 0.01
BACKTEST_SAMPLE = 1000
SCORED = 20_000_000  # scores the back-test's oracle may compute, so that a huge catalogue takes fewer users
CUTS = (10, 20)


class Witness:
    """Remembers what a sample of users did, which is all the ceilings need of the log."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        spec, people = behaviour.spec, behaviour.people
        rng = stream(spec, "ceiling")
        collectors = np.flatnonzero(people.withheld >= 0)
        active = np.flatnonzero((people.activity > 0) & (people.signup_day < spec.days - spec.test_days))
        self.n_scored = max(50, min(BACKTEST_SAMPLE, SCORED // len(behaviour.catalogue.items)))
        self.collectors = np.sort(
            rng.choice(collectors, min(WITHHELD_SAMPLE, len(collectors)), replace=False)
        )
        self.testers = rng.choice(active, min(6 * self.n_scored, len(active)), replace=False)
        self._watched = np.zeros(len(people), np.bool_)
        self._watched[self.collectors] = self._watched[self.testers] = True
        self._seen: list[tuple[Ints, Ints, Ints]] = []
        self.bots: dict[int, Counter[int]] = {}

    def see(self, day: int, blocks: list[Block]) -> None:
        """Take note of the delivered rows of a day."""
        for block in blocks:
            for user, n in zip(
                *np.unique(block.user[block.kind == Kind.BOT], return_counts=True), strict=True
            ):
                self.bots.setdefault(int(user), Counter())[day] += int(n)
            good = (block.kind == Kind.CLEAN) | (block.kind == Kind.LATE)
            if day < self.behaviour.spec.days:
                good[good] = self._watched[block.user[good]]
                self._seen.append((block.user[good], block.item[good], np.full(int(good.sum()), day)))

    def pairs(self) -> tuple[Ints, Ints, Ints]:
        """First meeting of every (user, item) of the sample: user, item, day; sorted by user, then item."""
        user, item, day = (np.concatenate(column) for column in zip(*self._seen, strict=True))
        order = np.lexsort((day, item, user))
        user, item, day = user[order], item[order], day[order]
        first = np.ones(len(user), np.bool_)
        first[1:] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
        return user[first], item[first], day[first]


def withheld_ceiling(witness: Witness) -> dict[str, float]:
    """Figures of an oracle that knows which series a user works through, and not which item was withheld.

    It ranks the open items of those series first, in random order: expectations over that order. Items the
    user has not reached in the same series, or in a second one, cannot be told from the withheld one.
    """
    behaviour = witness.behaviour
    people, series = behaviour.people, behaviour.catalogue.series
    users = witness.collectors
    if not len(users):
        return {"users": 0.0}
    item_series = behaviour.catalogue.items.series
    user, item, _ = witness.pairs()
    n_series = len(series.taste)
    key, met = np.unique(user * n_series + item_series[item], return_counts=True)
    open_first = _open(series.size, key, met, users, item_series[people.withheld[users]], n_series)
    second = people.second[users]
    open_second = np.where(second >= 0, _open(series.size, key, met, users, second, n_series), 0)
    ties = open_first + np.where(open_first == 1, open_second, 0)  # more open items than one: not the second
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, int(ties.max()) + 1))])
    return {
        "users": float(len(users)),
        "hit_rate_at_1": float(np.mean(1.0 / ties)),
        "hit_rate_at_10": float(np.mean(np.minimum(10, ties) / ties)),
        "mrr": float(np.mean(harmonic[ties] / ties)),
    }


def _open(size: Ints, key: Ints, met: Ints, users: Ints, series: Ints, n_series: int) -> Ints:
    wanted = users * n_series + series
    place = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
    return size[series] - np.where(key[place] == wanted, met[place], 0)


def backtest_ceiling(witness: Witness) -> dict[str, float]:
    """Figures of an oracle that ranks by the true chances of the test window, not by its outcome.

    Truth are the items first met in the last ``test_days``; items met before are in neither truth nor list.
    The chances are those of the middle of the window: tastes, popularity, walks through series, and for items
    still open in a series worked through, the share of such items that the window brings.
    """
    behaviour = witness.behaviour
    spec = behaviour.spec
    t0 = spec.days - spec.test_days
    user, item, day = witness.pairs()
    chance = _chances(behaviour, t0 + spec.test_days // 2)
    visits = _expected_visits(behaviour, t0)
    bonus = _plan_chance(behaviour, t0)
    cells = behaviour.catalogue.series.cell[behaviour.catalogue.items.series]
    sums: Counter[str] = Counter()
    for u in witness.testers:
        if sums["users"] >= witness.n_scored:
            break
        mine = slice(*np.searchsorted(user, [u, u + 1]))
        before = day[mine] < t0
        truth = item[mine][~before]
        if not len(truth):
            continue
        score = visits[u] * _visit_chances(behaviour, int(u), cells, *chance)
        score[_series_items(behaviour, int(u))] += bonus
        score[item[mine][before]] = -1.0
        top = np.argpartition(-score, max(CUTS))[: max(CUTS)]
        top = top[np.argsort(-score[top], kind="stable")]
        sums.update(_figures(np.isin(top, truth), len(truth)))
    n = sums.pop("users", 0)
    return {"users": float(n), **{name: value / n for name, value in sorted(sums.items())}}


def _figures(hits: Bools, n_truth: int) -> dict[str, float]:
    gain = 1.0 / np.log2(np.arange(2, max(CUTS) + 2))
    out: dict[str, float] = {"users": 1}
    for k in CUTS:
        out[f"recall_at_{k}"] = float(hits[:k].sum()) / n_truth
        out[f"ndcg_at_{k}"] = float((gain[:k] * hits[:k]).sum() / gain[: min(k, n_truth)].sum())
    return out


def _chances(behaviour: Behaviour, day: int) -> tuple[Floats, Floats]:
    """Chance of each item at a visit to its taste, and at a visit to its topic of the taste.

    A visit is a fresh draw by popularity or a step within the last one's series.
    """
    items, series = behaviour.catalogue.items, behaviour.catalogue.series
    pull = behaviour.popularity(day)
    walking = SAME_SERIES * (1.0 - SESSION_STOP)
    out = []
    for group in (items.taste, series.cell[items.series]):
        fresh = pull / np.maximum(np.bincount(group, pull), 1e-300)[group]
        step = np.add.reduceat(fresh, series.start[:-1])[items.series] / series.size[items.series]
        out.append((1 - walking) * fresh + walking * np.where(pull > 0, step, 0.0))
    return out[0], out[1]


def _expected_visits(behaviour: Behaviour, t0: int) -> Floats:
    people, spec = behaviour.people, behaviour.spec
    sessions = sum(behaviour.sessions_on(day) for day in range(t0, spec.days))
    there = np.where(people.signup_day <= t0, people.activity, 0.0)
    return np.asarray(there / there.sum() * sessions / SESSION_STOP, dtype=np.float64)


def _visit_chances(behaviour: Behaviour, user: int, cells: Ints, in_taste: Floats, in_cell: Floats) -> Floats:
    """Chance of each item at an ordinary visit of a user."""
    people, n = behaviour.people, behaviour.catalogue.n_tastes
    own = np.bincount(people.tastes[user], people.weights[user], n) * (1 - EXPLORE)
    favourite = people.tastes[user] * TOPICS + people.topics[user]
    loyal = np.bincount(favourite, people.weights[user], n * TOPICS) * (1 - EXPLORE) * LOYAL
    broad = (1 - LOYAL) * own + EXPLORE / n
    return np.asarray(broad[cells // TOPICS] * in_taste + loyal[cells] * in_cell, dtype=np.float64)


def _series_items(behaviour: Behaviour, user: int) -> Ints:
    """Items of the series a user works through."""
    people, catalogue = behaviour.people, behaviour.catalogue
    if people.withheld[user] < 0:
        return np.zeros(0, np.int64)
    chosen = [int(catalogue.items.series[people.withheld[user]])]
    if people.second[user] >= 0:
        chosen.append(int(people.second[user]))
    return np.concatenate([np.arange(*catalogue.series.start[[s, s + 1]]) for s in chosen])


def _plan_chance(behaviour: Behaviour, t0: int) -> float:
    """Share of the items open at t0 in series worked through that the test window brings."""
    plan, people, series = behaviour.plan, behaviour.people, behaviour.catalogue.series
    order = np.lexsort((plan.day, plan.item, plan.user))
    user, item, day = plan.user[order], plan.item[order], plan.day[order]
    first = np.ones(len(user), np.bool_)
    first[1:] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    chosen = behaviour.catalogue.items.series[people.withheld[people.withheld >= 0]]
    seconds = people.second[people.second >= 0]
    n_items = int(series.size[chosen].sum() + series.size[seconds].sum())
    n_open = n_items - int((first & (day < t0)).sum())
    return int((first & (day >= t0)).sum()) / n_open if n_open else 0.0
