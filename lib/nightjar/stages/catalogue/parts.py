"""The Python half of build_items: a part of rows sorted by id -> numbered items, texts and hashes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyspark import TaskContext

from nightjar.engines.outcome import Counts, outcome, valid_text
from nightjar.engines.raw import source_names
from nightjar.engines.spark import Runs
from nightjar.errors import ContractError
from nightjar.kernels import text as kernel
from nightjar.stages.catalogue.images import with_images
from nightjar.stages.catalogue.sources import field_column
from nightjar.store import Attempt
from nightjar.tables import ITEM_TEXT, ITEMS, QUARANTINE_SCHEMA

STAGE = "build_items"
NO_TEXT, UNAVAILABLE = "items_without_text", "unavailable_items"


@dataclass(frozen=True)
class Composer:
    """How a cleaned row becomes an item and its text."""

    pieces: tuple[kernel.Piece, ...]
    fields: tuple[str, ...]
    max_chars: int

    def compose(self, row: dict[str, Any], item_num: int) -> tuple[dict[str, Any], dict[str, Any], bool]:
        """(row of items, row of item_text, whether the text is only the id)."""
        item_id = row["item_id"]
        named = {name: kernel.clean(row[name]) for name in ("title", "description", "category", "knowledge")}
        fields = {name: kernel.clean(row[field_column(at)]) for at, name in enumerate(self.fields)}
        values = {**fields, **named, "item_id": item_id}
        text = kernel.bounded(kernel.render(self.pieces, values), self.max_chars)
        bare = not kernel.usable(text)
        text = item_id if bare else text
        shown = {name: value for name, value in fields.items() if value}
        item = {
            "item_id": item_id,
            "item_num": item_num,
            "title": named["title"] or item_id,
            "fields": list(shown.items()) or None,
            "category": named["category"] or None,
            "available": row["available"] is not False,
            "first_seen": row["first_seen"],
            "updated_at": row["updated_at"],
        }
        texts = {
            "item_id": item_id,
            "item_num": item_num,
            "text": text,
            "text_hash": kernel.text_hash(text),
            "image": row["image"],
        }
        return item, texts, bare


class WriteItems:
    """The Spark task: rows sorted by part and id -> parts of items and of item_text.

    Numbers follow from places: part p holds exactly the items p·rows_per_part …, so a row's number is its
    place in the part. A part of another size means that ids were lost or doubled, and is refused.
    """

    def __init__(self, items: Attempt, texts: Attempt, composer: Composer, sizes: tuple[int, int]) -> None:
        self.items, self.texts, self.composer = items, texts, composer
        self.n_items, self.rows_per_part = sizes

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        written: dict[str, list[Any]] = {ITEMS.name: [], ITEM_TEXT.name: []}
        counts: Counts = Counter()
        for part, run in Runs(batches, "part"):
            rows = [row for batch in run for row in _rows(batch)]
            self._check(part, len(rows))
            first = part * self.rows_per_part
            made = [self.composer.compose(row, first + at) for at, row in enumerate(rows)]
            counts[(NO_TEXT,)] += sum(bare for _, _, bare in made)
            counts[(UNAVAILABLE,)] += sum(not item["available"] for item, _, _ in made)
            written[ITEMS.name].append(
                self.items.write_part(part, _table([m[0] for m in made], ITEMS.schema))
            )
            texts = _table(with_images([m[1] for m in made]), ITEM_TEXT.schema)
            written[ITEM_TEXT.name].append(self.texts.write_part(part, texts))
        yield outcome(written, counts)

    def _check(self, part: int, n_rows: int) -> None:
        expected = min(self.rows_per_part, self.n_items - part * self.rows_per_part)
        if n_rows != expected:
            raise ContractError(
                f"build_items: part {part} has {n_rows} items where {expected} belong; were its inputs "
                "changed meanwhile? run the same command again"
            )


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = valid_text(pa.Table.from_batches([batch])).to_pylist()
    return rows


def _table(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> Iterable[pa.Table]:
    return [pa.Table.from_pylist(list(rows), schema=schema)]


class WriteRejects:
    """The Spark task: rejected rows of one partition -> a part of the quarantine, and counts by reason."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        counts: Counts = Counter()
        entry = self.attempt.write_part(context.partitionId() if context else 0, self._told(batches, counts))
        yield outcome({self.attempt.dataset.table.name: [entry]}, counts)

    @staticmethod
    def _told(batches: Iterable[pa.RecordBatch], counts: Counts) -> Iterator[pa.Table]:
        for batch in batches:
            rows = valid_text(pa.Table.from_batches([batch]))
            for pair in rows.group_by(["scene", "reason"]).aggregate([([], "count_all")]).to_pylist():
                counts[pair["scene"], pair["reason"]] += pair["count_all"]
            stage = pa.array([STAGE] * len(rows), pa.string())
            at = rows.schema.get_field_index("source_file")
            rows = rows.set_column(at, "source_file", source_names(rows.column("source_file")))
            yield rows.append_column("stage", stage).select(QUARANTINE_SCHEMA.names)
