"""From the ratings table to errors by cell: who is known, where ALS falls back, what errors are made of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from nightjar.config import Evaluate
from nightjar.progress import QUIET
from nightjar.stage import Night
from nightjar.stages.evaluation.rating_figures import predicted, rating_figures
from nightjar.store import Committed
from nightjar.tables import NEIGHBOURS, PREDICTED_RATINGS, RATINGS
from tests import world

N_ITEMS = 6
START = datetime(2025, 1, 1, tzinfo=UTC)


def neighbours(folder: Path) -> Committed:
    """Item 5 has the text of item 0."""
    night = Night(world.config(folder), world.DS, QUIET)
    nums = [[5], [], [], [], [], [0]]
    columns = {
        "relation": ["text"] * N_ITEMS,
        "item_num": np.arange(N_ITEMS),
        "item_nums": nums,
        "scores": [[1.0] * len(row) for row in nums],
    }
    world.commit(night.store, NEIGHBOURS, night.ds, [pa.table(columns, schema=NEIGHBOURS.schema)])
    return night.dataset(NEIGHBOURS).require("learn_taste")


def ratings() -> pa.Table:
    """Ten users rate items 0 to 4, item 0 highest; then three held: known, of a new item, by a stranger."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(10):
        for item in range(5):
            if (user, item) != (3, 2):
                value = float(np.clip(5 - item + rng.normal(0, 0.2), 1, 5))
                rows.append(
                    (f"u{user:02d}", item, value, START + timedelta(hours=7 * user + item), False, None)
                )
    later = START + timedelta(days=60)
    rows += [
        ("u03", 2, 3.0, later, True, 2.5),
        ("u04", 5, 5.0, later, True, None),
        ("v", 4, 1.0, later, True, None),
    ]
    columns = [list(column) for column in zip(*sorted(rows, key=lambda row: row[:2]), strict=True)]
    return pa.table(dict(zip(RATINGS.schema.names, columns, strict=True)), schema=RATINGS.schema)


def test_every_method_predicts_every_held_rating(tmp_path: Path) -> None:
    rows = ratings()
    table, methods, settings = predicted(rows, neighbours(tmp_path), N_ITEMS)
    PREDICTED_RATINGS.conform(table, PREDICTED_RATINGS.schema, "test")
    assert settings is not None
    assert methods == ["nightjar", "global_mean", "item_mean", "user_mean", "als"]
    found = {row["user_id"]: row for row in table.to_pylist()}
    assert {user: (row["known_user"], row["known_item"]) for user, row in found.items()} == {
        "u03": (True, True),
        "u04": (True, False),
        "v": (False, True),
    }
    known = rows.filter(pa.array(~rows["held"].to_numpy())).to_pylist()
    of = {
        name: {user: row["predicted"][at] for user, row in found.items()} for at, name in enumerate(methods)
    }
    item4 = np.mean([row["value"] for row in known if row["item_num"] == 4])
    user4 = np.mean([row["value"] for row in known if row["user_id"] == "u04"])
    assert of["item_mean"]["v"] == pytest.approx(item4)
    assert of["user_mean"]["u04"] == pytest.approx(user4)
    # Where ALS has no factors: the item's mean, for a new item the user's.
    assert of["als"] == pytest.approx({"u03": 2.5, "u04": user4, "v": item4})
    assert of["nightjar"]["v"] == pytest.approx(1.0, abs=0.7)
    assert of["nightjar"]["u03"] == pytest.approx(3.0, abs=0.7)


def test_errors_are_those_of_the_predictions(tmp_path: Path) -> None:
    table, methods, _ = predicted(ratings(), neighbours(tmp_path), N_ITEMS)
    params = Evaluate(n_resamples=50)
    found = {(one.name, one.slice): one for one in rating_figures(table, methods, params)}
    off = np.array([row["predicted"][4] - row["value"] for row in table.to_pylist()])
    assert found["als.MAE", "ratings"].value == pytest.approx(np.abs(off).mean())
    assert found["als.RMSE", "ratings"].value == pytest.approx(np.sqrt((off**2).mean()))
    lift = found["nightjar-als.RMSE", "ratings"]
    assert lift.value == pytest.approx(
        found["nightjar.RMSE", "ratings"].value - found["als.RMSE", "ratings"].value
    )
    assert found["ratings", "ratings"].value == 3
    assert found["ratings", "ratings: new users, known items"].value == 1
    assert ("ratings", "ratings: new users, new items") not in found


def test_without_held_ratings_there_is_nothing_to_predict(tmp_path: Path) -> None:
    rows = ratings()
    none, methods, settings = predicted(rows.slice(0, 0), neighbours(tmp_path), N_ITEMS)
    assert (len(none), methods, settings) == (0, [], None)
    PREDICTED_RATINGS.conform(none, PREDICTED_RATINGS.schema, "test")
