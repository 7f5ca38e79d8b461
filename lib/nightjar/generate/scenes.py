"""The log files of the three scenes: one format, one set of column names and one clock each."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nightjar.generate.block import EVENT_TYPES, Block, Kind, Scene
from nightjar.generate.catalogue import Ints
from nightjar.generate.clock import SEARCH_ZONE, SHOP_ZONE
from nightjar.generate.dirt import Ids
from nightjar.generate.files import whole_file
from nightjar.generate.lines import (
    concat,
    csv_strings,
    hex_ids,
    json_strings,
    local_times,
    override,
    take,
    write_lines,
)
from nightjar.generate.spec import LEAST_ITEMS
from nightjar.generate.text import Texts

SHOP_SCHEMA = pa.schema([
    ("event_id", pa.string()), ("event_time", pa.string()), ("customer", pa.string()), ("sku", pa.string()),
    ("event", pa.string()), ("quantity", pa.int32()), ("unit_price", pa.float64()),
])  # fmt: skip
SEARCH_HEADER = b"click_id,clicked_at,visitor,terms,product,position\n"
BAD_SHOP_TIMES = ("", "not a time", "2025-13-45 99:99:99", "0000-00-00 00:00:00", "2025-02-30 10:00:00")
BAD_VIDEO_TIMES = ('"soon"', "null", '""', '"2025-09-31T25:61"')
BAD_SEARCH_TIMES = ("", "n/a", "31/31/2025 10:00:00", "yesterday")
DESCRIPTION = {
    "shop": {
        "files": "shop/dt=*/part-*.parquet",
        "format": "parquet",
        "time_format": "yyyy-MM-dd HH:mm:ss",
        "time_zone": SHOP_ZONE,
        "event_types": ["view", "add_to_cart", "purchase", "return"],
        "columns": {
            "event_id": "event_id", "event_time": "event_time", "user_id": "customer", "item_id": "sku",
            "event_type": "event", "quantity": "quantity", "price": "unit_price",
        },
    },
    "video": {
        "files": "video/dt=*/events.jsonl",
        "format": "jsonl",
        "time_format": "epoch_millis",
        "time_zone": "UTC",
        "event_types": ["watch", "like", "dislike"],
        "columns": {
            "event_id": "id", "event_time": "at", "user_id": "uid", "item_id": "clip",
            "event_type": "action", "seconds": "watched_s", "length": "length_s",
        },
    },
    "search": {
        "files": "search/dt=*/log.csv",
        "format": "csv",
        "time_format": "MM/dd/yyyy HH:mm:ss",
        "time_zone": SEARCH_ZONE,
        "event_types": ["click"],
        "columns": {
            "event_id": "click_id", "event_time": "clicked_at", "user_id": "visitor",
            "item_id": "product", "query": "terms", "position": "position",
        },
    },
}  # fmt: skip


@dataclass(frozen=True)
class SceneFiles:
    """Writes the three files of a day and counts what it wrote."""

    out: Path
    ids: Ids
    texts: Texts

    @cached_property
    def _json_users(self) -> pa.Array:
        return json_strings(self.ids.users, int(self._first_tail(self.ids.user_tail)))

    @cached_property
    def _json_items(self) -> pa.Array:
        return json_strings(self.ids.items, int(self._first_tail(self.ids.item_tail)))

    @cached_property
    def _csv_queries(self) -> pa.Array:
        return csv_strings(self.texts.queries)

    @staticmethod
    def _first_tail(tail: dict[Kind, Ints]) -> int:
        return min(int(places[0]) for places in tail.values())

    def write_day(self, day: str, blocks: list[Block]) -> dict[str, dict[str, int]]:
        """Write ``<scene>/dt=<day>/…``; returns rows by scene and kind of dirt."""
        counts = {scene.name.lower(): Counter[str]() for scene in Scene}
        with ExitStack() as stack:
            shop_file = stack.enter_context(whole_file(self._path("shop", day, "part-0.parquet")))
            shop = stack.enter_context(pq.ParquetWriter(shop_file, SHOP_SCHEMA))
            video = stack.enter_context(whole_file(self._path("video", day, "events.jsonl")))
            search = stack.enter_context(whole_file(self._path("search", day, "log.csv")))
            search.write(SEARCH_HEADER)
            for block in blocks:
                parts = {scene: block.take(block.scene == scene) for scene in Scene}
                shop.write_table(self._shop(parts[Scene.SHOP]))
                self._video(video, parts[Scene.VIDEO])
                self._search(search, parts[Scene.SEARCH])
                for scene, part in parts.items():
                    kinds = np.bincount(part.kind, minlength=len(Kind))
                    counts[scene.name.lower()].update({k.name.lower(): int(kinds[k]) for k in Kind})
        return {scene: dict(count) for scene, count in counts.items()}

    def _path(self, scene: str, day: str, name: str) -> Path:
        return self.out / scene / f"dt={day}" / name

    def _real_items(self, block: Block) -> Ints:
        """An item of the catalogue for every row, also where dirt put another id."""
        n = len(self.texts.catalogue.items)
        return np.where(block.item < n, block.item, (block.item - n) % LEAST_ITEMS)

    def _shop(self, block: Block) -> pa.Table:
        times = local_times(block.time_ms, SHOP_ZONE, "%Y-%m-%d")
        price = self.texts.catalogue.items.price_cents[self._real_items(block)] / 100.0
        price = np.where(block.kind == Kind.NAN_VALUE, np.nan, price)
        no_amount = np.isnan(block.amount)
        quantity = np.where(no_amount, 0.0, block.amount).astype(np.int32)
        columns: list[Any] = [
            hex_ids(block.event),
            _spoil(times, block, Kind.BAD_TIME, BAD_SHOP_TIMES),
            take(self.ids.users, block.user),
            take(self.ids.items, block.item),
            take(pa.array(EVENT_TYPES), block.event_type.astype(np.int64)),
            pa.array(quantity, mask=no_amount),
            pa.array(price),
        ]
        return pa.table(columns, schema=SHOP_SCHEMA)

    def _video(self, file: BinaryIO, block: Block) -> None:
        watched = pc.fill_null(pa.array(block.amount, mask=np.isnan(block.amount)).cast(pa.string()), "null")
        watched = _spoil(watched, block, Kind.NAN_VALUE, ("NaN",))
        times = _spoil(pa.array(block.time_ms).cast(pa.string()), block, Kind.BAD_TIME, BAD_VIDEO_TIMES)
        length = self.texts.catalogue.items.length_s[self._real_items(block)]
        lines = concat(
            '{"id":"', hex_ids(block.event),
            '","uid":', take(self._json_users, block.user),
            ',"clip":', take(self._json_items, block.item),
            ',"action":"', take(pa.array(EVENT_TYPES), block.event_type.astype(np.int64)),
            '","watched_s":', watched,
            ',"length_s":', pa.array(length).cast(pa.string()),
            ',"at":', times, "}",
        )  # fmt: skip
        write_lines(file, _cut(lines, block, lambda line: len(line) - 1))

    def _search(self, file: BinaryIO, block: Block) -> None:
        salt = (block.event >> np.uint64(3)).astype(np.int64)
        terms = take(self._csv_queries, self.texts.query_numbers(self._real_items(block), salt))
        times = local_times(block.time_ms, SEARCH_ZONE, "%m/%d/%Y")
        lines = concat(
            hex_ids(block.event), ",",
            _spoil(times, block, Kind.BAD_TIME, BAD_SEARCH_TIMES), ",",
            pc.fill_null(take(self.ids.users, block.user), ""), ",",
            terms, ",",
            pc.fill_null(take(self.ids.items, block.item), ""), ",",
            pa.array(1 + salt % 20).cast(pa.string()),
        )  # fmt: skip
        write_lines(file, _cut(lines, block, lambda line: line.index(",", 17)))


def _spoil(texts: pa.Array, block: Block, kind: Kind, bad: tuple[str, ...]) -> pa.Array:
    """The texts with those of rows of a kind replaced by bad ones in turn."""
    rows = block.kind == kind
    return override(texts, rows, [bad[n % len(bad)] for n in range(int(rows.sum()))])


def _cut(lines: pa.Array, block: Block, most: Any) -> pa.Array:
    """Lines of TRUNCATED rows broken off at a place the event number decides, before ``most(line)``."""
    rows = np.flatnonzero(block.kind == Kind.TRUNCATED)
    whole = lines.take(pa.array(rows)).to_pylist()
    cut = [
        line[: 5 + int(event % np.uint64(most(line) - 5))]
        for line, event in zip(whole, block.event[rows], strict=True)
    ]
    return override(lines, block.kind == Kind.TRUNCATED, cut)
