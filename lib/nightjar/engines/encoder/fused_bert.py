"""BERT-like encoders on a CPU, by hand: one product for q, k and v, and one pass between products.

For BertModel, RobertaModel, XLMRobertaModel and CamembertModel, whose layers are the same. It is checked
against the transformers model at start and not used where it differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from nightjar.engines.encoder import cpu_kernels as kernels
from nightjar.engines.encoder.linear import Int8Weight, PackedProduct
from nightjar.engines.encoder.packing import PackedBatch

# int8 rows (rows, C) and the scale of each (rows,).
Quantized = tuple[Tensor, NDArray[np.float32]]

FAMILIES = {"BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel"}

# oneDNN compiles a kernel for every new number of rows (about 5 ms): rows are filled up to a multiple of
# this.
_ROUND_ROWS = 64
# What a table of the first layer's products may hold: 140 MB for MiniLM.
_TABLE_BYTES = 192 << 20


def refusal(model: nn.Module) -> str:
    """Why a model is not one of these, or empty."""
    config: Any = model.config
    if type(model).__name__ not in FAMILIES:
        return f"{type(model).__name__} has other layers"
    if config.hidden_act != "gelu":
        return f"the activation is {config.hidden_act}"
    if getattr(config, "is_decoder", False) or config.hidden_size // config.num_attention_heads % 8:
        return "the attention is causal or its heads are no multiple of 8"
    return ""


@dataclass(frozen=True)
class Norm:
    """A LayerNorm's gain (C,), shift (C,) and epsilon."""

    gain: NDArray[np.float32]
    shift: NDArray[np.float32]
    eps: np.float32

    @classmethod
    def of(cls, norm: nn.LayerNorm) -> Norm:
        """Values of a LayerNorm module."""
        return cls(norm.weight.float().numpy(), norm.bias.float().numpy(), np.float32(norm.eps))


