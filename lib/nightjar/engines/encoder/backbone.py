"""Run a transformers model over packed batches, or padded ones where its architecture cannot be packed."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding
from transformers.utils import logging as transformers_logging

from nightjar.engines.encoder import attention
from nightjar.engines.encoder.model_dir import ModelLayout
from nightjar.engines.encoder.packing import PackedBatch
from nightjar.errors import ConfigError

transformers_logging.disable_progress_bar()  # noise in an actor's log

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.float32}


class Backbone(Protocol):
    """Token vectors (T, hidden) of a batch, in its order."""

    packed: bool
    hidden_size: int

    def __call__(self, batch: PackedBatch) -> Tensor:
        """Last hidden states of every real token of the batch."""
        ...


@dataclass
class PackedBackbone:
    """A transformers model fed packed batches through ``attention.varlen_attention``."""

    model: nn.Module
    position_offset: int
    hidden_size: int
    packed: bool = True

    def __call__(self, batch: PackedBatch) -> Tensor:
        """Token vectors (T, hidden)."""
        device = next(self.model.parameters()).device
        ids = attention.to_device(torch.from_numpy(batch.ids.astype(np.int64)), device)
        positions = attention.to_device(torch.from_numpy(batch.positions + self.position_offset), device)
        with attention.packed_attention(attention.Layout.of(batch, device)):
            out = self.model(input_ids=ids[None], position_ids=positions[None])
        hidden: Tensor = out.last_hidden_state[0]
        return hidden


@dataclass
class PaddedBackbone:
    """A transformers model fed right-padded batches with its own attention; padding is dropped after."""

    model: nn.Module
    pad_id: int
    hidden_size: int
    packed: bool = False

    def __call__(self, batch: PackedBatch) -> Tensor:
        """Token vectors (T, hidden)."""
        device = next(self.model.parameters()).device
        real = np.arange(int(batch.lengths.max()))[None, :] < batch.lengths[:, None]
        ids = np.full(real.shape, self.pad_id, np.int64)
        ids[real] = batch.ids
        mask = attention.to_device(torch.from_numpy(real), device)
        given = attention.to_device(torch.from_numpy(ids), device)
        hidden: Tensor = self.model(input_ids=given, attention_mask=mask.long()).last_hidden_state
        return hidden[mask]


def load_model(layout: ModelLayout, precision: str, device: torch.device) -> nn.Module:
    """The transformers model of a directory, in evaluation mode, from safetensors only.

    Raises:
        ConfigError: transformers does not know the architecture, or the weights do not fit it.
    """
    saved = layout.kwargs_of("model_kwargs", "model_args")
    for name in ("dtype", "torch_dtype", "attn_implementation", "device_map"):
        saved.pop(name, None)
    folder = str(layout.transformer_dir)
    try:
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False,
            **layout.kwargs_of("config_kwargs", "config_args"),
        )  # fmt: skip
        if hasattr(config, "use_cache"):
            config.use_cache = False
        loader: Any = AutoModelForTextEncoding if getattr(config, "is_encoder_decoder", False) else AutoModel
        model: nn.Module = loader.from_pretrained(
            folder, config=config, local_files_only=True, trust_remote_code=False, use_safetensors=True,
            dtype=DTYPES[precision], **saved,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ConfigError(f"transformers cannot load the encoder in {folder}: {error}") from error
    if "add_pooling_layer" in inspect.signature(type(model).__init__).parameters:
        model.pooler = None  # BERT's own pooler of the first token: no sentence vector here reads it
    return model.eval().requires_grad_(False).to(device)


def position_offset(model: nn.Module) -> int:
    """First position id: padding_idx + 1 for the RoBERTa family (a learned table and an int padding_idx)."""
    for module in model.modules():
        padding, table = getattr(module, "padding_idx", None), getattr(module, "position_embeddings", None)
        if isinstance(padding, int) and isinstance(table, nn.Embedding):
            return padding + 1
    return 0
