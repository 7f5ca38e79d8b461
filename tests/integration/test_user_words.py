"""What users write, from the log to their lists, once on the real engines: searches, reviews, interests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightjar.inspect import show_user
from nightjar.pipeline import ENCODE_QUERIES, NIGHT, WEIGH_EVENTS
from nightjar.stage import Night, StageResult
from nightjar.tables import (
    ITEM_EMBEDDINGS,
    ITEM_VECTORS,
    QUERY_EMBEDDINGS,
    QUERY_TEXT,
    QUERY_VECTORS,
    RECOMMENDATIONS,
    USER_TEXTS,
    USER_VECTORS,
    WEIGHT_ONE,
    vectors,
)
from tests import oracle, world

STAGES = [stage for stage in NIGHT if stage.name not in ("clean_events", "build_items", "publish")]
SCENES: dict[str, Any] = {
    "shop": {
        "path": "unused",
        "format": "jsonl",
        "columns": {"user_id": "u", "event_type": "t", "event_time": "at", "query": "q"},
        "event_types": {
            "view": {},
            "search": {"item": False, "weight": 2.0},
            "review": {"words": "review"},
            "pan": {"words": "review", "negative": True},
            "chat": {"words": "none"},
        },
    }
}
WEIGHTS = {"search": 2.0, "review": 1.0, "pan": -1.0}
WORDS = {"query": 1.5, "review": 0.5, "interests": 0.75}
HALF_LIFE = 20.0
T0 = datetime(2025, 3, 1, tzinfo=UTC)
SEARCHES = {  # user -> what they typed, on which day; none of these texts is an item's
    "searcher0": [("bread oven", 3), ("yeast for a loaf", 20)],
    "searcher2": [("vinyl  record", 5), ("vinyl record", 7), ("jazz chord", 9)],
    "searcher5": [("race bicycle", 11), ("...", 12), ("", 13), (" \u2028 ", 14)],
    "u000": [("telescope lens", 28)],  # their history is of bread
}
INTERESTS = {
    "fresh1": "mountains, hiking and summit trails",
    "fresh2": None,
    "fresh3": "?!",
    "u006": "seed soil",
}
TASTE = {"searcher0": 0, "searcher2": 2, "searcher5": 5, "fresh1": 1}


def talkative() -> world.World:
    """The planted world, where some only search, one reviews, one pans, one is told things."""
    planted = world.planted()
    events = list(planted.events)
    for user, said in SEARCHES.items():
        for text, day in said:
            when = T0 + timedelta(days=day)
            events.append(world.event(user, None, when, event_type="search", query=text))
    for user, kind, text in (
        ("reviewer", "review", "the best soil my garden ever had"),
        ("panner", "pan", "a helmet and a saddle for the race"),
        ("chatter", "chat", "not what they like"),
    ):
        events.append(world.event(user, None, T0 + timedelta(days=9), event_type=kind, query=text))
    return world.World(planted.items, tuple(events), planted.withheld)


def a_night(root: Path, users_csv: Path, **sections: Any) -> Night:
    columns = {"user_id": "id", "segment": "seg", "interests": "likes"}
    weigh: dict[str, Any] = {
        "user_parts": 3,
        "users": [{"path": str(users_csv), "format": "csv", "columns": columns}],
        "half_life_days": HALF_LIFE,
        "words": WORDS,
        "texts_per_part": 3,
        **sections.pop("weigh_events", {}),
    }
    cleaning = {"scenes": SCENES}
    fading = {"history_days": HALF_LIFE, "history_floor": 0.0}
    return world.night(root, weigh_events=weigh, clean_events=cleaning, fit_blend=fading, **sections)


def run(night: Night, world_: world.World, on_ray: bool = False) -> dict[str, StageResult]:
    world.commit_world(world_, night)
    return world.run(night, STAGES, on_ray)


@dataclass(frozen=True)
class Ran:
    world: world.World
    night: Night
    results: dict[str, StageResult]
    users_csv: Path

    def lists(self, night: Night | None = None) -> dict[str, list[dict[str, Any]]]:
        out: dict[str, list[dict[str, Any]]] = {}
        for row in (night or self.night).dataset(RECOMMENDATIONS).require("rank").read().to_pylist():
            out.setdefault(row["user_id"], []).append(row)
        return out


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("words")
    users_csv = folder / "users.csv"
    lines = [f'{user},north,"{text or ""}"' for user, text in INTERESTS.items()]
    users_csv.write_text("\n".join(["id,seg,likes", *lines]) + "\n")
    made = talkative()
    night = a_night(folder / "store", users_csv)
    yield Ran(made, night, run(night, made, on_ray=True), users_csv)


def texts_of(ran: Ran) -> list[str]:
    return list(ran.night.dataset(QUERY_TEXT).require("weigh_events").read()["text"].to_pylist())


def test_texts_are_numbered_in_the_order_of_their_hashes(ran: Ran) -> None:
    committed = ran.night.dataset(QUERY_TEXT).require("weigh_events")
    rows = committed.read().to_pylist()
    assert len(committed.parts) == 4
    hashes = [row["text_hash"] for row in rows]
    assert hashes == sorted(hashlib.sha256(row["text"].encode()).hexdigest() for row in rows)
    said = {text for pairs in SEARCHES.values() for text, _ in pairs}
    wanted = {" ".join(text.split()) for text in said if any(letter.isalnum() for letter in text)}
    assert {row["text"] for row in rows} == wanted | {
        "the best soil my garden ever had",
        "a helmet and a saddle for the race",
        "mountains, hiking and summit trails",
        "seed soil",
    }


def test_what_users_wrote_weighs_what_its_events_weigh(ran: Ran) -> None:
    texts = texts_of(ran)
    rows = ran.night.dataset(USER_TEXTS).require("weigh_events").read().to_pylist()
    ours = {
        (r["user_id"], r["kind"], texts[r["text_num"]]): (r["strength"] / WEIGHT_ONE, r["last_event_time"])
        for r in rows
    }
    assert len(ours) == len(rows) == 10
    assert ours["searcher2", "query", "vinyl record"] == (2 * 2.0 * 1.5, T0 + timedelta(days=7))
    assert ours["reviewer", "review", "the best soil my garden ever had"][0] == 0.5
    assert ours["panner", "review", "a helmet and a saddle for the race"][0] == -0.5
    assert ours["fresh1", "interests", INTERESTS["fresh1"]] == (0.75, None)
    assert not [key for key in ours if key[0] in ("chatter", "fresh2", "fresh3")]
    assert ran.results["weigh_events"].metrics["user_texts"] == 10


def test_the_newest_texts_of_a_user_count_up_to_a_cap(ran: Ran, tmp_path: Path) -> None:
    night = a_night(tmp_path, ran.users_csv, weigh_events={"text_cap": 1})
    world.commit_world(ran.world, night)
    world.run(night, [WEIGH_EVENTS])
    texts = night.dataset(QUERY_TEXT).require("weigh_events").read()["text"].to_pylist()
    rows = night.dataset(USER_TEXTS).require("weigh_events").read().to_pylist()
    said = {row["user_id"]: texts[row["text_num"]] for row in rows}
    assert len(rows) == len(said)
    assert said["searcher2"] == "jazz chord" and said["fresh1"] == INTERESTS["fresh1"]


def test_queries_are_encoded_as_sentence_transformers_does(ran: Ran) -> None:
    import sentence_transformers as st

    from nightjar.engines.encoder.locate import locate

    peer = st.SentenceTransformer(str(locate(ran.night.config.encode_items.model)[0]), device="cpu")
    rows = ran.night.dataset(QUERY_EMBEDDINGS).require("encode_queries").read()
    theirs = peer.encode_query(texts_of(ran), normalize_embeddings=True)
    assert np.abs(vectors(rows["embedding"]) - theirs).max() < 1e-5


def test_user_vectors_equal_the_oracle(ran: Ran) -> None:
    """Sums over items and texts in plain loops; the texts moved by the transform of the items."""
    E = vectors(ran.night.dataset(ITEM_EMBEDDINGS).require("encode_items").read()["embedding"])
    Q = vectors(ran.night.dataset(QUERY_EMBEDDINGS).require("encode_queries").read()["embedding"])
    items = ran.night.dataset(ITEM_VECTORS).require("learn_taste").read()
    num = {item: at for at, item in enumerate(items["item_id"].to_pylist())}
    D = oracle.unit(vectors(items["vector"]).astype(np.float64))
    T = moved(ran, E.astype(np.float64), Q.astype(np.float64))
    ours = ran.night.dataset(QUERY_VECTORS).require("learn_taste").read()
    V = oracle.whitened(ran.night.config, E.astype(np.float64))
    smooth = vectors(ours["vector"])
    # An eigenvector's sign is free, so what must agree is every inner product with an item.
    text_only = oracle.unit(T) @ V.T
    assert np.abs(np.sort(text_only, axis=1) - np.sort(smooth @ ours_of_items(ran, E).T, axis=1)).max() < 2e-3
    texts = texts_of(ran)
    rows = ran.night.dataset(USER_VECTORS).require("aggregate_users").read()
    found = dict(zip(rows["user_id"].to_pylist(), vectors(rows["vector"]), strict=True))
    assert rows["user_id"].to_pylist() != sorted(found)  # three buckets, each sorted
    assert {"searcher0", "searcher2", "searcher5", "fresh1", "reviewer", "panner"} <= set(found)
    assert not {"chatter", "fresh2", "fresh3"} & set(found)
    for user, vector in found.items():
        u = by_hand(ran, user, D, smooth.astype(np.float64), num, texts)
        assert np.abs(vector - u / np.linalg.norm(u)).max() < 1e-4, user


def moved(ran: Ran, E: np.ndarray, Q: np.ndarray) -> np.ndarray:
    """Q by the whitening of E, from its definition."""
    params = ran.night.config.learn_taste
    centred = E - E.mean(axis=0)
    values, directions = np.linalg.eigh(centred.T @ centred / len(E))
    values = np.maximum(values, 0)
    values = (1 - params.shrinkage) * values + params.shrinkage * values.mean()
    values = np.maximum(values, 1e-6 * values.max())
    made: np.ndarray = (Q - E.mean(axis=0)) @ directions @ np.diag(values ** (-params.whiten_power / 2))
    return made


def ours_of_items(ran: Ran, E: np.ndarray) -> np.ndarray:
    from nightjar.stages.blending.taste_log import text_space

    return text_space(E, ran.night.config.learn_taste)


def by_hand(
    ran: Ran, user: str, D: np.ndarray, T: np.ndarray, num: dict[str, int], texts: list[str]
) -> np.ndarray:
    mine = [event for event in ran.world.events if event["user_id"] == user]
    clicks = [event for event in mine if event["item_id"] is not None]
    said = [
        e for e in mine if e["query"] and any(c.isalnum() for c in e["query"]) and e["event_type"] in WEIGHTS
    ]
    newest = max((event["event_time"] for event in clicks or said), default=None)
    u = np.zeros(D.shape[1])
    for event in clicks:
        u += (
            2 ** (-((newest - event["event_time"]) / timedelta(days=1)) / HALF_LIFE)
            * D[num[event["item_id"]]]
        )
    by_text: dict[tuple[str, str], tuple[float, datetime]] = {}
    for event in said:
        kind = "query" if event["event_type"] == "search" else "review"
        key = kind, " ".join(event["query"].split())
        strength, last = by_text.get(key, (0.0, T0))
        weight = WEIGHTS[event["event_type"]] * WORDS[kind]
        by_text[key] = strength + weight, max(last, event["event_time"])
    for (_, text), (strength, last) in by_text.items():
        age = (newest - last) / timedelta(days=1)
        u += strength * 2 ** (-age / HALF_LIFE) * T[texts.index(text)]
    stated = INTERESTS.get(user)
    if stated in texts:
        u += WORDS["interests"] * T[texts.index(stated)]
    return u


def tastes(ran: Ran, rows: list[dict[str, Any]]) -> list[int]:
    of_item = {item["item_id"]: item["taste"] for item in ran.world.items}
    return [of_item[row["item_id"]] for row in rows]


def test_users_who_only_wrote_get_lists_of_their_own(ran: Ran) -> None:
    lists = ran.lists()
    for user, taste in TASTE.items():
        source = "interests" if user.startswith("fresh") else "personal"
        assert {row["source"] for row in lists[user]} == {source}, user
        assert tastes(ran, lists[user])[:3] == [taste] * 3, user  # popularity may bring what follows
        assert all(row["reason"] == [] for row in lists[user])
    assert tastes(ran, lists["reviewer"])[:3] == [4] * 3
    assert tastes(ran, lists["panner"])[0] != 5
    for user in ("chatter", "fresh2", "fresh3"):
        assert "personal" not in {row["source"] for row in lists[user]}
        assert "interests" not in {row["source"] for row in lists[user]}


def test_words_enrich_a_history_and_items_do_not_claim_their_share(ran: Ran, off: Night) -> None:
    lists, before = ran.lists(), ran.lists(off)
    assert set(tastes(ran, before["u000"])) == {0} | set(tastes(ran, before["u000"])[1:])
    assert 3 not in tastes(ran, before["u000"])
    assert 3 in tastes(ran, lists["u000"])
    for row in lists["u000"]:
        total = sum(reason["share"] for reason in row["reason"])
        assert total <= 1 + 1e-6
        if tastes(ran, [row]) == [3]:
            assert total < 0.5  # the search brought it, whatever items say
    # A stated interest shapes a list and is no source of its own once there is a history.
    assert "interests" not in {row["source"] for row in lists["u006"]}


@pytest.fixture(scope="module")
def off(ran: Ran, tmp_path_factory: pytest.TempPathFactory) -> Night:
    """The same night with words that count nothing."""
    nothing = {"words": {"query": 0, "review": 0, "interests": 0}}
    night = a_night(tmp_path_factory.mktemp("off"), ran.users_csv, weigh_events=nothing)
    night = replace(night, lender=ran.night.store)
    results = run(night, ran.world)
    assert results["weigh_events"].metrics["texts"] == 0
    assert results["encode_queries"].metrics["texts"] == 0
    return night


def test_weight_zero_gives_the_bytes_of_a_world_without_words(ran: Ran, off: Night, tmp_path: Path) -> None:
    """The users are the same, so searches are kept as events, with their words taken out."""
    silent = world.World(
        ran.world.items, tuple({**event, "query": None} for event in ran.world.events), ran.world.withheld
    )
    plain = tmp_path / "users.csv"
    plain.write_text("id,seg,likes\n" + "".join(f"{user},north,\n" for user in INTERESTS))
    night = replace(a_night(tmp_path / "store", plain), lender=ran.night.store)
    run(night, silent)

    def hashes(of: Night) -> list[str]:
        return [entry.sha256 for entry in of.dataset(RECOMMENDATIONS).require("rank").parts]

    assert hashes(night) == hashes(off)
    assert hashes(night) != hashes(ran.night)


def test_the_next_night_encodes_only_new_texts(ran: Ran) -> None:
    tomorrow = replace(ran.night, ds=ran.night.ds + timedelta(days=1))
    when = T0 + timedelta(days=15)
    new = world.event("searcher0", None, when, event_type="search", query="rye sourdough")
    world.commit_world(replace(ran.world, events=(*ran.world.events, new)), tomorrow)
    metrics = world.run(tomorrow, STAGES[: STAGES.index(ENCODE_QUERIES) + 1])["encode_queries"].metrics
    assert (metrics["texts"], metrics["encoded"], metrics["reused"]) == (11, 1, 10)


def test_what_a_person_sees(ran: Ran) -> None:
    said = show_user(ran.night.store, "searcher2", str(ran.night.ds))
    assert "history: 0 items" in said
    assert "wrote: 2 texts" in said
    assert "vinyl record" in said
