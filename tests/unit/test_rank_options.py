"""Diversity and the guaranteed share of cold items in whole lists, by the night's own stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.quality_night import default_config, lists_for, night_of
from nightjar.kernels.variety import ild_of_vectors
from nightjar.matrix import mapped_matrix
from nightjar.tables import ITEM_VECTORS, RECOMMENDATIONS
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


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_every_list_has_its_share_of_cold_items_from_the_top_down(tmp_path: Path, share: float) -> None:
    lists, scores, _ = ranked(tmp_path, cold_share=share)
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
