"""The text of an item: what stays of a template when fields are empty, and how a text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.errors import ConfigError
from nightjar.kernels import text

FULL = {"title": "Tea", "brand": "Acme", "category": "Pots", "description": "Nice.", "knowledge": "x: y"}
NAMES = sorted(FULL)


def rendered(template: str, *names: str) -> str:
    return text.render(text.parse(template), {name: FULL[name] for name in names})


@pytest.mark.parametrize(
    ("template", "names", "expected"),
    [
        ("{title}. {description} {knowledge}", NAMES, "Tea. Nice. x: y"),
        ("{title}. {description} {knowledge}", ["title"], "Tea"),
        ("{title}. {description} {knowledge}", ["title", "knowledge"], "Tea. x: y"),
        ("{title}. {description} {knowledge}", ["description"], "Nice."),
        ("{title} by {brand} ({category}). {description}", NAMES, "Tea by Acme (Pots). Nice."),
        ("{title} by {brand} ({category}). {description}", ["title", "category"], "Tea (Pots)"),
        ("{title} by {brand} ({category}). {description}", ["title", "description"], "Tea. Nice."),
        ("Brand: {brand}. Title: {title}.", NAMES, "Brand: Acme. Title: Tea."),
        ("Brand: {brand}. Title: {title}.", ["title"], "Title: Tea."),
        ("Brand: {brand}. Title: {title}.", ["brand"], "Brand: Acme"),
        ("{category}/{title}", ["title"], "Tea"),
        ("{description}. {title}", NAMES, "Nice. Tea"),
        ("{title}", [], ""),
    ],
)
def test_words_of_an_empty_field_vanish(template: str, names: list[str], expected: str) -> None:
    assert rendered(template, *names) == expected


TEMPLATES = st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True).flatmap(
    lambda names: st.tuples(
        st.just(names),
        st.lists(
            st.sampled_from([". ", ", ", " ", " - ", " (", "). ", " by ", ": "]),
            min_size=len(names) - 1,
            max_size=len(names) - 1,
        ),
    )
)


@given(TEMPLATES, st.sets(st.sampled_from(NAMES)))
def test_every_value_stands_once_and_in_order(
    template: tuple[list[str], list[str]], given_names: set[str]
) -> None:
    names, words = template
    written = "".join(f"{{{name}}}{word}" for name, word in zip(names, [*words, ""], strict=True))
    out = rendered(written, *given_names)
    shown = [FULL[name] for name in names if name in given_names]
    places = [out.find(value) for value in shown]
    assert -1 not in places
    assert places == sorted(places)
    assert bool(out) == bool(shown)
    assert out == out.strip()


@pytest.mark.parametrize("template", ["no field", "{title", "title}", "{ti tle}", ""])
def test_a_template_that_cannot_be_read_is_refused(template: str) -> None:
    with pytest.raises(ConfigError):
        text.parse(template)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Caf&eacute; &amp;amp; Bar", "Café & Bar"),
        ("a\x00b\tc\r\n d", "a b c d"),
        ("<p>Soft<br/>and <b>warm</b></p>", "Soft and warm"),
        ("x <3 y, a < b", "x <3 y, a < b"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("£20 caf\ufffd", "£20 caf"),
        (None, ""),
    ],
)
def test_cleaning(raw: str | None, expected: str) -> None:
    assert text.clean(raw) == expected


@given(st.text(max_size=80), st.integers(1, 40))
def test_a_bounded_text_is_a_prefix_that_ends_between_words(raw: str, max_chars: int) -> None:
    whole = text.clean(raw)
    cut = text.bounded(whole, max_chars)
    assert len(cut) <= max_chars
    assert whole.startswith(cut)
    if cut != whole and " " in whole[:max_chars]:
        rest = whole[len(cut) :].lstrip(text.SEPARATORS)
        assert not rest or rest[0] == " " or not cut


@given(st.text(max_size=60))
def test_cleaning_twice_changes_nothing_more_than_entities(raw: str) -> None:
    once = text.clean(raw)
    if "&" not in once and "<" not in once:
        assert text.clean(once) == once
    assert "\x00" not in once
    assert "  " not in once
    text.text_hash(once)  # always encodable


def test_usable_means_a_letter_or_digit_of_any_script() -> None:
    assert text.usable("茶")
    assert text.usable("7")
    assert not text.usable("?!… --")
