"""The encoder a configuration describes; without torch or Ray, so that any driver can fingerprint it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nightjar.config import EncodeItems, EncodeQueries, Resources
from nightjar.engines.encoder import EncoderSpec
from nightjar.engines.encoder.model_dir import read_layout
from nightjar.tables import (
    EMBEDDINGS_QUARANTINE,
    ITEM_EMBEDDINGS,
    ITEM_TEXT,
    QUERIES_QUARANTINE,
    QUERY_EMBEDDINGS,
    QUERY_TEXT,
    Table,
)


@dataclass(frozen=True)
class TextTables:
    """Which texts a stage encodes and where their vectors go; both tables have the same parts and rows.

    stage: its name, for what it says. unit: what a row is, for its figures.
    """

    stage: str
    unit: str
    text: Table
    embeddings: Table
    quarantine: Table

    @property
    def told(self) -> tuple[str, ...]:
        """What the quarantine tells of a row, after the reason."""
        pictures = ("image",) if "image" in self.text.schema.names else ()
        return (*self.carried, "text", *pictures)

    @property
    def carried(self) -> tuple[str, ...]:
        """The columns that go from a text's row to its vector's: its key, and the hash of the text."""
        return tuple(name for name in self.embeddings.schema.names if name != self.embeddings.vector)


OF_ITEMS = TextTables("encode_items", "items", ITEM_TEXT, ITEM_EMBEDDINGS, EMBEDDINGS_QUARANTINE)
OF_QUERIES = TextTables("encode_queries", "texts", QUERY_TEXT, QUERY_EMBEDDINGS, QUERIES_QUARANTINE)


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
        text_weight=params.text_weight,
        image_weight=params.image_weight,
        max_image_bytes=params.max_image_bytes,
        max_image_pixels=params.max_image_pixels,
        token_budget=resources.token_budget or 0,
        device="cuda" if resources.num_gpus else "cpu",
        threads=max(1, int(resources.num_cpus)),
    )


def query_spec(items: EncodeItems, queries: EncodeQueries, resources: Resources) -> EncoderSpec:
    """The encoder of the items with the prompt of queries: what sentence-transformers calls encode_query."""
    spec = encoder_spec(items, resources)
    return replace(spec, prompt=queries.prompt, prompt_name=queries.prompt_name)


def has_image_tower(spec: EncoderSpec) -> bool:
    """Whether the model puts pictures into the space of its texts."""
    return read_layout(spec).towers is not None


def model_facts(spec: EncoderSpec) -> dict[str, Any]:
    """What decides a vector, in words a person knows, as far as the files and the spec tell."""
    layout = read_layout(spec)
    weights = {"text_weight": spec.text_weight, "image_weight": spec.image_weight} if layout.towers else {}
    return {
        "model": spec.model,
        "revision": layout.revision,
        "pooling": "+".join(layout.pooling),
        "prompt": layout.prompt,
        "max_length": layout.max_length,
        "dims": layout.dims,
        "normalize": spec.normalize,
        "precision": spec.precision,
        **weights,
    }


def what_changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Why two models give other vectors, for example `precision fp32 -> int8`."""
    pairs = [f"{key} {before[key]} -> {now[key]}" for key in now if key in before and before[key] != now[key]]
    return ", ".join(pairs) or "other weights or files under the same name"
