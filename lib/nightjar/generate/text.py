"""Titles, descriptions and search terms from the vocabulary, whole columns at a time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nightjar.generate.catalogue import TOPICS, Catalogue, Ints
from nightjar.generate.vocabulary import Vocabulary

TITLES = (
    "{line} {product} for {topic}",
    "{brand} {line} {product}, {topic}",
    "{line} {product} in {finish}",
    "{topic}: {product} from the {line} series",
)
DESCRIPTIONS = (
    "The {line} {product} belongs to a series that {brand} designed with {author} for {topic}. {use} "
    "Made with {material}, in {finish}.",
    "{use} {brand} builds the {line} series around {topic}; this {product} brings {material} "
    "and a {finish} look.",
    "{line} is the {brand} series for {topic}. Its {product} relies on {material}. {use}",
    "{author} had {topic} in mind. {use} A {product} with {material}, part of {line} by {brand}.",
)
EDIT = " Updated edition with revised instructions."
QUERIES = ("{product}", "{product} {topic}", "{product}, {topic}", 'best "{product}"')
LINE_STEP = 1009  # prime and coprime to the number of line names: consecutive series get distant names


def fill(template: str, columns: dict[str, pa.Array]) -> pa.Array:
    """A template with ``{name}`` slots over equally long string columns."""
    pieces = [
        columns[piece] if place % 2 else pa.scalar(piece)
        for place, piece in enumerate(re.split(r"\{(\w+)\}", template))
    ]
    return pc.binary_join_element_wise(*pieces, "")


def capitals(texts: pa.Array) -> pa.Array:
    """The texts with their first letter in upper case and the rest as it was."""
    return pc.binary_join_element_wise(
        pc.utf8_upper(pc.utf8_slice_codeunits(texts, 0, 1)), pc.utf8_slice_codeunits(texts, 1), ""
    )


def _numerals(numbers: Ints) -> pa.Array:
    """Empty for 0, then " II", " III" and so on as arabic numbers from 2: only huge worlds need them."""
    table = pa.array(["" if n == 0 else f" {n + 1}" for n in range(int(numbers.max(initial=0)) + 1)])
    return table.take(pa.array(numbers))


@dataclass(frozen=True)
class Texts:
    """The words of every item, looked up by number."""

    catalogue: Catalogue
    words: Vocabulary

    @cached_property
    def _flat(self) -> dict[str, pa.Array]:
        tastes = self.words.tastes
        return {
            "product": pa.array([text for taste in tastes for text in taste.products]),
            "topic": pa.array([text for taste in tastes for text in taste.topics]),
            "material": pa.array([text for taste in tastes for text in taste.materials]),
            "use": pa.array([text for taste in tastes for text in taste.uses]),
        }

    def columns(self, items: Ints) -> dict[str, pa.Array]:
        """The slots of the templates for the items named."""
        of, series, names = self.catalogue.items, self.catalogue.series, self.words.names
        s = of.series[items]
        taste, rank, brand = series.taste[s], series.rank[s], series.brand[s]
        n_lines = len(names.first) * len(names.second)
        line = (rank * LINE_STEP + taste * 37) % n_lines
        return {
            "product": _pick(self._flat["product"], taste * 16 + of.product[items]),
            "topic": _pick(self._flat["topic"], taste * TOPICS + series.topic[s]),
            "material": _pick(self._flat["material"], taste * 6 + series.material[s]),
            "use": _pick(self._flat["use"], taste * 5 + series.use[s]),
            "finish": _pick(names.finish, series.finish[s]),
            "line": _words(
                _pick(names.first, line // len(names.second)), _pick(names.second, line % len(names.second)),
                _numerals(rank // n_lines),
            ),
            "brand": _words(
                _pick(names.maker, (taste * 5 + brand * 3) % 36), _pick(names.house, (taste + brand) % 10)
            ),
            "author": _words(
                _pick(names.given, (rank * 3 + taste) % 20), _pick(names.maker, (rank * 11 + taste * 2) % 36)
            ),
            "category": _pick([taste.category for taste in self.words.tastes], taste),
        }  # fmt: skip

    def titles(self, items: Ints) -> pa.Array:
        """Title of each item; items of ``title_of`` another bear exactly that one's title."""
        bearer = self.catalogue.items.title_of[items]
        return capitals(_by_template(TITLES, _scatter(bearer, 5) % 4, self.columns(bearer)))

    def descriptions(self, items: Ints, columns: dict[str, pa.Array]) -> pa.Array:
        """Description of each item from its columns."""
        return capitals(_by_template(DESCRIPTIONS, _scatter(items, 17) % 4, columns))

    @cached_property
    def queries(self) -> pa.Array:
        """Search terms of every (taste, product, topic, form), flat in that order."""
        texts = [
            form.format(product=product, topic=topic).lower()
            for taste in self.words.tastes
            for product in taste.products
            for topic in taste.topics
            for form in QUERIES
        ]
        return pa.array(texts)

    def query_numbers(self, items: Ints, salt: Ints) -> Ints:
        """Which search terms lead to each item; ``salt`` picks the form."""
        of, series = self.catalogue.items, self.catalogue.series
        cell = (of.taste[items] * 16 + of.product[items]) * TOPICS + series.topic[of.series[items]]
        return cell * len(QUERIES) + salt % len(QUERIES)


def _pick(table: pa.Array | list[str] | tuple[str, ...], numbers: Ints) -> pa.Array:
    return pa.array(table).take(pa.array(numbers))


def _words(first: pa.Array, second: pa.Array, tail: pa.Array | str = "") -> pa.Array:
    return pc.binary_join_element_wise(pc.binary_join_element_wise(first, second, " "), tail, "")


def _scatter(numbers: Ints, salt: int) -> Ints:
    """A hash of item numbers, so that neighbours get different templates."""
    return ((numbers + salt) * 2_654_435_761 >> 7) % 1_000_003


def _by_template(templates: tuple[str, ...], which: Ints, columns: dict[str, pa.Array]) -> pa.Array:
    """Each row filled into its own template, in row order."""
    order = np.argsort(which, kind="stable")
    filled = []
    for number, template in enumerate(templates):
        rows = pa.array(np.flatnonzero(which == number))
        filled.append(fill(template, {name: column.take(rows) for name, column in columns.items()}))
    back = np.empty(len(which), np.int64)
    back[order] = np.arange(len(which))
    return pa.concat_arrays(filled).take(pa.array(back))
