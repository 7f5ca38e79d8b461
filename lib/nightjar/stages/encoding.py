"""The encoder a configuration describes; without torch or Ray, so that any driver can fingerprint it."""

from __future__ import annotations

from nightjar.config import EncodeItems, Resources
from nightjar.engines.encoder import EncoderSpec


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
