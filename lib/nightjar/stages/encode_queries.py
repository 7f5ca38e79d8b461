"""What users wrote -> embeddings, by the items' model: query_text -> query_embeddings, queries_quarantine.

The same pool, the same resuming and the same incremental work as encode_items; only the prompt differs, since
models such as E5, BGE and Qwen3 were trained to hold a query against documents. Where nobody wrote anything
no actor starts.
"""

from __future__ import annotations

from nightjar.config import EncodeItems, EncodeQueries, Resources
from nightjar.engines.encoder import EncoderSpec
from nightjar.stage import Metrics, Night
from nightjar.stages.encode_items import Encoding, encode_texts
from nightjar.stages.encoding.parts import Load
from nightjar.stages.encoding.spec import OF_QUERIES, query_spec


def encode_queries(
    night: Night, params: EncodeQueries, resources: Resources, load: Load | None = None
) -> Metrics:
    """Gives every text of users a vector; metrics as those of encode_items, counting texts."""
    items: EncodeItems = night.config.encode_items
    spec: EncoderSpec = query_spec(items, params, resources)
    how = Encoding(OF_QUERIES, spec, items.storage, params.retry_quarantined)
    return encode_texts(night, how, resources, params.hourly_price, load)
