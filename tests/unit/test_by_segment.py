"""Popularity by segment: two countries with fashions of their own, and histories that tell nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from nightjar.kernels import by_segment, fitting, fusion
from nightjar.kernels.fitting import Chosen, Fit
from nightjar.kernels.likes import Likes
from nightjar.kernels.signals import Fading
from nightjar.stages.blending.blender import _by_segment
from nightjar.stages.blending.taste_log import read_likes
from nightjar.store import Dataset, Store
from nightjar.tables import INTERACTIONS, POPULARITY, USERS, WEIGHT_ONE
from tests.unit.committed_rows import commit

N_USERS, N_ITEMS = 400, 60
START = Chosen(30.0, Fading(), fusion.Recipe((1.0, 0.0, 0.25), 1.0, 0.0))
HOW = Fit(pool_depth=30)


def log(segmented: bool = True) -> Likes:
    """Everybody took three of the first 40 items at random, long ago, and lately two of the ten that are the
    fashion of their segment, items 40 to 49 in segment 1 and 50 to 59 in segment 2."""
    rng = np.random.default_rng(4)
    segment = rng.integers(1, 3, N_USERS)
    rows = []
    for user in range(N_USERS):
        old = [(int(item), 80.0) for item in rng.choice(40, 3, replace=False)]
        ages = rng.uniform(0.1, 20, 2)
        mine = 40 + 10 * (segment[user] - 1)
        new = list(zip((mine + rng.choice(10, 2, replace=False)).tolist(), ages, strict=True))
        rows += [(user, item, age) for item, age in sorted(old + new)]
    user_of, item_of, age = (np.array(column) for column in zip(*rows, strict=True))
    ages = age.astype(np.float64)
    ones = np.ones(len(ages), np.float32)
    return Likes(user_of, item_of, ones, ages, ages, N_USERS, N_ITEMS, segment if segmented else None)


def fit(likes: Likes) -> tuple[Chosen, fusion.Pool]:
    held = fitting.hold_back(likes, 8.0, HOW)
    rng = np.random.default_rng(1)
    noise = sparse.csr_matrix(rng.random((N_ITEMS, N_ITEMS)).astype(np.float32))
    V = rng.standard_normal((N_ITEMS, 5)).astype(np.float32)
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    relations = {"noise": noise, by_segment.NAME: by_segment.popularity(held.known, 30.0, 50)}
    chosen = fitting.fit(held, relations, V, START, HOW)
    truth = held.truth.indptr.astype(np.int64), held.truth.indices.astype(np.int64)
    scores = fitting.by_history(held.known, held.users, relations, V, chosen.history, HOW.history_cap)
    sources = fusion.Sources(scores, *fitting.by_recency(held.known, chosen.recency_days))
    return chosen, fusion.make_pool(sources, truth, held.barred, HOW.pool_depth)


def test_a_fit_finds_the_fashion_of_a_segment() -> None:
    chosen, pool = fit(log())
    noise, in_segment, _ = chosen.recipe.weights
    assert in_segment > 2 * noise
    found = fusion.quality(pool, chosen.recipe, 5).mean()
    assert found > 1.5 * fusion.quality(pool, START.recipe, 5).mean()
    random = np.random.default_rng(0).integers(1, 3, N_USERS)
    chosen, pool = fit(replace(log(), segment=random))
    assert found > 1.5 * fusion.quality(pool, chosen.recipe, 5).mean()


def test_without_segments_nothing_is_added() -> None:
    likes = log(segmented=False)
    assert by_segment.belongs(likes).shape == (N_USERS, 0)
    assert by_segment.popularity(likes, 30.0, 50).shape == (0, N_ITEMS)
    chosen, pool = fit(likes)
    assert chosen.recipe.weights[1] == 0 and not pool.values[1].any()


@pytest.mark.parametrize("most", [3, N_ITEMS])
def test_scores_are_counts_and_a_share_of_everybodys(most: int) -> None:
    likes = log()
    assert likes.segment is not None
    counts = np.zeros((3, N_ITEMS))
    for user, item, age in zip(likes.user, likes.item, likes.last, strict=True):
        counts[0, item] += 2 ** (-age / 30.0)
        counts[likes.segment[user], item] += 2 ** (-age / 30.0)
    kept = counts * (counts >= -np.sort(-counts, axis=1)[:, most - 1 : most])
    wanted = np.where(np.arange(3)[:, None] > 0, kept, 0) + kept[0] * by_segment.PRIOR / kept[0].sum()
    found = by_segment.popularity(likes, 30.0, most).toarray()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_only_the_largest_segments_have_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_segment, "MOST", 3)
    assert by_segment.rows_of(np.array([900, 5, 7, 0, 7, 9, 1])).tolist() == [0, 0, 1, 0, 2, 3, 0]
    assert by_segment.rows_of(np.array([4.0, 0.0, 2.5])).tolist() == [0, 0, 1]


def test_a_night_reads_the_segments_of_the_largest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a fit learns from and what ranks name the same segments; users of others count as everybody."""
    monkeypatch.setattr(by_segment, "MOST", 2)
    store, ds, when = Store(str(tmp_path)), date(2026, 1, 2), datetime(2026, 1, 1, tzinfo=UTC)
    segment_of = {"a": "FR", "b": "DE", "c": None, "d": "", "e": "FR", "f": "US", "g": "DE", "h": "FR"}
    one = WEIGHT_ONE
    people = [
        {"user_id": who, "segment": name, "n_events": 1, "n_items": 1, "last_event_time": when}
        for who, name in segment_of.items()
    ]
    pairs = [
        {
            "user_id": who, "item_num": at % 3, "weight": one, "strength": one, "n_events": 1,
            "last_event_time": when, "first_liked": when, "last_liked": when, "in_profile": True,
        }
        for at, who in enumerate(segment_of) if who != "g"
    ]  # fmt: skip
    popular = [
        {"segment": name, "rank": 1, "item_num": item, "weight": weight * one}
        for name, item, weight in (("", 0, 9), ("DE", 1, 2), ("FR", 2, 3), ("US", 0, 1))
    ]
    for table, rows in ((USERS, people), (INTERACTIONS, pairs), (POPULARITY, popular)):
        schema = table.arrow_schema(None)
        commit(store, table, ds, [pa.Table.from_pylist(rows, schema)])
    read = {
        table: Dataset(store, table, str(ds)).require("it") for table in (USERS, INTERACTIONS, POPULARITY)
    }
    end = datetime(2026, 1, 2, tzinfo=UTC)
    likes = read_likes(read[INTERACTIONS], 3, end, read[USERS])
    assert likes.segment is not None  # of a, b, c, d, e, f, h: g liked nothing
    # DE and US have one user each who likes anything; DE comes first.
    assert likes.segment.tolist() == [1, 2, 0, 0, 1, 0, 1]
    assert read_likes(read[INTERACTIONS], 3, end).segment is None
    rows, counts = _by_segment(read[POPULARITY], 3)
    assert rows == {"": 0, "DE": 1, "FR": 2}
    assert counts.toarray().tolist() == [[9, 0, 0], [0, 2, 0], [0, 0, 3]]


def test_few_likes_of_a_segment_hardly_move_it_from_everybodys() -> None:
    counts = sparse.csr_matrix(np.array([[500.0, 300.0, 200.0], [0.0, 0.0, 2.0], [10.0, 20.0, 900.0]]))
    everyone, few, many = by_segment.scores(counts).toarray()
    order = everyone.argsort()[::-1].tolist()
    assert order == few.argsort()[::-1].tolist() == [0, 1, 2]
    assert many.argmax() == 2
