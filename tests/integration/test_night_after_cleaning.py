"""From committed events to published lists on the real engines, held against the brute-force oracle."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nightjar.engines import actors, spark
from nightjar.errors import GateError, NotCommitted, PartFailed
from nightjar.inspect import runs, show_user, verify
from nightjar.kernels import taste
from nightjar.pipeline import BUILD_INDEX, NIGHT, PUBLISH, RETRIEVE
from nightjar.published import latest, publications, roll_back
from nightjar.stage import Night, StageResult, run_stage
from nightjar.stages.inputs import raw_inputs
from nightjar.tables import (
    CANDIDATES,
    INTERACTIONS,
    ITEM_EMBEDDINGS,
    ITEM_VECTORS,
    ITEMS,
    RECOMMENDATIONS,
    USER_VECTORS,
    USERS,
    WEIGHT_ONE,
    vector_column,
    vectors,
)
from tests import oracle, world

AFTER_CLEANING = [stage for stage in NIGHT if stage.name not in ("clean_events", "build_items")]
FORGOTTEN = ("gone", "gone too")
"""Users of a forget list: the events of one were cleaned before the request, the other is declared."""
SEGMENTS = {"u000": "north", "u006": "north", "new1": "north", "new2": "south", "new3": None}


def mixed() -> world.World:
    """The planted world with what a night copes with: returns, purchases, sold-out items, silent users."""
    planted = world.planted()
    rng = np.random.default_rng(5)
    events = list(planted.events)
    for row in list(events)[::5]:
        when = row["event_time"] + timedelta(hours=int(rng.integers(1, 40)))
        kind = ("buy", "return")[int(rng.integers(2))]
        events.append(world.event(row["user_id"], row["item_id"], when, event_type=kind))
    glutton = [
        world.event("glutton", item["item_id"], events[0]["event_time"]) for item in planted.items[:-3]
    ]
    disliker = [world.event("disliker", "i000", events[3]["event_time"], event_type="return")]
    stranger = [world.event("stranger", "unknown-item", events[4]["event_time"])]
    items = [dict(item, available=item["item_id"] not in ("i003", "i501")) for item in planted.items]
    withheld = {user: item for user, item in planted.withheld.items() if item not in ("i003", "i501")}
    return world.World(tuple(items), (*events, *glutton, *disliker, *stranger), withheld)


def run_all(night: Night, world_: world.World, on_ray: bool = False) -> dict[str, StageResult]:
    world.commit_world(world_, night)
    return world.run(night, AFTER_CLEANING, on_ray)


def new_night(root: Path, users_csv: Path, **sections: Any) -> Night:
    source = {"path": str(users_csv), "format": "csv", "columns": {"user_id": "id", "segment": "seg"}}
    weigh = {"user_parts": 3, "users": [source], **sections.pop("weigh_events", {})}
    gone = {
        "path": str(users_csv.with_name("forget.csv")), "format": "csv", "columns": {"user_id": "id"}
    }  # fmt: skip
    sections.setdefault("fit_blend", {"weights": {"popular_segment": 2.0}})
    return world.night(root, weigh_events=weigh, privacy={"forget": [gone]}, **sections)


@dataclass(frozen=True)
class Ran:
    world: world.World
    night: Night
    results: dict[str, StageResult]
    users_csv: Path

    def lists(self, night: Night | None = None) -> dict[str, list[dict[str, Any]]]:
        committed = (night or self.night).dataset(RECOMMENDATIONS).require("rank")
        out: dict[str, list[dict[str, Any]]] = {}
        for row in committed.read().to_pylist():
            out.setdefault(row["user_id"], []).append(row)
        return out


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("night")
    users_csv = folder / "users.csv"
    declared = {**SEGMENTS, FORGOTTEN[1]: "north"}
    users_csv.write_text(
        "id,seg\n" + "".join(f"{user},{segment or ''}\n" for user, segment in declared.items())
    )
    users_csv.with_name("forget.csv").write_text("id\n" + "\n".join(FORGOTTEN))
    made = mixed()
    night = new_night(folder / "store", users_csv)
    when = made.events[0]["event_time"]
    theirs = (world.event(FORGOTTEN[0], item["item_id"], when) for item in made.items[:5])
    cleaned = replace(made, events=(*made.events, *theirs))
    yield Ran(made, night, run_all(night, cleaned, on_ray=True), users_csv)


def expected(ran: Ran) -> oracle.Expected:
    items = sorted(ran.world.items, key=lambda item: str(item["item_id"]))
    rows = ran.night.dataset(ITEM_EMBEDDINGS).require("encode_items").read()
    segments = {user: segment or "" for user, segment in SEGMENTS.items()}
    return oracle.night(
        ran.night.config, ran.night.end, ran.world.events, items, vectors(rows["embedding"]), segments
    )


def test_weights_equal_the_oracle_to_the_last_bit(ran: Ran) -> None:
    items = sorted(str(item["item_id"]) for item in ran.world.items)
    rows = ran.night.dataset(INTERACTIONS).require("weigh_events").read().to_pylist()
    ours = {(row["user_id"], items[row["item_num"]]): row["weight"] for row in rows}
    theirs = expected(ran).weights
    assert ours.keys() == theirs.keys()
    # A power of two near half a unit may round either way between two math libraries.
    assert max(abs(ours[key] - theirs[key]) for key in ours) <= len(rows[0])
    assert WEIGHT_ONE == 2**20


def test_item_vectors_equal_the_oracle(ran: Ran) -> None:
    rows = ran.night.dataset(ITEM_VECTORS).require("learn_taste").read()
    ours, theirs = vectors(rows["vector"]), expected(ran).vectors
    # An eigenvector's sign is free, so what must agree is every inner product.
    assert np.abs(ours @ ours.T - theirs @ theirs.T).max() < 2e-3


def test_every_list_equals_the_oracle(ran: Ran) -> None:
    lists, wanted = ran.lists(), expected(ran).lists
    assert lists.keys() == wanted.keys()
    for user, rows in lists.items():
        assert [row["source"] for row in rows] == [source for _, _, source in wanted[user]], user
        for row, (item_id, score, _) in zip(rows, wanted[user], strict=True):
            if score is None:
                assert row["item_id"] == item_id, user
            else:
                # Two items closer than the tolerance may change places; their scores may not differ.
                assert row["score"] == pytest.approx(score, abs=2e-3), (user, row["rank"])


def test_the_withheld_item_comes_first(ran: Ran) -> None:
    lists = ran.lists()
    # Someone who sent a thing of their taste back has said something against it.
    returned = {event["user_id"] for event in ran.world.events if event["event_type"] == "return"}
    wanted = {user: item for user, item in ran.world.withheld.items() if user not in returned}
    assert len(wanted) > 5
    assert {user: lists[user][0]["item_id"] for user in wanted} == wanted


def test_everybody_gets_k_and_nothing_seen_or_sold_out(ran: Ran) -> None:
    k, seen = ran.night.config.rank.k, {(e["user_id"], e["item_id"]) for e in ran.world.events}
    available = {item["item_id"] for item in ran.world.items if item["available"]}
    for user, rows in ran.lists().items():
        open_items = len(available - {item for who, item in seen if who == user})
        assert len(rows) == min(k, open_items), user
        assert all((user, row["item_id"]) not in seen and row["item_id"] in available for row in rows)
        scores = [row["score"] for row in rows]
        assert scores == sorted(scores, reverse=True)
    assert {row["source"] for row in ran.lists()["new1"]} == {"popular_segment"}
    assert {row["source"] for row in ran.lists()["new3"]} == {"popular"}
    assert len(ran.lists()["glutton"]) == 3


def test_reasons_name_history_and_shares_are_true(ran: Ran) -> None:
    items = sorted(str(item["item_id"]) for item in ran.world.items)
    for user in ("u003", "u010", "u017"):
        terms = expected(ran).terms[user]
        for row in ran.lists()[user]:
            mine = {item: values[items.index(row["item_id"])] for item, values in terms.items()}
            positive = sum(value for value in mine.values() if value > 0)
            best = sorted((value for value in mine.values() if value > 0), reverse=True)[:2]
            assert len(row["reason"]) == len(best)
            for reason, value in zip(row["reason"], best, strict=True):
                assert reason["share"] == pytest.approx(value / positive, abs=2e-3)
                assert mine[reason["item_id"]] / positive == pytest.approx(value / positive, abs=2e-3)


def test_known_users_are_those_of_the_log_and_the_declared_ones(ran: Ran) -> None:
    rows = ran.night.dataset(USERS).require("weigh_events").read().to_pylist()
    assert {row["user_id"] for row in rows} == {e["user_id"] for e in ran.world.events} | set(SEGMENTS)
    metrics = ran.results["weigh_events"].metrics
    assert metrics["events"] == len(ran.world.events)
    assert metrics["events_of_unknown_items"] == 1
    assert metrics["users_without_items"] == 4


def test_rerun_does_nothing(ran: Ran) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a stage that is up to date must not run")

    for stage in AFTER_CLEANING:
        again = run_stage(stage, refuse, ran.night, raw_inputs(stage, ran.night.config, ran.night.ds))
        assert not again.ran
        assert again.fingerprint == ran.results[stage.name].fingerprint


def recommendation_hashes(night: Night) -> list[str]:
    return [entry.sha256 for entry in night.dataset(RECOMMENDATIONS).require("rank").parts]


@pytest.mark.parametrize(("shards", "partitions", "adaptive"), [(1, 1, False), (5, 8, True)])
def test_lists_are_byte_equal_for_any_shards_and_partitions(
    ran: Ran, tmp_path: Path, shards: int, partitions: int, adaptive: bool
) -> None:
    """The night shared by all tests has 2 shards and 3 partitions, adaptive, and actors; these have none."""
    night = new_night(tmp_path, ran.users_csv, build_index={"shards": shards})
    session = spark.session(night.config)
    session.conf.set("spark.sql.shuffle.partitions", str(partitions))
    session.conf.set("spark.sql.adaptive.enabled", str(adaptive).lower())
    shuffled = replace(
        ran.world, events=tuple(np.random.default_rng(shards).permutation(np.array(ran.world.events)))
    )
    night = replace(
        night,
        config=night.config.model_copy(
            update={"spark": night.config.spark.model_copy(update={"shuffle_partitions": partitions})}
        ),
        lender=ran.night.store,
    )
    run_all(night, shuffled)
    assert recommendation_hashes(night) == recommendation_hashes(ran.night)


def test_the_next_night_encodes_only_new_texts(ran: Ran) -> None:
    new = {"item_id": "i999", "title": "sourdough starter kit", "taste": 0, "available": True}
    tomorrow = replace(ran.night, ds=ran.night.ds + timedelta(days=1))
    results = run_all(tomorrow, replace(ran.world, items=(*ran.world.items, new)))
    counts = results["encode_items"].metrics
    assert (counts["encoded"], counts["reused"]) == (1, len(ran.world.items))
    before = vectors(ran.night.dataset(ITEM_EMBEDDINGS).require("encode_items").read()["embedding"])
    after = tomorrow.dataset(ITEM_EMBEDDINGS).require("encode_items").read()
    kept = np.array([item_id != "i999" for item_id in after["item_id"].to_pylist()])
    assert np.array_equal(vectors(after["embedding"])[kept], before)
    assert latest(tomorrow.store).manifest.ds == str(tomorrow.ds)
    assert [one.ds for one in publications(tomorrow.store)] == [str(tomorrow.ds), str(ran.night.ds)]
    assert "overlap" in results["publish"].metrics
    assert roll_back(tomorrow.store).ds == str(ran.night.ds)
    assert latest(tomorrow.store).manifest.ds == str(ran.night.ds)


def test_a_gate_refuses_and_what_was_live_stays(ran: Ran) -> None:
    gates = ran.night.config.publish.model_copy(update={"min_catalogue_coverage": 1.0})
    stricter = replace(ran.night, config=ran.night.config.model_copy(update={"publish": gates}))
    live = latest(ran.night.store).manifest
    lists = ran.night.dataset(RECOMMENDATIONS).committed()
    with pytest.raises(GateError, match=r"catalogue_coverage is 0\.\d+, below 1"):
        world.run(stricter, [PUBLISH])
    assert latest(ran.night.store).manifest == live
    assert ran.night.dataset(RECOMMENDATIONS).committed() == lists is not None


def test_an_approximate_index_below_the_floor_is_refused(ran: Ran, tmp_path: Path) -> None:
    """Random vectors have no clusters, so one list of 64 holds little of what is nearest."""
    sections: dict[str, Any] = {
        "build_index": {"factory": "IVF64,Flat", "shards": 1},
        "retrieve": {"k_prime": 10, "nprobe": 1, "min_recall": 0.9},
    }
    night = new_night(tmp_path, ran.users_csv, **sections)
    rng = np.random.default_rng(1)
    V, U = (taste.unit_rows(rng.standard_normal((n, 32)).astype(np.float32)) for n in (4000, 60))
    item_ids, user_ids = (
        [f"{letter}{number:05d}" for number in range(n)] for letter, n in (("i", 4000), ("u", 60))
    )
    nums = np.arange(len(V))
    none = pa.nulls(len(V), pa.string())
    items = {
        "item_id": item_ids,
        "item_num": nums,
        "title": item_ids,
        "fields": pa.nulls(len(V), ITEMS.schema.field("fields").type),
    }
    when = pa.nulls(len(V), ITEMS.schema.field("first_seen").type)
    items |= {"category": none, "available": [True] * len(V), "first_seen": when, "updated_at": when}
    users = {
        "user_id": user_ids,
        "interest": [0] * len(U),
        "vector": vector_column(U),
        "importance": [1.0] * len(U),
    }
    users |= {"n_events": [1] * len(U), "last_event_time": [night.end] * len(U)}
    made = {
        ITEMS: items,
        ITEM_VECTORS: {
            "item_id": item_ids,
            "item_num": nums,
            "vector": vector_column(V),
            "norm": [1.0] * len(V),
        },
        USER_VECTORS: users,
        USERS: {
            "user_id": user_ids,
            "segment": pa.nulls(len(U), pa.string()),
            "n_events": [1] * len(U),
            "n_items": [0] * len(U),
            "last_event_time": [night.end] * len(U),
        },
        INTERACTIONS: INTERACTIONS.schema.empty_table().to_pydict(),
    }
    for table, columns in made.items():
        dim = V.shape[1] if table.vector else None
        rows = pa.table(columns, schema=table.arrow_schema(dim))
        world.commit(night.store, table, night.ds, [rows], dim=dim)
    world.run(night, [BUILD_INDEX])
    with pytest.raises(GateError, match=r"IndexRecall@10 is 0\.\d+ on 60 sampled users, below 0\.9"):
        world.run(night, [RETRIEVE])
    assert night.dataset(CANDIDATES).committed() is None


def test_what_a_person_sees(ran: Ran) -> None:
    text = show_user(ran.night.store, "u003", str(ran.night.ds))
    assert "history: 7 items" in text
    assert ran.world.withheld["u003"] in text
    with pytest.raises(NotCommitted, match="'nobody' is not known"):
        show_user(ran.night.store, "nobody", str(ran.night.ds))
    assert str(ran.night.ds) in runs(ran.night.store)
    faults, checked = verify(ran.night.store, str(ran.night.ds))
    assert not faults
    assert checked > 20


@dataclass(frozen=True)
class Deadly:
    """Kills its process the first time it meets a part, `times` times; remembers by a file."""

    folder: Path
    times: int

    def __call__(self) -> Deadly:
        return self

    def run(self, part: int) -> str:
        marks = list(self.folder.glob(f"{part}-*"))
        (self.folder / f"{part}-{len(marks)}").touch()
        if part == 1 and len(marks) < self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        return f"done {part}"


@dataclass(frozen=True)
class DeadlyWork:
    deadly: Deadly

    def __call__(self) -> Any:
        return self.deadly.run


def test_a_killed_actor_is_replaced_and_only_its_part_repeated(ran: Ran, tmp_path: Path) -> None:
    actors.connect(ran.night.config.ray)
    pool: actors.Pool[str] = actors.Pool(DeadlyWork(Deadly(tmp_path, 1)), ran.night.config.rank.resources, 2)
    assert dict(pool.map(range(4))) == {part: f"done {part}" for part in range(4)}
    tries = {part: len(list(tmp_path.glob(f"{part}-*"))) for part in range(4)}
    assert tries == {0: 1, 1: 2, 2: 1, 3: 1}


def test_a_part_that_always_kills_its_actor_fails_by_name(ran: Ran, tmp_path: Path) -> None:
    actors.connect(ran.night.config.ray)
    pool: actors.Pool[str] = actors.Pool(DeadlyWork(Deadly(tmp_path, 99)), ran.night.config.rank.resources, 2)
    with pytest.raises(PartFailed, match="part 1 failed 3 times"):
        list(pool.map(range(3)))


def test_metrics_of_a_manifest_are_plain_json(ran: Ran) -> None:
    for result in ran.results.values():
        json.dumps(result.metrics, allow_nan=False)
