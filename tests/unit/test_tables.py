"""Checks of the contracts against slow oracles that read rows one by one."""

from __future__ import annotations

import math
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.errors import ContractError
from nightjar.tables import (
    CANDIDATES,
    ITEM_VECTORS,
    RECOMMENDATIONS,
    TABLES,
    Table,
    WholeLists,
    at_least,
    dense_ranks,
    finite,
    not_blank,
    one_of,
    ranked_lists,
    table_named,
    unit_norm,
    vector_column,
    vectors,
)

FLOAT = st.sampled_from([0.0, 1.0, -1.0, 0.5, math.nan, math.inf, -math.inf])


def _chunked(values: list[Any], kind: pa.DataType, cut: int) -> pa.ChunkedArray:
    """The values in two chunks, the second a slice with an offset."""
    cut = min(cut, len(values))
    second = pa.array([*values[:1], *values[cut:]], kind).slice(len(values[:1]))
    return pa.chunked_array([pa.array(values[:cut], kind), second], kind)


@given(st.lists(FLOAT, max_size=6), st.integers(0, 6))
def test_finite(values: list[float], cut: int) -> None:
    said = finite("x")(pa.table({"x": _chunked(values, pa.float32(), cut)}))
    bad = sum(not math.isfinite(value) for value in values)
    assert said == (f"{bad} values of x are not finite" if bad else None)


@given(st.lists(st.lists(FLOAT, min_size=2, max_size=2), max_size=5), st.integers(0, 5))
def test_vector_checks(rows: list[list[float]], cut: int) -> None:
    table = pa.table({"v": _chunked(rows, pa.list_(pa.float32(), 2), cut)})
    bad = sum(not math.isfinite(value) for row in rows for value in row)
    assert finite("v")(table) == (f"{bad} values of v are not finite" if bad else None)
    if not bad:
        odd = sum(abs(math.hypot(*row) - 1) > 1e-3 for row in rows)
        assert unit_norm("v")(table) == (f"{odd} vectors of v are not of length 1" if odd else None)


@given(st.lists(st.text("ab ", max_size=2), max_size=6), st.integers(0, 6))
def test_text_checks(values: list[str], cut: int) -> None:
    table = pa.table({"x": _chunked(values, pa.string(), cut)})
    assert not_blank("x")(table) == (f"{values.count('')} values of x are empty" if "" in values else None)
    strange = sorted(set(values) - {"a", "b"})
    said = one_of("x", ("b", "a"))(table)
    assert said == (f"x has {strange}, allowed are ['a', 'b']" if strange else None)


@given(st.lists(st.integers(-3, 3), max_size=6), st.integers(0, 6), st.integers(-3, 3))
def test_bounds(values: list[int], cut: int, bound: int) -> None:
    said = at_least("x", bound)(pa.table({"x": _chunked(values, pa.int64(), cut)}))
    assert (said is None) == all(value >= bound for value in values)


LISTS = st.lists(
    st.tuples(
        st.lists(st.integers(-1, 4), max_size=4),
        st.lists(st.sampled_from([2.0, 1.0, 0.0, math.nan]), max_size=4),
    ),
    max_size=4,
)


@given(LISTS, st.booleans(), st.integers(0, 4))
def test_ranked_lists(rows: list[tuple[list[int], list[float]]], tidy: bool, offset: int) -> None:
    if tidy:  # mostly sound lists, so that both answers come up
        rows = [(nums[: len(scores)], sorted(scores, reverse=True)[: len(nums)]) for nums, scores in rows]
    table = pa.table(
        {
            "item_nums": pa.array([nums for nums, _ in rows], pa.list_(pa.int64())),
            "scores": pa.array([scores for _, scores in rows], pa.list_(pa.float32())),
        }
    ).slice(offset)
    sound = all(
        len(nums) == len(scores)
        and all(num >= 0 for num in nums)
        and all(map(math.isfinite, scores))
        and all(left >= right for left, right in pairwise(scores))
        and len(set(nums)) == len(nums)
        for nums, scores in rows[offset:]
    )
    assert (ranked_lists(table) is None) == sound


def _is_dense(rows: list[tuple[str, int, str]]) -> bool:
    """Consecutive rows of a user are a list."""
    for _, group in groupby(rows, key=lambda row: row[0]):
        mine = list(group)
        if [rank for _, rank, _ in mine] != list(range(1, len(mine) + 1)):
            return False
    pairs = [(user, item) for user, _, item in rows]
    return len(set(pairs)) == len(pairs)


def _recommended(rows: list[tuple[str, int, str]]) -> pa.Table:
    return pa.table(
        {
            "user_id": pa.array([user for user, _, _ in rows], pa.string()),
            "rank": pa.array([rank for _, rank, _ in rows], pa.int32()),
            "item_id": pa.array([item for _, _, item in rows], pa.string()),
        }
    )


