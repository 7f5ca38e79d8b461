"""What silent users want: half of them search and never click, the other half say at sign-up what they like.

They do nothing else, so only their words tell their taste. Searches stand in files of their own, in the form
of the search log, without a product and at position 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from nightjar.generate.block import event_numbers
from nightjar.generate.catalogue import TOPICS, Ints
from nightjar.generate.clock import SEARCH_ZONE, midnight_ms
from nightjar.generate.dirt import Ids
from nightjar.generate.files import whole_file
from nightjar.generate.lines import concat, csv_strings, hex_ids, local_times, take, write_lines
from nightjar.generate.people import People
from nightjar.generate.scenes import SEARCH_HEADER
from nightjar.generate.spec import GenerateSpec, stream
from nightjar.generate.text import QUERIES, Texts

SEARCHES = 3  # of one user at most, one at least
PRODUCTS = 16  # of a taste
FIRST_EVENT = 3 << 34  # in a day's numbers, beyond those of its log
AWAKE_MS, DAY_MS = 8 * 3_600_000, 14 * 3_600_000


@dataclass(frozen=True)
class Asked:
    """Searches without a click, a row each, by day: user, number of the search terms, milliseconds."""

    spec: GenerateSpec
    people: People
    ids: Ids
    texts: Texts

    @cached_property
    def searchers(self) -> Ints:
        """Silent users who search."""
        return self._silent[::2]

    @cached_property
    def interested(self) -> Ints:
        """Silent users who say what they like."""
        return self._silent[1::2]

    @cached_property
    def _silent(self) -> Ints:
        silent = np.flatnonzero(self.people.activity == 0)
        return silent[silent < len(self.people) - self.people.n_bots]

    @cached_property
    def _rows(self) -> tuple[Ints, Ints, Ints]:
        rng = stream(self.spec, "asked")
        user = np.repeat(self.searchers, rng.integers(1, SEARCHES + 1, len(self.searchers)))
        first = np.maximum(self.people.signup_day[user], 0)
        day = first + np.floor(rng.random(len(user)) * (self.spec.days - first)).astype(np.int64)
        cell = self.people.tastes[user, 0] * PRODUCTS + rng.integers(0, PRODUCTS, len(user))
        terms = (cell * TOPICS + self.people.topics[user, 0]) * len(QUERIES)
        return user, day, terms + rng.integers(0, len(QUERIES), len(user))

    def interests(self) -> pa.Array:
        """What each user said at sign-up; empty for all but the interested. No commas and no quotes."""
        words = self.texts.words.tastes
        said = [""] * len(self.people)
        for user in self.interested.tolist():
            taste = words[int(self.people.tastes[user, 0])]
            topic = taste.topics[int(self.people.topics[user, 0])]
            said[user] = f"{topic} and all about {taste.name.replace('_', ' ')}".replace(",", "").replace(
                '"', ""
            )
        return pa.array(said)

    def write_day(self, day: int, out: Path) -> int:
        """Writes ``asked/dt=<day>/asked.csv``; returns how many searches it holds."""
        user, days, terms = self._rows
        rows = np.flatnonzero(days == day)
        rng = stream(self.spec, "asked", day)
        times = midnight_ms(self.spec, day) + AWAKE_MS + np.sort(rng.integers(0, DAY_MS, len(rows)))
        lines = concat(
            hex_ids(event_numbers(self.spec.seed, day, FIRST_EVENT, len(rows))), ",",
            local_times(times, SEARCH_ZONE, "%m/%d/%Y"), ",",
            take(self.ids.users, user[rows]), ",",
            take(csv_strings(self.texts.queries), terms[rows]), ",,0",
        )  # fmt: skip
        date = self.spec.date_of(day).isoformat()
        with whole_file(out / "asked" / f"dt={date}" / "asked.csv") as file:
            file.write(SEARCH_HEADER)
            write_lines(file, lines)
        return len(rows)
