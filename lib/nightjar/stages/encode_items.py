"""Item text -> embeddings, on a pool of Ray actors: item_text -> item_embeddings, embeddings_quarantine.

A part of item_text is the unit of work, of resuming and of retrying. A text that an earlier night encoded
with the same model is taken over by its hash, and one that stands in several parts is encoded before them, so
a night pays once for each text that is new. Reasons of the quarantine: kills_encoder, fails_in_encoder,
bad_vector. Such an item keeps its row, with a vector that says nothing (`stand_in`), and the same model tries
it again only when told to. Items may have a picture where the model has an image tower; one that cannot be
used (image_missing, image_unreadable, image_too_large) is listed too, and the item has its text's vector.
"""

from __future__ import annotations

import hashlib
import json
import operator
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from nightjar.config import EncodeItems, Resources
from nightjar.engines import actors
from nightjar.engines.encoder import EncoderSpec, model_fingerprint
from nightjar.errors import ConfigError
from nightjar.progress import Task
from nightjar.stage import Metrics, Night
from nightjar.stages.encoding.bill import Bill
from nightjar.stages.encoding.earlier import (
    Wanted,
    find_reusable,
    quarantined_rows,
    say_what_changed,
    text_keys,
)
from nightjar.stages.encoding.parts import (
    ENCODER,
    QUARANTINED,
    Encoded,
    EncodeTask,
    EncodeWork,
    Listed,
    Load,
    part_metadata,
    repeated_attempt,
    written,
)
from nightjar.stages.encoding.plan import Plan, make_plan
from nightjar.stages.encoding.spec import OF_ITEMS, TextTables, encoder_spec, has_image_tower, model_facts
from nightjar.stages.encoding.suspects import Suspects
from nightjar.store import Attempt, Committed, FileEntry, damage
from nightjar.tables import QUARANTINE_SCHEMA, VectorType

Parts = dict[int, tuple[FileEntry, Mapping[str, str]]]
"""Part -> its entry and its metadata."""
GPU_DEPTH, CPU_DEPTH = 2, 1
"""Tasks that an actor has at a time. With a GPU one is read or written while the other is encoded; on a CPU
the one core of an actor does both anyway."""
REPEATED_TEXTS = 2048
"""Repeated texts encoded as one task: parts that need them wait for the last of these."""


def encode_items(
    night: Night, params: EncodeItems, resources: Resources, load: Load | None = None
) -> Metrics:
    """Gives every row of item_text a vector; each distinct new text is encoded once.

    Metrics: items = resumed + encoded + reused + repeated + quarantined, where `resumed` rows lie in parts
    that an earlier run finished; what encoding cost, per second of an actor; what the model is.
    """
    spec = encoder_spec(params, resources)
    if any(source.has_images for source in night.config.build_items.sources) and not has_image_tower(spec):
        raise ConfigError(
            f"build_items maps pictures, but {params.model} has no image tower; name a CLIP or SigLIP model, "
            "or map no `image`"
        )
    how = Encoding(OF_ITEMS, spec, params.storage, params.retry_quarantined)
    return encode_texts(night, how, resources, params.hourly_price, load)


@dataclass(frozen=True)
class Encoding:
    """What is encoded, by which model, how its vectors are stored, and whether bad texts are tried again."""

    tables: TextTables
    spec: EncoderSpec
    storage: VectorType
    retry_quarantined: bool


