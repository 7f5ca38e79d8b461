"""Choose how a model runs here, fastest first, and keep a way only where it gives the model's own vectors.

Whatever is tried is compared, on random ids of several lengths, with the unchanged transformers model given
one sequence at a time. An architecture that cannot be packed gives cosines of -0.3 to 0.76 there (17 were
tried), half precision 0.999 and better, int8 about 0.99.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nightjar.engines.encoder import attention, linear
from nightjar.engines.encoder.backbone import Backbone, PackedBackbone, PaddedBackbone, position_offset
from nightjar.engines.encoder.packing import PackedBatch
from nightjar.errors import ConfigError

log = logging.getLogger(__name__)

# Least cosine of any token vector with the reference.
_FLOOR = {"fp32": 0.99999, "bf16": 0.995, "fp16": 0.995, "int8": 0.9}
_CANNOT = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError)


@dataclass(frozen=True)
class Choice:
    """How the model runs, in what precision, and for each faster way that was passed over, why."""

    backbone: Backbone
    path: str
    precision: str
    passed_over: dict[str, str]


def choose(model: nn.Module, max_length: int, pad_id: int, precision: str) -> Choice:
    """The fastest way that is right: by hand and packed, packed, or padded; on a CPU with faster products.

    int8 is run as fp32 where the CPU's int8 product is missing, wrong or slow.

    Raises:
        ConfigError: half precision makes infinities or NaN of this model.
    """
    hidden_size = int(_config(model).hidden_size)
    padded = PaddedBackbone(model, pad_id, hidden_size)
    batch = probe(model, max_length)
    alone = torch.cat([padded(_one(batch, i)) for i in range(len(batch.lengths))])
    if precision in ("fp16", "bf16") and not bool(torch.isfinite(alone).all()):
        raise ConfigError(
            f"{type(model).__name__} leaves the range of {precision} (Gemma does in fp16): use "
            f"{'bf16' if precision == 'fp16' else 'fp32'}"
        )
    passed_over: dict[str, str] = {}
    on_cpu = alone.device.type == "cpu"
    if precision == "int8" and (refusal := linear.int8_refusal()):
        passed_over["int8"], precision = refusal, "fp32"

    def right(name: str, make: Callable[[], Backbone]) -> Backbone | None:
        try:
            made = make()
            passed_over[name] = _difference(made(batch), alone, _FLOOR[precision])
        except _CANNOT as error:
            passed_over[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
        return made if not passed_over[name] else None

    def chosen(backbone: Backbone, path: str) -> Choice:
        why = {name: reason for name, reason in passed_over.items() if reason}
        for name, reason in why.items():
            level = logging.INFO if name == "fused" else logging.WARNING  # only some models are fused
            log.log(level, "%s cannot run %s: %s", type(model).__name__, name, reason)
        return Choice(backbone, path, precision, why)

    if on_cpu and (fused := right("fused", lambda: _fused(model, precision))):
        return chosen(fused, "fused")
    if on_cpu:
        swapped = _swap(model, precision)
        if swapped and not right("swapped products", lambda: padded):
            swapped.undo()
            precision = "fp32" if precision == "int8" else precision
    usual = _config(model)._attn_implementation
    if packed := right("packed", lambda: _packed(model, hidden_size)):
        return chosen(packed, "packed")
    _set_attention(model, usual)
    return chosen(padded, "padded")


def probe(model: nn.Module, max_length: int, seed: int = 0) -> PackedBatch:
    """Random ids in several lengths, one beyond every sliding window where the model allows it."""
    config = _config(model)
    windows = [getattr(config, name, None) for name in ("sliding_window", "local_attention")]
    longest = max([57, *(int(window) + 9 for window in windows if window)])
    lengths = np.array(sorted({min(n, max_length) for n in (longest, 18, 17, 3)}, reverse=True), np.int64)
    lengths = np.repeat(lengths, [2 if n == lengths[-1] else 1 for n in lengths])
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, max(6, int(config.vocab_size)), int(lengths.sum())).astype(np.int32)
    return PackedBatch(ids, lengths, np.arange(len(lengths)))


def _fused(model: nn.Module, precision: str) -> Backbone:
    if importlib.util.find_spec("numba") is None:
        raise ValueError("numba is not installed")
    # Imported here: numba is optional and takes a second to load, which decoders and GPUs need not pay.
    from nightjar.engines.encoder import fused_bert

    if reason := fused_bert.refusal(model):
        raise ValueError(reason)
    if precision != "int8" and not linear.onednn_works(next(model.parameters()).dtype):
        raise ValueError("oneDNN products are missing or wrong on this CPU")
    return fused_bert.FusedBert(model, precision)


def _packed(model: nn.Module, hidden_size: int) -> Backbone:
    _set_attention(model, attention.NAME)
    return PackedBackbone(model, position_offset(model), hidden_size)


def _swap(model: nn.Module, precision: str) -> linear.SwappedLinears | None:
    if precision == "int8":
        return linear.SwappedLinears(model, linear.Int8Linear)
    if linear.onednn_works(next(model.parameters()).dtype):
        return linear.SwappedLinears(model, linear.PackedLinear)
    return None


def _config(model: nn.Module) -> Any:
    config: Any = model.config
    return config.get_text_config()


def _set_attention(model: nn.Module, name: str) -> None:
    setter: Any = model.set_attn_implementation
    setter(name)


def _one(batch: PackedBatch, i: int) -> PackedBatch:
    start, length = int(batch.starts[i]), batch.lengths[i : i + 1]
    return PackedBatch(batch.ids[start : start + int(length[0])], length, batch.rows[:1])


def _difference(got: Tensor, alone: Tensor, floor: float) -> str:
    """Why token vectors are not those of the reference; empty when they are."""
    worst = float(torch.nn.functional.cosine_similarity(got.float(), alone.float(), dim=-1).min())
    return "" if worst >= floor else f"its vectors differ from the model's own (cosine {worst:.4f})"
