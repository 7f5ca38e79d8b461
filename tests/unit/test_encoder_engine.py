"""What a caller relies on: order, determinism, one encoding a text, no vector changed by its batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nightjar.engines.encoder import EncoderSpec, attention, engine, load_encoder
from nightjar.errors import ConfigError, InputError
from tests.unit.encoder_models import pooling, sample_texts, save_model, save_modules

FAMILIES = ["bert", "mpnet", "modernbert", "qwen3"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {family: save_model(tmp_path_factory.mktemp(family), family) for family in FAMILIES}
    for folder in made.values():
        save_modules(folder, pooling("mean"))
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_a_vector_does_not_depend_on_its_batch(folders: dict[str, Path], family: str) -> None:
    texts = sample_texts(60)
    together = load_encoder(EncoderSpec(str(folders[family]))).encode(texts)
    small = load_encoder(EncoderSpec(str(folders[family]), token_budget=64))
    np.testing.assert_allclose(small.encode(texts), together, atol=1e-6)
    np.testing.assert_allclose(small.encode(texts[::-1])[::-1], together, atol=1e-6)
    alone = np.concatenate([small.encode([text]) for text in texts[:10]])
    np.testing.assert_allclose(alone, together[:10], atol=1e-6)


def test_the_same_list_gives_the_same_bytes(folders: dict[str, Path]) -> None:
    texts = sample_texts(200)
    first, second = (load_encoder(EncoderSpec(str(folders["bert"]))) for _ in range(2))
    a = first.encode(texts)
    np.testing.assert_array_equal(first.encode(texts), a)
    np.testing.assert_array_equal(second.encode(texts), a)
    assert a.dtype == np.float32
    assert np.isfinite(a).all()


def test_equal_texts_are_encoded_once(folders: dict[str, Path]) -> None:
    encoder = load_encoder(EncoderSpec(str(folders["bert"])))
    texts = ["red lamp", "tin", "red lamp", "red lamp", "tin "]
    vectors = encoder.encode(texts)
    assert (encoder.last_stats.n_texts, encoder.last_stats.n_distinct) == (5, 3)
    np.testing.assert_array_equal(vectors[0], vectors[3])
    np.testing.assert_array_equal(vectors[[0, 1, 4]], encoder.encode(["red lamp", "tin", "tin "]))


def test_nothing_and_text_that_is_no_text(folders: dict[str, Path]) -> None:
    encoder = load_encoder(EncoderSpec(str(folders["bert"])))
    assert encoder.encode([]).shape == (0, encoder.dim)
    with pytest.raises(InputError, match=r"text 1 .* NoneType"):
        encoder.encode(["a", None])  # type: ignore[list-item]


def test_a_text_without_a_token_is_a_zero_vector(folders: dict[str, Path]) -> None:
    encoder = load_encoder(EncoderSpec(str(folders["qwen3"])))
    backend = encoder._tokenizer.backend
    backend.post_processor = None
    vectors = encoder.encode(["", "red lamp"])
    assert not vectors[0].any()
    assert vectors[1].any()


def test_a_model_that_packs_wrongly_is_padded(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = load_encoder(EncoderSpec(str(folders["modernbert"]))).encode(sample_texts(20))
    honest = attention._by_runs

    def as_one_sequence(
        layout: attention.Layout, qkv: tuple[torch.Tensor, ...], *rest: object
    ) -> torch.Tensor:
        whole = attention.Layout([(0, 1, qkv[0].shape[0])], layout.cu_lengths, qkv[0].shape[0])
        return honest(whole, qkv, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "_by_runs", as_one_sequence)
    encoder = load_encoder(EncoderSpec(str(folders["modernbert"])))
    assert not encoder.description["packed"]
    assert "differ" in encoder.description["passed_over"]["packed"]
    np.testing.assert_allclose(encoder.encode(sample_texts(20)), right, atol=1e-5)


def test_flops_follow_the_formula(folders: dict[str, Path]) -> None:
    encoder = load_encoder(EncoderSpec(str(folders["bert"])))
    weights = 2 * (4 * 64 * 64 + 2 * 64 * 96)
    assert encoder.flops_per_token(10) == 2 * weights + 4 * 2 * 64 * 10
    encoder.encode(["red lamp tin", "cake"])
    assert encoder.last_stats.flops > 0


def test_windows_tokenised_ahead_by_several_threads(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As beside a GPU: other threads tokenise, and learn characters, while a window runs."""
    encoder = load_encoder(EncoderSpec(str(folders["bert"]), threads=4))
    texts = [f"{text} {chr(0x4E00 + i)}{chr(0xC0 + i % 300)}" for i, text in enumerate(sample_texts(150))]
    expected = encoder.encode(texts)
    tokens = encoder.last_stats.n_tokens
    monkeypatch.setattr(engine, "WINDOW", 9)
    monkeypatch.setattr(EncoderSpec, "on_gpu", property(lambda _spec: True))
    fresh = load_encoder(EncoderSpec(str(folders["bert"]), threads=4))
    np.testing.assert_allclose(fresh.encode(texts), expected, atol=1e-5)
    assert fresh.last_stats.n_tokens == tokens


def test_a_model_that_leaves_the_range_of_half_precision_is_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "qwen3")
    save_modules(folder, pooling("mean"))
    weights = load_file(folder / "model.safetensors")
    weights["layers.0.mlp.down_proj.weight"] *= 1e6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert np.isfinite(load_encoder(EncoderSpec(str(folder))).encode(["red lamp"])).all()
    with pytest.raises(ConfigError, match=r"range of fp16.*use bf16"):
        load_encoder(EncoderSpec(str(folder), precision="fp16"))
