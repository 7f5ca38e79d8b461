"""Lists of a planted world held against what its users did next, user by user, and what variants change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bench.loops import loops_for_actors
from nightjar.backtest import Tested, judged, raw_files_of
from nightjar.backtest_report import ablation_text, as_json, text, variation_text
from nightjar.errors import ConfigError
from nightjar.pipeline import NIGHT, PUBLISH
from nightjar.stage import Night
from nightjar.tables import EVENTS, NEIGHBOURS, RECOMMENDATIONS, TRUTH, USER_METRICS
from nightjar.variants import ablations, compare, varied
from tests import world

K = 5
SCENES = {
    name: {
        "path": "unused",
        "format": "jsonl",
        "columns": {"user_id": "u", "event_type": "t", "event_time": "at"},
        "event_types": kinds,
    }
    for name, kinds in {
        "shop": {"view": {}, "buy": {"weight": 3.0}, "return": {"negative": True}},
        "video": {"watch": {}},
    }.items()
}
SECTIONS: dict[str, Any] = {
    "clean_events": {"scenes": SCENES},
    "rank": {"k": K, "max_per_category": None},
    "evaluate": {
        "ks": [2, K],
        "n_resamples": 100,
        "test_days": 3,
        "activity": [4],
        "baselines": ["popular", "item_knn", "ease", "als", "text_mean", "random"],
    },
}
FILMS, COLD = 4, "i008"
"""Items of a taste numbered below FILMS are films; one more, of taste 0, nobody has touched before t0."""


def two_scenes() -> world.World:
    """Six tastes of four films and four goods. Buyers know both scenes, viewers have only ever seen films."""
    items = [dict(item) for item in world.planted(per_taste=8).items]
    items.append({"item_id": COLD, "title": "sourdough crust loaf oven 8", "taste": 0})
    events, start = [], datetime(2025, 3, 1, tzinfo=UTC)
    for user in range(36):
        taste, viewer = user % 6, user >= 24
        mine = [str(i["item_id"]) for i in items if i["taste"] == taste and i["item_id"] != COLD]
        for place, item in enumerate(mine):
            film = int(item[2:]) < FILMS
            hidden = not viewer and place == user // 6
            if hidden or (viewer and not film):
                continue
            when = start + timedelta(hours=13 * place + user)
            scene = {"scene": "video", "event_type": "watch"} if film else {}
            events.append(world.event(_name(user), item, when, **scene))
    return world.World(tuple(items), tuple(events))


def _name(user: int) -> str:
    return f"{'v' if user >= 24 else 'b'}{user:03d}"


def afterwards(night: Night) -> list[dict[str, Any]]:
    """What happens after t0: films and goods liked, one returned, one seen before, one that is not there."""
    when = night.end + timedelta(hours=5)
    mine = {user: f"i{user % 6}" for user in range(36)}
    events = [world.event(_name(user), f"{mine[user]}{user // 6:02d}", when) for user in range(24)]
    events += [
        world.event(_name(user), f"{mine[user]}{place:02d}", when)
        for user in range(24, 36)
        for place in (4, 6)
    ]
    events += [
        world.event("b000", COLD, when),
        world.event("v030", "i004", when, event_type="return"),
        world.event("b001", "i107", when),
        world.event("b001", "unheard-of", when),
        world.event("stranger", "i203", when, scene="video", event_type="watch"),
        world.event("b002", "i304", night.end + timedelta(days=4)),
    ]
    return events


@dataclass(frozen=True)
class Ran:
    night: Night
    tested: Tested
    later: list[dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def no_actors() -> Iterator[None]:
    """What is left out or varied runs its stages again: none of that asks for actors."""
    with loops_for_actors():
        yield


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    night = world.night(tmp_path_factory.mktemp("evaluate") / "backtest", **SECTIONS)
    world.commit_world(two_scenes(), night)
    stages = [one for one in NIGHT if one.name not in ("clean_events", "build_items", PUBLISH.name)]
    world.run(night, stages)
    after = world.night(night.config.root, night.ds + timedelta(days=3), **SECTIONS)
    later = afterwards(night)
    world.commit_world(world.World((), tuple(later)), after)
    truth = raw_files_of(after.dataset(EVENTS).require("clean_events"))
    yield Ran(night, judged(night, truth), later)


def rows_of(ran: Ran, **wanted: Any) -> dict[str, dict[str, Any]]:
    rows = ran.tested.user_metrics.read().to_pylist()
    return {row["user_id"]: row for row in rows if all(row[key] == value for key, value in wanted.items())}


def test_truth_is_what_was_liked_in_the_window_and_was_not_known(ran: Ran) -> None:
    items = [row["item_id"] for row in sorted(two_scenes().items, key=lambda one: str(one["item_id"]))]
    rows = ran.night.dataset(TRUTH).require("evaluate").read().to_pylist()
    found = {(row["user_id"], items[row["item_num"]]): row["new_scene"] for row in rows}
    viewers = {(_name(user), f"i{user % 6}{place:02d}"): True for user in range(24, 36) for place in (4, 6)}
    buyers = {(_name(user), f"i{user % 6}{user // 6:02d}"): False for user in range(24)}
    others = {("b000", COLD): False, ("stranger", "i203"): False}
    assert found == {**viewers, **buyers, **others}
    told = ran.tested.manifest.metrics
    assert (told["liked_later"], told["truth"]) == (len(found) + 2, len(found))
    assert (told["items_not_there_yet"], told["seen_before"]) == (1, 1)


def test_figures_of_a_user_follow_from_the_published_list(ran: Ran) -> None:
    names = ran.tested.manifest.metrics["accuracy"]
    lists: dict[str, list[str]] = {}
    for row in ran.night.dataset(RECOMMENDATIONS).require("rank").read().to_pylist():
        lists.setdefault(row["user_id"], []).append(row["item_id"])
    for user in range(36):
        wanted = {f"i{user % 6}{user // 6:02d}"} | ({COLD} if user == 0 else set())
        if user >= 24:
            wanted = {f"i{user % 6}{place:02d}" for place in (4, 6)}
        hits = [item in wanted for item in lists[_name(user)]]
        row = rows_of(ran, method="nightjar", target="all")[_name(user)]
        values = dict(zip(names, row["accuracy"], strict=True))
        assert values[f"Recall@{K}"] == pytest.approx(sum(hits) / len(wanted))
        first = next((1 / (rank + 1) for rank, hit in enumerate(hits) if hit), 0.0)
        assert values[f"MRR@{K}"] == pytest.approx(first)
        assert row["n_truth"] == len(wanted)
        assert row["n_history"] == (7 if user < 24 else 4)


def test_a_stranger_counts_as_zero_for_every_method(ran: Ran) -> None:
    methods = {row["method"] for row in ran.tested.user_metrics.read().to_pylist()}
    assert methods == {"nightjar", "popular", "item_knn", "ease", "als", "text_mean", "random"}
    for method in methods:
        row = rows_of(ran, method=method, target="all")["stranger"]
        assert row["group"] == "unknown"
        assert set(row["accuracy"]) == {0.0}
        assert row["item_nums"] == []


def test_baselines_recommend_nothing_seen_and_item_knn_nothing_cold(ran: Ran) -> None:
    seen: dict[str, set[str]] = {}
    for event in two_scenes().events:
        seen.setdefault(event["user_id"], set()).add(event["item_id"])
    items = [row["item_id"] for row in sorted(two_scenes().items, key=lambda one: str(one["item_id"]))]
    for method in ("popular", "item_knn", "ease", "als", "text_mean", "random"):
        for user, row in rows_of(ran, method=method, target="all").items():
            shown = [items[number] for number in row["item_nums"]]
            assert len(shown) == len(set(shown)) == (0 if user == "stranger" else K)
            assert not set(shown) & seen.get(user, set()), (method, user)
            if method in ("item_knn", "ease", "als") and user.startswith("b") and user != "stranger":
                assert shown[0] == f"i{int(user[1:]) % 6}{int(user[1:]) // 6:02d}", (method, user)


def test_users_new_to_a_scene_are_served_from_another(ran: Ran) -> None:
    """Viewers have never been in the shop; what buyers of their taste and its words say is enough."""
    found = {(figure.name, figure.slice): figure for figure in ran.tested.figures}
    assert found["users", "new scene"].value == 12
    assert found[f"nightjar.Recall@{K}", "new scene"].value == 1.0
    assert found[f"popular.Recall@{K}", "new scene"].value < 0.7
    lists: dict[str, list[str]] = {}
    for row in ran.night.dataset(RECOMMENDATIONS).require("rank").read().to_pylist():
        lists.setdefault(row["user_id"], []).append(row["item_id"])
    for user in range(24, 36):
        goods = {f"i{user % 6}{place:02d}" for place in range(FILMS, 8)}
        best = set(lists[_name(user)][: len(goods)])
        assert len(best & (goods | {COLD})) == len(goods), user


def test_cells_tell_warm_and_cold_apart(ran: Ran) -> None:
    cold = rows_of(ran, method="nightjar", target="cold_items")
    assert set(cold) == {"b000"}
    found = {(figure.name, figure.slice): figure.value for figure in ran.tested.figures}
    assert found["users", "warm users, warm items"] == 36
    assert found["users", "warm users, cold items"] == 1
    assert found["users", "cold users, warm items"] == 1
    assert found["users", "all"] == 37
    assert found[f"nightjar.Recall@{K}", "warm users, cold items"] == 1.0
    assert found["users", "history 4+"] == 36


def test_a_signal_and_a_scene_can_be_left_out(ran: Ran) -> None:
    wanted = [one for one in ablations(ran.night) if one.name in ("popularity", "text", "scene video")]
    assert len(wanted) == 3
    names = {one.name for one in ablations(ran.night)}
    assert {"freshness", "co_occurrence", "scene shop", "shop buy", "shop return"} <= names
    assert "video watch" not in names
    before = ran.night.dataset(NEIGHBOURS).require("learn_taste").manifest
    figures = compare([ran.tested], wanted)
    found = {(figure.name, figure.slice): figure for figure in figures}
    ours = found[f"nightjar.nDCG@{K}", "all"].value
    for name in ("popularity", "text", "scene video"):
        lift = found[f"nightjar-{name}.nDCG@{K}", "all"]
        assert lift.value == pytest.approx(ours - found[f"{name}.nDCG@{K}", "all"].value)
    # Without the films nothing is known of viewers, and the truth is still the same.
    assert found[f"nightjar-scene video.nDCG@{K}", "new scene"].value > 0.3
    assert found["users", "all"].value == 37
    assert ran.night.dataset(NEIGHBOURS).require("learn_taste").manifest == before
    assert "scene video" in ablation_text(figures, [ran.tested])


def test_settings_stand_beside_each_other(ran: Ran) -> None:
    figures = compare([ran.tested], varied(ran.night.config, "rank.mmr_lambda=1.0,0.2"))
    found = {(figure.name, figure.slice): figure.value for figure in figures}
    assert found[f"rank.mmr_lambda=1.0.nDCG@{K}", "all"] == found[f"nightjar.nDCG@{K}", "all"]
    assert found[f"rank.mmr_lambda=0.2.ILD@{K}", "all"] > found[f"nightjar.ILD@{K}", "all"]
    assert "rank.mmr_lambda=0.2" in variation_text(figures, [ran.tested])
    for wrong in ("evaluate.ks=3", "rank.k", "rank.kk=3", "rank.mmr_lambda=2"):
        with pytest.raises(ConfigError):
            varied(ran.night.config, wrong)


def test_a_share_of_slots_is_kept_for_cold_items(ran: Ran) -> None:
    settings = "rank.cold_share=0.2"
    found = {(f.name, f.slice): f for f in compare([ran.tested], varied(ran.night.config, settings))}
    before = found[f"nightjar.ColdItemShare@{K}", "all"].value
    assert found[f"{settings}.ColdItemShare@{K}", "all"].value > before
    # Six of the 36 users with a list have the taste of the one cold item: one of their five slots is its own.
    assert found[f"{settings}.ColdItemShare@{K}", "all"].value >= 6 / (36 * K)
    assert not ran.night.store.children("variants")


def test_the_report_names_everything(ran: Ran) -> None:
    said = text([ran.tested])
    for words in ("37", "item_knn", "warm users, cold items", "new scene", "coverage", "Calibration"):
        assert words in said
    assert f'"nightjar-popular.nDCG@{K}"' in as_json([ran.tested])
    assert ran.night.dataset(USER_METRICS).require("evaluate").manifest.rows
