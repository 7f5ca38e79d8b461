"""A bucket's user vectors with one interest and with several, as the part of a Spark task makes them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nightjar.kernels.clusters import Interests, Splitting
from nightjar.kernels.taste import unit_rows
from nightjar.progress import QUIET
from nightjar.stage import Night
from nightjar.stages.aggregate_users import AggregatePart, _with_words
from nightjar.tables import (
    INTERACTIONS,
    ITEM_VECTORS,
    USER_VECTORS,
    USERS,
    WEIGHT_ONE,
    vector_column,
    vectors,
)
from tests import world

DIM = 8
LIKES = {"a": {0: 3.0, 1: 3.0, 4: 2.0, 5: 2.0}, "b": {0: 1.0, 1: 1.0}, "c": {2: -1.0}, "d": {3: 1.0}}


@pytest.fixture
def night(tmp_path: Path) -> Night:
    """Two kinds of items, 0-3 and 4-7, of lengths from 0.5 to 2; a likes both kinds, b and d one."""
    night = Night(world.config(tmp_path), world.DS, QUIET)
    rng = np.random.default_rng(1)
    D = unit_rows((np.eye(DIM)[np.repeat([0, 1], 4)] + rng.normal(0, 0.05, (8, DIM))).astype(np.float32))
    norm = rng.uniform(0.5, 2, 8).astype(np.float32)
    ids = [f"i{n}" for n in range(8)]
    columns = {
        "item_id": ids,
        "item_num": np.arange(8),
        "vector": vector_column(D * norm[:, None]),
        "norm": norm,
    }
    items = pa.table(columns, schema=ITEM_VECTORS.arrow_schema(DIM))
    world.commit(night.store, ITEM_VECTORS, night.ds, [items], dim=DIM)
    rows = [
        {
            "user_id": user,
            "item_num": item,
            "weight": int(weight * WEIGHT_ONE),
            "strength": int(weight * WEIGHT_ONE),
            "n_events": 1,
            "last_event_time": night.end - timedelta(days=item + 1),
            "first_liked": None,
            "last_liked": None,
            "in_profile": True,
        }
        for user, liked in LIKES.items()
        for item, weight in liked.items()
    ]
    world.commit(night.store, INTERACTIONS, night.ds, [pa.Table.from_pylist(rows, INTERACTIONS.schema)])
    people = [
        {"user_id": user, "segment": None, "n_events": 2, "n_items": 2, "last_event_time": night.end}
        for user in LIKES
    ]
    world.commit(night.store, USERS, night.ds, [pa.Table.from_pylist(people, USERS.schema)])
    return night


def rows_of(night: Night, how: Splitting) -> list[dict[str, Any]]:
    attempt = night.dataset(USER_VECTORS).attempt(f"most{how.most}", DIM)
    tables = (night.dataset(table).require("x") for table in (INTERACTIONS, USERS, ITEM_VECTORS))
    part = AggregatePart(*tables, attempt, None, 120.0, how)
    table = pa.concat_tables(list(part._tables(0)))
    part(0)  # through the contract
    return [
        {**row, "vector": vector}
        for row, vector in zip(table.to_pylist(), vectors(table["vector"]), strict=True)
    ]


def test_one_interest_is_the_sum_of_directions(night: Night) -> None:
    rows = rows_of(night, Splitting(1))
    assert [(row["user_id"], row["interest"], row["importance"]) for row in rows] == [
        ("a", 0, 1.0),
        ("b", 0, 1.0),
        ("c", 0, 1.0),
        ("d", 0, 1.0),
    ]
    D = unit_rows(vectors(night.dataset(ITEM_VECTORS).require("x").read()["vector"]))
    expected = unit_rows((3 * D[0] + 3 * D[1] + 2 * D[4] + 2 * D[5])[None])[0]
    np.testing.assert_allclose(rows[0]["vector"], expected, atol=1e-6)


def test_only_users_of_several_interests_get_several_vectors(night: Night) -> None:
    one, several = rows_of(night, Splitting(1)), rows_of(night, Splitting(3))
    found = [(row["user_id"], row["interest"]) for row in several]
    assert found == [("a", 0), ("a", 1), ("b", 0), ("c", 0), ("d", 0)]
    assert [row["importance"] for row in several[:2]] == pytest.approx([0.6, 0.4])
    assert several[0]["vector"][0] > 0.98
    assert several[1]["vector"][1] > 0.98
    for alone, among in zip(one[1:], several[2:], strict=True):
        assert alone["vector"].tobytes() == among["vector"].tobytes()
        assert alone["importance"] == among["importance"] == 1.0


def test_what_a_user_wrote_is_an_interest_more() -> None:
    from scipy import sparse

    U = np.eye(3, dtype=np.float32)
    two = Interests(np.array([0, 0]), U[:2], np.array([0.6, 0.4], np.float32), np.array([4, 9]))
    said = np.array([[0, 0, 5], [0, 0, 1]], np.float32)
    profile = sparse.csr_matrix(np.array([[3, 2, -4], [1, 0, 0]], np.float32))
    found = _with_words(two, said, profile)
    assert found.user.tolist() == [0, 0, 0]
    np.testing.assert_allclose(found.importance, [0.5, 0.3, 0.2])
    np.testing.assert_allclose(found.vector, [[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    assert found.medoid.tolist() == [-1, 4, 9]