@dataclass(frozen=True)
class Plan:
    """Where the sequences of a batch lie, and the number of rows with their filling."""

    n_rows: int
    n_tokens: int
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, batch: PackedBatch) -> Plan:
        """Plan of a batch."""
        n_rows = -(-batch.n_tokens // _ROUND_ROWS) * _ROUND_ROWS
        return cls(n_rows, batch.n_tokens, batch.starts, batch.lengths)


class Workspace:
    """Buffers kept from batch to batch: a fresh 12 MB product costs 3,000 page faults."""

    def __init__(self) -> None:
        """Start with no buffer."""
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of ``shape`` with whatever is in it; the next taker of the name gets the same memory."""
        size = int(np.prod(shape))
        buffer = self._buffers.get((name, dtype))
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[name, dtype] = torch.empty(size, dtype=dtype)
        return buffer[:size].view(shape)


class Layer(Protocol):
    """One transformer layer: x (rows, C) float32, changed in place."""

    def project(self, x: Tensor, space: Workspace) -> Tensor:
        """Queries, keys and values (rows, 3 C) float32."""
        ...

    def __call__(self, x: Tensor, qkv: Tensor, plan: Plan, space: Workspace) -> None:
        """Run the rest of the layer."""
        ...


class FirstProducts:
    """Queries, keys and values of the first layer, looked up.

    Its input is LayerNorm(word + position), so with W' = W · diag(gain) they are (W'word + W'position - mean
    · W'1) / deviation + W · shift + bias. What W' makes of a word is kept from its first occurrence on, which
    spares a layer a quarter of its products: 4 % of MiniLM's.
    """

    def __init__(self, words: Tensor, positions: Tensor, norm: nn.LayerNorm, linear: tuple[Tensor, Tensor]):
        """Of words (V, C), positions (P, C) and the first layer's (weight (3 C, C), bias)."""
        weight, bias = (part.float() for part in linear)
        turned = weight * norm.weight.float()
        self._words, self._turned = words, PackedProduct.of(turned, None, torch.float32)
        self._table = torch.empty((len(words), len(bias)))
        self._known = np.zeros(len(words), np.bool_)
        self._places = (positions @ turned.T).numpy()
        self._whole = turned.sum(dim=1).numpy()
        self._bias = (weight @ norm.bias.float() + bias).numpy()

    @staticmethod
    def fits(n_words: int, hidden_size: int) -> bool:
        """Whether the table is small enough to be kept beside the model."""
        return n_words * 3 * hidden_size * 4 <= _TABLE_BYTES

    def __call__(
        self, ids: NDArray[np.int64], positions: NDArray[np.int64], norms: tuple[Tensor, Tensor], out: Tensor
    ) -> None:
        """Into the first rows of out (rows, 3 C), for tokens ids (T,) with norms (mean, 1 / deviation)."""
        met = np.unique(ids)
        new = met[~self._known[met]]
        for start in range(0, len(new), _ROUND_ROWS):
            # Always as many rows, so that a word has the same bytes whatever it is met with.
            some, rows = new[start : start + _ROUND_ROWS], torch.zeros((_ROUND_ROWS, self._words.shape[1]))
            rows[: len(some)] = self._words[some]
            self._table[some] = self._turned(rows)[: len(some)]
            self._known[some] = True
        mean, rstd = (part.reshape(-1).numpy() for part in norms)
        tables = self._table.numpy(), self._places
        kernels.normed_products(
            tables, ids, positions, mean, rstd, self._whole, self._bias, out[: len(ids)].numpy()
        )


class FusedBert:
    """A BERT-like model as plain arrays; packed batches in, token vectors (T, C) out."""

    packed = True

    def __init__(self, model: nn.Module, precision: str) -> None:
        """Take over the weights of a transformers model in ``precision`` (fp32, bf16 or int8)."""
        tables: Any = model.embeddings
        config: Any = model.config
        self.hidden_size = int(config.hidden_size)
        self._words = tables.word_embeddings.weight.float()
        self._positions = (
            tables.position_embeddings.weight.float() + tables.token_type_embeddings.weight[0].float()
        )
        self._first_position = 0 if type(model).__name__ == "BertModel" else int(tables.padding_idx) + 1
        self._norm: nn.LayerNorm = tables.LayerNorm
        n_heads = int(config.num_attention_heads)
        encoder: Any = model.encoder
        self._space = Workspace()
        self._layers: list[Layer] = [
            Int8Layer(layer, n_heads)
            if precision == "int8"
            else FloatLayer(layer, n_heads, precision == "bf16")
            for layer in encoder.layer
        ]
        self._first: FirstProducts | None = None
        if precision == "fp32" and FirstProducts.fits(len(self._words), self.hidden_size):
            linear = _joined(encoder.layer[0].attention.self, n_heads)
            self._first = FirstProducts(self._words, self._positions, self._norm, linear)

    def __call__(self, batch: PackedBatch) -> Tensor:
        """Last hidden states (T, C) float32."""
        plan = Plan.of(batch)
        ids, positions = batch.ids.astype(np.int64), batch.positions.astype(np.int64) + self._first_position
        x = torch.empty((plan.n_rows, self.hidden_size))
        x[plan.n_tokens :] = 0
        embedded = F.embedding(torch.from_numpy(ids), self._words)
        embedded.add_(F.embedding(torch.from_numpy(positions), self._positions))
        gain, shift = self._norm.weight.float(), self._norm.bias.float()
        normed = torch.native_layer_norm(embedded, (self.hidden_size,), gain, shift, self._norm.eps)
        x[: plan.n_tokens] = normed[0]
        for at, layer in enumerate(self._layers):
            if at == 0 and self._first is not None:
                qkv = self._space.take("qkv", (plan.n_rows, 3 * self.hidden_size))
                self._first(ids, positions, normed[1:], qkv)
            else:
                qkv = layer.project(x, self._space)
            layer(x, qkv, plan, self._space)
        return x[: plan.n_tokens]


class FloatLayer:
    """A layer whose products run in fp32, or in bf16 with everything between them in fp32."""

    def __init__(self, layer: Any, n_heads: int, bf16: bool) -> None:
        """Pack a transformers layer's weights."""
        self._dtype = torch.bfloat16 if bf16 else torch.float32
        self._n_heads = n_heads
        inputs = layer.attention.self
        self._qkv = PackedProduct.of(*_joined(inputs, n_heads), self._dtype)
        self._out = self._packed(layer.attention.output.dense)
        self._up = self._packed(layer.intermediate.dense)
        self._down = self._packed(layer.output.dense)
        self._norm_1 = Norm.of(layer.attention.output.LayerNorm)
        self._norm_2 = Norm.of(layer.output.LayerNorm)

    def project(self, x: Tensor, space: Workspace) -> Tensor:  # noqa: ARG002
        """Queries, keys and values (rows, 3 C) float32."""
        return self._qkv(x.to(self._dtype)).float()

    def __call__(self, x: Tensor, qkv: Tensor, plan: Plan, space: Workspace) -> None:
        """Run the rest of the layer on x (rows, C)."""
        mixed = attend(qkv, plan, self._n_heads, space)
        y = self._out(mixed.to(self._dtype)).float()
        kernels.add_norm(y.numpy(), x.numpy(), self._norm_1.gain, self._norm_1.shift, self._norm_1.eps)
        y = self._down(self._up.gelu(x.to(self._dtype))).float()
        kernels.add_norm(y.numpy(), x.numpy(), self._norm_2.gain, self._norm_2.shift, self._norm_2.eps)

    def _packed(self, linear: nn.Linear) -> PackedProduct:
        return PackedProduct.of(linear.weight, linear.bias, self._dtype)


class Int8Layer:
    """A layer whose products are int8: inputs quantised a token at a time, weights a channel at a time."""

    def __init__(self, layer: Any, n_heads: int) -> None:
        """Quantise a transformers layer's weights."""
        self._n_heads = n_heads
        inputs = layer.attention.self
        self._qkv = Int8Weight.of(*_joined(inputs, n_heads))
        self._out, self._up, self._down = (
            Int8Weight.of(linear.weight, linear.bias)
            for linear in (layer.attention.output.dense, layer.intermediate.dense, layer.output.dense)
        )
        self._norm_1 = Norm.of(layer.attention.output.LayerNorm)
        self._norm_2 = Norm.of(layer.output.LayerNorm)

    def project(self, x: Tensor, space: Workspace) -> Tensor:
        """Queries, keys and values (rows, 3 C) float32."""
        q, scale = self._quantized(x, space)
        kernels.quantize(x.numpy(), q.numpy(), scale)
        acc = _product(self._qkv, q, space)
        qkv = space.take("qkv", tuple(acc.shape))
        kernels.dequantize(acc.numpy(), scale, self._qkv.scale.numpy(), self._qkv.bias.numpy(), qkv.numpy())
        return qkv

    def __call__(self, x: Tensor, qkv: Tensor, plan: Plan, space: Workspace) -> None:
        """Run the rest of the layer on x (rows, C)."""
        outer = self._quantized(x, space)
        mixed = attend(qkv, plan, self._n_heads, space)
        inner = space.take("q_mixed", x.shape, torch.int8), space.take("mixed_scale", (len(x),)).numpy()
        kernels.quantize(mixed.numpy(), inner[0].numpy(), inner[1])
        self._add_norm(self._out, inner, x, self._norm_1, outer, space)
        acc = _product(self._up, outer[0], space).numpy()
        inner = space.take("q_inner", acc.shape, torch.int8), inner[1]
        scales = (outer[1], self._up.scale.numpy())
        kernels.dequantize_gelu_quantize(acc, scales, self._up.bias.numpy(), inner[0].numpy(), inner[1])
        self._add_norm(self._down, inner, x, self._norm_2, outer, space)

    @staticmethod
    def _quantized(x: Tensor, space: Workspace) -> Quantized:
        """Room for a quantised x."""
        return space.take("q", x.shape, torch.int8), space.take("scale", (len(x),)).numpy()

    @staticmethod
    def _add_norm(
        weight: Int8Weight, given: Quantized, x: Tensor, norm: Norm, out: Quantized, space: Workspace
    ) -> None:
        """x = LayerNorm(given @ weight + x), and the quantised x into ``out``."""
        kernels.dequantize_add_norm_quantize(
            _product(weight, given[0], space).numpy(), (given[1], weight.scale.numpy()), weight.bias.numpy(),
            x.numpy(), (norm.gain, norm.shift, norm.eps), out[0].numpy(), out[1],
        )  # fmt: skip


def _product(weight: Int8Weight, q: Tensor, space: Workspace) -> Tensor:
    """int32 sums (rows, out) in the one buffer that all products share: each is read before the next."""
    return torch._int_mm(q, weight.q_t, out=space.take("acc", (len(q), weight.q_t.shape[1]), torch.int32))


def attend(qkv: Tensor, plan: Plan, n_heads: int, space: Workspace) -> Tensor:
    """Attention within each sequence: qkv (rows, 3 C) to (rows, C), rows of filling zero."""
    width = qkv.shape[1] // 3
    out = space.take("mixed", (plan.n_rows, width))
    out[plan.n_tokens :] = 0
    kernels.attention(width // n_heads)(qkv.numpy(), plan.starts, plan.lengths, out.numpy())
    return out


def _joined(inputs: Any, n_heads: int) -> tuple[Tensor, Tensor]:
    """Weight (3 C, C) and bias (3 C,) of query, key and value, side by side for a head, head after head."""
    linears = (inputs.query, inputs.key, inputs.value)
    weights = torch.stack([linear.weight.unflatten(0, (n_heads, -1)) for linear in linears], dim=1)
    biases = torch.stack([linear.bias.unflatten(0, (n_heads, -1)) for linear in linears], dim=1)
    return weights.flatten(0, 2), biases.flatten()
