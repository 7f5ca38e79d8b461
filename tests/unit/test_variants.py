"""What a back-test leaves out or varies: which changes there are, and what a blend without a signal ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.loops import loops_for_engines
from bench.quality_night import default_config, lists_for, night_of
from nightjar.errors import ConfigError
from nightjar.night import function_of
from nightjar.pipeline import AGGREGATE_USERS, CLEAN_EVENTS, NIGHT, PUBLISH, RANK, RETRIEVE, WEIGH_EVENTS
from nightjar.stage import Night, run_stage
from nightjar.tables import BLEND, RECOMMENDATIONS
from nightjar.variants import _adopt, _commit_without, ablations, varied
from tests import world
from tests.unit.test_quality_bench import N_ITEMS, N_USERS, K, planted

BEFORE = [stage for stage in NIGHT if stage not in (RANK, PUBLISH)]


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    log, E = planted()
    sections = {"rank": {"k": K}, "retrieve": {"k_prime": 12}, "fit_blend": {"fit": False}}
    made = night_of(
        log, 200.0, np.ones(N_ITEMS, bool), E, default_config(tmp_path_factory.mktemp("n"), **sections)
    )
    lists_for(made, np.arange(N_USERS))
    return made


def lists_of(night: Night) -> list[str]:
    return [row["item_id"] for row in night.dataset(RECOMMENDATIONS).require("rank").read().to_pylist()]


def test_every_signal_that_counts_can_be_left_out_with_what_it_counts_for_cold_items(night: Night) -> None:
    found = {one.name: one for one in ablations(night)}
    assert {"co_occurrence", "smoothed_text", "text", "vector", "popularity", "freshness"} <= set(found)
    assert not any(name.startswith(("cold_", "scene", "history", "recency")) for name in found)
    assert found["text"].without == ("text", "cold_text")
    assert {one.first for one in found.values()} == {RANK}


def test_a_blend_without_a_signal_ranks_otherwise_and_leaves_the_night_alone(
    night: Night, tmp_path: Path
) -> None:
    without = replace(night, config=night.config.model_copy(update={"root": str(tmp_path / "without")}))
    _adopt(night, without, BEFORE)
    blend = night.dataset(BLEND).require("fit_blend")
    _commit_without(blend, without, ("text", "cold_text"))
    with loops_for_engines():
        run_stage(RANK, function_of(RANK), without)
    assert lists_of(without) != lists_of(night)
    changes = {row["name"]: row["value"] for row in without.dataset(BLEND).require("x").read().to_pylist()}
    assert changes["text"] == changes["cold_text"] == 0.0
    assert changes["vector"] > 0
    assert night.dataset(BLEND).require("fit_blend").manifest == blend.manifest


def test_what_is_adopted_is_the_same_commit_and_is_not_made_again(night: Night, tmp_path: Path) -> None:
    copy = replace(night, config=night.config.model_copy(update={"root": str(tmp_path)}))
    _adopt(night, copy, BEFORE)
    made = copy.dataset(BLEND).require("fit_blend")
    assert made.manifest == night.dataset(BLEND).require("fit_blend").manifest
    assert made.read().equals(night.dataset(BLEND).require("fit_blend").read())
    with loops_for_engines():
        assert run_stage(RANK, function_of(RANK), copy).ran
        assert not run_stage(RANK, function_of(RANK), copy).ran
    assert lists_of(copy) == lists_of(night)
    copy.store.drop("blend")
    assert night.dataset(BLEND).require("fit_blend").read().num_rows


def test_a_value_is_a_variant_from_the_stage_that_it_reaches() -> None:
    config = world.config("r")
    found = varied(config, "rank.max_per_category=2,null")
    assert [(one.name, one.first) for one in found] == [
        ("rank.max_per_category=2", RANK),
        ("rank.max_per_category=null", RANK),
    ]
    assert varied(config, "aggregate_users.interests=3")[0].first is AGGREGATE_USERS
    assert varied(config, "clean_events.scenes.shop.weight=0.5")[0].first is WEIGH_EVENTS
    assert varied(config, "clean_events.window_days=30")[0].first is CLEAN_EVENTS
    assert varied(config, "retrieve.k_prime=30")[0].first is RETRIEVE
    for wrong in ("rank.k", "evaluate.seed=1", "publish.min_fill=0", "rank.cold_share=2", "rank.nothing=1"):
        with pytest.raises(ConfigError):
            varied(config, wrong)
