"""Attention within each sequence of a packed batch, for every model that dispatches its attention.

Registered as ``nightjar_varlen`` with transformers' AttentionInterface. transformers builds no mask for a
name it does not know, and a packed batch given to its own ``sdpa`` is silently wrong for bidirectional models
(their mask never looks at position ids), so this function refuses to run outside ``packed_attention``.
On CUDA in half precision it is torch's own variable-length kernel; elsewhere one SDPA a run of equal
lengths.
"""

from __future__ import annotations

import contextlib
import contextvars
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from nightjar.engines.encoder.packing import PackedBatch

NAME = "nightjar_varlen"

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch < 2.10
    varlen_attn = None

# torch 2.12 gave the kernel windows and grouped heads; an older one is left to SDPA by runs.
_KERNEL_OPTIONS = frozenset(inspect.signature(varlen_attn).parameters) if varlen_attn else frozenset()
_KERNEL_IS_HERE = {"window_size", "enable_gqa", "scale"} <= _KERNEL_OPTIONS
# One split of the keys: a vector that does not depend on what else is in the batch. ROCm's kernel rejects the
# option.
_ONE_SPLIT = {"num_splits": 1} if "num_splits" in _KERNEL_OPTIONS and torch.version.hip is None else {}


@dataclass
class Layout:
    """Where the sequences of a batch lie: runs (first token, sequences, length), cumulative lengths."""

    runs: list[tuple[int, int, int]]
    cu_lengths: torch.Tensor
    max_length: int
    masks: dict[tuple[int, int, bool], torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: PackedBatch, device: torch.device) -> Layout:
        """Layout of a batch, its cumulative lengths on ``device``."""
        cu_lengths = to_device(torch.from_numpy(batch.cu_lengths), device)
        return cls(batch.runs(), cu_lengths, int(batch.lengths.max()))


_layout = contextvars.ContextVar[Layout | None]("nightjar_packed_layout", default=None)


@contextlib.contextmanager
def packed_attention(layout: Layout) -> Iterator[None]:
    """Say how the batch that is about to run is packed."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to ``device``, without waiting for the copy where that is a GPU."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a packed batch: q, k, v of (1, heads, T, head_dim) to ((1, T, heads, head_dim), None).

    ``sliding_window`` w attends where |i - j| < w.

    Raises:
        RuntimeError: no packed batch is declared, or the model wants what this cannot give (soft-capping,
            sinks); the start-up check turns that into padded batches.
    """
    layout = _layout.get()
    if layout is None or attention_mask is not None:
        raise RuntimeError(f"{NAME} runs packed batches without a mask only, inside packed_attention")
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None or kwargs.get("dropout"):
        raise RuntimeError(
            f"{NAME} does no soft-capping, sinks or dropout: {type(module).__name__} needs padding"
        )
    causal = bool(getattr(module, "is_causal", False)) if is_causal is None else is_causal
    window = sliding_window if sliding_window and sliding_window < layout.max_length else None
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if _kernel_takes(q):
        left = window - 1 if window else -1
        right = 0 if causal else left
        out = varlen_attn(
            q,
            k,
            v,
            layout.cu_lengths,
            layout.cu_lengths,
            layout.max_length,
            layout.max_length,
            scale=scaling,
            window_size=(left, right),
            enable_gqa=q.shape[1] != k.shape[1],
            **_ONE_SPLIT,
        )
    else:
        out = _by_runs(layout, (q, k, v), scaling, causal, window)
    return out.unsqueeze(0), None


def _kernel_takes(q: torch.Tensor) -> bool:
    """Whether torch's flash kernel runs these heads: CUDA, half precision, size a multiple of 8 up to 256."""
    half = q.dtype in (torch.bfloat16, torch.float16)
    return _KERNEL_IS_HERE and q.is_cuda and half and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


def _by_runs(
    layout: Layout,
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    scaling: float | None,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    """One SDPA for each run of equal lengths; q, k, v of (T, heads, head_dim) to (T, heads, v_head_dim)."""
    q, k, v = qkv
    out = torch.empty((q.shape[0], q.shape[1], v.shape[2]), dtype=q.dtype, device=q.device)
    for start, n, length in layout.runs:
        end = start + n * length
        q_run, k_run, v_run = (
            t[start:end].view(n, length, t.shape[1], t.shape[2]).transpose(1, 2) for t in (q, k, v)
        )
        mask = _window_mask(layout, length, window, causal, q.device) if window and window < length else None
        got = scaled_dot_product_attention(
            q_run,
            k_run,
            v_run,
            attn_mask=mask,
            is_causal=causal and mask is None,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        out[start:end].view(n, length, q.shape[1], v.shape[2]).copy_(got.transpose(1, 2))
    return out


def _window_mask(
    layout: Layout, length: int, window: int, causal: bool, device: torch.device
) -> torch.Tensor:
    """Boolean mask of |i - j| < window, and j <= i when causal; kept for the batch's other layers."""
    key = (length, window, causal)
    if key not in layout.masks:
        at = torch.arange(length, device=device)
        distance = at[:, None] - at[None, :]
        mask = distance.abs() < window
        layout.masks[key] = mask & (distance >= 0) if causal else mask
    return layout.masks[key]


AttentionInterface.register(NAME, varlen_attention)
