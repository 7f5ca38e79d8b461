"""Reading what nights left: files, runs, one user's list, a summary, a re-check of every hash."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from rich.console import Console
from rich.table import Table as RichTable

from nightjar.errors import ConfigError, NightjarError, NotCommitted, StorageError
from nightjar.masking import masked
from nightjar.night import hint
from nightjar.pipeline import NIGHT
from nightjar.published import latest, opened, publications
from nightjar.store import Committed, Dataset, Store, committed_dates, damage, locate
from nightjar.tables import (
    INTERACTIONS,
    ITEMS,
    QUERY_TEXT,
    RECOMMENDATIONS,
    TABLES,
    USER_TEXTS,
    USERS,
    WEIGHT_ONE,
    table_named,
)

HISTORY_SHOWN = 15


def list_files(store: Store, table: str, ds: str) -> list[str]:
    """Full paths of the committed parts of a table for a date."""
    known = [one.name for one in TABLES]
    if table not in known:
        raise ConfigError(f"there is no table {table!r}; {hint(table, known)}known: {', '.join(known)}")
    committed = Dataset(store, table_named(table), ds).require("run")
    return [committed.path(entry) for entry in committed.manifest.files]


def verify(store: Store, ds: str | None = None) -> tuple[list[str], int]:
    """Faults of all commits (or one date's), and how many files were checked."""
    faults: list[str] = []
    checked = 0
    seen: set[str] = set()
    for find in _all_commits(store, ds):
        try:
            committed = find()
        except NightjarError as error:
            faults.append(str(error))
            continue
        where = committed.dataset.folder + committed.manifest.fingerprint if committed else ""
        if committed is not None and where not in seen:
            seen.add(where)
            faults += damage(committed)
            checked += len(committed.manifest.files)
    if not checked and not faults:
        raise NotCommitted(
            f"nothing is committed{f' for {ds}' if ds else ''} under {store.root}; nothing to verify"
        )
    return faults, checked


def _all_commits(store: Store, ds: str | None) -> Iterator[Callable[[], Committed | None]]:
    """Each commit of each table, then the live list: a refused later attempt of its date may hide it."""
    for table in TABLES:
        for found in committed_dates(store, table):
            if ds in (None, found):
                yield Dataset(store, table, found).committed
    yield lambda: _live(store, ds)


def _live(store: Store, ds: str | None) -> Committed | None:
    live = publications(store)
    return opened(store, live[0]) if live and ds in (None, live[0].ds) else None


def runs(store: Store) -> str:
    """A line a night: how far it came, its rows, its seconds, and whether it is live."""
    live = publications(store)
    dates = sorted({ds for table in TABLES for ds in committed_dates(store, table)})
    if not dates:
        raise NotCommitted(f"no night is committed under {store.root}; run `nightjar run` first")
    table = _table("night", "stages", "last stage", "lists", "seconds", "published")
    for ds in dates:
        done = _stages_done(store, ds)
        lists = done.get("rank")
        seconds = sum(one.manifest.seconds for one in done.values())
        published = [one for one in live if one.ds == ds]
        state = "live" if live and live[0].ds == ds else ("earlier" if published else "no")
        rows = f"{lists.manifest.rows:,}" if lists else "-"
        last = next((stage.name for stage in reversed(NIGHT) if stage.name in done), "none yet")
        table.add_row(ds, f"{len(done)}/{len(NIGHT)}", last, rows, f"{seconds:,.0f}", state)
    return _text(table)


def _stages_done(store: Store, ds: str) -> dict[str, Committed]:
    """For each stage with a commit of the date, its first table's."""
    found = {}
    for stage in NIGHT:
        committed = Dataset(store, stage.writes[0], ds).committed()
        if committed is not None:
            found[stage.name] = committed
    return found


def summary(store: Store, ds: str) -> str:
    """Counts in and out, seconds, and figures of a night, stage by stage."""
    done = _stages_done(store, ds)
    if not done:
        raise NotCommitted(
            f"no stage is committed for {ds} under {store.root}; run `nightjar run --ds {ds}` first"
        )
    table = _table("stage", "rows out", "seconds", "figures")
    for name, committed in done.items():
        figures = "\n".join(_flat(committed.manifest.metrics))
        table.add_row(name, f"{committed.manifest.rows:,}", f"{committed.manifest.seconds:.1f}", figures)
    return _text(table) + f"\noutput: {masked(store.path(RECOMMENDATIONS.name))}"


def _flat(metrics: Any, prefix: str = "") -> Iterator[str]:
    for name, value in metrics.items():
        if isinstance(value, dict):
            # By scene, by source, of the encoder: those stand in the manifest.
            yield from _flat(value, f"{name} ") if name == "quarantine" else ()
        elif isinstance(value, float):
            yield f"{prefix}{name} {value:.4f}"
        elif isinstance(value, int):
            yield f"{prefix}{name} {value:,}"
        elif value is not None:
            yield f"{prefix}{name} {str(value)[:40]}"


def show_user(store: Store, user_id: str, ds: str | None = None) -> str:
    """A user's recent history and list with the reasons, as text; NotCommitted where the user is unknown."""
    lists = Dataset(store, RECOMMENDATIONS, ds).require("run") if ds else latest(store)
    date = lists.manifest.ds
    rows = rows_of(lists, user_id).sort_by("rank").to_pylist()
    people = rows_of(Dataset(store, USERS, date).require("weigh_events"), user_id).to_pylist()
    if not rows and not people:
        raise NotCommitted(f"user {user_id!r} is not known on {date}; ids are compared exactly")
    history = _history(store, date, user_id)
    wanted = {row["item_id"] for row in [*rows, *history]} | {
        r["item_id"] for row in rows for r in row["reason"]
    }
    titles = _titles(store, date, sorted(wanted))
    segment = people[0]["segment"] if people else None
    head = f"user {user_id}" + (f", segment {segment}" if segment else "") + f", night {date}"
    said = [_text(table) for table in _said_tables(store, date, user_id)]
    return "\n".join([head, _text(_history_table(history, titles)), *said, _text(_list_table(rows, titles))])


def rows_of(committed: Committed, user_id: str) -> pa.Table:
    """One user's rows, found through the statistics of the sorted parts rather than by reading them all."""
    fs, _ = locate(committed.dataset.store.root)
    paths = [locate(path)[1] for path in committed.paths()]
    if not paths:
        return committed.read()
    try:
        parts = pads.dataset(paths, format="parquet", filesystem=fs)
        return parts.to_table(filter=pc.field("user_id") == user_id)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"{committed.dataset.table.name} of {committed.dataset.ds} is damaged ({error}); run `nightjar "
            "verify`, then its stage again"
        ) from None


