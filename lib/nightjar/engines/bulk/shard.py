"""A shard of the bulk engine: one file of aligned arrays, written once, opened memory-mapped.

The file is a line of JSON (name, dtype, shape and offset of each array) and the arrays, each at a multiple of
64 bytes. It holds no code and no pickle. Items stand list by list, inside a list by item number; the vectors
themselves stay in the item matrix.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nightjar.engines.bulk.codes import ENCODE_BLOCK, I8, Rotation, encode, fit_rotation
from nightjar.engines.bulk.lists import assign, n_lists, train_centroids
from nightjar.engines.shards import ShardFacts, check_items, check_sha256, write_whole
from nightjar.errors import ConfigError, ContractError, StorageError
from nightjar.kernels.topk import F32, I64, vector_norms

MAGIC = "nightjar bulk shard 4"
ALIGN = 64
PADDING = 64  # rows beyond the last item, so that a group of 64 may be read from any item on


@dataclass(frozen=True)
class BulkShard:
    """One open shard: per item of (n,) its number, code and bound terms, in list order.

    codes (n + 64, n_head) int8; terms (4, n + 64) float32: scale, common, tail, error; coded (n + 64,) and
    norms (n,) float32; centroids (n_lists, d) float32; spreads (n_lists,) float32, the root mean square
    distance of a list's items to its centroid; list_starts (n_lists + 1,) int64; witnesses, the vectors of
    the items at `witness_rows`, which tell whether a matrix is the one that was coded.
    """

    item_nums: I64
    codes: I8
    terms: F32
    coded: F32
    norms: F32
    centroids: F32
    spreads: F32
    list_starts: I64
    witnesses: F32
    rotation: Rotation


def build_shard(
    vectors: F32, item_nums: I64, path: Path, factory: str = "exact", metric: str = "ip", seed: int = 0
) -> ShardFacts:
    """Write one file of codes and lists for vectors (n, d) float32 with item_nums (n,) int64, ascending.

    Same call and same errors as `engines.index.build_shard`; factory must be "exact".
    """
    if factory != "exact" or metric != "ip":
        raise ConfigError(
            f"the bulk engine builds factory 'exact' with metric 'ip', not {factory!r}, {metric!r}"
        )
    check_items(vectors, item_nums, path)
    shard = _Plan.of(vectors, item_nums, seed)
    digest = write_whole(path, shard.write)
    return ShardFacts(len(vectors), factory, metric, digest, path.stat().st_size)


@dataclass(frozen=True)
class _Plan:
    """A shard before it is written: what is known of all items, (n,) each; codes come block by block."""

    vectors: F32
    item_nums: I64
    list_of: I64
    centroids: F32
    rotation: Rotation

    @classmethod
    def of(cls, vectors: F32, item_nums: I64, seed: int) -> "_Plan":
        count = n_lists(len(vectors))
        list_of, centroids = np.zeros(len(vectors), np.int64), np.zeros((1, vectors.shape[1]), np.float32)
        if count > 1:
            centroids = train_centroids(vectors, count, seed)
            list_of = assign(vectors, centroids)
        sample = vectors if len(vectors) else np.ones((1, vectors.shape[1]), np.float32)
        return cls(vectors, item_nums, list_of, centroids, fit_rotation(sample, seed))

    def write(self, path: Path) -> None:
        """Writes the file through a map, so that memory holds a block of codes and 32 bytes an item."""
        n, order = len(self.vectors), np.argsort(self.list_of, kind="stable")
        counts = np.bincount(self.list_of, minlength=len(self.centroids))
        small: dict[str, NDArray[Any]] = {
            "item_nums": self.item_nums[order],
            "centroids": self.centroids,
            "list_starts": np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
            "witnesses": np.array(self.vectors[order[witness_rows(n)]]),
            "rotation": self.rotation.matrix,
            "rotation_facts": np.array([self.rotation.defect, self.rotation.n_head, self.rotation.n_swept]),
        }
        large: dict[str, tuple[str, tuple[int, ...]]] = {
            "codes": ("|i1", (n + PADDING, self.rotation.n_head)),
            "terms": ("<f4", (4, n + PADDING)),
            "coded": ("<f4", (n + PADDING,)),
            "norms": ("<f4", (n,)),
            "spreads": ("<f4", (len(counts),)),
        }
        maps = _laid_out(path, {name: (one.dtype.str, one.shape) for name, one in small.items()} | large)
        for name, array in small.items():
            maps[name][:] = array
        place, squares = np.empty(n, np.int64), np.zeros(len(counts))
        place[order] = np.arange(n)
        for start in range(0, n, ENCODE_BLOCK):
            block = np.array(self.vectors[start : start + ENCODE_BLOCK])
            coded, at = encode(block, self.rotation, precise=True), place[start : start + ENCODE_BLOCK]
            maps["codes"][at] = coded.codes
            maps["terms"][:, at] = np.stack([coded.scale, coded.common, coded.tail, coded.error])
            maps["coded"][at] = coded.coded
            maps["norms"][at] = vector_norms(block, "items")
            lists = self.list_of[start : start + ENCODE_BLOCK]
            distances = np.square(block - self.centroids[lists], dtype=np.float64).sum(axis=1)
            squares += np.bincount(lists, distances, len(counts))
        maps["spreads"][:] = np.sqrt(squares / np.maximum(counts, 1))
        for one in maps.values():
            if isinstance(one, np.memmap):
                one.flush()


def witness_rows(n_items: int) -> I64:
    """Three rows spread over a shard, none if it is empty."""
    return np.unique(np.array([0, n_items // 2, n_items - 1])) if n_items else np.empty(0, np.int64)


def _laid_out(path: Path, arrays: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, NDArray[Any]]:
    """A file of zeros with room for arrays of these dtypes and shapes, mapped."""
    entries, offset = {}, 0
    for name, (dtype, shape) in arrays.items():
        entries[name] = {"dtype": dtype, "shape": shape, "offset": offset}
        offset += -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // ALIGN) * ALIGN
    head = json.dumps({"format": MAGIC, "arrays": entries}).encode()
    head += b" " * (-(len(head) + 1) % ALIGN) + b"\n"
    with path.open("wb") as stream:
        stream.write(head)
        stream.truncate(len(head) + offset)
    return {name: _mapped(path, len(head), entry, "r+") for name, entry in entries.items()}


def open_shard(path: Path, sha256: str) -> BulkShard:
    """Open a shard memory-mapped, after checking that the file has the sha256 of its manifest.

    StorageError if it cannot be read; ContractError if its bytes are not those committed or no bulk shard.
    """
    check_sha256(path, sha256)
    try:
        with path.open("rb") as stream:
            head = stream.readline()
        facts = json.loads(head)
        if facts["format"] != MAGIC:
            raise ContractError(f"shard {path} is not a bulk shard; run build_index again")
        # As plain arrays: taking a slice of a memmap costs ten times that of an array.
        arrays = {
            name: _mapped(path, len(head), entry).view(np.ndarray) for name, entry in facts["arrays"].items()
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ContractError(f"shard {path} is not a bulk shard; run build_index again") from error
    except OSError as error:
        raise StorageError(f"shard {path} cannot be read: {error}") from error
    defect, n_head, n_swept = arrays.pop("rotation_facts")
    rotation = Rotation(np.array(arrays.pop("rotation")), float(defect), int(n_head), int(n_swept))
    return BulkShard(rotation=rotation, **arrays)


def _mapped(path: Path, start: int, entry: Mapping[str, Any], mode: Literal["c", "r+"] = "c") -> NDArray[Any]:
    """One array of the file; to be read it is copy-on-write, as torch wants writable memory."""
    shape = tuple(entry["shape"])
    if 0 in shape:
        return np.empty(shape, entry["dtype"])
    return np.memmap(path, entry["dtype"], mode, start + entry["offset"], shape)
