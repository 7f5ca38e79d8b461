"""Matrix products of an encoder on a CPU: oneDNN with weights packed once, and int8.

On an AMD EPYC (Zen 5) torch's own fp32 product (MKL) reaches 90 GFLOP/s a core, oneDNN 200 and
`torch._int_mm` 800 (2048 x 384 x 1536); on Intel the two fp32 libraries are level. oneDNN is also handed the
GELU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Rows a weight is packed for; other counts run at the same speed (measured 64 to 2048).
_PACK_ROWS = 2048
SLOWEST = 2.0
"""Times that an int8 product may take as long as one of float32; with VNNI it takes a quarter."""


def onednn_works(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this torch and CPU run packed oneDNN products in ``dtype``, and rightly."""
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, 96, generator=generator, dtype=torch.float32) for n in (70, 33))
    try:
        got = PackedProduct.of(w, torch.zeros(33), dtype)(x.to(dtype)).float()
    except (RuntimeError, AttributeError):
        return False
    return bool(torch.allclose(got, x @ w.T, atol=1e-3 if dtype == torch.float32 else 0.5))


def int8_refusal() -> str:
    """Why int8 products do not serve on this CPU, or an empty string.

    Without VNNI they may saturate at 16 bits, or be exact and a plain loop: 30 times as long as float32 on a
    Zen 3 with torch 2.13.
    """
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-127, 128, (128, 384), generator=generator, dtype=torch.int8)
    b = torch.randint(-127, 128, (384, 384), generator=generator, dtype=torch.int8)
    a[0], b[0] = 127, 127
    a[1], b[1] = -127, 127
    try:
        got = torch._int_mm(a, b.T)
    except (RuntimeError, AttributeError):
        return "torch._int_mm is missing on this CPU"
    x, w = a.float(), b.float()
    if not bool((got == (a.double() @ b.double().T).int()).all()):
        return "torch._int_mm is wrong on this CPU"
    times = [(_seconds(torch._int_mm, a, b.T), _seconds(torch.mm, x, w.T)) for _ in range(5)]
    ratio = min(one for one, _ in times) / min(one for _, one in times)
    return f"torch._int_mm takes {ratio:.0f} times as long as float32 on this CPU" if ratio > SLOWEST else ""


def _seconds(product: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> float:
    began = time.perf_counter()
    product(a, b)
    return time.perf_counter() - began


@dataclass(frozen=True)
class PackedProduct:
    """x @ w.T + b by oneDNN, with w in oneDNN's blocked layout."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> PackedProduct:
        """Pack a weight (out, in) in ``dtype``."""
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), _PACK_ROWS)
        return cls(packed, None if bias is None else bias.to(dtype))

    def __call__(self, x: Tensor) -> Tensor:
        """x (..., in) to (..., out)."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out

    def gelu(self, x: Tensor) -> Tensor:
        """GELU of the product, exact form, inside the matrix kernel."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "gelu", [], "none")
        return out


@dataclass(frozen=True)
class Int8Weight:
    """A weight (out, in) as int8 with a scale for each output channel: w ~ q * scale."""

    q_t: Tensor
    scale: Tensor
    bias: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Int8Weight:
        """Round a weight to the nearest of 255 steps of its largest value, channel by channel."""
        weight = weight.float()
        scale = weight.abs().amax(dim=1).clamp_min(1e-12) / 127
        q = torch.round(weight / scale[:, None]).to(torch.int8)
        return cls(q.t(), scale, torch.zeros(len(scale)) if bias is None else bias.float())

    def product(self, q: Tensor) -> Tensor:
        """Exact int32 sums of q (T, in) int8 with the weight: (T, out)."""
        return torch._int_mm(q, self.q_t)


class PackedLinear(nn.Module):  # type: ignore[misc]
    """nn.Linear by ``PackedProduct``."""

    def __init__(self, linear: nn.Linear) -> None:
        """Pack a layer's weight in its own type."""
        super().__init__()
        self.product = PackedProduct.of(linear.weight, linear.bias, linear.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) to (..., out)."""
        return self.product(x)


class Int8Linear(nn.Module):  # type: ignore[misc]
    """nn.Linear with int8 weights and inputs quantised token by token (dynamic, no calibration)."""

    def __init__(self, linear: nn.Linear) -> None:
        """Quantise a layer's weight."""
        super().__init__()
        self.weight_int8 = Int8Weight.of(linear.weight, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) to (..., out)."""
        rows = x.reshape(-1, x.shape[-1])
        scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
        q = torch.round(rows / scale).to(torch.int8)
        out = self.weight_int8.product(q).float() * scale * self.weight_int8.scale + self.weight_int8.bias
        return out.reshape(*x.shape[:-1], -1)


class SwappedLinears:
    """The nn.Linear layers of a model replaced by faster ones, which can be put back."""

    def __init__(self, model: nn.Module, kind: Any) -> None:
        """Replace every layer of type nn.Linear exactly (a subclass means more) by ``kind(layer)``."""
        self._replaced: list[tuple[nn.Module, str, nn.Linear]] = []
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear:
                    self._replaced.append((parent, name, child))
                    setattr(parent, name, kind(child))

    def undo(self) -> None:
        """Put the model's own layers back."""
        for parent, name, child in self._replaced:
            setattr(parent, name, child)
