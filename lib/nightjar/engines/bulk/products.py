"""The matrix product that proposes: int8 where the processor has it, else fp32.

int8 products are made by `compiled.multiply` (VNNI), those of a sweep by oneDNN where the processor has tiles
(AMX); fp32 products by torch.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import binding
from numpy.typing import NDArray

from nightjar.engines.bulk.codes import I8, encode, margins
from nightjar.engines.bulk.compiled import GROUP, TOGETHER, USERS, multiply_once
from nightjar.engines.bulk.shard import BulkShard
from nightjar.kernels.topk import F32, F64, I64, UNIT_ROUNDOFF

I32 = NDArray[np.int32]
Room = tuple[I32, I32, F32, F32, NDArray[np.uint64]]

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
    """Whether `compiled.multiply` can be compiled for this processor, and a product of extremes is exact.

    An instruction that is not there would end the process, so numba must be free to see the processor's own.
    """
    chosen = numba.config.CPU_NAME or numba.config.CPU_FEATURES is not None
    if chosen or not binding.get_host_cpu_features().get("avx512vnni", False):
        return False
    rng = np.random.default_rng(0)
    a = rng.integers(-127, 128, (USERS, 384), dtype=np.int8)
    b = rng.integers(-127, 128, (GROUP, 384), dtype=np.int8)
    a[0], b[0], b[1] = 127, 127, -127
    found, _ = products_once(a, b, GROUP)
    return bool((found == a.astype(np.int32) @ b.T.astype(np.int32)).all())


def products_once(users: I8, items: I8, n_lanes: int) -> tuple[I32, NDArray[np.uint64]]:
    """The products of six users with n_lanes items, (6, n_lanes), and the bits of those that are positive."""
    room, terms = room_for(users.shape[1], GROUP), np.ones((2, GROUP), np.float32)
    _, tile, commons, cuts, masks = room
    commons[:], cuts[:] = 0, 1
    multiply_once((users, sums_of(users), np.arange(USERS)), items.view(np.int32), n_lanes, terms, room)
    return tile.reshape(USERS, GROUP)[:, :n_lanes], masks


def sums_of(codes: I8) -> I32:
    """What `compiled.multiply` begins with for each user: -128 times the sum of its codes, (q,) int32."""
    found: I32 = -128 * codes.sum(axis=1, dtype=np.int32)
    return found


def room_for(n_dims: int, n_items: int) -> Room:
    """The scratch memory of `compiled.multiply` for codes of n_items items."""
    panels = np.empty(up_to_group(n_items) * n_dims // TOGETHER, np.int32)
    tile, masks = np.empty(USERS * GROUP, np.int32), np.empty(USERS, np.uint64)
    return panels, tile, np.empty(USERS, np.float32), np.empty(USERS, np.float32), masks


@cache
def has_tiles() -> bool:
    """Whether the processor multiplies int8 tiles (AMX) and oneDNN's linear layer over packed users is right.

    There it makes 2.2 G scores/s a core at 320 dimensions. Packing 512 rows takes 1 ms, so users are packed,
    once a block, and not items. It is a private operation of torch; its absence means `compiled.multiply`.
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
    lengths of an item one term; sums, swept_sums: `sums_of` all codes and of those that a sweep multiplies;
    positions: 0, 1 … q - 1 and five more.
    """

    codes: I8
    shard: BulkShard
    share: float
    coefs: F32
    sums: I32
    swept_sums: I32
    positions: I64
    room: Room
    tiles: bool

    @staticmethod
    def of(shard: BulkShard, queries: F32, query_norms: F64, columns: int) -> "Int8Products":
        mine, rotation = encode(queries, shard.rotation, precise=False), shard.rotation
        share = float(np.max(mine.error / np.maximum(mine.head, 1e-30), initial=0.0, where=mine.head > 0))
        inverse = 1 / mine.scale.astype(np.float64)
        lengths = (mine.common, mine.tail, mine.head, np.ones_like(mine.scale))
        coefs = np.stack([one * inverse for one in lengths] + [margins(query_norms, rotation)], axis=1)
        return Int8Products(
            mine.codes,
            shard,
            share,
            coefs.astype(np.float32),
            sums_of(mine.codes),
            sums_of(mine.codes[:, : rotation.n_swept]),
            _with_spare(np.arange(len(queries))),
            room_for(rotation.n_head, columns),
            has_tiles(),
        )

    @property
    def users(self) -> tuple[I8, I32, I64]:
        """What `compiled.multiply` takes of all users for a sweep."""
        return self.codes, self.swept_sums, self.positions

    def visitors(self, users: I64) -> tuple[I8, I32, I64]:
        """What it takes of users at these positions for lists."""
        return self.codes, self.sums, _with_spare(users)

    @property
    def words(self) -> I32:
        """The items' codes, four in a word."""
        found: I32 = self.shard.codes.view(np.int32)
        return found

    def terms(self, first: int, width: int) -> F32:
        """(4, width) float32, a copy: scale, common, tail and error of the items from `first` on."""
        found: F32 = np.array(self.shard.terms[:, first : first + width])
        found[3] += np.float32(self.share * 1.00001) * self.shard.coded[first : first + width]
        return found

    def items(self, first: int, width: int) -> torch.Tensor:
        """The items from `first` on, a row each, for `by_item`."""
        swept = self.shard.codes[first : first + width, : self.shard.rotation.n_swept]
        return torch.from_numpy(np.ascontiguousarray(swept))

    def crowd(self, first: int, stop: int) -> Crowd:
        """Some users, for `by_item`."""
        width = up_to_group(stop - first)
        swept = np.ascontiguousarray(self.codes[first:stop, : self.shard.rotation.n_swept])
        rows = _padded(torch.from_numpy(swept), width)
        codes = torch.ops.onednn.qlinear_prepack(rows, None)
        return Crowd(first, stop, _common(self.coefs[first:stop], width), codes)

    def by_item(self, items: torch.Tensor, crowd: Crowd) -> NDArray[Any]:
        """Products flat, a row for each item, as wide as the crowd: oneDNN's, where there are tiles."""
        found: NDArray[Any] = _by_tiles(items, crowd.codes).numpy().reshape(-1)
        return found


