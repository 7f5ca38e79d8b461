"""Every encoder family gives what sentence-transformers gives from the same files, packed or padded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nightjar.engines.encoder import Encoder, EncoderSpec, load_encoder
from tests.unit.encoder_models import FAMILIES, pooling, sample_texts, save_model, save_modules

sentence_transformers = pytest.importorskip("sentence_transformers")

ALL_MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
PADDED = {"mpnet", "deberta"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: save_model(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def peer(folder: Path, texts: list[str], **options: object) -> NDArray[np.float32]:
    """What sentence-transformers makes of the texts, one at a time: its own batches must not matter."""
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return model.encode(texts, batch_size=7, show_progress_bar=False, **options)


def close(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    scale = max(1.0, float(np.abs(theirs).max()))
    np.testing.assert_allclose(ours / scale, theirs / scale, rtol=0, atol=1e-5)


def load(folder: Path, **options: object) -> Encoder:
    return load_encoder(EncoderSpec(str(folder), **{"normalize": False, **options}))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_pooling_mode_at_once(models: dict[str, Path], family: str) -> None:
    folder = models[family]
    save_modules(folder, pooling(ALL_MODES))
    texts = sample_texts()
    encoder = load(folder)
    assert encoder.description["packed"] == (family not in PADDED)
    assert ("packed" in encoder.description["passed_over"]) == (family in PADDED)
    close(encoder.encode(texts), peer(folder, texts))


@pytest.mark.parametrize("family", ["bert", "roberta", "qwen3", "mpnet"])
def test_each_mode_alone_with_normalize(models: dict[str, Path], family: str) -> None:
    texts = sample_texts(12)
    for mode in ALL_MODES:
        save_modules(models[family], pooling(mode), ("Normalize", {}))
        close(load(models[family]).encode(texts), peer(models[family], texts))
