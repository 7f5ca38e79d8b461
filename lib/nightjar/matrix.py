"""A committed vector table as one memory-mapped matrix on this host, shared by all its processes.

Workers of Spark and actors of Ray on one host map the same file, so the matrix is in memory once, in the
page cache. It is built from the Parquet parts by whoever comes first and named by their hashes, so it is
never stale; a broadcast would cost a copy for each worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from nightjar.errors import ContractError, StorageError
from nightjar.store import Committed
from nightjar.tables import vector_length, vectors

KEPT = 4
"""Matrices kept on a host; an older one is dropped when a new one is built (mapped ones stay readable)."""


def vector_dim(committed: Committed) -> int:
    """The length of the vectors of a committed table, from its first part's schema."""
    name = committed.dataset.table.vector
    with committed.dataset.store.open(committed.name_of(committed.parts[0])) as source:
        return vector_length(pq.ParquetFile(source).schema_arrow.field(name).type)


def mapped_matrix(committed: Committed) -> np.ndarray:
    """The vectors of a table as a read-only (rows, dim) float32 memory map, rows in part order."""
    if committed.dataset.table.vector is None:
        raise ContractError(f"{committed.dataset.table.name} has no vectors")
    shape = (committed.manifest.rows, vector_dim(committed))
    if not shape[0]:
        return np.zeros(shape, np.float32)
    path = _folder() / f"{committed.dataset.table.name}-{_content(committed)}.f32"
    expected = shape[0] * shape[1] * 4
    if not (path.exists() and path.stat().st_size == expected):
        with _building(path):
            if not (path.exists() and path.stat().st_size == expected):
                _build(committed, path)
    return np.memmap(path, np.float32, "r", shape=shape)


def _build(committed: Committed, path: Path) -> None:
    name = str(committed.dataset.table.vector)
    aside = path.with_suffix(f".tmp-{os.getpid()}")
    try:
        with aside.open("wb") as sink:
            for entry in committed.parts:
                for batch in committed.batches(entry, [name]):
                    sink.write(np.ascontiguousarray(vectors(batch.column(name))).data)
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise StorageError(
            f"the vectors of {committed.dataset.table.name} do not fit in {path.parent} ({error.strerror}); "
            "point NIGHTJAR_CACHE at a folder with room"
        ) from None
    _evict(path)


def _evict(newest: Path) -> None:
    found = sorted(newest.parent.glob("*.f32"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in found[KEPT:]:
        old.unlink(missing_ok=True)


def _content(committed: Committed) -> str:
    return hashlib.sha256("".join(entry.sha256 for entry in committed.parts).encode()).hexdigest()[:24]


def _folder() -> Path:
    default = Path(tempfile.gettempdir()) / f"nightjar-{os.getuid()}"
    folder = Path(os.environ.get("NIGHTJAR_CACHE") or default)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder == default and folder.stat().st_uid != os.getuid():
        raise StorageError(f"{folder} belongs to another user; set NIGHTJAR_CACHE to a folder of your own")
    return folder


@contextlib.contextmanager
def _building(path: Path) -> Iterator[None]:
    """One builder a file and host; the others wait for it and then map what it made."""
    with path.with_suffix(".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
