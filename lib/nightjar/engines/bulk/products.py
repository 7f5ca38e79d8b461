"""The matrix product that proposes: int8 where the processor has it, else fp32; both through torch."""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from nightjar.engines.bulk.codes import encode, margins
from nightjar.engines.bulk.compiled import GROUP
from nightjar.engines.bulk.shard import BulkShard
from nightjar.kernels.topk import F32, F64, I64, UNIT_ROUNDOFF

N_COEFS = 5  # common, tail, error, one over the scale, margin per unit of item length


@dataclass(frozen=True)
class Crowd:
    """Users first … stop - 1 of a block, made ready to meet one tile of items after another.

    common: (width,) float32 of each, 0 beyond them; width is their number rounded up to 64; codes: what the
    product takes.
    """

    first: int
    stop: int
    common: F32
    codes: torch.Tensor


class Products(Protocol):
    """Scores of users with items, and the terms and coefficients that make them upper bounds."""

    @property
    def coefs(self) -> F32: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def terms(self, first: int, width: int) -> F32:
        """(4, width) float32, a copy: scale, common, tail and error of the items from `first` on."""
        ...

    def items(self, first: int, width: int) -> torch.Tensor:
        """The items from `first` on, a row each."""
        ...

    def crowd(self, first: int, stop: int) -> Crowd:
        """Some users, for `by_item`."""
        ...

    def by_user(self, users: torch.Tensor, items: torch.Tensor, room: torch.Tensor) -> NDArray[Any]:
        """Products flat, a row for each of the users at these positions; valid until the next call."""
        ...

    def by_item(self, items: torch.Tensor, crowd: Crowd, room: torch.Tensor) -> NDArray[Any]:
        """Products flat, a row for each item, as wide as the crowd; valid until the next call."""
        ...


def _common(coefs: F32, width: int) -> F32:
    found: F32 = np.zeros(width, np.float32)
    found[: len(coefs)] = coefs[:, 0]
    return found


def _padded(rows: torch.Tensor, width: int) -> torch.Tensor:
    """Rows of zeros at the end, so that there are `width`."""
    return rows if len(rows) == width else torch.nn.functional.pad(rows, (0, 0, 0, width - len(rows)))


def up_to_group(count: int) -> int:
    """A multiple of 64: what the loops compare at once; and oneDNN prepares (and caches) a kernel a shape."""
    return -(-count // GROUP) * GROUP


@cache
def has_int8() -> bool:
    """Whether `torch._int_mm` is fast and right here: VNNI is present and a product of extremes is exact.

    Without VNNI it is a slow reference loop, and releases up to 2.5 could overflow (pytorch #136746), so it
    is held against NumPy once per process. It is a private operation; its absence means fp32.
    """
    supported = getattr(torch.cpu, "_is_vnni_supported", lambda: False)()
    if not supported or not hasattr(torch, "_int_mm"):
        return False
    rng = np.random.default_rng(0)
    a = rng.integers(-127, 128, (64, 384), dtype=np.int8)
    b = rng.integers(-127, 128, (128, 384), dtype=np.int8)
    a[0], b[0], b[1] = 127, 127, -127
    found = torch.empty((64, 128), dtype=torch.int32)
    torch._int_mm(torch.from_numpy(a), torch.from_numpy(b).T, out=found)
    return bool((found.numpy() == a.astype(np.int32) @ b.T.astype(np.int32)).all())


@cache
def has_tiles() -> bool:
    """Whether the processor multiplies int8 tiles (AMX) and oneDNN's linear layer over packed users is right.

    There it makes 2.2 G scores/s a core at 320 dimensions, `_int_mm` 0.9 to 1.5; without AMX it is the slower
    one. Packing 512 rows takes 1 ms, so users are packed, once a block, and not items. It is private too.
    """
    supported = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    if not supported or not has_int8() or not hasattr(torch.ops.onednn, "qlinear_prepack"):
        return False
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-127, 128, (n, 384), dtype=np.int8) for n in (64, 128))
    a[0], b[0], b[1] = 127, 127, -127
    try:
        found = _by_tiles(torch.from_numpy(a), torch.ops.onednn.qlinear_prepack(torch.from_numpy(b), None))
    except RuntimeError:
        return False
    _keep_freed_memory()
    return bool((found.numpy() == a.astype(np.int32) @ b.T.astype(np.int32)).all())


def has_bf16() -> bool:
    """Whether a product of bfloat16 is faster than one of floats here (AMX, AVX-512 BF16)."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return bool(supported) or has_tiles()


def _by_tiles(rows: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """int8 products as float32: exact below 2²⁴, beyond it rounded as int32 is where it is compared."""
    ones, zeros = _no_scale(packed.shape[1])
    found: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        rows, 1.0, 0, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return found


@cache
def _keep_freed_memory() -> None:
    """Lets glibc keep what is freed: a tile that comes from the system and goes back costs 160 page faults.

    Up to 8 MiB a piece (M_MMAP_THRESHOLD) and 32 MiB in all (M_TRIM_THRESHOLD); elsewhere it does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 8 << 20)
        mallopt(-1, 32 << 20)