@st.composite
def recommended(draw: st.DrawFn) -> list[tuple[str, int, str]]:
    """Sound lists, in which perhaps one row is changed or dropped."""
    rows = [
        (f"u{user}", rank, f"i{rank}")
        for user, length in enumerate(draw(st.lists(st.integers(1, 4), max_size=4)))
        for rank in range(1, length + 1)
    ]
    for _ in range(draw(st.integers(0, 1)) if rows else 0):
        at = draw(st.integers(0, len(rows) - 1))
        user, rank, item = rows[at]
        rows[at : at + 1] = draw(
            st.sampled_from(
                [[], [(user, rank + 1, item)], [(user, rank, "i1")], [(user, 0, item)], [rows[at]] * 2]
            )
        )
    return rows


@given(recommended())
def test_dense_ranks(rows: list[tuple[str, int, str]]) -> None:
    assert (dense_ranks(_recommended(rows)) is None) == _is_dense(rows)


@given(recommended(), st.lists(st.integers(0, 16), max_size=5))
def test_whole_lists_do_not_depend_on_where_groups_end(
    rows: list[tuple[str, int, str]], cuts: list[int]
) -> None:
    """Sound or not, however the rows are cut: the same answer as all of them at once."""
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    table = _recommended(rows)
    whole = WholeLists(RECOMMENDATIONS)
    try:
        for start, stop in pairwise(edges):
            whole.add(table.slice(start, stop - start))
        whole.end()
        refused = False
    except ContractError as error:
        assert str(error).startswith("recommendations: ")
        refused = True
    assert refused == (not _is_dense(rows))


@given(st.integers(0, 4), st.integers(1, 3), st.integers(0, 4))
def test_vectors_go_to_arrow_and_back(n: int, dim: int, cut: int) -> None:
    matrix = np.arange(n * dim, dtype=np.float32).reshape(n, dim)
    column = vector_column(matrix)
    np.testing.assert_array_equal(vectors(column), matrix)
    np.testing.assert_array_equal(vectors(column.slice(cut)), matrix[cut:])
    chunks = pa.chunked_array([column.slice(0, cut), column.slice(cut)], column.type)
    np.testing.assert_array_equal(vectors(chunks), matrix)
    np.testing.assert_array_equal(vectors(pa.chunked_array([], column.type)), matrix[:0])
    np.testing.assert_array_equal(vectors(vector_column(np.asfortranarray(matrix))), matrix)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: str(table.name))
def test_every_contract_is_sound(table: Table) -> None:
    """Keys and vectors are fields that allow no null, empty data passes every check, names are unique."""
    schema = table.arrow_schema(dim=3)
    for name in table.key:
        assert not schema.field(name).nullable
    if table.vector:
        assert schema.field(table.vector).type == pa.list_(pa.float32(), 3)
    empty = schema.empty_table()
    assert table.conform(empty, schema, "nothing").num_rows == 0
    assert table.whole is None or table.whole(empty) is None
    assert table_named(table.name) is table
    assert sum(one.name == table.name for one in TABLES) == 1


def test_columns_come_in_the_order_of_the_contract() -> None:
    rows = pa.table(
        {"norm": [1.0, 1.0], "vector": vector_column(np.eye(2)), "item_num": [0, 1], "item_id": ["a", "b"]}
    )
    schema = ITEM_VECTORS.arrow_schema(2)
    assert ITEM_VECTORS.conform(rows, schema, "rows").schema.names == schema.names
    assert schema.names == ["item_id", "item_num", "vector", "norm"]


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 1.5, "x"])
def test_a_value_that_does_not_fit_is_refused(value: Any) -> None:
    table = Table("t", pa.schema([pa.field("n", pa.int32(), nullable=False)]))
    with pytest.raises(
        ContractError, match=r"t: here does not fit its contract .*got \[n: .*says \[n: int32!\]"
    ):
        table.conform(pa.table({"n": [value]}), table.schema, "here")


def test_an_unknown_table_lists_the_known_ones() -> None:
    with pytest.raises(ContractError, match="no table 'recomendations'; known: events, "):
        table_named("recomendations")


def test_a_list_column_may_be_empty_but_holds_no_null() -> None:
    def rows(nums: Any) -> pa.Table:
        return pa.table(
            {
                "user_id": ["u"],
                "source": ["personal"],
                "item_nums": pa.array([nums], pa.list_(pa.int64())),
                "scores": pa.array([[]], pa.list_(pa.float32())),
            }
        )

    assert CANDIDATES.conform(rows([]), CANDIDATES.schema, "rows").num_rows == 1
    for nums in (None, [None]):
        with pytest.raises(ContractError, match=r"item_nums'? (with|, which allows)|in item_nums"):
            CANDIDATES.conform(rows(nums), CANDIDATES.schema, "rows")
