"""Committed vectors and relations as memory maps on this host, shared by all its processes.

Workers of Spark and actors of Ray on one host map the same file, so a matrix is in memory once, in the page
cache. It is built from the Parquet parts by whoever comes first and named by their hashes, so it is never
stale; a broadcast would cost a copy for each worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nightjar.errors import ContractError, StorageError
from nightjar.kernels.relations import Stack
from nightjar.store import Committed
from nightjar.tables import vector_length, vectors

KEPT = 6
"""Maps kept on a host; an older one is dropped when a new one is built (mapped ones stay readable)."""


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
    name = committed.dataset.table.vector

    def write(sink: BinaryIO) -> None:
        for entry in committed.parts:
            for batch in committed.batches(entry, [name]):
                sink.write(np.ascontiguousarray(vectors(batch.column(name))).data)

    path = _mapped(committed, shape[0] * shape[1] * 4, write)
    return np.memmap(path, np.float32, "r", shape=shape)


def mapped_stack(committed: Committed) -> Stack:
    """A table of neighbours as one stack of relations, a part each, over read-only memory maps."""
    names, counts, lengths = [], [], []
    for entry in committed.parts:
        rows = committed.read_part(entry, ["relation", "item_nums"])
        names.append(str(rows["relation"][0]))
        counts.append(len(rows))
        lengths.append(pc.list_value_length(rows["item_nums"]).to_numpy())
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    n = int(indptr[-1])
    if not n:
        return Stack(tuple(names), counts[0], indptr, np.zeros(0, np.int32), np.zeros(0, np.float32))

    def write(sink: BinaryIO) -> None:
        for column in ("item_nums", "scores"):
            for entry in committed.parts:
                for batch in committed.batches(entry, [column]):
                    sink.write(_flat(batch.column(column)).data)

    path = _mapped(committed, n * 8, write)
    item_nums = np.memmap(path, np.int32, "r", shape=(n,))
    return Stack(tuple(names), counts[0], indptr, item_nums, np.memmap(path, np.float32, "r", n * 4, (n,)))


def _flat(lists: pa.ListArray) -> np.ndarray:
    return np.ascontiguousarray(lists.flatten().to_numpy(zero_copy_only=False))


def _mapped(committed: Committed, size: int, write: Callable[[BinaryIO], None]) -> Path:
    """The file of `size` bytes that `write` makes of a commit: on this host already, or made now."""
    path = _folder() / f"{committed.dataset.table.name}-{_content(committed)}.map"
    if not _is_whole(path, size):
        with _building(path):
            if not _is_whole(path, size):
                _build(committed, path, write)
    return path


def _is_whole(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size


def _build(committed: Committed, path: Path, write: Callable[[BinaryIO], None]) -> None:
    aside = path.with_suffix(f".tmp-{os.getpid()}")
    try:
        with aside.open("wb") as sink:
            write(sink)
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise StorageError(
            f"{committed.dataset.table.name} does not fit in {path.parent} ({error.strerror}); "
            "point NIGHTJAR_CACHE at a folder with room"
        ) from None
    _evict(path)


def _evict(newest: Path) -> None:
    found = sorted(newest.parent.glob("*.map"), key=lambda path: path.stat().st_mtime, reverse=True)
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