def encode_texts(
    night: Night, how: Encoding, resources: Resources, hourly_price: float | None, load: Load | None = None
) -> Metrics:
    """Gives every row of a table of texts a vector: what the stages that encode have in common."""
    tables, spec = how.tables, how.spec
    text, attempt = night.read(tables.text), _attempt(night, how)
    facts = {**model_facts(spec), "storage": how.storage}
    wanted = Wanted(tables, model_fingerprint(spec), facts)
    finished = _finished(text, attempt)
    resumed = sum(entry.rows for entry, _ in finished.values())
    bill = Bill(resumed_parts=len(finished), resumed=resumed, hourly_price=hourly_price)
    todo = [part for part in range(len(text.parts)) if part not in finished]
    if todo:
        earlier = find_reusable(night, wanted, retry=how.retry_quarantined)
        keys, offsets = text_keys(text)
        plan = make_plan(keys, offsets, earlier.keys if earlier else keys[:0])
        say_what_changed(night, wanted, plan.n_new)
        actors.connect(night.config.ray)
        repeated = repeated_attempt(attempt, _digest(keys[plan.repeated_at]))
        known = earlier.committed if earlier else None
        work = EncodeWork(tables, text, attempt, repeated, spec, known, load)
        finished |= Run(night, work, plan, quarantined_rows(keys, earlier), bill).parts(todo, resources)
        night.store.drop(repeated.folder)
    in_order = [finished[part] for part in sorted(finished)]
    night.wrote(tables.embeddings, [entry for entry, _ in in_order])
    reasons = _write_quarantine(night, tables, [metadata for _, metadata in in_order])
    described = json.loads(in_order[0][1][ENCODER]) if in_order else {}
    return {
        tables.unit: text.manifest.rows,
        **bill.metrics,
        "quarantine": reasons,
        "model": wanted.fingerprint,
        "encoder": {**described, **wanted.facts},
    }


def _finished(text: Committed, attempt: Attempt) -> Parts:
    """The parts that an earlier run of tonight wrote."""
    found = {part: attempt.done(part) for part in range(len(text.parts))}
    return {
        part: (entry, part_metadata(written(attempt, [entry]), entry))
        for part, entry in found.items()
        if entry is not None
    }


def _attempt(night: Night, how: Encoding) -> Attempt:
    attempt = night.write(how.tables.embeddings)
    table = replace(how.tables.embeddings, vector_type=how.storage)
    return replace(attempt, dataset=replace(attempt.dataset, table=table))


def _digest(keys: np.ndarray) -> str:
    return hashlib.sha256(keys.tobytes()).hexdigest()[:16]


def _write_quarantine(
    night: Night, tables: TextTables, metadata: Iterable[Mapping[str, str]]
) -> dict[str, int]:
    """Writes what the parts tell of rows without a vector of their own; counts by reason."""
    rows = []
    for part, told in zip(night.read(tables.text).parts, metadata, strict=True):
        for reason, *values in json.loads(told.get(QUARANTINED, "[]")):
            named = {
                name: value for name, value in zip(tables.told, values, strict=True) if value is not None
            }
            payload = json.dumps(named, ensure_ascii=False)
            rows.append((tables.stage, tables.text.name, reason, payload, part.name))
    columns = zip(QUARANTINE_SCHEMA.names, zip(*rows, strict=True), strict=False)
    table = pa.table(dict(columns), QUARANTINE_SCHEMA) if rows else QUARANTINE_SCHEMA.empty_table()
    night.wrote(tables.quarantine, [night.write(tables.quarantine).write_part(0, [table])])
    return dict(sorted(Counter(row[2] for row in rows).items()))


