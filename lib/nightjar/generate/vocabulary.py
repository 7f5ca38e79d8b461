"""The words of the planted world, read once from the package's ``tastes.toml``."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class Taste:
    """One planted taste: what its things are called, what they are for, what they are made of."""

    name: str
    category: str
    products: tuple[str, ...]
    topics: tuple[str, ...]
    materials: tuple[str, ...]
    uses: tuple[str, ...]


@dataclass(frozen=True)
class Names:
    """Proper names shared by all tastes; a series' line name is one ``first`` and one ``second``."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    maker: tuple[str, ...]
    house: tuple[str, ...]
    given: tuple[str, ...]
    finish: tuple[str, ...]


@dataclass(frozen=True)
class Vocabulary:
    """All tastes (the order is part of the world's seed: append, never insert) and the names."""

    tastes: tuple[Taste, ...]
    names: Names


@cache
def load_vocabulary() -> Vocabulary:
    """Read ``tastes.toml``; its lists are strings separated by ``|``."""
    text = resources.files("nightjar.generate").joinpath("tastes.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    names = Names(**{key: tuple(value.split("|")) for key, value in table["names"].items()})
    tastes = tuple(
        Taste(
            name=row["name"],
            category=row["category"],
            products=tuple(row["products"].split("|")),
            topics=tuple(row["topics"].split("|")),
            materials=tuple(row["materials"].split("|")),
            uses=tuple(row["uses"].split("|")),
        )
        for row in table["taste"]
    )
    return Vocabulary(tastes, names)
