"""The files of the catalogue, of the knowledge about it and of the users, with their own dirt."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nightjar.generate.catalogue import Bools, Ints, item_ids
from nightjar.generate.dirt import Ids
from nightjar.generate.files import whole_file
from nightjar.generate.lines import cents, concat, override, take, write_lines
from nightjar.generate.people import SEGMENTS, People
from nightjar.generate.spec import MAX_ITEMS, GenerateSpec, stream
from nightjar.generate.text import EDIT, Texts

CHUNK = 200_000  # items written at once
ITEM_RATES = {"missing_id": 0.001, "empty_title": 0.001, "broken_json": 0.001, "stale_duplicate": 0.003}
MARKS = {"html_entity": 0.004, "nul_byte": 0.001, "long_description": 0.0003, "empty_description": 0.02}
REPRICED = 0.001  # items a day with a new price
REWRITTEN = 0.0002  # items a day with a new description, which has to be encoded again
LONG = 100  # times a long description repeats itself: about 20,000 characters
UNUSED = MAX_ITEMS + 1000  # item numbers of rows that are no item, beyond the unknown items of the logs


@dataclass(frozen=True)
class Rows:
    """Catalogue rows to write: which items, as of which time, and what is odd about them."""

    items: Ints
    updated: pa.Array
    available: Bools


class Shelves:
    """Writes the catalogue's files day by day and remembers prices and edits."""

    def __init__(self, spec: GenerateSpec, texts: Texts, ids: Ids, out: Path) -> None:
        self.spec, self.texts, self.ids, self.out = spec, texts, ids, out
        items = texts.catalogue.items
        self._price = items.price_cents.copy()
        self._edited = np.zeros(len(items), np.bool_)
        self._unused = UNUSED
        self._dates = self._all_dates()

    def _all_dates(self) -> pa.Array:
        days = np.maximum(self.texts.catalogue.items.first_day, -1000)
        return pa.array(
            [self.spec.date_of(day).isoformat() for day in range(-1000, self.spec.all_days)]
        ).take(pa.array(days + 1000))

    def marks(self, name: str, items: Ints) -> Bools:
        """Which items carry a lasting oddity; a hash decides, so that every row of an item agrees."""
        salt = list(MARKS).index(name) * 7_001 + self.spec.seed
        return ((items + salt) * 2_654_435_761 >> 9) % 1_000_003 < MARKS[name] * min(
            self.spec.dirt, 1
        ) * 1_000_003

    def write_day(self, day: int) -> dict[str, int]:
        """Write the day's ``items/`` and ``knowledge/`` files; returns counts by kind of row."""
        items = self.texts.catalogue.items
        rng = stream(self.spec, "catalogue", day)
        new = np.flatnonzero(items.first_day <= 0 if day == 0 else items.first_day == day)
        counts: Counter[str] = Counter(new=len(new))
        folder = self.out / "items" / f"dt={self.spec.date_of(day)}"
        with whole_file(folder / "part-0.jsonl") as file:
            for low in range(0, len(new), CHUNK):
                chunk = rng.permutation(new[low : low + CHUNK])
                updated = concat(take(self._dates, chunk), "T04:30:00Z")
                rows = Rows(chunk, updated, items.gone_day[chunk] > max(day, 0))
                lines, dirty = self._soiled(rng, rows)
                counts.update(dirty)
                write_lines(file, lines)
            changed = self._changes(rng, day, counts)
            moment = pa.array([f"{self.spec.date_of(day)}T05:15:00Z"] * len(changed), pa.string())
            write_lines(file, self._lines(Rows(changed, moment, items.gone_day[changed] > day)))
        counts.update(self._triples(day, new))
        return dict(counts)

    def _changes(self, rng: np.random.Generator, day: int, counts: Counter[str]) -> Ints:
        """Items whose row changes on a day: a price, a description, an end of sale."""
        items = self.texts.catalogue.items
        known = np.flatnonzero(items.first_day < day) if day else np.zeros(0, np.int64)
        if not len(known):
            return known
        repriced = rng.choice(known, max(1, round(REPRICED * len(known))), replace=False)
        rewritten = rng.choice(known, max(1, round(REWRITTEN * len(known))), replace=False)
        rewritten = rewritten[~self._edited[rewritten] & ~self.marks("empty_description", rewritten)]
        gone = known[items.gone_day[known] == day]
        self._price[repriced] = np.round(self._price[repriced] * rng.uniform(0.8, 1.15, len(repriced)))
        self._edited[rewritten] = True
        counts.update(repriced=len(repriced), rewritten=len(rewritten), gone=len(gone))
        changed = np.union1d(np.union1d(repriced, rewritten), gone).astype(np.int64)
        counts.update(updated=len(changed))
        return changed

    def _lines(self, rows: Rows) -> pa.Array:
        """JSON lines of catalogue rows."""
        columns = self.texts.columns(rows.items)
        titles, descriptions = self._dressed(rows.items, columns)
        return concat(
            '{"item_id":"', take(self.ids.items, rows.items),
            '","title":"', titles,
            '","description":"', descriptions,
            '","brand":"', columns["brand"],
            '","category":"', columns["category"],
            '","price":', cents(self._price[rows.items]),
            ',"available":', take(pa.array(["false", "true"]), rows.available.astype(np.int64)),
            ',"first_seen":"', take(self._dates, rows.items),
            '","updated_at":"', rows.updated, '"}',
        )  # fmt: skip

    def _dressed(self, items: Ints, columns: dict[str, pa.Array]) -> tuple[pa.Array, pa.Array]:
        """Titles and descriptions with edits and lasting oddities, as JSON wants them."""
        titles, descriptions = self.texts.titles(items), self.texts.descriptions(items, columns)
        html, nul = self.marks("html_entity", items), self.marks("nul_byte", items)
        titles = pc.if_else(pa.array(html), concat(titles, " &amp; travel pouch"), titles)
        titles = pc.if_else(
            pa.array(nul), pc.replace_substring(titles, " ", "\\u0000 ", max_replacements=1), titles
        )
        descriptions = pc.if_else(
            pa.array(html), concat(descriptions, " It&#39;s &quot;one of a kind&quot;."), descriptions
        )
        descriptions = pc.if_else(pa.array(self._edited[items]), concat(descriptions, EDIT), descriptions)
        long = self.marks("long_description", items)
        texts = descriptions.take(pa.array(np.flatnonzero(long))).to_pylist()
        descriptions = override(descriptions, long, [" ".join([text] * LONG) for text in texts])
        return titles, pc.if_else(pa.array(self.marks("empty_description", items)), "", descriptions)

    def _soiled(self, rng: np.random.Generator, rows: Rows) -> tuple[pa.Array, Counter[str]]:
        """The lines of the rows with dirty lines strewn among them."""
        counts = Counter({name: int(self.marks(name, rows.items).sum()) for name in MARKS})
        lines = [self._lines(rows)]
        for kind, rate in ITEM_RATES.items():
            n = int(rng.binomial(len(rows.items), min(rate * self.spec.dirt, 0.5)))
            sample = np.sort(rng.choice(len(rows.items), n, replace=False))
            good = lines[0].take(pa.array(sample)).to_pylist()
            lines.append(pa.array([self._spoil(kind, line, rng) for line in good], pa.string()))
            counts[kind] = n
        together = pa.concat_arrays(lines)
        return together.take(pa.array(rng.permutation(len(together)))), counts

    def _spoil(self, kind: str, line: str, rng: np.random.Generator) -> str:
        own_id = line[len('{"item_id":"') :].split('"', 1)[0]
        if kind == "stale_duplicate":  # an older row of the same item, under an old title
            line = line.replace('"title":"', '"title":"Old listing: ', 1)
            head, updated = line.rsplit('"updated_at":"', 1)
            return f'{head}"updated_at":"2020{updated[4:]}'
        if kind == "missing_id":
            return line.replace(f'"{own_id}"', '""' if rng.random() < 0.5 else "null", 1)
        self._unused += 1
        line = line.replace(own_id, f"P{int(item_ids(np.array([self._unused]))[0]):07d}", 1)
        if kind == "broken_json":
            return line[: int(rng.integers(20, len(line) - 1))]
        head, rest = line.split('"title":"', 1)
        return head + '"title":"' + ("" if rng.random() < 0.5 else "  ") + '"' + rest.split('"', 1)[1]

    def _triples(self, day: int, items: Ints) -> dict[str, int]:
        """Knowledge about six of seven new items; some lines doubled, without an entity, or of no item."""
        rng = stream(self.spec, "triples", day)
        folder = self.out / "knowledge" / f"dt={self.spec.date_of(day)}"
        counts: Counter[str] = Counter()
        known = items[_known_to_knowledge(items)]
        with whole_file(folder / "triples.csv") as file:
            file.write(b"item_id,relation,entity\n")
            for low in range(0, len(known), CHUNK):
                lines = self._triple_lines(known[low : low + CHUNK])
                counts["triples"] += len(lines)
                write_lines(file, lines)
                bad = self._bad_triples(rng, lines)
                for kind, spoiled in bad.items():
                    counts[f"triples_{kind}"] += len(spoiled)
                    write_lines(file, pa.array(spoiled, pa.string()))
        return dict(counts)

    def _triple_lines(self, items: Ints) -> pa.Array:
        columns = self.texts.columns(items)
        ids = take(self.ids.items, items)
        return pa.concat_arrays([
            concat(ids, f",{relation},", columns[slot])
            for relation, slot in (
                ("made_by", "brand"), ("designed_by", "author"), ("made_of", "material"), ("part_of", "line"),
                ("suited_to", "topic"),
            )
        ])  # fmt: skip

    def _bad_triples(self, rng: np.random.Generator, lines: pa.Array) -> dict[str, list[str]]:
        out: dict[str, list[str]] = {}
        for kind, rate in (("duplicate", 0.003), ("no_entity", 0.001), ("unknown_item", 0.001)):
            n = int(rng.binomial(len(lines), min(rate * self.spec.dirt, 0.5)))
            chosen = lines.take(pa.array(rng.choice(len(lines), n, replace=False))).to_pylist()
            if kind == "no_entity":
                chosen = [line.rsplit(",", 1)[0] + "," for line in chosen]
            if kind == "unknown_item":
                chosen = [f"X{line[1:]}" for line in chosen]
            out[kind] = chosen
        return out


