"""Texts to vectors with a transformer, packed, on CPU or GPU; it knows no Ray and writes no file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nightjar.engines.encoder.model_dir import model_fingerprint
from nightjar.engines.encoder.spec import EncoderSpec, EncodeStats

if TYPE_CHECKING:
    from nightjar.engines.encoder.engine import Encoder, load_encoder

__all__ = ["EncodeStats", "Encoder", "EncoderSpec", "load_encoder", "model_fingerprint"]


def __getattr__(name: str) -> Any:
    """``Encoder`` and ``load_encoder``, imported at first use: a driver that fingerprints needs no torch."""
    if name not in ("Encoder", "load_encoder"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nightjar.engines.encoder import engine

    return getattr(engine, name)