def _history(store: Store, ds: str, user_id: str) -> list[dict[str, Any]]:
    interactions = rows_of(Dataset(store, INTERACTIONS, ds).require("weigh_events"), user_id)
    items = Dataset(store, ITEMS, ds).require("build_items").read(["item_id", "item_num"])
    at = pc.index_in(interactions["item_num"], items["item_num"].combine_chunks())
    rows = interactions.append_column("item_id", items["item_id"].take(at))
    return list(rows.sort_by([("last_event_time", "descending"), ("item_num", "ascending")]).to_pylist())


def _said_tables(store: Store, ds: str, user_id: str) -> Iterator[RichTable]:
    """What the user wrote, newest first; nothing where nobody did or the night is older than such texts."""
    committed = Dataset(store, USER_TEXTS, ds).committed()
    texts = Dataset(store, QUERY_TEXT, ds).committed()
    rows = rows_of(committed, user_id) if committed and texts else None
    if rows is None or not len(rows) or texts is None:
        return
    table = _table("last time (UTC)", "weight", "kind", "text", title=f"wrote: {len(rows)} texts")
    order = [("last_event_time", "descending"), ("text_num", "ascending")]
    for row in rows.sort_by(order).slice(0, HISTORY_SHOWN).to_pylist():
        when = row["last_event_time"].strftime("%Y-%m-%d %H:%M") if row["last_event_time"] else "-"
        weight = f"{row['strength'] / WEIGHT_ONE:.2f}"
        table.add_row(when, weight, row["kind"], _text_at(texts, row["text_num"])[:80])
    yield table


def _text_at(texts: Committed, text_num: int) -> str:
    """Row `text_num` of query_text, from the part that holds it."""
    for entry in texts.parts:
        if text_num < entry.rows:
            return str(texts.read_part(entry, ["text"])["text"][text_num])
        text_num -= entry.rows
    return ""


def _titles(store: Store, ds: str, item_ids: list[str]) -> dict[str, str]:
    items = Dataset(store, ITEMS, ds).require("build_items").read(["item_id", "title"])
    rows = items.filter(pc.is_in(items["item_id"], pa.array(item_ids, pa.string()))).to_pylist()
    return {row["item_id"]: row["title"] for row in rows}


def _history_table(history: list[dict[str, Any]], titles: dict[str, str]) -> RichTable:
    table = _table("last event (UTC)", "events", "weight", "item", title=f"history: {len(history)} items")
    for row in history[:HISTORY_SHOWN]:
        when = row["last_event_time"].strftime("%Y-%m-%d %H:%M")
        weight = row["weight"] / (1 << 20)
        table.add_row(when, str(row["n_events"]), f"{weight:.2f}", _item(row["item_id"], titles))
    return table


def _list_table(rows: list[dict[str, Any]], titles: dict[str, str]) -> RichTable:
    table = _table("rank", "score", "source", "item", "because of", title=f"list: {len(rows)} items")
    for row in rows:
        reasons = "\n".join(f"{_item(r['item_id'], titles)} ({r['share']:.0%})" for r in row["reason"])
        table.add_row(
            str(row["rank"]), f"{row['score']:.3f}", row["source"], _item(row["item_id"], titles), reasons
        )
    return table


def _item(item_id: str, titles: dict[str, str]) -> str:
    title = titles.get(item_id, "")
    return f"{item_id} {title[:60]}".rstrip()


def _table(*columns: str, title: str | None = None) -> RichTable:
    table = RichTable(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _text(table: RichTable, width: int = 150) -> str:
    stream = io.StringIO()
    # In a notebook rich would show the table itself and leave the stream empty.
    plain = Console(file=stream, width=width, highlight=False, markup=False, emoji=False, force_jupyter=False)
    plain.print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def table_text(columns: tuple[str, ...], rows: list[tuple[str, ...]], width: int = 150) -> str:
    """Rows of text under column names, aligned; words that do not fit into `width` go on below."""
    table = _table(*columns)
    for row in rows:
        table.add_row(*row)
    return _text(table, width)
