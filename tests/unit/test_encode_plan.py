"""The plan of a night against a slow walk over its rows; keys against Python's own hex."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.errors import ContractError
from nightjar.stages.encoding.plan import KEY, hash_keys, make_plan

texts = st.lists(st.integers(0, 12), max_size=40)


def digest(text: int) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()


def keys_of(texts_: list[int]) -> np.ndarray:
    return hash_keys(pa.chunked_array([pa.array([digest(text) for text in texts_], pa.string())]))


@given(parts=st.lists(texts, min_size=1, max_size=6), known=texts)
def test_each_text_is_encoded_once_and_each_row_gets_its_own(
    parts: list[list[int]], known: list[int]
) -> None:
    """Follows every row's vector to where it comes from: it must be the vector of the row's own text."""
    offsets = np.cumsum([0, *map(len, parts)])
    rows = [text for part in parts for text in part]
    plan = make_plan(keys_of(rows), offsets, keys_of(known))
    units = plan.places(slice(0, len(plan.repeated_at)))
    repeated = [parts[part][row] for part, rows_ in units for row in rows_]
    encoded = list(repeated)
    for number, part in enumerate(parts):
        sources = plan.of_part(number)
        fresh = [part[row] for row in sources.texts]
        encoded += fresh
        got: dict[int, int] = {}
        for pair, vectors in ((sources.earlier, known), (sources.repeated, repeated), (sources.fresh, fresh)):
            for row, place in zip(pair.rows, pair.places, strict=True):
                assert row not in got
                got[int(row)] = vectors[place]
        assert [got[row] for row in range(len(part))] == part
    assert sorted(encoded) == sorted(set(rows) - set(known))
    assert plan.n_new == len(encoded)
    # What stands in one part alone waits for nobody.
    assert set(repeated) == {t for t in set(rows) - set(known) if sum(t in part for part in parts) > 1}


@given(lo=st.integers(0, 6), hi=st.integers(0, 6))
def test_repeated_texts_can_be_cut_anywhere(lo: int, hi: int) -> None:
    parts = [[0, 1, 2], [2, 3, 1, 4], [4, 0, 5, 3]]
    plan = make_plan(keys_of([t for part in parts for t in part]), np.array([0, 3, 7, 11]), keys_of([]))
    cut = [parts[part][row] for part, rows in plan.places(slice(lo, hi)) for row in rows]
    assert cut == [0, 1, 2, 3, 4][lo:hi]


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=9), st.integers(0, 3))
def test_keys_are_the_first_bytes_of_the_hash(hashes: list[bytes], skip: int) -> None:
    hashes = [bytes([0, 255, 0]) * 5 + bytes(17), *hashes]
    column = pa.chunked_array([pa.array([one.hex() for one in hashes])]).slice(skip)
    expected = np.array([one[:16] for one in hashes][skip:], KEY)
    assert np.array_equal(hash_keys(column), expected)


def test_what_is_no_hash_is_refused() -> None:
    with pytest.raises(ContractError, match="no sha256"):
        hash_keys(pa.chunked_array([pa.array(["a" * 64, "short"])]))
    assert len(hash_keys(pa.chunked_array([], pa.string()))) == 0
