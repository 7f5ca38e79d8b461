"""Item text -> embeddings, on a pool of Ray actors: item_text -> item_embeddings.

A part of item_text is the unit of work, of resuming and of retrying. A text that an earlier night encoded
with the same model is taken over by its hash, so a night pays only for what is new.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from nightjar.config import EncodeItems, Resources
from nightjar.engines import actors
from nightjar.engines.encoder import Encoder, EncoderSpec, load_encoder, model_fingerprint
from nightjar.errors import ContractError
from nightjar.stage import Metrics, Night
from nightjar.stages.encoding import encoder_spec
from nightjar.store import Attempt, Committed, Dataset, FileEntry, committed_dates
from nightjar.tables import ITEM_EMBEDDINGS, ITEM_TEXT, vector_column, vectors

MODEL = "nightjar.model"
"""Key of a part's metadata that holds the fingerprint of the model behind its vectors."""


def encode_items(night: Night, params: EncodeItems, resources: Resources) -> Metrics:
    """Encodes every text once; metrics count items encoded, taken over and already done by an earlier run."""
    text, attempt = night.read(ITEM_TEXT), night.write(ITEM_EMBEDDINGS)
    spec = encoder_spec(params, resources)
    fingerprint = model_fingerprint(spec)
    done = {entry.part: attempt.done(entry.part or 0) for entry in text.parts}
    entries = {part: entry for part, entry in done.items() if entry is not None and part is not None}
    todo = [entry.part for entry in text.parts if entry.part is not None and entry.part not in entries]
    totals = {
        "items": text.manifest.rows,
        "resumed_parts": len(entries),
        "encoded": 0,
        "reused": 0,
        "tokens": 0,
    }
    description: dict[str, Any] = {}
    if todo:
        actors.connect(night.config.ray)
        earlier = find_reusable(night, fingerprint)
        work = EncodeWork(
            text, attempt, spec, earlier and replace(earlier, hashes=actors.share(earlier.hashes))
        )
        pool = actors.Pool(work, resources, actors.pool_size(resources, len(todo)))
        with night.report.task("encode_items", len(text.parts)) as task:
            task.advance(len(entries))
            for part, (entry, counts, description) in pool.map(todo):  # noqa: B007 - the last one is kept
                entries[part] = entry
                for name, amount in counts.items():
                    totals[name] += amount
                task.advance(1, counts["encoded"] + counts["reused"], "items")
    night.wrote(ITEM_EMBEDDINGS, [entries[part] for part in sorted(entries)])
    return {**totals, "model": fingerprint, "encoder": description}


@dataclass(frozen=True)
class Earlier:
    """An earlier night's embeddings, looked up by text hash.

    hashes: (n,) structured array sorted by `hash` (the first 8 bytes of the sha256), with part and row.
    """

    committed: Committed
    hashes: Any


LOOKUP = np.dtype([("hash", ">u8"), ("part", "<i4"), ("row", "<i4")])


def find_reusable(night: Night, fingerprint: str) -> Earlier | None:
    """The newest commit made by the same model, or None; another model's vectors never mix in."""
    for store in (night.store, night.lender):
        for ds in reversed(committed_dates(store, ITEM_EMBEDDINGS) if store else []):
            found = Dataset(store, ITEM_EMBEDDINGS, ds).committed() if store else None
            if found is not None and found.manifest.metrics.get("model") == fingerprint:
                return Earlier(found, _lookup(found))
    return None


def _lookup(committed: Committed) -> np.ndarray:
    tables = []
    for entry in committed.parts:
        hashes = committed.read_part(entry, ["text_hash"]).column("text_hash")
        table = np.empty(len(hashes), LOOKUP)
        table["hash"], table["part"], table["row"] = short_hashes(hashes), entry.part, np.arange(len(hashes))
        tables.append(table)
    joined = np.concatenate(tables) if tables else np.empty(0, LOOKUP)
    return joined[np.argsort(joined["hash"], kind="stable")]


