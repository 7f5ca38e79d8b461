"""From token vectors to text vectors: pooling, then the model's Dense, LayerNorm and Normalize.

Modes and their arithmetic follow sentence-transformers 6.2 (sentence_transformer/modules/pooling.py), sums in
fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from nightjar.engines.encoder.model_dir import HeadModule, ModelLayout
from nightjar.errors import ConfigError

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pooler:
    """Pools packed token vectors (T, D) by ``modes``, concatenated, without the first ``n_prompt`` tokens."""

    modes: tuple[str, ...]
    n_prompt: int = 0

    def __call__(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Token vectors (T, D) of sequences of ``lengths`` (n,) to (n, D * modes) in fp32."""
        ends = torch.cumsum(lengths, 0)
        starts = ends - lengths
        kept = lengths - self.n_prompt
        first = starts + torch.where(kept > 0, self.n_prompt, 0)
        pooled: list[Tensor] = []
        for mode in self.modes:
            if mode == "cls":
                pooled.append(hidden[first].float())
            elif mode == "lasttoken":
                pooled.append(hidden[ends - 1].float())
            else:
                pooled.append(self._reduce(mode, hidden, lengths, starts))
        return torch.cat(pooled, dim=-1) if len(pooled) > 1 else pooled[0]

    def _reduce(self, mode: str, hidden: Tensor, lengths: Tensor, starts: Tensor) -> Tensor:
        n = lengths.shape[0]
        row = torch.repeat_interleave(
            torch.arange(n, device=hidden.device), lengths, output_size=hidden.shape[0]
        )
        place = torch.arange(hidden.shape[0], device=hidden.device) - starts[row]
        hidden = hidden.float()
        keep = (place >= self.n_prompt).to(hidden.dtype)[:, None]
        if mode == "max":
            masked = hidden if not self.n_prompt else hidden.masked_fill(keep == 0, float("-inf"))
            start = hidden.new_full((n, hidden.shape[1]), float("-inf"))
            return start.scatter_reduce(0, row[:, None].expand_as(hidden), masked, "amax")
        weight = (place + 1).to(hidden.dtype)[:, None] * keep if mode == "weightedmean" else keep
        if mode == "weightedmean" or self.n_prompt:
            hidden = hidden * weight
        total = _sums(hidden, row, lengths)
        divisor = hidden.new_zeros((n, 1)).index_add_(0, row, weight).clamp_(min=1e-9)
        return total / (divisor.sqrt() if mode == "mean_sqrt_len_tokens" else divisor)


def _sums(hidden: Tensor, row: Tensor, lengths: Tensor) -> Tensor:
    """Sums (n, D) of each sequence's rows, first to last: a GPU's index_add adds in any order."""
    if hidden.is_cuda:
        summed: Tensor = torch.segment_reduce(hidden, "sum", lengths=lengths, unsafe=True)
        return summed
    return hidden.new_zeros((len(lengths), hidden.shape[1])).index_add_(0, row, hidden)


def load_head(layout: ModelLayout, device: torch.device) -> Head:
    """The modules after pooling as one function of (n, D) fp32.

    Raises:
        ConfigError: a Dense layer with an activation that is no torch.nn class, or without safetensors
        weights.
    """
    steps = [_STEPS[module.kind](module, device) for module in layout.head]

    def run(pooled: Tensor) -> Tensor:
        for step in steps:
            pooled = step(pooled)
        return pooled

    return run


def finish(vectors: Tensor, dims: int | None, *, normalize: bool) -> Tensor:
    """Keep the first ``dims`` values, then unit length: a cut vector must be normalised again."""
    if dims is not None:
        vectors = vectors[:, :dims]
    return F.normalize(vectors, p=2, dim=-1) if normalize else vectors


def _normalize(_module: HeadModule, _device: torch.device) -> Head:
    return lambda pooled: F.normalize(pooled, p=2, dim=-1)


def _dense(module: HeadModule, device: torch.device) -> Head:
    weights = _weights(module, device)
    activation = _activation(module)
    residual = bool(module.config.get("use_residual", False))
    projection = weights.get("residual.weight")

    def run(pooled: Tensor) -> Tensor:
        out = activation(F.linear(pooled, weights["linear.weight"], weights.get("linear.bias")))
        if residual:
            out = out + (pooled if projection is None else F.linear(pooled, projection))
        return out

    return run


def _layer_norm(module: HeadModule, device: torch.device) -> Head:
    weights = _weights(module, device)
    size = (int(module.config["dimension"]),)
    return lambda pooled: F.layer_norm(pooled, size, weights["norm.weight"], weights["norm.bias"])


def _weights(module: HeadModule, device: torch.device) -> dict[str, Tensor]:
    path = module.path / "model.safetensors"
    if not path.is_file():
        raise ConfigError(
            f"{path} is missing: pickled weights are never loaded, save the module as safetensors"
        )
    return {name: tensor.float().to(device) for name, tensor in load_file(path).items()}


def _activation(module: HeadModule) -> Head:
    name = str(module.config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    found = getattr(torch.nn, name.rpartition(".")[2], None) if name.startswith("torch.nn.") else None
    if not (isinstance(found, type) and issubclass(found, torch.nn.Module)):
        raise ConfigError(f"{module.path} uses the activation {name!r}: only classes of torch.nn are loaded")
    built: Head = found()
    return built


_STEPS: dict[str, Callable[[HeadModule, torch.device], Head]] = {
    "Normalize": _normalize,
    "Dense": _dense,
    "LayerNorm": _layer_norm,
}