class Run:
    """The driver's side of encoding: which tasks there are, which may go now, what came of them."""

    def __init__(
        self, night: Night, work: EncodeWork, plan: Plan, bad: Mapping[int, str], bill: Bill
    ) -> None:
        self._night, self._work, self._plan, self._bad, self._bill = night, work, plan, bad, bill
        self._done: Parts = {}
        self._units: dict[int, FileEntry] = {}
        self._bad_repeated: dict[int, str] = {}
        self._waiting: list[int] = []

    def parts(self, todo: Sequence[int], resources: Resources) -> Parts:
        """Writes these parts; repeated texts first, and with them the parts that need none."""
        units = self._open_units()
        borrow = [part for part in todo if units and len(self._plan.of_part(part).repeated)]
        self._waiting = borrow
        tasks = [*units, *(self._part(part) for part in sorted(set(todo) - set(borrow)))]
        n_texts = sum(task.n_texts for task in tasks) + sum(self._n_texts(part) for part in borrow)
        with self._night.report.task(self._work.tables.stage, n_texts, "texts") as progress:
            again = self._map(tasks, self._pool(resources, len(units) + len(todo)), progress)
            if again:  # two copies of a part wrote other bytes: one of them alone, now
                self._map(again, self._pool(resources, len(again), reissue=False), progress)
        self._night.report.line(f"{self._work.tables.stage}: {self._bill.sentence}")
        return self._done

    def _pool(self, resources: Resources, n_tasks: int, reissue: bool = True) -> actors.Pool[Encoded]:
        size = actors.pool_size(resources, n_tasks)
        depth = GPU_DEPTH if resources.num_gpus else CPU_DEPTH
        alone = operator.attrgetter("alone")
        return actors.Pool(self._work, resources, size, reissue=reissue, depth=depth, alone=alone)

    def _map(
        self, tasks: Sequence[EncodeTask], pool: actors.Pool[Encoded], progress: Task
    ) -> list[EncodeTask]:
        """Does the tasks and what follows from them; returns parts whose file is not what its writer said."""
        suspects = Suspects(pool.resources.max_attempts, pool.add)
        pool.on_failure = suspects.failed
        for task, encoded in pool.map(tasks):
            self._bill.add(task.kind, encoded.counts)
            if task.span is not None:
                suspects.passed(task)
            elif task.kind == "repeated":
                pool.add(self._unit_is_done(task, encoded))
            else:
                self._part_is_done(task, encoded)
            if task.span is None:
                progress.note = self._bill.so_far(time.monotonic() - progress.started)
                progress.advance(task.n_texts, encoded.counts["rows"], self._work.tables.unit)
        self._bill.reissued += len(pool.reissued)
        return [task for task in pool.reissued if task.kind == "part" and self._is_torn(task)]

    def _open_units(self) -> list[EncodeTask]:
        """The repeated texts in tasks, without those that an earlier run finished."""
        n, tasks = len(self._plan.repeated_at), []
        for number, start in enumerate(range(0, n, REPEATED_TEXTS)):
            where = self._plan.places(slice(start, min(start + REPEATED_TEXTS, n)))
            task = EncodeTask(kind="repeated", number=number, where=where)
            entry = self._work.repeated.done(number)
            if entry is None:
                tasks.append(task)
                continue
            self._units[number] = entry
            told = part_metadata(written(self._work.repeated, [entry]), entry).get(QUARANTINED, "[]")
            self._note_bad(number, json.loads(told))
        return tasks

    def _unit_is_done(self, task: EncodeTask, encoded: Encoded) -> list[EncodeTask]:
        """The parts that waited, after the last of the repeated texts."""
        assert encoded.entry is not None
        self._units[task.number] = encoded.entry
        self._note_bad(task.number, encoded.bad)
        if len(self._units) * REPEATED_TEXTS < len(self._plan.repeated_at):
            return []
        waiting, self._waiting = self._waiting, []
        return [self._part(part) for part in waiting]

    def _note_bad(self, unit: int, bad: Listed) -> None:
        self._bad_repeated |= {unit * REPEATED_TEXTS + place: reason for place, reason in bad}

    def _part_is_done(self, task: EncodeTask, encoded: Encoded) -> None:
        assert encoded.entry is not None
        assert task.sources is not None
        self._done[task.number] = encoded.entry, encoded.metadata
        self._bill.n_quarantined += len(encoded.bad)
        listed = [row for row, _ in encoded.bad]
        self._bill.totals["reused"] += int((~np.isin(task.sources.earlier.rows, listed)).sum())

    def _n_texts(self, part: int) -> int:
        return len(self._plan.of_part(part).texts)

    def _part(self, number: int) -> EncodeTask:
        sources = self._plan.of_part(number)
        first = int(self._plan.offsets[number])
        listed = [
            *((row, self._bad[first + row]) for row, _ in sources.earlier if first + row in self._bad),
            *((row, self._bad_repeated[at]) for row, at in sources.repeated if at in self._bad_repeated),
        ]
        units = [self._units[unit] for unit in sorted(self._units)]
        return EncodeTask(
            kind="part",
            number=number,
            where=((number, sources.texts),),
            sources=sources,
            lent=written(self._work.repeated, units) if len(sources.repeated) else None,
            listed=tuple(sorted(listed)),
        )

    def _is_torn(self, task: EncodeTask) -> bool:
        """Whether a part that had a copy is not the file its entry says; its marker is dropped then."""
        (entry, _), attempt = self._done[task.number], self._work.attempt
        torn = bool(damage(written(attempt, [entry])))
        if torn:
            attempt.dataset.store.drop(f"{attempt.folder}/{entry.name}.done.json")
        return torn
