"""The generated world held against an independent reading of its files."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow.parquet as pq
import pytest

from nightjar.errors import ConfigError
from nightjar.generate import GenerateSpec, generate
from nightjar.generate.block import event_numbers
from nightjar.generate.catalogue import item_ids
from nightjar.generate.vocabulary import load_vocabulary

# The days hold the end of summer time in Berlin (26 October 2025), and dirt is thrice its usual share.
SPEC = GenerateSpec(
    users=500, items=900, events=12_000, days=12, seed=11, start=date(2025, 10, 20), dirt=3.0, bot_events=400
)
NOT_ITEMS = {"POSTAGE", "GIFTCARD", "DISCOUNT", "BANK CHARGES", "SAMPLES", "TEST001"}
ZONES = {"shop": ZoneInfo("Europe/Berlin"), "search": ZoneInfo("America/New_York")}


def changed(**fields: Any) -> GenerateSpec:
    return GenerateSpec(**{**{name: getattr(SPEC, name) for name in SPEC.__dataclass_fields__}, **fields})


def hashes(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("world")
    return root, generate(SPEC, root)


def shop_rows(root: Path) -> list[dict[str, Any]]:
    out = []
    for path in sorted((root / "shop").glob("dt=*/*.parquet")):
        for row in pq.read_table(path, partitioning=None).to_pylist():
            value = [row["quantity"], row["unit_price"]]
            out.append(
                unified(
                    path, row["event_id"], row["event_time"], row["customer"], row["sku"], row["event"], value
                )
            )
    return out


def video_rows(root: Path) -> list[dict[str, Any]]:
    out = []
    for path in sorted((root / "video").glob("dt=*/*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                out.append({"kind": "truncated"})
                continue
            out.append(
                unified(
                    path, row["id"], row["at"], row["uid"], row["clip"], row["action"], [row["watched_s"]]
                )
            )
    return out


def search_rows(root: Path) -> list[dict[str, Any]]:
    out = []
    for path in sorted((root / "search").glob("dt=*/*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        assert header == ["click_id", "clicked_at", "visitor", "terms", "product", "position"]
        for row in rows:
            if len(row) != len(header):
                out.append({"kind": "truncated"})
                continue
            out.append(unified(path, row[0], row[1], row[2], row[4], "click", []))
    return out


def unified(
    path: Path, event: str, at: Any, user: Any, item: Any, kind_of: str, values: list[Any]
) -> dict[str, Any]:
    return {
        "event": event, "at": at, "user": user, "item": item, "type": kind_of, "values": values,
        "scene": path.parts[-3], "dt": date.fromisoformat(path.parts[-2][3:]),
    }  # fmt: skip


def moment(row: dict[str, Any]) -> datetime | None:
    """The UTC time of a row, or None; wall-clock times must be unambiguous."""
    if row["scene"] == "video":
        return datetime.fromtimestamp(row["at"] / 1000, UTC) if isinstance(row["at"], int) else None
    form = "%Y-%m-%d %H:%M:%S" if row["scene"] == "shop" else "%m/%d/%Y %H:%M:%S"
    try:
        local = datetime.strptime(row["at"], form).replace(tzinfo=ZONES[row["scene"]])
    except ValueError:
        return None
    if local.year < 9999:
        assert local.utcoffset() == local.replace(fold=1).utcoffset(), f"ambiguous: {row['at']}"
    return local.astimezone(UTC)


def kind_of(row: dict[str, Any], catalogue: set[str], last: date) -> str:
    """What is wrong with one row by itself."""
    user, item, at = row["user"], row["item"], moment(row)
    if not user or not item:
        return "missing_user" if not user else "missing_item"
    if "\x00" in user + item:
        return "nul_in_id"
    if "../" in user + item:
        return "path_in_id"
    if item in NOT_ITEMS:
        return "non_item"
    if item not in catalogue:
        return "unknown_item"
    if at is None:
        return "bad_time"
    if at.date() > last:
        return "future"
    if any(value is not None and value != value for value in row["values"]):
        return "nan_value"
    if any(value is not None and value < 0 for value in row["values"]):
        return "negative_value"
    return "good"


def recount(rows: list[dict[str, Any]], catalogue: set[str], last: date, bot_bound: int) -> Counter[str]:
    """Kinds of all rows of one scene, told from the rows alone."""
    counts: Counter[str] = Counter()
    good, known = [], set()
    for row in rows:
        kind = row.get("kind") or kind_of(row, catalogue, last)
        if kind == "good" and row["event"] in known:
            kind = "duplicate"
        if kind == "good":
            known.add(row["event"])
            good.append({**row, "utc": moment(row)})
        else:
            counts[kind] += 1
    a_day = Counter((row["user"], row["utc"].date()) for row in good)
    bots = [row for row in good if a_day[row["user"], row["utc"].date()] > bot_bound]
    people = [row for row in good if a_day[row["user"], row["utc"].date()] <= bot_bound]
    people.sort(key=lambda row: (row["user"], row["item"], row["type"], row["utc"]))
    for before, row in zip([None, *people], people, strict=False):
        same = before is not None and all(before[key] == row[key] for key in ("user", "item", "type"))
        if same and row["utc"] - before["utc"] <= timedelta(seconds=1):
            counts["double_click"] += 1
        else:
            counts["late" if row["utc"].date() < row["dt"] else "clean"] += 1
    counts["bot"] = len(bots)
    counts["all"] = len(rows)
    return counts


def catalogue_of(root: Path) -> dict[str, dict[str, Any]]:
    """The newest row of every item that has an id and a title."""
    items: dict[str, dict[str, Any]] = {}
    for path in sorted((root / "items").glob("dt=*/*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if not row["item_id"] or not row["title"].strip():
                continue
            if row["item_id"] not in items or items[row["item_id"]]["updated_at"] < row["updated_at"]:
                items[row["item_id"]] = row
    return items


def test_equal_specs_give_equal_bytes_and_seeds_matter(world: tuple[Path, Any], tmp_path: Path) -> None:
    generate(SPEC, tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(world[0])
    generate(changed(seed=12), tmp_path / "other")
    other = hashes(tmp_path / "other")
    assert not [name for name, value in hashes(world[0]).items() if other.get(name) == value]


def test_an_appended_day_leaves_the_first_days_as_they_were(world: tuple[Path, Any], tmp_path: Path) -> None:
    facts = generate(changed(next_days=1), tmp_path)
    first, longer = hashes(world[0]), hashes(tmp_path)
    same = [name for name in first if not name.startswith("truth/")] + [
        "truth/withheld.parquet",
        "truth/users.parquet",
    ]
    assert {name: first[name] for name in same} == {name: longer[name] for name in same}
    added = {name.split("/")[1] for name in set(longer) - set(first)}
    assert added == {"dt=2025-11-01"}
    new = set(catalogue_of(tmp_path)) - set(catalogue_of(world[0]))
    assert len(new) == 9 == facts["items_by_day"]["2025-11-01"]["new"]


def test_a_day_is_appended_in_place_and_another_world_is_refused(tmp_path: Path) -> None:
    small = changed(users=60, items=200, events=800, days=5, test_days=2)
    generate(small, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("[!t]*/**/*.*")}
    generate(GenerateSpec(**{**vars(small), "next_days": 1}), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(tmp_path.glob("shop/dt=*"))) == 6
    assert not list(tmp_path.rglob("*.tmp"))
    with pytest.raises(ConfigError, match="seed 11 and not 5"):
        generate(GenerateSpec(**{**vars(small), "next_days": 1, "seed": 5}), tmp_path)
    with pytest.raises(ConfigError, match="next_days 1 and not 0"):
        generate(small, tmp_path)


def test_facts_are_what_an_independent_count_of_the_logs_finds(world: tuple[Path, dict[str, Any]]) -> None:
    root, facts = world
    catalogue, last = set(catalogue_of(root)), date(2025, 10, 31)
    bound = facts["person_events_a_day_at_most"]
    for scene, rows in (
        ("shop", shop_rows(root)),
        ("video", video_rows(root)),
        ("search", search_rows(root)),
    ):
        told = {kind: n for kind, n in facts["rows"][scene].items() if n}
        assert dict(recount(rows, catalogue, last, bound)) == told | {"bot": told.get("bot", 0)}
    kinds = {kind for scene in facts["rows"].values() for kind, n in scene.items() if n}
    assert len(kinds) == 17, "every kind of dirt is planted, beside clean rows and the sum"


def test_facts_are_what_an_independent_count_of_the_shelves_finds(world: tuple[Path, dict[str, Any]]) -> None:
    root, facts = world
    told: Counter[str] = Counter()
    for day in facts["items_by_day"].values():
        told.update(day)
    found: Counter[str] = Counter()
    for path in sorted((root / "items").glob("dt=*/*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            found["lines"] += 1
            try:
                row = json.loads(line)
            except ValueError:
                found["broken_json"] += 1
                continue
            stale = row["title"].startswith("Old listing: ")
            found["stale_duplicate"] += stale
            found["missing_id"] += not row["item_id"]
            found["empty_title"] += not row["title"].strip()
            if stale or not row["item_id"] or not row["title"].strip():
                continue
            arrives = row["updated_at"].endswith("T04:30:00Z")
            found["new" if arrives else "updated"] += 1
            if arrives:
                found["html_entity"] += "&amp;" in row["title"]
                found["nul_byte"] += "\x00" in row["title"]
                found["empty_description"] += not row["description"]
                found["long_description"] += len(row["description"]) > 5000
    spoiled = ("missing_id", "empty_title", "broken_json", "stale_duplicate")
    assert found.pop("lines") == told["new"] + told["updated"] + sum(told[kind] for kind in spoiled)
    assert {kind: told[kind] for kind in found} == dict(found)
    assert len(catalogue_of(root)) == SPEC.items == told["new"]
    triples = [
        line for path in (root / "knowledge").glob("dt=*/*.csv") for line in path.read_text().splitlines()[1:]
    ]
    bad = sum(told[f"triples_{kind}"] for kind in ("duplicate", "no_entity", "unknown_item"))
    assert len(triples) == told["triples"] + bad
    assert sum(line.endswith(",") for line in triples) == told["triples_no_entity"]
    users = (root / "users" / "users.csv").read_text().splitlines()[1:]
    assert len({line.split(",")[0] for line in users} - {""}) == SPEC.users
    assert len(users) == sum(facts["users"].values())


def test_the_withheld_item_is_nowhere_in_its_users_log_and_can_be_recommended(
    world: tuple[Path, Any],
) -> None:
    root, facts = world
    withheld = pq.read_table(root / "truth" / "withheld.parquet").to_pylist()
    assert len(withheld) == facts["withheld"] > 100
    rows = [row for row in shop_rows(root) + video_rows(root) + search_rows(root) if "kind" not in row]
    met: dict[Any, set[Any]] = {}
    for row in rows:
        met.setdefault(row["user"], set()).add(row["item"])
    items = catalogue_of(root)
    for row in withheld:
        assert row["item_id"] not in met[row["user_id"]]
        assert items[row["item_id"]]["available"]
    of_others = set().union(*met.values())
    assert np.mean([row["item_id"] in of_others for row in withheld]) > 0.9, "other users met it"


def test_withheld_items_complete_a_series_and_the_ceiling_counts_the_open_ones(
    world: tuple[Path, Any],
) -> None:
    root, facts = world
    series_of = {
        row["item_id"]: row["series"] for row in pq.read_table(root / "truth" / "items.parquet").to_pylist()
    }
    members: dict[int, set[str]] = {}
    for item, series in series_of.items():
        members.setdefault(series, set()).add(item)
    met: dict[Any, set[Any]] = {}
    for row in shop_rows(root) + video_rows(root) + search_rows(root):
        met.setdefault(row.get("user"), set()).add(row.get("item"))
    withheld = pq.read_table(root / "truth" / "withheld.parquet").to_pylist()
    unmet = [len(members[series_of[row["item_id"]]] - met[row["user_id"]]) for row in withheld]
    assert np.mean(np.array(unmet) == 1) > 0.8
    ceiling = facts["ceiling"]["withheld"]
    assert ceiling["users"] == len(withheld)
    second_series = np.mean(1.0 / np.array(unmet)) - ceiling["hit_rate_at_1"]
    assert 0.0 <= second_series < 0.15, "only users with a second open series lower it further"
    assert ceiling["hit_rate_at_1"] < ceiling["mrr"] < ceiling["hit_rate_at_10"] <= 1.0


def test_logs_and_shelves_say_nothing_of_the_plan(world: tuple[Path, Any]) -> None:
    root, _ = world
    assert sorted(path.name for path in root.iterdir()) == [
        "asked", "items", "knowledge", "search", "shop", "truth", "users", "video",
    ]  # fmt: skip
    shop = pq.read_table(next((root / "shop").glob("dt=*/*.parquet")), partitioning=None)
    assert shop.column_names == [
        "event_id",
        "event_time",
        "customer",
        "sku",
        "event",
        "quantity",
        "unit_price",
    ]
    line = next((root / "video").glob("dt=*/*.jsonl")).read_text().splitlines()[0]
    assert list(json.loads(line)) == ["id", "uid", "clip", "action", "watched_s", "length_s", "at"]
    row = next(iter(catalogue_of(root).values()))
    assert list(row) == [
        "item_id", "title", "description", "brand", "category", "price", "available", "first_seen",
        "updated_at",
    ]  # fmt: skip
    relations = {
        line.split(",")[1] for line in next((root / "knowledge").glob("*/*.csv")).read_text().splitlines()[1:]
    }
    assert relations == {"made_by", "designed_by", "made_of", "part_of", "suited_to"}


def test_silent_users_search_or_say_what_they_like_and_do_nothing_else(world: tuple[Path, Any]) -> None:
    root, facts = world
    tastes = {row["user_id"]: row for row in pq.read_table(root / "truth" / "users.parquet").to_pylist()}
    silent = {user for user, row in tastes.items() if row["activity"] == 0 and not row["bot"]}
    asked = []
    for path in sorted((root / "asked").glob("dt=*/asked.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        assert header == ["click_id", "clicked_at", "visitor", "terms", "product", "position"]
        asked += rows
    assert facts["asked"]["searches"] == len(asked) == len({row[0] for row in asked})
    assert not {row[0] for row in asked} & {row["event"] for row in search_rows(root) if "event" in row}
    assert all(row[4:] == ["", "0"] for row in asked)
    with (root / "users" / "users.csv").open(encoding="utf-8", newline="") as file:
        likes = {row["user_id"]: row["likes"] for row in csv.DictReader(file) if row["user_id"]}
    searchers, interested = {row[2] for row in asked}, {user for user, said in likes.items() if said}
    assert searchers | interested == silent
    assert not searchers & interested
    assert (len(searchers), len(interested)) == (facts["asked"]["searchers"], facts["asked"]["interested"])
    of_taste = {taste.name: taste for taste in load_vocabulary().tastes}
    for user, terms in [(row[2], row[3]) for row in asked]:
        assert any(product.lower() in terms for product in of_taste[tastes[user]["taste_1"]].products)
    for user in interested:
        assert tastes[user]["taste_1"] in likes[user]


def test_sizes_are_what_the_spec_asks_for(tmp_path: Path) -> None:
    counts = []
    for factor in (1, 4):
        facts = generate(
            changed(events=6000 * factor, users=300, items=400, dirt=0.0), tmp_path / str(factor)
        )
        assert not facts["bots"]
        assert {kind for scene in facts["rows"].values() for kind, n in scene.items() if n} == {
            "clean",
            "all",
        }
        counts.append(sum(scene["all"] for scene in facts["rows"].values()))
    assert counts[0] == pytest.approx(6000, rel=0.15)
    assert counts[1] == pytest.approx(24_000, rel=0.15)


@pytest.mark.parametrize(
    ("field", "value"),
    [("users", 3), ("items", 10), ("days", 1), ("dirt", -1.0), ("dirt", float("nan")), ("test_days", 12)],
)
def test_impossible_worlds_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        changed(**{field: value})


def test_ids_never_collide() -> None:
    numbers = np.arange(4_000_000)[::7]
    assert len(np.unique(item_ids(numbers))) == len(numbers)
    events = np.concatenate(
        [event_numbers(7, day, first, 50_000) for day in (0, 1) for first in (0, 1 << 35)]
    )
    assert len(np.unique(events)) == len(events)


def test_the_vocabulary_needs_no_escaping_and_repeats_nothing() -> None:
    words = load_vocabulary()
    assert len(words.tastes) == len({taste.name for taste in words.tastes}) >= 24
    for taste in words.tastes:
        sizes = [len(set(part)) for part in (taste.products, taste.topics, taste.materials, taste.uses)]
        assert sizes == [16, 8, 6, 5], taste.name
        for text in (*taste.products, *taste.topics, *taste.materials, *taste.uses):
            assert "," not in text or text in taste.uses, "a field of the triples, which are not quoted"
            assert not set(text) & set('"\\\n\r'), text
    products = [product for taste in words.tastes for product in taste.products]
    assert max(Counter(products).values()) <= 3, "a thing of many tastes tells none"
