"""Inside an actor: encodes the texts of a task and writes a part of item_embeddings or query_embeddings.

Texts and vectors go from file to file; a task says which rows to encode and which to take from a matrix that
the host maps.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nightjar.engines import encoder
from nightjar.engines.encoder import EncoderSpec
from nightjar.engines.encoder.spec import Illustrated
from nightjar.matrix import mapped_matrix
from nightjar.stages.encoding.plan import Sources
from nightjar.stages.encoding.spec import TextTables
from nightjar.store import Attempt, Committed, Dataset, FileEntry, Manifest
from nightjar.tables import ITEM_EMBEDDINGS, vector_column

if TYPE_CHECKING:
    from nightjar.engines.encoder.spec import TextEncoder

MODEL, ENCODER, QUARANTINED = "nightjar.model", "nightjar.encoder", "nightjar.quarantined"
"""Keys of a part's metadata: the model's fingerprint, what it is, rows without a vector of their own."""
BAD_VECTOR = "bad_vector"
REPEATED = replace(
    ITEM_EMBEDDINGS,
    schema=pa.schema([ITEM_EMBEDDINGS.schema.field(name) for name in ("text_hash", "embedding")]),
    key=("text_hash",),
)
"""Texts that stand in several parts, encoded before those; never committed, dropped with the last part."""

Load = Callable[[EncoderSpec], "TextEncoder"]
Listed = tuple[tuple[int, str], ...]
"""(row or place, reason) of what goes to quarantine."""


@dataclass(frozen=True, kw_only=True)
class EncodeTask:
    """Texts to encode and what to do with their vectors; equal where they are the same piece of work.

    kind: "part" writes part `number` of the embeddings, "repeated" one of the repeated texts. span: a probe,
    which encodes those of the texts only and writes nothing. refused: places of texts that must not be
    encoded. searched: no guilty texts are left in it. where: the texts, as (part of the texts, rows in it).
    sources, lent, listed: of a part, where its vectors come from, the repeated texts' vectors, and rows that
    are quarantined although their vector is taken over.
    """

    kind: str
    number: int
    span: tuple[int, int] | None = None
    refused: Listed = ()
    searched: bool = False
    where: tuple[tuple[int, np.ndarray], ...] = field(compare=False)
    sources: Sources | None = field(default=None, compare=False)
    lent: Committed | None = field(default=None, compare=False)
    listed: Listed = field(default=(), compare=False)

    @property
    def alone(self) -> bool:
        """Whether nothing else may run beside it: what dies then is this task's doing."""
        return self.span is not None or self.searched

    @property
    def n_texts(self) -> int:
        return sum(len(rows) for _, rows in self.where)

    def __str__(self) -> str:
        name = str(self.number) if self.kind == "part" else f"{self.number} of the repeated texts"
        return name if self.span is None else f"{name} (texts {self.span[0]} to {self.span[1]})"


@dataclass(frozen=True)
class Encoded:
    """What an actor tells of a task. entry, metadata: of the part it wrote. bad: (place or row, reason)
    quarantined.

    counts: rows, texts encoded, rows reused from an earlier night, tokens; seconds of the task; seconds and
    operations of encoding, and how many operations a bare matrix product would have done in that time.
    """

    entry: FileEntry | None
    bad: Listed
    counts: Mapping[str, float]
    metadata: Mapping[str, str]


Part = tuple[FileEntry, Mapping[str, str]]


@dataclass(frozen=True)
class EncodeWork:
    """What travels to an actor; called there, it makes the actor's encoder."""

    tables: TextTables
    text: Committed
    attempt: Attempt
    repeated: Attempt
    spec: EncoderSpec
    earlier: Committed | None
    load: Load | None = None

    def __call__(self) -> EncodeTexts:
        load = self.load or encoder.load_encoder
        return EncodeTexts(self, load(self.spec))