def short_hashes(column: pa.ChunkedArray) -> np.ndarray:
    """The first 8 bytes of hex sha256 strings, as big-endian integers (n,)."""
    hexes = "".join(value[:16] for value in column.to_pylist())
    return np.frombuffer(bytes.fromhex(hexes), ">u8")


@dataclass(frozen=True)
class EncodeWork:
    """What travels to an actor; called there, it makes the actor's encoder."""

    text: Committed
    attempt: Attempt
    spec: EncoderSpec
    earlier: Earlier | None

    def __call__(self) -> EncodePart:
        earlier = self.earlier and replace(self.earlier, hashes=actors.shared(self.earlier.hashes))
        return EncodePart(self.text, self.attempt, load_encoder(self.spec), earlier)


Encoded = tuple[FileEntry, dict[str, int], dict[str, Any]]


class EncodePart:
    """Inside an actor: reads a part of item_text, fills its vectors, writes the part of item_embeddings."""

    def __init__(self, text: Committed, attempt: Attempt, encoder: Encoder, earlier: Earlier | None) -> None:
        self.text, self.encoder, self.earlier = text, encoder, earlier
        self.attempt = replace(attempt, dim=encoder.dim)

    def __call__(self, part: int) -> Encoded:
        rows = self.text.read_part(self.text.parts[part], ["item_id", "text", "text_hash"])
        matrix = np.empty((len(rows), self.encoder.dim), np.float32)
        new = ~self._take_over(rows.column("text_hash"), matrix)
        texts = rows.column("text").filter(pa.array(new)).to_pylist()
        matrix[new] = self._encode(texts, part)
        out = rows.drop_columns(["text"]).append_column("embedding", vector_column(matrix))
        entry = self.attempt.write_part(part, [out], self._metadata())
        tokens = self.encoder.last_stats.n_tokens if texts else 0
        counts = {"encoded": int(new.sum()), "reused": int((~new).sum()), "tokens": tokens}
        return entry, counts, self.encoder.description

    def _encode(self, texts: Sequence[str], part: int) -> np.ndarray:
        if not texts:
            return np.empty((0, self.encoder.dim), np.float32)
        matrix: np.ndarray = self.encoder.encode(texts)
        if bad := int((~np.isfinite(matrix).all(axis=1)).sum()):
            raise ContractError(
                f"encode_items: the model gave {bad} vectors that are not finite in part {part}; "
                "use precision fp32 or bf16, or another model"
            )
        return matrix

    def _take_over(self, hashes: pa.ChunkedArray, matrix: np.ndarray) -> np.ndarray:
        """Fills rows whose text an earlier night encoded; returns (n,) True where it did."""
        taken = np.zeros(len(hashes), bool)
        if self.earlier is None or not len(self.earlier.hashes):
            return taken
        known, wanted = self.earlier.hashes, short_hashes(hashes)
        at = np.minimum(np.searchsorted(known["hash"], wanted), len(known) - 1)
        likely = np.flatnonzero(known["hash"][at] == wanted)
        for old_part in np.unique(known["part"][at[likely]]):
            rows = likely[known["part"][at[likely]] == old_part]
            self._copy_rows(int(old_part), known["row"][at[rows]], rows, hashes, (matrix, taken))
        return taken

    def _copy_rows(
        self, old_part: int, old_rows: np.ndarray, rows: np.ndarray, hashes: pa.ChunkedArray, into: Any
    ) -> None:
        assert self.earlier is not None
        old = self.earlier.committed.read_part(
            self.earlier.committed.parts[old_part], ["text_hash", "embedding"]
        )
        whole_equal = pa.compute.equal(
            old.column("text_hash").take(pa.array(old_rows)), hashes.take(pa.array(rows))
        )
        same = whole_equal.to_numpy(zero_copy_only=False)
        matrix, taken = into
        matrix[rows[same]] = vectors(old.column("embedding"))[old_rows[same]]
        taken[rows[same]] = True

    def _metadata(self) -> Mapping[str, str]:
        return {MODEL: self.encoder.fingerprint, "nightjar.encoder": json.dumps(self.encoder.description)}