@cache
def _no_scale(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(width), torch.zeros(width, dtype=torch.int32)


@dataclass(frozen=True)
class Int8Products:
    """The codes of a shard's items and of a block's users.

    share: |w_h - ab| is at most this share of |w_h| for every user of the block, which makes the two error
    lengths of an item one term.
    """

    codes: torch.Tensor
    shard: BulkShard
    share: float
    coefs: F32
    tiles: bool
    dtype: torch.dtype = torch.int32

    @staticmethod
    def of(shard: BulkShard, queries: F32, query_norms: F64) -> "Int8Products":
        mine, rotation = encode(queries, shard.rotation, precise=False), shard.rotation
        share = float(np.max(mine.error / np.maximum(mine.head, 1e-30), initial=0.0, where=mine.head > 0))
        inverse = 1 / mine.scale.astype(np.float64)
        columns = (
            mine.common,
            mine.tail,
            mine.head,
            np.ones_like(mine.scale),
            margins(query_norms, rotation),
        )
        coefs = np.stack([column * inverse for column in columns[:4]] + [columns[4]], axis=1)
        codes = torch.from_numpy(mine.codes)
        return Int8Products(codes, shard, share, coefs.astype(np.float32), has_tiles())

    def terms(self, first: int, width: int) -> F32:
        found: F32 = np.array(self.shard.terms[:, first : first + width])
        found[3] += np.float32(self.share * 1.00001) * self.shard.coded[first : first + width]
        return found

    def items(self, first: int, width: int) -> torch.Tensor:
        return torch.from_numpy(self.shard.codes[first : first + width])

    def crowd(self, first: int, stop: int) -> Crowd:
        width = up_to_group(stop - first)
        rows = _padded(self.codes[first:stop], width)
        codes = torch.ops.onednn.qlinear_prepack(rows, None) if self.tiles else rows.T
        return Crowd(first, stop, _common(self.coefs[first:stop], width), codes)

    def by_user(self, users: torch.Tensor, items: torch.Tensor, room: torch.Tensor) -> NDArray[Any]:
        return self._product(self.codes.index_select(0, users), items.T, room)

    def by_item(self, items: torch.Tensor, crowd: Crowd, room: torch.Tensor) -> NDArray[Any]:
        if self.tiles:
            found: NDArray[Any] = _by_tiles(items, crowd.codes).numpy().reshape(-1)
            return found
        return self._product(items, crowd.codes, room)

    def _product(self, rows: torch.Tensor, columns: torch.Tensor, room: torch.Tensor) -> NDArray[Any]:
        flat = room[: len(rows) * columns.shape[1]]
        torch._int_mm(rows, columns, out=flat.view(len(rows), -1))
        found: NDArray[Any] = flat.numpy()
        return found


@dataclass(frozen=True)
class Float32Products:
    """The vectors themselves: nothing to bound but the rounding of two fp32 sums."""

    queries: torch.Tensor
    matrix: F32
    item_nums: I64
    coefs: F32
    dtype: torch.dtype = torch.float32

    @staticmethod
    def of(shard: BulkShard, queries: F32, query_norms: F64, matrix: F32) -> "Float32Products":
        n_dims = queries.shape[1]
        gamma = n_dims * UNIT_ROUNDOFF / (1 - n_dims * UNIT_ROUNDOFF)
        coefs = np.zeros((len(queries), N_COEFS), np.float32)
        coefs[:, 3] = 1
        coefs[:, 4] = query_norms * (2 * gamma + 64 * UNIT_ROUNDOFF)
        return Float32Products(torch.from_numpy(queries), matrix, shard.item_nums, coefs)

    def terms(self, first: int, width: int) -> F32:  # noqa: ARG002
        found: F32 = np.zeros((4, width), np.float32)
        found[0] = 1
        return found

    def items(self, first: int, width: int) -> torch.Tensor:
        numbers = self.item_nums[first : first + width]
        rows = np.zeros((width, self.matrix.shape[1]), np.float32)
        rows[: len(numbers)] = self.matrix[numbers]
        return torch.from_numpy(rows)

    def crowd(self, first: int, stop: int) -> Crowd:
        width = up_to_group(stop - first)
        rows = _padded(self.queries[first:stop], width)
        return Crowd(first, stop, _common(self.coefs[first:stop], width), rows.T)

    def by_user(self, users: torch.Tensor, items: torch.Tensor, room: torch.Tensor) -> NDArray[Any]:
        return self._product(self.queries.index_select(0, users), items.T, room)

    def by_item(self, items: torch.Tensor, crowd: Crowd, room: torch.Tensor) -> NDArray[Any]:
        return self._product(items, crowd.codes, room)

    def _product(self, rows: torch.Tensor, columns: torch.Tensor, room: torch.Tensor) -> NDArray[Any]:
        flat = room[: len(rows) * columns.shape[1]]
        torch.mm(rows, columns, out=flat.view(len(rows), -1))
        found: NDArray[Any] = flat.numpy()
        return found


def products_of(shard: BulkShard, queries: F32, query_norms: F64, matrix: F32) -> Products:
    """int8 if this processor has it, else fp32; the result of a search is the same."""
    if has_int8():
        return Int8Products.of(shard, queries, query_norms)
    return Float32Products.of(shard, queries, query_norms, matrix)