class EncodeTexts:
    """Inside an actor: does the tasks it is given with one encoder, in one thread or several.

    The encoder is one task's at a time; meanwhile another reads its texts or writes its part.
    """

    def __init__(self, work: EncodeWork, encoder_: TextEncoder) -> None:
        self.work, self.encoder = work, encoder_
        self._encoding, self._mapping, self._billing = Lock(), Lock(), Lock()
        self._billed = 0.0

    def __call__(self, task: EncodeTask) -> Encoded:
        started = time.perf_counter()
        texts, hashes = self._texts(task.where)
        if task.span is not None:
            with self._encoding:
                self.encoder.encode(texts[slice(*task.span)])
            return Encoded(None, (), {"seconds": self._seconds(started)}, {})
        with self._encoding:
            vectors, bad, counts = self._encode(task, texts, hashes)
        write = self._write_part if task.kind == "part" else self._write_repeated
        (entry, metadata), bad = write(task, hashes, vectors, bad)
        counts |= {"rows": entry.rows, "seconds": self._seconds(started)}
        return Encoded(entry, bad, counts, metadata)

    def _seconds(self, started: float) -> float:
        """Seconds that an actor was busy for a task and that no other task has been billed for."""
        with self._billing:
            now = time.perf_counter()
            since, self._billed = max(started, self._billed), now
            return now - since

    @property
    def _illustrated(self) -> bool:
        return "image" in self.work.tables.text.schema.names

    def _texts(self, where: Iterable[tuple[int, np.ndarray]]) -> tuple[list[str | Illustrated], list[str]]:
        """The texts of a task, with their pictures, and their hashes."""
        texts: list[str | Illustrated] = []
        hashes: list[str] = []
        for part, rows in where:
            if not len(rows):
                continue
            entry = self.work.text.parts[part]
            pictures = ["image"] if self._illustrated else []
            found = self.work.text.read_part(entry, ["text", "text_hash", *pictures]).take(pa.array(rows))
            texts += _inputs(found)
            hashes += found.column("text_hash").to_pylist()
        return texts, hashes

    def _encode(
        self, task: EncodeTask, texts: Sequence[str | Illustrated], hashes: Sequence[str]
    ) -> tuple[np.ndarray, Listed, dict[str, float]]:
        """Unit vectors (t, dim) of the texts, what goes to quarantine, and what it cost.

        A text without a vector of its own gets the stand-in; one whose picture is bad has its text's vector.
        """
        refused = dict(task.refused)
        good = [place for place in range(len(texts)) if place not in refused]
        vectors = np.zeros((len(texts), self.encoder.dim), np.float32)
        counts = {"encoded": float(len(good)), "tokens": 0.0, "flops": 0.0, "encode_seconds": 0.0}
        if good:
            vectors[good] = self.encoder.encode([texts[place] for place in good])
            refused |= {good[at]: reason for at, reason in self.encoder.bad_images.items()}
            stats = self.encoder.last_stats
            seconds = stats.tokenize_seconds + stats.forward_seconds
            counts |= {"tokens": stats.n_tokens, "flops": stats.flops, "encode_seconds": seconds}
            counts["peak_flops"] = seconds * self.encoder.peak_flops
        sound = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
        for place in np.flatnonzero(~sound):
            vectors[place] = stand_in(hashes[int(place)], self.encoder.dim)
            refused.setdefault(int(place), BAD_VECTOR)
        counts["encoded"] -= len(refused) - len(task.refused)
        return vectors, tuple(sorted(refused.items())), counts

    def _write_part(
        self, task: EncodeTask, hashes: Sequence[str], vectors: np.ndarray, bad: Listed
    ) -> tuple[Part, Listed]:
        del hashes
        assert task.sources is not None
        sources, reasons = task.sources, dict(bad)
        at_rows = [(row, reasons[place]) for row, place in sources.fresh if place in reasons]
        listed = tuple(sorted((*at_rows, *task.listed)))
        tables = self.work.tables
        columns = (
            tables.told if listed else tables.carried
        )  # pictures may stand in the rows: read none in vain
        text = self.work.text.read_part(self.work.text.parts[task.number], columns)
        matrix = np.empty((len(text), self.encoder.dim), np.float32)
        for pair, source in (
            (sources.fresh, vectors),
            (sources.earlier, self._mapped(self.work.earlier, len(sources.earlier))),
            (sources.repeated, self._mapped(task.lent, len(sources.repeated))),
        ):
            matrix[pair.rows] = source[pair.places]
        told = [
            [reason, *(_shown(text.column(c)[row].as_py()) for c in tables.told)] for row, reason in listed
        ]
        return self._write(self.work.attempt, task, text.select(tables.carried), matrix, told), listed

    def _write_repeated(
        self, task: EncodeTask, hashes: Sequence[str], vectors: np.ndarray, bad: Listed
    ) -> tuple[Part, Listed]:
        rows = pa.table({"text_hash": pa.array(hashes, pa.string())})
        return self._write(self.work.repeated, task, rows, vectors, bad), bad

    def _mapped(self, committed: Committed | None, wanted: int) -> np.ndarray:
        """The matrix of a table on this host; only if something of it is wanted."""
        if committed is None or not wanted:
            return np.empty((0, self.encoder.dim), np.float32)
        with self._mapping:  # a file lock, which threads of one process do not keep from each other
            return mapped_matrix(committed)

    def _write(
        self, attempt: Attempt, task: EncodeTask, rows: pa.Table, matrix: np.ndarray, told: Sequence[Any]
    ) -> Part:
        """Writes a part unless a copy of the task was faster: a part that is done never changes."""
        metadata = {
            MODEL: self.encoder.fingerprint,
            ENCODER: json.dumps(self.encoder.description, sort_keys=True),
            "nightjar.dim": str(self.encoder.dim),
            "nightjar.dtype": attempt.dataset.table.vector_type,
            "nightjar.norm": "1",
            **({QUARANTINED: json.dumps(told)} if told else {}),
        }
        if (done := attempt.done(task.number)) is not None:
            return done, metadata
        column = vector_column(matrix, attempt.dataset.table.vector_type)
        rows = rows.append_column("embedding", column)
        return replace(attempt, dim=self.encoder.dim).write_part(task.number, [rows], metadata), metadata


