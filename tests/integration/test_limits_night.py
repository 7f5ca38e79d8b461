"""Deny and allow lists on a planted world, from retrieve to published lists: no source gets past them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from nightjar.pipeline import NIGHT
from nightjar.stage import Night
from nightjar.tables import RECOMMENDATIONS
from tests import world

K = 5
FIRST = [stage for stage in NIGHT if stage.name not in ("clean_events", "build_items")]
AGAIN = [stage for stage in FIRST if stage.name in ("retrieve", "rank", "publish")]
SEGMENTS = {"u000": "north", "u006": "north", "u001": "south", "new1": "north", "new2": "south", "new3": ""}
TENANTS = {"u002": "a", "u003": "b", "u008": "a", "new4": "a"}
"""Of the users from u002 to u011; those whom no list names get nothing under `others: nothing`."""


class Lists:
    """The declared lists as plain sets, for the declaration's files and for what must come out."""

    def __init__(self, made: world.World) -> None:
        self.items = [str(item["item_id"]) for item in made.items]
        self.denied = {
            # What must come first for them; all but three items; the same, in another file; everything.
            "u000": {made.withheld["u000"]},
            "u005": set(self.items[:-3]),
            "u007": {item for item in self.items if item.startswith("i1")},
            "new1": set(self.items),
        }
        self.north = {item for item in self.items if item[1] in "012"} | {"of another night"}
        self.own = {"u004": {"i000", "i100", "i507"}, "u010": set(), "new3": set(self.items[:30])}
        self.tenant = {"a": {item for item in self.items if item[1] in "0123"}, "b": {"i303", "i304"}}

    def open(self, user: str, tenants: bool) -> set[str]:
        left = set(self.items) - self.denied.get(user, set())
        if SEGMENTS.get(user) == "north":
            left &= self.north
        if user in self.own:
            left &= self.own[user]
        if tenants:
            left &= self.tenant.get(TENANTS.get(user, ""), set())
        return left

    def declared(self, folder: Path, tenants: bool) -> dict[str, Any]:
        first = {user: items for user, items in self.denied.items() if user != "u007"}
        deny = [_csv(folder / "deny.csv", "user_id", _pairs(first))]
        deny.append(_csv(folder / "more.csv", "user_id", _pairs({"u007": self.denied["u007"]})))
        # A user whose own list names nothing of the catalogue may get nothing.
        own = {user: items or {"of another night"} for user, items in self.own.items()}
        allow = [
            _csv(folder / "north.csv", "segment", _pairs({"north": self.north})),
            _csv(folder / "own.csv", "user_id", _pairs(own)),
        ]
        if tenants:
            members = folder / "members.csv"
            members.write_text("u,s\n" + "".join(f"{user},{name}\n" for user, name in TENANTS.items()))
            who = {"path": str(members), "format": "csv", "columns": {"user_id": "u", "segment": "s"}}
            rules = {"members": who, "others": "nothing"}
            allow.append(_csv(folder / "tenant.csv", "segment", _pairs(self.tenant)) | rules)
        return {"deny": deny, "allow": allow}


def _pairs(lists: dict[str, set[str]]) -> list[tuple[str, str]]:
    return [(who, item) for who, items in lists.items() for item in sorted(items)]


def _csv(path: Path, who: str, rows: Iterable[tuple[str, str]]) -> dict[str, Any]:
    path.write_text("w,i\n" + "".join(f"{one},{item}\n" for one, item in rows))
    return {"path": str(path), "format": "csv", "columns": {who: "w", "item_id": "i"}}


def _night(folder: Path, users_csv: Path, retrieve: dict[str, Any], k_prime: int) -> Night:
    source = {"path": str(users_csv), "format": "csv", "columns": {"user_id": "id", "segment": "seg"}}
    return world.night(
        folder / "store",
        weigh_events={"user_parts": 3, "users": [source]},
        retrieve={"k_prime": k_prime, **retrieve},
        rank={"k": K},
    )


def _run(night: Night, stages: Iterable[Any]) -> dict[str, dict[str, Any]]:
    return {name: dict(one.metrics) for name, one in world.run(night, stages).items()}


def _lists(night: Night) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in night.dataset(RECOMMENDATIONS).require("rank").read().to_pylist():
        found.setdefault(row["user_id"], []).append(row["item_id"])
    return found


def test_what_a_list_forbids_comes_from_no_source(tmp_path: Path) -> None:
    made = world.planted()
    rules = Lists(made)
    users_csv = tmp_path / "users.csv"
    people = {**SEGMENTS, "new4": "", "new5": ""}
    users_csv.write_text("id,seg\n" + "".join(f"{user},{name}\n" for user, name in people.items()))
    users = {str(event["user_id"]) for event in made.events} | set(people)
    seen = {(event["user_id"], event["item_id"]) for event in made.events}

    free = _night(tmp_path, users_csv, {}, 20)
    world.commit_world(made, free)
    _run(free, FIRST)
    before = _lists(free)
    broken = {user for user in users if set(before[user]) - rules.open(user, tenants=False)}
    assert broken >= {"u000", "u004", "u005", "u010", "new1", "new3"}, "the lists forbid what would be there"

    for tenants, k_prime in ((True, K), (False, 20)):
        night = _night(tmp_path, users_csv, rules.declared(tmp_path, tenants), k_prime)
        results, after = _run(night, AGAIN), _lists(night)
        for user in sorted(users):
            left = {item for item in rules.open(user, tenants) if (user, item) not in seen}
            got = after.get(user, [])
            assert len(set(got)) == len(got) == min(K, len(left)), (user, tenants)
            assert set(got) <= left, (user, tenants)
            if left >= set(before[user]):
                assert got == before[user], f"{user} has no limit that matters"
        assert results["publish"]["limit_leak"] == 0
        assert results["publish"]["fill"] == 1.0
        assert after.get("new1") is None and after.get("u010") is None
    assert made.withheld["u006"] == after["u006"][0], "who may get what suits them best gets it first"


@pytest.mark.parametrize("tenants", [False, True])
def test_the_declared_sets_are_what_the_cases_need(tenants: bool) -> None:
    rules = Lists(world.planted())
    sizes = {user: len(rules.open(user, tenants)) for user in ("u005", "u004", "new1", "u010")}
    assert sizes["new1"] == sizes["u010"] == 0
    assert tenants or (sizes["u005"], sizes["u004"]) == (3, 3)
