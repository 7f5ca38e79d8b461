"""The vectors of users' texts in the space of item vectors: query_embeddings -> query_vectors, part by part.

The transform is the one fitted on items. Texts of users have a mean and a spread of their own; moving them by
theirs would move them away from the items they name.
"""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from nightjar.kernels import taste
from nightjar.stages.encoding.parts import QUARANTINED, part_metadata
from nightjar.store import Attempt, Committed, FileEntry
from nightjar.tables import vector_column, vectors


def write_query_vectors(
    embeddings: Committed, attempt: Attempt, whitening: taste.Whitening | None
) -> list[FileEntry]:
    """Writes a row for each of the embeddings; a text that could not be encoded gets 0 and adds nothing."""
    entries = []
    for entry in embeddings.parts:
        rows = embeddings.read_part(entry, ["text_hash", "embedding"])
        E = np.ascontiguousarray(vectors(rows["embedding"]))
        V = E.copy() if whitening is None else taste.whiten(E, whitening)
        told = json.loads(part_metadata(embeddings, entry).get(QUARANTINED, "[]"))
        bad = pa.array([text_hash for _, text_hash, *_ in told], pa.string())
        V[pa.compute.is_in(rows["text_hash"], bad).to_numpy()] = 0
        table = pa.table({"text_hash": rows["text_hash"], "vector": vector_column(V)})
        entries.append(attempt.write_part(entry.part or 0, [table]))
    return entries