def _known_to_knowledge(items: Ints) -> Bools:
    return np.asarray((items * 2_654_435_761 >> 11) % 7 != 0)


def write_users(spec: GenerateSpec, people: People, ids: Ids, out: Path, likes: pa.Array) -> dict[str, int]:
    """Write ``users/users.csv``: all users, bots and silent ones too; returns counts by kind of row."""
    rng = stream(spec, "text")
    n = len(people)
    dates = pa.array([spec.date_of(day).isoformat() for day in range(-1000, spec.days)])
    lines = concat(
        take(ids.users, np.arange(n)), ",", take(pa.array(SEGMENTS), people.segment), ",",
        take(dates, people.signup_day + 1000), ",", likes,
    )  # fmt: skip
    doubled = rng.choice(n, int(rng.binomial(n, min(0.001 * spec.dirt, 0.5))), replace=False)
    nameless = rng.choice(n, int(rng.binomial(n, min(0.0005 * spec.dirt, 0.5))), replace=False)
    blank = pa.array([line[line.index(",") :] for line in take(lines, nameless).to_pylist()], pa.string())
    with whole_file(out / "users" / "users.csv") as file:
        file.write(b"user_id,segment,signup_date,likes\n")
        write_lines(file, pa.concat_arrays([lines, take(lines, doubled), blank]))
    return {"users": n, "duplicate": len(doubled), "missing_id": len(nameless)}
