"""The planted catalogue as arrays: which item is of which series, and which series of which taste.

A series is 5 to 12 items of one taste that share a line name, a brand, a topic and a sentence: volumes of a
cycle, pieces of a set. The items of a series have consecutive numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nightjar.generate.spec import GenerateSpec, stream
from nightjar.generate.vocabulary import Vocabulary

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SERIES_SIZES = (5, 12)
TOPICS = 8  # of each taste
LATE_SERIES = 0.07  # share of series that enter whole during the days
LATE_ITEMS = 0.05  # share of items that join an older series during the days
NEW_PER_NIGHT = 0.01  # items an appended day brings, as a share of the catalogue
GONE = 0.03  # share of items unavailable, half from the start and half from some day on
NEVER = 1 << 30
ZIPF, ZIPF_SHIFT = 1.0, 5.0  # pull of the r-th item of a taste: 1 / (r + 5), r from 0
ID_SPACE = 10_000_000
ID_STEP = 7_368_787  # coprime to the space: n -> n * step mod space names every item once, out of order


@dataclass(frozen=True)
class Series:
    """One row a series; items of series s are ``start[s]`` up to ``start[s+1]``."""

    start: Ints
    taste: Ints
    rank: Ints  # position within the taste: what makes the line name unique there
    topic: Ints
    material: Ints
    use: Ints
    finish: Ints
    brand: Ints
    wave: Floats  # phase of the rise and fall of its popularity, radians

    @property
    def cell(self) -> Ints:
        """Taste and topic of each series as one number; the cells of a taste follow one another."""
        return self.taste * TOPICS + self.topic

    @property
    def size(self) -> Ints:
        """Number of items of each series."""
        return np.diff(self.start)


@dataclass(frozen=True)
class Items:
    """One row an item, in item number order. Days are day numbers, negative before the first day."""

    series: Ints
    taste: Ints
    product: Ints
    first_day: Ints
    gone_day: Ints  # first day on which it is unavailable; NEVER for most
    pull: Floats  # lasting popularity
    price_cents: Ints
    length_s: Ints  # of the item's film in the video scene
    title_of: Ints  # the item whose title it bears: itself, but for exact duplicate titles

    def __len__(self) -> int:
        return len(self.series)


@dataclass(frozen=True)
class Catalogue:
    """Series and items of the first days and of the appended ones."""

    series: Series
    items: Items
    n_tastes: int


def item_ids(numbers: Ints) -> Ints:
    """The digits of the external ids of item numbers; distinct numbers give distinct digits."""
    return (numbers * ID_STEP + 1_234_567) % ID_SPACE


def build_catalogue(spec: GenerateSpec, words: Vocabulary) -> Catalogue:
    """Series, then items; appended days add rows at the end and change none before them."""
    n_tastes = int(min(len(words.tastes), max(2, spec.items // 50)))
    series = _first_series(spec, n_tastes)
    items = _first_items(spec, series, words)
    for night in range(spec.next_days):
        series, items = _append_night(spec, night, series, items, words)
    return Catalogue(series, items, n_tastes)


def _sizes(rng: np.random.Generator, n_items: int) -> Ints:
    """Series sizes that add up to n_items; the last may be shorter than the rest."""
    low, high = SERIES_SIZES
    sizes = rng.integers(low, high + 1, n_items // low + 1)
    ends = np.cumsum(sizes)
    last = int(np.searchsorted(ends, n_items))
    sizes = sizes[: last + 1]
    sizes[last] -= int(ends[last]) - n_items
    return sizes.astype(np.int64)


def _first_series(spec: GenerateSpec, n_tastes: int) -> Series:
    rng = stream(spec, "series")
    sizes = _sizes(rng, spec.items)
    share = 1.0 / np.sqrt(np.arange(n_tastes) + 3.0)
    taste = rng.choice(n_tastes, len(sizes), p=share / share.sum())
    fixed = min(2 * n_tastes, len(sizes))  # every taste has at least two series
    taste[:fixed] = np.arange(fixed) % n_tastes
    return _series(rng, sizes, np.sort(taste), np.zeros(n_tastes, np.int64))


def _series(rng: np.random.Generator, sizes: Ints, taste: Ints, taken: Ints) -> Series:
    """Series of sorted tastes; ``taken[t]`` is how many series taste t has already."""
    n = len(sizes)
    first = np.searchsorted(taste, taste, side="left")
    return Series(
        start=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        taste=taste.astype(np.int64),
        rank=np.arange(n) - first + taken[taste],
        topic=rng.integers(0, TOPICS, n),
        material=rng.integers(0, 6, n),
        use=rng.integers(0, 5, n),
        finish=rng.integers(0, 24, n),
        brand=rng.integers(0, 12, n),
        wave=rng.uniform(0, 2 * np.pi, n),
    )


def _first_items(spec: GenerateSpec, series: Series, words: Vocabulary) -> Items:
    rng = stream(spec, "items")
    items = _items(rng, series, np.zeros(len(words.tastes), np.int64))
    n, of_series = len(items), items.series
    old = -rng.integers(1, 700, len(series.taste))  # a series came out at once, some time before the logs
    founders = np.searchsorted(series.taste, series.taste, side="left") == np.arange(len(series.taste))
    late_series = (rng.random(len(series.taste)) < LATE_SERIES) & ~founders
    series_day = np.where(late_series, rng.integers(1, spec.days, len(old)), old)
    late_item = (rng.random(n) < LATE_ITEMS) & ~founders[of_series] & ~late_series[of_series]
    first_day = np.where(late_item, rng.integers(1, spec.days, n), series_day[of_series])
    gone = rng.random(n)
    gone_day = np.where(gone < GONE / 2, -1, rng.integers(1, spec.days, n))
    gone_day = np.where(
        gone < GONE, np.maximum(gone_day, np.where(gone < GONE / 2, -1, first_day + 1)), NEVER
    )
    return replace(items, first_day=first_day, gone_day=gone_day)


def _items(rng: np.random.Generator, series: Series, seen: Ints) -> Items:
    """Items of the series; ``seen[t]`` items of taste t exist already and rank before these."""
    of_series = np.repeat(np.arange(len(series.taste)), series.size)
    n = len(of_series)
    place = np.arange(n) - series.start[of_series]
    shuffled = rng.random((len(series.taste), 16)).argsort(axis=1)
    taste = series.taste[of_series]
    order = np.lexsort((rng.random(n), taste))
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n) - np.searchsorted(taste[order], taste[order]) + seen[taste[order]]
    twin = rng.random(n) < 0.004
    neighbour = np.minimum(np.arange(n) + 1, n - 1)
    return Items(
        series=of_series,
        taste=taste,
        product=shuffled[of_series, place],
        first_day=np.zeros(n, np.int64),
        gone_day=np.full(n, NEVER),
        pull=np.power(rank + ZIPF_SHIFT, -ZIPF).astype(np.float64),
        price_cents=np.round(np.exp(rng.normal(3.4, 0.8, n)) * 100).astype(np.int64) + 99,
        length_s=rng.integers(40, 1500, n),
        title_of=np.where(twin & (of_series[neighbour] == of_series), neighbour, np.arange(n)),
    )


def _append_night(
    spec: GenerateSpec, night: int, series: Series, items: Items, words: Vocabulary
) -> tuple[Series, Items]:
    """The catalogue with the new series of appended day number ``spec.days + night``."""
    rng = stream(spec, "next", night)
    n_tastes = int(series.taste.max()) + 1
    sizes = _sizes(rng, max(5, round(spec.items * NEW_PER_NIGHT)))
    taste = np.sort(rng.integers(0, n_tastes, len(sizes)))
    more = _series(rng, sizes, taste, np.bincount(series.taste, minlength=n_tastes))
    seen = np.bincount(items.taste, minlength=len(words.tastes)) // 4  # newcomers are not all at the tail
    new = _items(rng, more, seen)
    new = replace(new, first_day=np.full(len(new), spec.days + night))
    n_items, n_series = len(items), len(series.taste)
    joined = {
        name: np.concatenate([getattr(series, name), getattr(more, name)])
        for name in ("taste", "rank", "topic", "material", "use", "finish", "brand", "wave")
    }
    start = np.concatenate([series.start, more.start[1:] + n_items])
    shift = {"series": n_series, "title_of": n_items}
    columns = {
        name: np.concatenate([getattr(items, name), getattr(new, name) + shift.get(name, 0)])
        for name in Items.__dataclass_fields__
    }
    return Series(start=start, **joined), Items(**columns)
