"""What every search engine shares: the facts of a shard file, its sha256, and writing it whole or not."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nightjar.errors import ContractError, StorageError
from nightjar.kernels.topk import F32, I64, vector_norms

HASH_BYTES = 8 << 20


@dataclass(frozen=True)
class ShardFacts:
    """What the manifest says of one shard file; bytes is its size, sha256 the digest of the whole file."""

    n_vectors: int
    factory: str
    metric: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Effort:
    """How hard to look, and with how many threads (a resource; the rest changes approximate results).

    nprobe: lists of an IVF visited per query; ef_search: beam of an HNSW; k_factor: candidates fetched per
    item wanted and re-scored in fp32 (the refinement that a compressed index needs); probe_share: share of
    its lists that the bulk engine's approximate mode visits, None for exact search; device: where the dense
    engine multiplies ("cpu", "cuda").
    """

    threads: int = 1
    nprobe: int = 32
    ef_search: int = 256
    k_factor: float = 1.0
    probe_share: float | None = None
    device: str = "cpu"


def check_items(vectors: F32, item_nums: I64, path: Path) -> None:
    """ContractError on vectors that `vector_norms` refuses and item numbers that are not ascending int64."""
    vector_norms(vectors, f"shard {path.name}")
    if item_nums.shape != (len(vectors),) or item_nums.dtype != np.int64:
        raise ContractError(f"shard {path.name}: {len(vectors)} vectors need as many int64 item numbers")
    if len(item_nums) and (item_nums[0] < 0 or np.any(np.diff(item_nums) <= 0)):
        raise ContractError(f"shard {path.name}: item numbers must be ≥ 0 and strictly ascending")


def sha256_of(path: Path) -> str:
    """Digest of a file, read in blocks; StorageError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(HASH_BYTES):
                digest.update(block)
    except OSError as error:
        raise StorageError(f"shard {path} cannot be read: {error}") from error
    return digest.hexdigest()


def check_sha256(path: Path, sha256: str) -> None:
    """ContractError if the bytes of a file are not those that its manifest vouches for."""
    found = sha256_of(path)
    if found != sha256:
        raise ContractError(
            f"shard {path} has sha256 {found}, not {sha256} as committed; run build_index again"
        )


def write_whole(path: Path, write: Callable[[Path], None]) -> str:
    """Let `write` fill a temporary file, then give it its name; returns its sha256.

    The file appears under its name complete and synced, or not at all; StorageError if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        digest = sha256_of(temporary)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        raise StorageError(f"shard {path} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return digest
