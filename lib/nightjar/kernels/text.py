"""The text of an item, built from a template: what the encoder reads.

    >>> render(parse("{title}. {description} {knowledge}"), {"title": "Tea pot", "knowledge": "colour: red"})
    'Tea pot. colour: red'

A template is fields with words between them. The words of an empty field go with it: punctuation that closes
belongs to the field before, words and brackets that open to the field after, and what only separates two
fields stays where there are two fields to separate.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Mapping
from dataclasses import dataclass

from nightjar.errors import ConfigError

SEPARATORS = ".,;:!?-–—|/·"
CLOSERS = ")]}»”\"'"
_FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")
_TAG = re.compile(
    r"</?(?:a|b|br|div|em|font|h[1-6]|i|img|li|ol|p|small|span|strong|sub|sup|table|td|tr|u|ul)\b[^<>]{0,500}>",
    re.I,
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\u2060\ufeff\ufffd\ud800-\udfff]")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Piece:
    """A field and the words around it. glue: what separates it from the piece before it, if one is shown.

    before: its own words and opening brackets; after: closing brackets; end: punctuation shown only when the
    template ends with this piece.
    """

    name: str
    before: str = ""
    after: str = ""
    glue: str = ""
    end: str = ""


def parse(template: str) -> tuple[Piece, ...]:
    """The pieces of a template; ConfigError where it has no field or a brace too many."""
    names = _FIELD.findall(template)
    words = _FIELD.split(template)[::2]
    if not names:
        raise ConfigError(f"template {template!r} names no field; write fields as {{title}}")
    if any("{" in literal or "}" in literal for literal in words):
        raise ConfigError(f"template {template!r} has a brace that belongs to no field; write {{name}}")
    split = [_split(literal) for literal in words[1:-1]]
    afters, glues, befores = zip(*split, strict=True) if split else ((), (), ())
    closing, end = _closing(words[-1])
    return tuple(
        Piece(name, before, after, glue, last)
        for name, before, after, glue, last in zip(
            names,
            (words[0].lstrip(), *befores),
            (*afters, closing),
            ("", *glues),
            (*[""] * (len(names) - 1), end),
            strict=True,
        )
    )


def _split(literal: str) -> tuple[str, str, str]:
    """Words between two fields as (closing brackets of the left, separator, words of the right)."""
    closers = literal[: len(literal) - len(literal.lstrip(CLOSERS))]
    rest = literal[len(closers) :]
    glue = rest[: len(rest) - len(rest.lstrip(SEPARATORS + " \t\n"))]
    return closers, _SPACE.sub(" ", glue), _SPACE.sub(" ", rest[len(glue) :])


def _closing(literal: str) -> tuple[str, str]:
    closers = literal[: len(literal) - len(literal.lstrip(CLOSERS))]
    return closers, _SPACE.sub(" ", literal[len(closers) :]).rstrip()


def render(pieces: tuple[Piece, ...], values: Mapping[str, str | None]) -> str:
    """The text for one item's values, which are clean (see `clean`); empty where no field has a value."""
    text, glue = "", ""
    for piece in pieces:
        # Of the separators passed over with empty fields, the strongest one stays.
        glue = max(glue, piece.glue, key=_strength)
        value = values.get(piece.name)
        if not value:
            continue
        text += (_joint(text, glue) if text else "") + piece.before + value + piece.after
        glue = ""
    last = pieces[-1]
    if text and values.get(last.name):
        text += last.end if not (last.end[:1] == "." and text[-1] in ".!?…") else last.end[1:]
    return text


def _strength(glue: str) -> tuple[bool, int]:
    return bool(glue.strip()), len(glue)


def _joint(text: str, glue: str) -> str:
    """A separator behind a value that already ends with punctuation is only a space."""
    mark = glue.strip()
    if mark in (".", ",", ";", ":") and text[-1] in ".!?…,;:":
        return " "
    return glue


def clean(text: str | None) -> str:
    """Readable text from a raw field: entities decoded, tags, control characters and broken bytes removed,
    whitespace single.
    """
    if not text:
        return ""
    if "&" in text:
        text = html.unescape(html.unescape(text))  # catalogues are often escaped twice
    if "<" in text:
        text = _TAG.sub(" ", text)
    return _SPACE.sub(" ", _CONTROL.sub(" ", text)).strip()


def bounded(text: str, max_chars: int) -> str:
    """At most max_chars characters, cut between words; a single longer word is cut inside."""
    if len(text) <= max_chars:
        return text
    cut = text[:max_chars]
    if not text[max_chars].isspace():
        shorter = cut.rpartition(" ")[0]
        cut = shorter or cut
    return cut.rstrip(" " + SEPARATORS) or cut.rstrip()


def usable(text: str) -> bool:
    """Whether there is anything to encode: a letter or a digit of any script."""
    return any(letter.isalnum() for letter in text)


def text_hash(text: str) -> str:
    """sha256 of the text as hex: equal texts are encoded once."""
    return hashlib.sha256(text.encode()).hexdigest()
