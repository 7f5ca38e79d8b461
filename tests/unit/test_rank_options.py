"""Diversity and the guaranteed share of cold items in whole lists, by the night's own stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bench.loops import loops_for_engines
from bench.quality_night import commit, default_config, lists_for, night_of
from nightjar.kernels.variety import ild_of_vectors
from nightjar.matrix import mapped_matrix
from nightjar.night import function_of, stage_named
from nightjar.stage import run_stage
from nightjar.tables import BLEND, ITEM_VECTORS, RECOMMENDATIONS, USERS
from tests.unit.test_quality_bench import N_ITEMS, N_USERS, K, planted

COLD = range(36, N_ITEMS)
"""Items that the planted log never touches."""


def ranked(folder: Path, **rank: Any) -> tuple[np.ndarray, list[list[float]], np.ndarray]:
    """Lists (users, K), their scores, and the item vectors they were diversified by."""
    log, E = planted()
    sections = {"rank": {"k": K, **rank}, "retrieve": {"k_prime": 12}, "fit_blend": {"fit": False}}
    night = night_of(log, 200.0, np.ones(N_ITEMS, bool), E, default_config(folder, **sections))
    lists = lists_for(night, np.arange(N_USERS))
    rows = night.dataset(RECOMMENDATIONS).require("rank").read().to_pylist()
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row["user_id"], []).append(row["score"])
    return lists, list(scores.values()), np.asarray(mapped_matrix(night.dataset(ITEM_VECTORS).require("x")))


@pytest.mark.parametrize("fusion", ["scores", "reciprocal_ranks"])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_every_list_has_its_share_of_cold_items_from_the_top_down(
    tmp_path: Path, share: float, fusion: str
) -> None:
    lists, scores, _ = ranked(tmp_path, cold_share=share, fusion=fusion)
    cold = np.isin(lists, COLD)
    for length in range(1, K + 1):
        assert (cold[:, :length].sum(axis=1) >= min(int(share * length), len(COLD))).all()
    assert all(len(set(row.tolist())) == K for row in lists)
    assert all(mine == sorted(mine, reverse=True) for mine in scores)


def test_without_a_share_the_lists_are_as_they_were(tmp_path: Path) -> None:
    plain, _, _ = ranked(tmp_path / "a")
    none, _, _ = ranked(tmp_path / "b", cold_share=0.0, mmr_lambda=1.0)
    guaranteed, _, _ = ranked(tmp_path / "c", cold_share=0.25)
    assert plain.tolist() == none.tolist()
    for before, after in zip(plain, guaranteed, strict=True):
        # What is not cold keeps its order.
        warm = [item for item in after if item not in COLD]
        assert warm == [item for item in before if item not in COLD][: len(warm)]


def test_less_relevance_is_more_diversity_and_scores_still_fall(tmp_path: Path) -> None:
    spread = []
    for weight in (1.0, 0.6, 0.2):
        lists, scores, V = ranked(tmp_path / str(weight), mmr_lambda=weight)
        assert all(mine == sorted(mine, reverse=True) for mine in scores)
        spread.append(float(ild_of_vectors(lists, V, [K])[f"ILD@{K}"].mean()))
    assert spread == sorted(spread)
    assert spread[2] > spread[0] + 0.05


def test_users_of_each_segment_have_its_weights(tmp_path: Path) -> None:
    """Two recipes each for everyone, then both in one night: one for short histories, one for long ones."""
    log, E = planted()
    nights, lists = [], []
    for at, weights in enumerate(
        ({"popularity": 3.0, "text": 0.0}, {"popularity": 0.0, "ease": 4.0, "vector": 0.0})
    ):
        fit = {"fit": False, "weights": weights}
        sections = {"rank": {"k": K}, "retrieve": {"k_prime": 12}, "fit_blend": fit}
        config = default_config(tmp_path / str(at), **sections)
        nights.append(night_of(log, 200.0, np.ones(N_ITEMS, bool), E, config))
        lists.append(lists_for(nights[at], np.arange(N_USERS)).tolist())
    n_items = nights[0].dataset(USERS).require("x").read(["n_items"])["n_items"].to_numpy()
    begin = int(np.median(n_items))
    short = n_items < begin
    assert 5 < short.sum() < N_USERS - 5
    one, other = (night.dataset(BLEND).require("x").read() for night in nights)
    everybody = ("freshness_exponent", "recency_days", "history_days", "history_floor")
    own = other.filter([name not in everybody for name in other["name"].to_pylist()])
    own = own.set_column(0, own.schema.field(0), pa.array([begin] * len(own)))
    commit(nights[0], BLEND, [pa.concat_tables([one, own])], "both")
    with loops_for_engines():
        run_stage(stage_named("rank"), function_of(stage_named("rank")), nights[0])
    rows = nights[0].dataset(RECOMMENDATIONS).require("x").read(["item_id"])["item_id"].to_pylist()
    found = np.array([int(item[1:]) for item in rows]).reshape(N_USERS, K).tolist()
    for users in (np.flatnonzero(short), np.flatnonzero(~short)):
        assert any(lists[0][user] != lists[1][user] for user in users)
    for user in range(N_USERS):
        assert found[user] == lists[0 if short[user] else 1][user]
