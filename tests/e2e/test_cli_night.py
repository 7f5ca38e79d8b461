"""The command line as a new user meets it: a first night, a look around, a damaged file, a second night."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nightjar.published import publications
from nightjar.store import Committed, Dataset, Store
from nightjar.tables import EVENTS, INTERACTIONS, ITEM_EMBEDDINGS, ITEM_TEXT, RECOMMENDATIONS, USERS, Table
from tests.small_night import SmallWorld, Undisturbed, nightjar, published, small_world

pytestmark = pytest.mark.timeout(1500)  # fixtures run whole nights; a busy machine takes minutes for one

K = 10


@dataclass(frozen=True)
class Ran:
    """A world whose first night has run."""

    folder: Path
    world: SmallWorld
    config: Path

    @property
    def root(self) -> Path:
        return self.folder / "store"

    @property
    def ds(self) -> str:
        return str(self.world.facts["last_day"])

    def say(self, *arguments: str, code: int = 0) -> str:
        """What a command prints, its exit code checked."""
        ended = nightjar(*arguments, "--config", self.config, cache=self.folder / "cache")
        assert ended.returncode == code, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stdout + ended.stderr

    def committed(self, table: Table, ds: str | None = None) -> Committed:
        found = Dataset(Store(str(self.root)), table, ds or self.ds).committed()
        assert found is not None
        return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, undisturbed: Undisturbed) -> Ran:
    """A copy of the undisturbed night: other files and another root, but nothing that a night goes by."""
    folder = tmp_path_factory.mktemp("night")
    world = undisturbed.world.copied(folder / "raw")
    found = Ran(folder, world, world.config(folder / "store"))
    shutil.copytree(undisturbed.root, found.root)
    return found


def test_the_whole_night_runs(undisturbed: Undisturbed) -> None:
    assert f"night {undisturbed.world.facts['last_day']}: 13 of 13 stages ran" in undisturbed.said
    assert "Traceback" not in undisturbed.said


def test_a_night_run_again_does_nothing(ran: Ran) -> None:
    before = published(ran.root)
    said = ran.say("run")
    assert f"night {ran.ds}: 0 of 13 stages ran, 0.0 s" in said
    assert said.count("up to date") == 13
    assert published(ran.root) == before


def test_every_known_user_has_k_rows(ran: Ran) -> None:
    rows = ran.committed(RECOMMENDATIONS).read(["user_id", "rank"]).to_pylist()
    lists = Counter(row["user_id"] for row in rows)
    assert set(lists) == set(ran.committed(USERS).read(["user_id"])["user_id"].to_pylist())
    assert set(lists.values()) == {K}


def test_looking_around(ran: Ran) -> None:
    paths = ran.say("ls", "recommendations").split()
    assert [Path(path).name for path in paths] == sorted(published(ran.root))
    assert all(Path(path).is_file() for path in paths)
    first = ran.committed(RECOMMENDATIONS).read().to_pylist()[0]
    shown = ran.say("show", first["user_id"])
    assert f"list: {K} items" in shown
    assert first["item_id"] in shown
    assert "live" in ran.say("runs")
    assert f"{ran.committed(EVENTS).manifest.rows:,}" in ran.say("summary")
    assert " 0 faults" in ran.say("verify")
    assert "FIX" not in ran.say("doctor")
    assert "not known" in ran.say("show", "nobody", code=2)


def test_counts_of_cleaning_agree_with_what_was_planted(ran: Ran) -> None:
    planted: Counter[str] = Counter()
    for scene in ran.world.facts["rows"].values():
        planted.update(scene)
    metrics = ran.committed(EVENTS).manifest.metrics
    asked = ran.world.facts["asked"]["searches"]
    assert metrics["raw"] == planted["all"] + asked
    assert metrics["duplicates"] == planted["duplicate"]
    video = metrics["scenes"]["video"]
    assert video["double_clicks"] == ran.world.facts["rows"]["video"]["double_click"]
    expected = {
        "missing_user": planted["missing_user"],
        "missing_item": planted["missing_item"],
        "unreadable": planted["truncated"],
        "not_an_item": planted["non_item"],
        "future": planted["future"],
        "bad_id": planted["nul_in_id"],
        "bot": planted["bot"],
    }
    found = Counter(metrics["quarantine"])
    times = found.pop("bad_time", 0) + found.pop("missing_time", 0)  # an empty time is missing, others bad
    assert times == planted["bad_time"]
    assert found == Counter({reason: n for reason, n in expected.items() if n})
    # Paths are legal ids, a negative quantity is a number, and the demo's SQL makes no value of NaN.
    odd = planted["path_in_id"] + planted["negative_value"] + planted["nan_value"]
    good = planted["clean"] + planted["late"] + planted["unknown_item"] + odd + asked
    # Shop and search keep whole seconds: a second click 0.9 s later may stand one second after the first.
    assert metrics["events"] + metrics["double_clicks"] == good + planted["double_click"]
    assert good <= metrics["events"]
    unknown = ran.committed(INTERACTIONS).manifest.metrics["events_of_unknown_items"]
    assert planted["unknown_item"] <= unknown <= planted["unknown_item"] + planted["path_in_id"]


@pytest.mark.slow
def test_the_lists_of_a_backtest_are_printed(ran: Ran) -> None:
    file = ran.root.with_suffix(".backtest.json")
    said = ran.say("backtest", "--json", str(file))
    assert "LISTS AS OF 2025-09-04, HELD AGAINST 2025-09-05 TO 2025-09-06" in said
    for word in ("nDCG@10", "HitRate@10", "MRR@10", "nightjar", "popular", "item_knn", "random", "new scene"):
        assert word in said
    (window,) = json.loads(file.read_text())["windows"]
    assert {"Recall@5", "nDCG@10"} <= {one["name"].removeprefix("nightjar.") for one in window["figures"]}


def test_second_night_damage_and_the_way_back(ran: Ran) -> None:
    first = published(ran.root)
    later = small_world(ran.world.folder, next_days=1)
    tomorrow = max(later.facts["items_by_day"])
    user = gone_user(ran)
    forget = f"privacy.forget=[{{path: {ran.folder}/forget.csv, format: csv, columns: {{user_id: user}}}}]"
    assert "13 of 13 stages ran" in ran.say("run", "--ds", tomorrow, "--set", forget)
    new_texts = texts(ran, tomorrow) - texts(ran, ran.ds)
    metrics = ran.committed(ITEM_EMBEDDINGS, tomorrow).manifest.metrics
    assert metrics["encoded"] == len(new_texts)
    assert metrics["reused"] == ran.committed(ITEM_TEXT, tomorrow).manifest.rows - len(new_texts)
    assert metrics["encoded"] <= rewritten(later.facts["items_by_day"][tomorrow])
    assert [one.ds for one in publications(Store(str(ran.root)))] == [tomorrow, ran.ds]
    assert ran.committed(EVENTS, tomorrow).manifest.metrics["forgotten"] > 0
    traced = ran.say("trace", user)
    assert ran.ds in traced
    assert tomorrow not in traced
    assert "not known" in ran.say("show", user, code=2)

    assert "live: " + ran.ds in ran.say("rollback")
    assert published(ran.root) == first
    damaged = Path(ran.say("ls", "items").split()[0])
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert str(damaged) in ran.say("verify", code=1)
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert " 0 faults" in ran.say("verify")


def gone_user(ran: Ran) -> str:
    """Somebody with events and a list, who asks to be forgotten."""
    rows = ran.committed(USERS).read(["user_id", "n_events"]).to_pylist()
    user = str(max(rows, key=lambda row: (row["n_events"], row["user_id"]))["user_id"])
    (ran.folder / "forget.csv").write_text(f"user\n{user}\n")
    return user


def texts(ran: Ran, ds: str) -> set[str]:
    """The hashes of a night's texts."""
    return set(ran.committed(ITEM_TEXT, ds).read(["text_hash"])["text_hash"].to_pylist())


def rewritten(day: dict[str, Any]) -> int:
    """Catalogue rows that came on a day, each at most one new text."""
    return sum(n for kind, n in day.items() if not kind.startswith("triples"))
