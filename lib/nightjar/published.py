"""What is live: LATEST.json, which only `publish` and `rollback` move.

*Committed* and *published* are different facts: a night whose gates refuse stays committed and unpublished,
and readers of LATEST.json go on with the list before it.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from nightjar.errors import NotCommitted, StorageError
from nightjar.store import Committed, Dataset, Store
from nightjar.tables import RECOMMENDATIONS

LATEST = f"{RECOMMENDATIONS.name}/LATEST.json"
LOCK = "LATEST"
"""Whoever moves LATEST.json reads it first, so two dates published at once would forget one of them."""
KEPT = 30
"""Published nights that LATEST.json remembers for rolling back."""


@dataclass(frozen=True)
class Publication:
    """One published list: whose manifest, and when it went live. manifest: its path below the root."""

    ds: str
    fingerprint: str
    manifest: str
    published_at: str


def publications(store: Store) -> list[Publication]:
    """What is live, followed by what was live before it, newest first; empty before the first publish."""
    data = store.get(LATEST)
    if data is None:
        return []
    try:
        raw = json.loads(data)
        return [Publication(**entry) for entry in (raw["current"], *raw["previous"])]
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"{store.path(LATEST)} is damaged ({error}); remove it and run `nightjar publish`: that night is "
            "live again then"
        ) from None


def latest(store: Store) -> Committed:
    """The published recommendations; NotCommitted before the first publish."""
    live = publications(store)
    if not live:
        raise NotCommitted(f"nothing is published under {store.root}; run `nightjar run` first")
    return opened(store, live[0])


def opened(store: Store, publication: Publication) -> Committed:
    """The commit behind a publication; NotCommitted where its files were removed."""
    found = Dataset(store, RECOMMENDATIONS, publication.ds).of_attempt(publication.fingerprint)
    if found is None:
        raise NotCommitted(
            f"the published list of {publication.ds} ({publication.fingerprint}) is gone from {store.root}"
        )
    return found


def make_live(store: Store, committed: Committed) -> Publication:
    """Points LATEST.json at a commit, in one atomic step, and returns what is live then; twice is as once.

    A night older than the live one takes its place behind it: an old date that is run again must not replace
    what readers have with something staler. `roll_back` to its date makes it live.
    """
    manifest = committed.manifest
    path = f"{committed.dataset.folder}/{manifest.fingerprint}/MANIFEST.json"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    new = Publication(manifest.ds, manifest.fingerprint, path, now)
    with store.lock(LOCK):
        live = publications(store)
        newer = list(itertools.takewhile(lambda one: one.ds > manifest.ds, live))
        rest = live[len(newer) :]
        if rest and (rest[0].ds, rest[0].fingerprint) == (manifest.ds, manifest.fingerprint):
            return live[0]
        _put(store, [*newer, new, *rest], _withdrawn(store) if newer else None)
        return newer[0] if newer else new


def roll_back(store: Store, ds: str | None = None) -> Publication:
    """Makes the list before the live one live again, or the newest remembered one of a date; returns it.

    A list that was rolled back from stays remembered, so `ds` also leads forward again.
    """
    if not publications(store):
        return _rolled_back(store, ds)  # says so; a lock would make the folder of a mistyped root
    with store.lock(LOCK):
        return _rolled_back(store, ds)


def _rolled_back(store: Store, ds: str | None) -> Publication:
    live, withdrawn = publications(store), _withdrawn(store)
    earlier = [(at, one) for at, one in enumerate(live) if at and (ds is None or one.ds == ds)]
    if earlier:
        at, target = earlier[0]
        opened(store, target)
        _put(store, live[at:], [*live[:at], *withdrawn])
        return target
    for at, target in enumerate(withdrawn):
        if target.ds == ds:
            opened(store, target)
            _put(store, [target, *live], withdrawn[at + 1 :])
            return target
    which = f"of {ds} " if ds else ""
    raise NotCommitted(
        f"no other published list {which}is remembered under {store.root}; nothing rolled back"
    )


def remembered(store: Store) -> list[Publication]:
    """All that a rollback can lead to, the live list first."""
    return [*publications(store), *_withdrawn(store)]


def keep_lists(store: Store, n: int) -> list[Publication]:
    """Remembers only the newest n published lists, the live one among them; returns those given up."""
    if not publications(store):
        return []
    with store.lock(LOCK):
        live, withdrawn = publications(store), _withdrawn(store)
        if live[n:] or withdrawn:
            _put(store, live[:n])
        return [*live[n:], *withdrawn]


def _withdrawn(store: Store) -> list[Publication]:
    """Lists that were rolled back from, the last one first."""
    data = store.get(LATEST)
    return [Publication(**entry) for entry in json.loads(data).get("withdrawn", [])] if data else []


def _put(store: Store, live: list[Publication], withdrawn: list[Publication] | None = None) -> None:
    content: dict[str, Any] = {
        "current": asdict(live[0]),
        "previous": [asdict(one) for one in live[1:KEPT]],
        "withdrawn": [asdict(one) for one in (withdrawn or [])[:KEPT]],
    }
    store.put(LATEST, (json.dumps(content, indent=1) + "\n").encode())
