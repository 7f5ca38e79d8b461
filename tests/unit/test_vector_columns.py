"""Vectors in Arrow columns: both layouts, whole, sliced, chunked and empty, against NumPy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.errors import ContractError
from nightjar.store import Dataset, Store
from nightjar.tables import ITEM_EMBEDDINGS, VectorType, halves, vector_column, vector_length, vectors


@given(
    n=st.integers(0, 9),
    dim=st.integers(1, 5),
    start=st.integers(0, 9),
    kind=st.sampled_from(["float32", "float16"]),
)
def test_what_went_in_comes_out(n: int, dim: int, start: int, kind: VectorType) -> None:
    X = np.random.default_rng(n * 10 + dim).standard_normal((n, dim)).astype(np.float32)
    expected = X.astype(kind).astype(np.float32)
    column = vector_column(X, kind)
    assert vector_length(column.type) == dim
    assert np.array_equal(vectors(column.slice(start)), expected[start:])
    chunked = pa.chunked_array([column, column.slice(start)], column.type)
    assert np.array_equal(vectors(chunked), np.concatenate([expected, expected[start:]]))


def test_compact_vectors_are_read_without_a_copy() -> None:
    column = vector_column(np.eye(3, dtype=np.float32), "float16")
    seen = halves(pa.chunked_array([column])).__array_interface__["data"][0]
    assert seen == column.buffers()[1].address


@pytest.mark.parametrize(("value", "says"), [(np.nan, "not finite"), (0.5, "not of length 1")])
def test_the_contract_looks_into_compact_vectors(tmp_path: Path, value: float, says: str) -> None:
    table = replace(ITEM_EMBEDDINGS, vector_type="float16")
    X = np.eye(4, dtype=np.float32)
    rows = {"item_id": list("abcd"), "text_hash": list("efgh")}
    attempt = Dataset(Store(str(tmp_path)), table, "2025-01-01").attempt("f", 4)
    attempt.write_part(0, [pa.table({**rows, "embedding": vector_column(X, "float16")})])
    X[2, 2] = value
    with pytest.raises(ContractError, match=says):
        attempt.write_part(1, [pa.table({**rows, "embedding": vector_column(X, "float16")})])
