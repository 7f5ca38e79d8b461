"""Behaviour rows as arrays, and the codes of scenes, event types and kinds of dirt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightjar.generate.catalogue import Bools, Floats, Ints


class Scene(IntEnum):
    """Where behaviour happens; the lower-case name is the folder."""

    SHOP = 0
    VIDEO = 1
    SEARCH = 2


EVENT_TYPES = ("view", "add_to_cart", "purchase", "return", "watch", "like", "dislike", "click")
VIEW, CART, PURCHASE, RETURN, WATCH, LIKE, DISLIKE, CLICK = range(8)


class Kind(IntEnum):
    """What is wrong with a row. Each row has exactly one kind, so the counts add up to the rows."""

    CLEAN = 0
    DUPLICATE = 1  # delivered once more, the same to the byte, in the same or the next day's file
    DOUBLE_CLICK = 2  # a new event of the same user, item and type 0.2 to 0.9 s after another
    MISSING_USER = 3
    MISSING_ITEM = 4
    BAD_TIME = 5
    TRUNCATED = 6  # the line breaks off
    NON_ITEM = 7  # postage and the like in the item column
    UNKNOWN_ITEM = 8  # a well-formed id that no catalogue file has
    FUTURE = 9  # at least a year after the last day
    LATE = 10  # a good event that arrives one to three days after it happened
    BOT = 11
    NEGATIVE_VALUE = 12
    NAN_VALUE = 13
    NUL_IN_ID = 14
    PATH_IN_ID = 15  # an id with ../ in it


@dataclass(frozen=True)
class Block:
    """Rows of the log, one array a column, all of one length.

    ``user`` and ``item`` index the tables of ids, whose tails hold the broken ids; ``amount`` is a quantity
    in the shop and seconds watched in the video scene; ``event`` numbers the event uniquely; ``deliver`` is
    the day whose file holds the row; ``planned`` marks the visits to a series worked through.
    """

    scene: NDArray[np.int8]
    user: Ints
    item: Ints
    event_type: NDArray[np.int8]
    time_ms: Ints
    amount: Floats
    event: NDArray[np.uint64]
    kind: NDArray[np.int8]
    deliver: Ints
    planned: Bools

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: NDArray[Any]) -> Block:
        """The rows named by numbers or by a mask, as a new block."""
        return Block(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def join(blocks: Sequence[Block]) -> Block:
    """The rows of all blocks, in order; at least one block."""
    return Block(
        **{field.name: np.concatenate([getattr(b, field.name) for b in blocks]) for field in fields(Block)}
    )


def event_numbers(seed: int, day: int, first: int, n: int) -> NDArray[np.uint64]:
    """Distinct 64-bit event numbers without visible order: splitmix64, a bijection, over a counter.

    ``first`` is the counter's start within the day; below 2^36 events a day all numbers are distinct.
    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014.
    """
    x = np.arange(first, first + n, dtype=np.uint64) + np.uint64(day << 36)
    x = x + np.uint64((seed * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
