"""What users write is encoded as sentence-transformers' encode_query does, whatever prompts a model saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers as st

from nightjar.config import EncodeItems, EncodeQueries, Resources
from nightjar.engines.encoder import load_encoder, model_fingerprint
from nightjar.stages.encoding.spec import encoder_spec, query_spec
from tests.unit.encoder_models import pooling, sample_texts, save_model, save_modules

SAVED: dict[str, dict[str, Any]] = {
    "query and document": {"prompts": {"query": "query: ", "document": "passage: "}},
    "query alone": {"prompts": {"query": "Instruct: find it\nQuery: "}},
    "another default": {"prompts": {"clustering": "cluster: "}, "default_prompt_name": "clustering"},
    "none": {},
}


@pytest.mark.parametrize("saved", SAVED)
def test_queries_get_the_prompt_of_queries(tmp_path: Path, saved: str) -> None:
    folder = save_model(tmp_path / "model", "bert")
    save_modules(folder, pooling("mean"), ("Normalize", {}), config=SAVED[saved])
    texts = [text for text in sample_texts(12) if text.strip()]
    items = EncodeItems(model=str(folder), prompt_name="document")
    spec = query_spec(items, EncodeQueries(), Resources())
    peer = st.SentenceTransformer(str(folder), device="cpu")
    ours = load_encoder(spec).encode(texts)
    assert np.abs(ours - peer.encode_query(texts)).max() < 1e-5
    differs = bool(SAVED[saved].get("prompts", {}).get("query"))
    of_items = encoder_spec(items, Resources())
    assert (model_fingerprint(spec) != model_fingerprint(of_items)) == differs


def test_the_rest_is_the_model_of_the_items(tmp_path: Path) -> None:
    del tmp_path
    items = EncodeItems(model="m", dims=12, precision="bf16", pooling="cls", max_length=9, prompt="passage: ")
    spec = query_spec(items, EncodeQueries(prompt="q: "), Resources(num_gpus=1))
    assert (spec.model, spec.dims, spec.precision, spec.pooling_modes) == ("m", 12, "bf16", ("cls",))
    assert (spec.max_length, spec.prompt, spec.device) == (9, "q: ", "cuda")
