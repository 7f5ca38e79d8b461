"""The encoder a configuration describes; without torch or Ray, so that any driver can fingerprint it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nightjar.config import EncodeItems, Resources
from nightjar.engines.encoder import EncoderSpec
from nightjar.engines.encoder.model_dir import read_layout


def encoder_spec(params: EncodeItems, resources: Resources) -> EncoderSpec:
    """The encoder that the params describe, on the device that the resources grant."""
    return EncoderSpec(
        model=params.model,
        prompt=params.prompt,
        prompt_name=params.prompt_name,
        pooling=params.pooling,
        max_length=params.max_length,
        dims=params.dims,
        normalize=params.normalize,
        precision=params.precision,
        token_budget=resources.token_budget or 0,
        device="cuda" if resources.num_gpus else "cpu",
        threads=max(1, int(resources.num_cpus)),
    )


def model_facts(spec: EncoderSpec) -> dict[str, Any]:
    """What decides a vector, in words a person knows, as far as the files and the spec tell."""
    layout = read_layout(spec)
    return {
        "model": spec.model,
        "revision": layout.revision,
        "pooling": "+".join(layout.pooling),
        "prompt": layout.prompt,
        "max_length": layout.max_length,
        "dims": layout.dims,
        "normalize": spec.normalize,
        "precision": spec.precision,
    }


def what_changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Why two models give other vectors, for example `precision fp32 -> int8`."""
    pairs = [f"{key} {before[key]} -> {now[key]}" for key in now if key in before and before[key] != now[key]]
    return ", ".join(pairs) or "other weights or files under the same name"
