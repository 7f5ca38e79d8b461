"""The matrix product that proposes: int8 where the processor has it, else fp32; both through torch."""

from dataclasses import dataclass
from functools import cache
from typing import Protocol, TypeAlias

import numpy as np
import torch

from nightjar.engines.bulk.codes import encode, margins
from nightjar.engines.bulk.shard import BulkShard
from nightjar.kernels.topk import F32, F64, I64, UNIT_ROUNDOFF

Rows: TypeAlias = slice | torch.Tensor

N_COEFS = 5  # common, tail, error, one over the scale, margin per unit of item length


class Products(Protocol):
    """Scores of user rows with item columns, and the terms and coefficients that make them upper bounds."""

    @property
    def terms(self) -> F32: ...

    @property
    def coefs(self) -> F32: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def users(self, rows: Rows) -> torch.Tensor: ...

    def multiply(self, users: torch.Tensor, first: int, out: torch.Tensor) -> None: ...


def _rows(matrix: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Some rows; a selection by index_select, because indexing copies byte by byte (154 ns a row, not 12)."""
    return matrix[rows] if isinstance(rows, slice) else matrix.index_select(0, rows)


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


@dataclass(frozen=True)
class Int8Products:
    """The codes of a shard's items and of a block's users."""

    codes: torch.Tensor
    items: torch.Tensor
    terms: F32
    coefs: F32
    dtype: torch.dtype = torch.int32

    @staticmethod
    def of(shard: BulkShard, queries: F32, query_norms: F64) -> "Int8Products":
        mine, rotation = encode(queries, shard.rotation, precise=False), shard.rotation
        # |w_h - ab| is at most this share of |w_h| for every user of the block, which makes the two error
        # lengths of an item one term.
        share = float(np.max(mine.error / np.maximum(mine.head, 1e-30), initial=0.0, where=mine.head > 0))
        terms = shard.terms.copy()
        terms[3] += np.float32(share * 1.00001) * shard.coded
        inverse = 1 / mine.scale.astype(np.float64)
        columns = (
            mine.common,
            mine.tail,
            mine.head,
            np.ones_like(mine.scale),
            margins(query_norms, rotation),
        )
        coefs = np.stack([column * inverse for column in columns[:4]] + [columns[4]], axis=1)
        return Int8Products(
            torch.from_numpy(mine.codes), torch.from_numpy(shard.codes), terms, coefs.astype(np.float32)
        )

    def users(self, rows: Rows) -> torch.Tensor:
        return _rows(self.codes, rows)

    def multiply(self, users: torch.Tensor, first: int, out: torch.Tensor) -> None:
        torch._int_mm(users, self.items[first : first + out.shape[1]].T, out=out)


@dataclass(frozen=True)
class Float32Products:
    """The vectors themselves: nothing to bound but the rounding of two fp32 sums."""

    queries: torch.Tensor
    matrix: F32
    item_nums: I64
    terms: F32
    coefs: F32
    dtype: torch.dtype = torch.float32

    @staticmethod
    def of(shard: BulkShard, queries: F32, query_norms: F64, matrix: F32) -> "Float32Products":
        n_dims = queries.shape[1]
        gamma = n_dims * UNIT_ROUNDOFF / (1 - n_dims * UNIT_ROUNDOFF)
        terms = np.zeros_like(shard.terms)
        terms[0] = 1
        coefs = np.zeros((len(queries), N_COEFS), np.float32)
        coefs[:, 3] = 1
        coefs[:, 4] = query_norms * (2 * gamma + 64 * UNIT_ROUNDOFF)
        return Float32Products(torch.from_numpy(queries), matrix, shard.item_nums, terms, coefs)

    def users(self, rows: Rows) -> torch.Tensor:
        return _rows(self.queries, rows)

    def multiply(self, users: torch.Tensor, first: int, out: torch.Tensor) -> None:
        numbers = self.item_nums[first : first + out.shape[1]]
        columns = np.zeros((out.shape[1], users.shape[1]), np.float32)
        columns[: len(numbers)] = self.matrix[numbers]
        torch.mm(users, torch.from_numpy(columns).T, out=out)


def products_of(shard: BulkShard, queries: F32, query_norms: F64, matrix: F32) -> Products:
    """int8 if this processor has it, else fp32; the result of a search is the same."""
    if has_int8():
        return Int8Products.of(shard, queries, query_norms)
    return Float32Products.of(shard, queries, query_norms, matrix)
