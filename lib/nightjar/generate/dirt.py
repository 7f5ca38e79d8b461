"""The planted dirt of the logs: which rows are copied, broken, delayed or doubled.

Broken rows are copies of good ones under new event numbers, five seconds later; the good rows stay, so
that no truth is lost to dirt. A row is used for at most one kind.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nightjar.generate.behave import Behaviour
from nightjar.generate.block import PURCHASE, VIEW, WATCH, Block, Kind, Scene, event_numbers, join
from nightjar.generate.catalogue import Bools, Ints, item_ids
from nightjar.generate.spec import MAX_ITEMS, GenerateSpec, stream

RATES = {  # expected share of the good rows of a scene
    Kind.DUPLICATE: 0.01,
    Kind.DOUBLE_CLICK: 0.006,
    Kind.MISSING_USER: 0.003,
    Kind.MISSING_ITEM: 0.002,
    Kind.BAD_TIME: 0.002,
    Kind.TRUNCATED: 0.001,
    Kind.NON_ITEM: 0.01,
    Kind.UNKNOWN_ITEM: 0.004,
    Kind.FUTURE: 0.001,
    Kind.LATE: 0.01,
    Kind.NEGATIVE_VALUE: 0.001,
    Kind.NAN_VALUE: 0.001,
    Kind.NUL_IN_ID: 0.0003,
    Kind.PATH_IN_ID: 0.0003,
}
ONLY_IN = {  # a Parquet file has no broken lines, only the shop sells postage, a search has no value
    Kind.TRUNCATED: (Scene.VIDEO, Scene.SEARCH),
    Kind.NON_ITEM: (Scene.SHOP,),
    Kind.NEGATIVE_VALUE: (Scene.SHOP, Scene.VIDEO),
    Kind.NAN_VALUE: (Scene.SHOP, Scene.VIDEO),
}
IN_PLACE = (Kind.LATE,)  # the row itself is changed; every other kind is a copy
NON_ITEMS = ("POSTAGE", "GIFTCARD", "DISCOUNT", "BANK CHARGES", "SAMPLES", "TEST001")
N_UNKNOWN = 500
COPY_MS = 5000
BOT_DAYS = 3
YEAR_MS = 366 * 86_400_000
LAST_MS = 253_402_214_400_000  # 9999-12-31 00:00 UTC: the last day every reader can hold


@dataclass(frozen=True)
class Ids:
    """External ids by number; the tails hold what dirt puts in their place. Nulls are missing ids."""

    users: pa.Array
    items: pa.Array
    user_tail: dict[Kind, Ints]
    item_tail: dict[Kind, Ints]


def build_ids(n_users: int, n_items: int) -> Ids:
    """All ids of the world: users, items, and the broken ones."""
    users = pad_ids("u", np.arange(n_users), 7)
    items = pad_ids("P", item_ids(np.arange(n_items)), 7)
    unknown = pad_ids("P", item_ids(MAX_ITEMS + np.arange(N_UNKNOWN)), 7).to_pylist()
    users, user_tail = _with_tail(users, {
        Kind.MISSING_USER: [None, ""],
        Kind.NUL_IN_ID: ["u00\x0001234"],
        Kind.PATH_IN_ID: ["../u0000001", "../../etc/passwd"],
    })  # fmt: skip
    items, item_tail = _with_tail(items, {
        Kind.MISSING_ITEM: [None, ""],
        Kind.NON_ITEM: list(NON_ITEMS),
        Kind.UNKNOWN_ITEM: unknown,
        Kind.NUL_IN_ID: ["P12\x0034567", "\x00"],
        Kind.PATH_IN_ID: ["../../etc/passwd", "P01/../P0200000"],
    })  # fmt: skip
    return Ids(users, items, user_tail, item_tail)


def pad_ids(prefix: str, numbers: Ints, width: int) -> pa.Array:
    """``prefix`` and the zero-padded number, as an Arrow string array."""
    digits = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0")
    return pc.binary_join_element_wise(pa.scalar(prefix), digits, "")


def _with_tail(ids: pa.Array, tail: dict[Kind, list[str | None]]) -> tuple[pa.Array, dict[Kind, Ints]]:
    places: dict[Kind, Ints] = {}
    first = len(ids)
    for kind, texts in tail.items():
        places[kind] = np.arange(first, first + len(texts))
        first += len(texts)
    texts_all = [text for texts in tail.values() for text in texts]
    return pa.concat_arrays([ids, pa.array(texts_all, pa.string())]), places


@dataclass
class Soiler:
    """Plants dirt day by day; holds the rows that later days will deliver."""

    behaviour: Behaviour
    ids: Ids

    def __post_init__(self) -> None:
        self._waiting: list[Block] = []
        self._next = 0

    @property
    def spec(self) -> GenerateSpec:
        return self.behaviour.spec

    def day(self, day: int) -> list[Block]:
        """The rows of a day's files, in parts; each part sorted by time."""
        rng = stream(self.spec, "dirt", day)
        self._next = 1 << 35  # counters of copies start where no good row's counter reaches
        made = [self._plant(rng, day, block) for block in self.behaviour.day(day)]
        made.append(self._bots(day))
        held = [*self._waiting, *made]
        self._waiting = [late for block in held if len(late := block.take(block.deliver > day))]
        now = [block.take(block.deliver == day) for block in held]
        return [block.take(np.lexsort((block.event, block.time_ms))) for block in _few(now)]

    def _plant(self, rng: np.random.Generator, day: int, block: Block) -> Block:
        kind = self._pick(rng, block, block.deliver == day)
        late = kind == Kind.LATE
        block = replace(
            block,
            kind=np.where(late, kind, block.kind),
            deliver=np.where(late, day + rng.integers(1, 4, len(block)), block.deliver),
        )
        soiled = (kind != Kind.CLEAN) & ~late
        copies = replace(block.take(soiled), kind=kind[soiled])
        return join([block, self._soil(rng, day, copies)])

    def _pick(self, rng: np.random.Generator, block: Block, today: Bools) -> np.ndarray:
        """A kind for every row; most are CLEAN. Rows without a value cannot get a bad one."""
        valued = np.isin(block.event_type, (PURCHASE, WATCH))
        draw = rng.random(len(block))
        kinds = np.full(len(block), Kind.CLEAN, np.int8)
        floor = 0.0
        for kind, rate in RATES.items():
            rate = min(rate * self.spec.dirt, 0.06)
            hit = today & (draw >= floor) & (draw < floor + rate)
            floor += rate
            if kind in ONLY_IN:
                hit &= np.isin(block.scene, [int(scene) for scene in ONLY_IN[kind]])
            if kind in (Kind.NEGATIVE_VALUE, Kind.NAN_VALUE):
                hit &= valued
            if kind == Kind.LATE:
                hit &= ~block.planned
            kinds[hit] = kind
        return kinds

    def _soil(self, rng: np.random.Generator, day: int, copies: Block) -> Block:
        n, kind = len(copies), copies.kind
        fresh = event_numbers(self.spec.seed, day, self._next, n)
        self._next += n
        same = kind == Kind.DUPLICATE
        shift = np.where(kind == Kind.DOUBLE_CLICK, rng.integers(200, 900, n), COPY_MS)
        end = (self.spec.days + 60 - day) * 86_400_000  # past any day that can be appended
        ahead = end + YEAR_MS + np.floor(rng.random(n) ** 4 * 1000) * 86_400_000
        time_ms = copies.time_ms + np.where(same, 0, shift)
        time_ms = np.where(kind == Kind.FUTURE, time_ms + ahead.astype(np.int64), time_ms)
        time_ms = np.where((kind == Kind.FUTURE) & (rng.random(n) < 0.2), LAST_MS, time_ms)
        negative = -np.maximum(copies.amount, 1.0)
        return replace(
            copies,
            user=_swap(rng, copies.user, kind, self.ids.user_tail, copies.event % 2 == 0),
            item=_swap(rng, copies.item, kind, self.ids.item_tail, copies.event % 2 == 1),
            time_ms=time_ms,
            amount=np.where(kind == Kind.NEGATIVE_VALUE, negative, copies.amount),
            event=np.where(same, copies.event, fresh),
            deliver=day + (same & (rng.random(n) < 0.3)),
        )

    def _bots(self, day: int) -> Block:
        """Crawlers: a bot is awake on three of the first days and opens item after item."""
        spec, people = self.spec, self.behaviour.people
        rng = stream(spec, "bots", day)
        awake = [
            user
            for user in range(len(people) - people.n_bots, len(people))
            if day in stream(spec, "bots", 1_000_000 + user).choice(spec.days, BOT_DAYS, replace=False)
        ]
        there = np.flatnonzero(self.behaviour.popularity(day) > 0)
        users, items, times = [], [], []
        for user in awake:
            n = int(rng.integers(spec.bot_events, 2 * spec.bot_events))
            users.append(np.full(n, user))
            items.append(there[(int(rng.integers(len(there))) + np.arange(n)) % len(there)])
            times.append(8 * 3_600_000 + np.floor((np.arange(n) + 0.1 * rng.random(n)) * 28_800_000 / n))
        n = sum(len(part) for part in users)
        midnight = int((np.datetime64(spec.date_of(day), "ms")).astype(np.int64))
        fresh = event_numbers(spec.seed, day, self._next, n)
        self._next += n
        none = np.zeros(0, np.int64)
        return Block(
            scene=np.full(n, Scene.SHOP, np.int8),
            user=np.concatenate([none, *users]),
            item=np.concatenate([none, *items]),
            event_type=np.full(n, VIEW, np.int8),
            time_ms=midnight + np.concatenate([none, *times]).astype(np.int64),
            amount=np.full(n, np.nan),
            event=fresh,
            kind=np.full(n, Kind.BOT, np.int8),
            deliver=np.full(n, day),
            planned=np.zeros(n, np.bool_),
        )


def _swap(
    rng: np.random.Generator, numbers: Ints, kind: np.ndarray, tail: dict[Kind, Ints], chosen: Bools
) -> Ints:
    """Ids replaced from the tail of their kind; a kind that may hit either id hits the ``chosen`` rows."""
    out = numbers.copy()
    for which, places in tail.items():
        rows = kind == which
        if which in (Kind.NUL_IN_ID, Kind.PATH_IN_ID):
            rows = rows & chosen
        out[rows] = rng.choice(places, int(rows.sum()))
    return out


def _few(blocks: list[Block]) -> list[Block]:
    """Small blocks joined to their neighbours, so that a small day is one sorted part."""
    out: list[Block] = []
    for block in blocks:
        if out and min(len(out[-1]), len(block)) < 200_000:
            out[-1] = join([out[-1], block])
        else:
            out.append(block)
    return out
