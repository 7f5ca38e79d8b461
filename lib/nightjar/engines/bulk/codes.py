"""int8 codes of vectors with a proven upper bound of every inner product.

A rotation V turns x into y = Vx. Coordinate 0 (the direction most items share) stays fp32; the next n_head
coordinates h, mixed by a random rotation so that none stands out, become int8: h ≈ s·c with a scale s per
vector; of the rest, the tail, only the length is kept. For a user u with w = Vu, coded w_h ≈ a·b:

    u·x = w₀y₀ + w_h·h + w_t·y_t
        ≤ w₀y₀ + a·s·(b·c) + |w_h|·|h - s·c| + |w_h - a·b|·|s·c| + |w_t|·|y_t| + ρ|u||x|

by Cauchy-Schwarz, with ρ for all rounding (`margins`). The only product over dimensions is b·c, an exact int8
matrix product; the rest is one number per item times one per user. All is compared after division by a. The
norm-bounded tail is FEXIPRO's (Li et al., SIGMOD 2017), here in bulk and with a quantised head.

A sweep, which compares every pair, stops at the first n_swept of the codes, and what the others hold counts
as tail: h, c and the lengths above mean those. Estimates, which the approximate search relies on, use all.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nightjar.kernels.topk import F32, F64, UNIT_ROUNDOFF

I8 = NDArray[np.int8]

HEAD_ENERGY = 0.92  # share of the second moment kept in the codes; with less, estimates lose recall
SWEPT_ENERGY = 0.9  # in those that a sweep multiplies; with less, it has more pairs to compare exactly
HEAD_STEP = 64  # int8 products are fastest at multiples of 64 dimensions
SAMPLE = 20_000
ENCODE_BLOCK = 1024
LONGEST = 127
SMALLEST_SCALE = 1e-6  # of the vector's length; keeps the other terms representable when the head is empty
ROUND_UP = 1 + 1e-6


@dataclass(frozen=True)
class Rotation:
    """An almost orthogonal matrix (d, d) float32 by rows, its defect |VᵀV - 1|₂, the length of the codes, and
    how many of them a sweep multiplies."""

    matrix: F32
    defect: float
    n_head: int
    n_swept: int


@dataclass(frozen=True)
class Codes:
    """int8 codes (n, n_head) and, per vector, what the bound needs (n,) float32; lengths are rounded up.

    scale; common: coordinate 0; and of the swept part of the head: its length, head; the length of what the
    code misses of it, error; of what it holds, coded; tail: length of all that is neither in it nor common.
    """

    codes: I8
    scale: F32
    common: F32
    tail: F32
    head: F32
    error: F32
    coded: F32


def fit_rotation(vectors: F32, seed: int) -> Rotation:
    """Principal directions of the (uncentred) second moment of a sample, and how many of them to code."""
    n_dims = vectors.shape[1]
    sample = vectors[:: max(1, len(vectors) // SAMPLE)]
    moment = np.zeros((n_dims, n_dims))
    for start in range(0, len(sample), ENCODE_BLOCK):
        block = np.asarray(sample[start : start + ENCODE_BLOCK], dtype=np.float64)
        block = block / np.linalg.norm(block, axis=1, keepdims=True)
        moment += block.T @ block
    energy, directions = np.linalg.eigh(moment)
    energy, directions = energy[::-1], directions[:, ::-1].T.copy()
    kept = np.cumsum(energy[1:]) / max(float(energy[1:].sum()), 1e-30)
    n_head, n_swept = (_length(kept, share) for share in (HEAD_ENERGY, SWEPT_ENERGY))
    rng = np.random.default_rng(seed)
    for first, stop in ((0, n_swept), (n_swept, n_head)):
        mixed = directions[1 + first : 1 + stop]
        mixing, _ = np.linalg.qr(rng.standard_normal((len(mixed), len(mixed))))
        mixed[:] = mixing @ mixed
    matrix = np.ascontiguousarray(directions, dtype=np.float32)
    gram = matrix.astype(np.float64).T @ matrix.astype(np.float64)
    return Rotation(matrix, float(np.linalg.norm(gram - np.eye(n_dims), 2)) * ROUND_UP, n_head, n_swept)


def _length(kept: F64, share: float) -> int:
    """How many directions hold this share of the energy, up to a multiple of 64; kept: of the first ones."""
    return -(-(int(np.searchsorted(kept, share)) + 1) // HEAD_STEP) * HEAD_STEP


def encode(vectors: F32, rotation: Rotation, precise: bool) -> Codes:
    """Code vectors (n, d) float32; precise rotates in fp64 (items, once), else in fp32 (users)."""
    parts = [
        _encode_block(np.array(vectors[start : start + ENCODE_BLOCK]), rotation, precise)
        for start in range(0, len(vectors), ENCODE_BLOCK)
    ]
    if not parts:
        parts = [_encode_block(np.ones((1, vectors.shape[1]), np.float32), rotation, precise)]
        parts = [[column[:0] for column in parts[0]]]
    return Codes(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _encode_block(vectors: F32, rotation: Rotation, precise: bool) -> list[NDArray[np.generic]]:
    kind = torch.float64 if precise else torch.float32
    turned = torch.from_numpy(vectors).to(kind) @ torch.from_numpy(rotation.matrix).to(kind).T
    head, swept = turned[:, 1 : 1 + rotation.n_head], slice(0, rotation.n_swept)
    lengths = torch.linalg.vector_norm(turned, dim=1)
    largest = head.abs().amax(dim=1) if head.shape[1] else torch.zeros_like(lengths)
    scale = torch.maximum(largest / LONGEST, lengths * SMALLEST_SCALE).float()
    coded = torch.clamp(torch.round(head / scale[:, None]), -LONGEST, LONGEST)
    codes = torch.zeros((len(vectors), rotation.n_head), dtype=torch.int8)
    codes[:, : head.shape[1]] = coded.to(torch.int8)
    head, held = head[:, swept], (coded * scale[:, None].to(kind))[:, swept]
    parts = (turned[:, 1 + rotation.n_swept :], head, head - held, held)
    measured = [torch.linalg.vector_norm(part, dim=1) for part in parts]
    columns = [scale, turned[:, 0], *(length * ROUND_UP for length in measured)]
    return [codes.numpy(), *(column.float().numpy() for column in columns)]


def margins(query_norms: F64, rotation: Rotation) -> F64:
    """ρ|u| (q,) float64: with an item's length, all that rounding can take from the bound.

    In units of |u||x|: γ_d for the fp32 score itself; the rotation's defect; (γ_d + 2⁻²⁴)·√d for rotating u
    in fp32 (each coordinate errs by at most γ_d|V_i||u|, and the items are rotated in fp64); 64·2⁻²⁴ for
    evaluating four products of at most 1.1 and three sums in fp32, and for storing their factors. The users'
    four lengths are fp32 sums of squares that err by at most γ_d, hence the last term.
    """
    n_dims = len(rotation.matrix)
    gamma = n_dims * UNIT_ROUNDOFF / (1 - n_dims * UNIT_ROUNDOFF)
    turning = (gamma + UNIT_ROUNDOFF) * np.sqrt(n_dims)
    rho: float = 5 * gamma + rotation.defect + turning + 64 * UNIT_ROUNDOFF
    return query_norms * rho
