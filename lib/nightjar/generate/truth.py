"""What is true of a generated world, for tests and reports: facts, withheld items, planted tastes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nightjar.generate.behave import Behaviour
from nightjar.generate.ceiling import Witness, backtest_ceiling, withheld_ceiling
from nightjar.generate.clock import MOST_A_DAY
from nightjar.generate.dirt import NON_ITEMS, Ids
from nightjar.generate.files import plain, whole_file
from nightjar.generate.lines import take
from nightjar.generate.scenes import DESCRIPTION
from nightjar.generate.vocabulary import load_vocabulary


def write_truth(witness: Witness, ids: Ids, out: Path, counted: dict[str, Any]) -> dict[str, Any]:
    """Write ``truth/``; returns the facts."""
    folder = out / "truth"
    behaviour = witness.behaviour
    tables = {"withheld": _withheld, "items": _items, "users": _users}
    for name, table in tables.items():
        with whole_file(folder / f"{name}.parquet") as file:
            pq.write_table(table(behaviour, ids), file)
    facts = {**_facts(witness, ids), **counted, "rows": _totals(counted["rows_by_day"])}
    with whole_file(folder / "facts.json") as file:
        file.write((json.dumps(facts, indent=1) + "\n").encode())
    return facts


def _totals(by_day: dict[str, dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    totals: dict[str, Counter[str]] = {}
    for scenes in by_day.values():
        for scene, kinds in scenes.items():
            totals.setdefault(scene, Counter()).update(kinds)
    return {scene: {**dict(kinds), "all": sum(kinds.values())} for scene, kinds in totals.items()}


def _facts(witness: Witness, ids: Ids) -> dict[str, Any]:
    behaviour = witness.behaviour
    spec, people = behaviour.spec, behaviour.people
    names = ids.users.take(pa.array(list(witness.bots), pa.int64())).to_pylist()
    bots = {
        name: {spec.date_of(day).isoformat(): n for day, n in days.items()}
        for name, days in zip(names, witness.bots.values(), strict=True)
    }
    return {
        "spec": plain(spec),
        "last_day": spec.date_of(spec.days - 1).isoformat(),
        "scenes": DESCRIPTION,
        "not_items": list(NON_ITEMS),
        "tastes": [taste.name for taste in load_vocabulary().tastes[: behaviour.catalogue.n_tastes]],
        "users_silent": int((people.activity == 0).sum()) - people.n_bots,
        "withheld": int((people.withheld >= 0).sum()),
        "bots": bots,
        "person_events_a_day_at_most": 2 * MOST_A_DAY + 20,
        "double_click_ms_at_most": 900,
        "other_events_ms_apart_at_least": 5000,
        "ceiling": {"withheld": withheld_ceiling(witness), "backtest": backtest_ceiling(witness)},
    }  # fmt: skip


def _withheld(behaviour: Behaviour, ids: Ids) -> pa.Table:
    users = np.flatnonzero(behaviour.people.withheld >= 0)
    items = behaviour.people.withheld[users]
    tastes = pa.array([taste.name for taste in load_vocabulary().tastes])
    columns = [
        take(ids.users, users),
        take(ids.items, items),
        take(tastes, behaviour.catalogue.items.taste[items]),
    ]
    return pa.table(columns, names=["user_id", "item_id", "taste"])


def _items(behaviour: Behaviour, ids: Ids) -> pa.Table:
    items = behaviour.catalogue.items
    tastes = pa.array([taste.name for taste in load_vocabulary().tastes])
    columns = [take(ids.items, np.arange(len(items))), take(tastes, items.taste), pa.array(items.series)]
    return pa.table(columns, names=["item_id", "taste", "series"])


def _users(behaviour: Behaviour, ids: Ids) -> pa.Table:
    people = behaviour.people
    tastes = pa.array([taste.name for taste in load_vocabulary().tastes])
    n = len(people)
    columns: dict[str, Any] = {"user_id": take(ids.users, np.arange(n))}
    for place in range(3):
        columns[f"taste_{place + 1}"] = take(tastes, people.tastes[:, place])
        columns[f"weight_{place + 1}"] = pa.array(people.weights[:, place])
    columns["activity"] = pa.array(people.activity)
    columns["bot"] = pa.array(np.arange(n) >= n - people.n_bots)
    return pa.table(columns)