SHOWN_CHARS = 1000
"""Of a quarantined value, what is told; a picture may stand in it."""


def _shown(value: str | None) -> str | None:
    return None if value is None else value[:SHOWN_CHARS]


def _inputs(rows: pa.Table) -> list[str | Illustrated]:
    """What the encoder is given of rows: a text, or one with its picture."""
    texts: list[str] = rows["text"].to_pylist()
    if "image" not in rows.column_names or rows["image"].null_count == len(rows):
        return list(texts)
    pairs = zip(texts, rows["image"].to_pylist(), strict=True)
    return [text if image is None else Illustrated(text, image) for text, image in pairs]


def stand_in(text_hash: str, dim: int) -> np.ndarray:
    """The unit vector (dim,) float32 of a text that cannot be encoded: as good as random, always the same.

    It is nearly orthogonal to everything, so that the item is recommended for what behaviour says of it.
    """
    drawn = np.frombuffer(hashlib.shake_256(text_hash.encode()).digest(2 * dim), "<i2").astype(np.float64)
    centred = drawn + 0.5  # never all zero
    return (centred / np.linalg.norm(centred)).astype(np.float32)


def written(attempt: Attempt, entries: Iterable[FileEntry]) -> Committed:
    """Parts of an attempt as readers see committed ones, before the commit or without one."""
    files = tuple(entries)
    rows = sum(entry.rows for entry in files)
    name, ds = attempt.dataset.table.name, attempt.dataset.ds
    return Committed(attempt.dataset, Manifest(name, ds, "", attempt.fingerprint, files, rows, ()))


def part_metadata(committed: Committed, entry: FileEntry) -> dict[str, str]:
    """What was written into a part beside its rows."""
    with committed.dataset.store.open(committed.name_of(entry)) as source:
        found = pq.read_schema(source).metadata or {}
    return {key.decode(): value.decode() for key, value in found.items()}


def repeated_attempt(attempt: Attempt, digest: str) -> Attempt:
    """Where the vectors of repeated texts go: inside the attempt, named by what texts those are."""
    table = replace(attempt.dataset.table, schema=REPEATED.schema, key=REPEATED.key)
    dataset = Dataset(attempt.dataset.store, table, attempt.dataset.ds)
    return Attempt(dataset, f"{attempt.fingerprint}/repeated-{digest}")