def _with_spare(users: I64) -> I64:
    """Positions of users, and five more that a product may take and nobody looks at."""
    return np.append(users, np.zeros(USERS - 1, np.int64))


@dataclass(frozen=True)
class Float32Products:
    """The vectors themselves: nothing to bound but the rounding of two fp32 sums."""

    queries: torch.Tensor
    matrix: F32
    item_nums: I64
    coefs: F32
    room: torch.Tensor

    @staticmethod
    def of(
        shard: BulkShard, queries: F32, query_norms: F64, matrix: F32, rows: int, columns: int
    ) -> "Float32Products":
        n_dims = queries.shape[1]
        gamma = n_dims * UNIT_ROUNDOFF / (1 - n_dims * UNIT_ROUNDOFF)
        coefs = np.zeros((len(queries), N_COEFS), np.float32)
        coefs[:, 3] = 1
        coefs[:, 4] = query_norms * (2 * gamma + 64 * UNIT_ROUNDOFF)
        room = torch.empty(up_to_group(rows) * up_to_group(columns))
        return Float32Products(torch.from_numpy(queries), matrix, shard.item_nums, coefs, room)

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

    def by_user(self, users: torch.Tensor, items: torch.Tensor) -> NDArray[Any]:
        """Products flat, a row for each of the users at these positions; valid until the next call."""
        return self._product(self.queries.index_select(0, users), items.T)

    def by_item(self, items: torch.Tensor, crowd: Crowd) -> NDArray[Any]:
        return self._product(items, crowd.codes)

    def _product(self, rows: torch.Tensor, columns: torch.Tensor) -> NDArray[Any]:
        flat = self.room[: len(rows) * columns.shape[1]]
        torch.mm(rows, columns, out=flat.view(len(rows), -1))
        found: NDArray[Any] = flat.numpy()
        return found


Products = Int8Products | Float32Products
"""Scores of a block's users with a shard's items, and the terms and coefficients that make them bounds."""
