"""`nightjar prune`: drops old nights and replaced attempts, never what is live or may be rolled back to.

The newest night is left alone whole, since a stage may be writing it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta

from nightjar.config import NightConfig
from nightjar.published import keep_lists, publications, remembered
from nightjar.store import BACKTEST, VARIANTS, Dataset, Store, committed_dates
from nightjar.tables import EVENTS, RECOMMENDATIONS, TABLES


@dataclass(frozen=True)
class Droppable:
    """A folder that nothing needs any more, and why."""

    name: str
    why: str


def droppable(config: NightConfig, keep: int, lists: int | None = None) -> list[Droppable]:
    """What `prune` would drop when the newest `keep` nights stay, of the nights and of the back-tests.

    lists: how many of the published lists stay for a rollback, the live one among them; None: all. With
    `history: daily` the events of the whole window stay: later nights read them.
    """
    store = Store(config.root)
    found = _droppable(config, store, keep, lists)
    tested = _droppable(config, store.below(BACKTEST), keep, lists)
    if store.below(BACKTEST).children(VARIANTS):
        tested.append(Droppable(VARIANTS, "left by a comparison that was interrupted"))
    return [*found, *(Droppable(f"{BACKTEST}/{one.name}", one.why) for one in tested)]


def _droppable(config: NightConfig, store: Store, keep: int, lists: int | None) -> list[Droppable]:
    dates = sorted({ds for table in TABLES for ds in committed_dates(store, table)})
    kept = set(dates[-keep:])
    staying = remembered(store) if lists is None else publications(store)[:lists]
    published = {(one.ds, one.fingerprint) for one in staying}
    found: list[Droppable] = []
    for table in TABLES:
        needed = kept | (_window(config, dates) if table is EVENTS else set())
        for ds in committed_dates(store, table):
            if ds != dates[-1]:
                found += _of_date(Dataset(store, table, ds), ds in needed, published)
    return found


def prune(config: NightConfig, keep: int, lists: int | None = None, *, dry_run: bool) -> list[Droppable]:
    """Drops it, unless `dry_run`; returns what went or would go."""
    found = droppable(config, keep, lists)
    store = Store(config.root)
    if lists is not None and not dry_run:
        keep_lists(store, lists)  # first: what LATEST.json names must be there
    for one in () if dry_run else found:
        store.drop(one.name)
    return found


def _window(config: NightConfig, dates: list[str]) -> set[str]:
    if config.clean_events.history == "snapshot" or not dates:
        return set()
    oldest = date.fromisoformat(dates[-1]) - timedelta(days=config.clean_events.window_days)
    return {ds for ds in dates if ds >= str(oldest)}


def _of_date(dataset: Dataset, needed: bool, published: set[tuple[str, str]]) -> Iterator[Droppable]:
    is_list = dataset.table is RECOMMENDATIONS
    live = {fingerprint for ds, fingerprint in published if is_list and ds == dataset.ds}
    if not needed and not live:
        yield Droppable(dataset.folder, "older than the nights kept")
        return
    committed = dataset.committed()
    current = {committed.manifest.fingerprint} if committed is not None and needed else set()
    for name in dataset.store.children(dataset.folder):
        if name not in live | current and not name.endswith(".json"):
            why = "replaced by a later attempt" if needed else "not published"
            yield Droppable(f"{dataset.folder}/{name}", why)
