"""What the sentence-transformers files of a model say is followed: modules, prompts, lengths, dimensions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nightjar.engines.encoder import Encoder, EncoderSpec, load_encoder, model_fingerprint
from nightjar.errors import ConfigError
from tests.unit.encoder_models import pooling, sample_texts, save_model, save_modules

sentence_transformers = pytest.importorskip("sentence_transformers")
TEXTS = sample_texts(15)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return save_model(tmp_path, "bert")


def peer(folder: Path, **options: object) -> NDArray[np.float32]:
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return model.encode(TEXTS, show_progress_bar=False, **options)


def load(folder: Path, **options: object) -> Encoder:
    return load_encoder(EncoderSpec(str(folder), **{"normalize": False, **options}))


def close(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    assert ours.shape == theirs.shape
    scale = max(1.0, float(np.abs(theirs).max()))
    np.testing.assert_allclose(ours / scale, theirs / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "dense",
    [
        {"in_features": 64, "out_features": 20, "activation_function": "torch.nn.modules.activation.Tanh"},
        {"in_features": 64, "out_features": 20, "bias": False, "activation_function": "torch.nn.Identity"},
        {"in_features": 64, "out_features": 80, "use_residual": True, "activation_function": "torch.nn.GELU"},
        {"in_features": 64, "out_features": 64, "use_residual": True},
    ],
)
def test_dense(bert: Path, dense: dict[str, object]) -> None:
    save_modules(bert, pooling("mean"), ("Dense", {"bias": True, **dense}), ("Normalize", {}))
    close(load(bert).encode(TEXTS), peer(bert))


def test_two_dense_a_layer_norm_and_dropout(bert: Path) -> None:
    first = {"in_features": 128, "out_features": 32, "bias": True}
    second = {
        "in_features": 32,
        "out_features": 48,
        "bias": False,
        "activation_function": "torch.nn.Identity",
    }
    modules = [pooling(["cls", "mean"]), ("Dense", first), ("Dropout", {"dropout": 0.5}), ("Dense", second)]
    save_modules(bert, *modules, ("LayerNorm", {"dimension": 48}))
    close(load(bert).encode(TEXTS), peer(bert))


@pytest.mark.parametrize("family", ["bert", "roberta", "qwen3", "deberta"])
@pytest.mark.parametrize("include", [True, False])
def test_prompt_is_read_and_may_be_left_out_of_the_pooling(
    tmp_path: Path, family: str, include: bool
) -> None:
    folder = save_model(tmp_path, family)
    modes = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
    save_modules(folder, pooling(modes, include_prompt=include))
    prompt = "red lamp: "
    close(load(folder, prompt=prompt).encode(TEXTS), peer(folder, prompt=prompt))


def test_prompt_names_and_the_default(bert: Path) -> None:
    prompts = {"query": "paper: ", "passage": "tin: ", "odd": "cake "}
    save_modules(bert, pooling("mean"), config={"prompts": prompts, "default_prompt_name": "odd"})
    close(load(bert).encode(TEXTS), peer(bert))
    close(load(bert, prompt_name="query").encode(TEXTS), peer(bert, prompt_name="query"))
    close(load(bert, prompt="").encode(TEXTS), peer(bert, prompt=""))
    # encode_document documents the order document, passage, corpus; the peer stops at an empty document.
    close(load(bert, prompt_name="document").encode(TEXTS), peer(bert, prompt="tin: "))
    with pytest.raises(ConfigError, match="prompt_name 'typo'"):
        load(bert, prompt_name="typo")


def test_dims_are_cut_and_normalised_again(bert: Path) -> None:
    save_modules(bert, pooling("mean"), ("Normalize", {}), config={"truncate_dim": 16})
    ours = load(bert, normalize=True).encode(TEXTS)
    close(ours, peer(bert, normalize_embeddings=True))
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    close(
        load(bert, dims=8, normalize=True).encode(TEXTS),
        peer(bert, truncate_dim=8, normalize_embeddings=True),
    )
    with pytest.raises(ConfigError, match="dims 999"):
        load(bert, dims=999)


@pytest.mark.parametrize("saved", [{"max_seq_length": 11}, {"max_seq_length": 11, "do_lower_case": True}, {}])
def test_effective_length_and_lower_case(bert: Path, saved: dict[str, object]) -> None:
    save_modules(bert, pooling("mean"))
    (bert / "sentence_bert_config.json").write_text(json.dumps(saved))
    encoder = load(bert)
    assert encoder.description["max_length"] == saved.get("max_seq_length", 96)
    close(encoder.encode(TEXTS), peer(bert))


def test_lower_case_reaches_a_cased_tokenizer(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "roberta")
    save_modules(folder, pooling("mean"))
    (folder / "sentence_roberta_config.json").write_text('{"max_seq_length": 64, "do_lower_case": true}')
    encoder = load(folder)
    upper, lower = encoder.encode(["RED LAMP", "red lamp"])
    np.testing.assert_array_equal(upper, lower)
    close(encoder.encode(TEXTS), peer(folder))


def test_spec_length_wins_and_must_fit(bert: Path) -> None:
    save_modules(bert, pooling("mean"))
    encoder = load(bert, max_length=5)
    assert encoder.encode(TEXTS).shape == (len(TEXTS), 64)
    assert encoder.last_stats.n_tokens <= 5 * len(TEXTS)
    with pytest.raises(ConfigError, match="128 positions"):
        load(bert, max_length=129)


@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_a_plain_transformers_directory(tmp_path: Path, family: str) -> None:
    folder = save_model(tmp_path, family)
    if family == "qwen3":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen3ForCausalLM"]}))
    encoder = load(folder)
    assert encoder.description["pooling"] == ("lasttoken" if family == "qwen3" else "mean")
    if family == "bert":
        close(encoder.encode(TEXTS), peer(folder))


def test_old_pooling_files(bert: Path) -> None:
    old = {
        "word_embedding_dimension": 64,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
    }
    save_modules(bert, ("Pooling", old))
    encoder = load(bert)
    assert encoder.description["pooling"] == "cls+mean"
    close(encoder.encode(TEXTS), peer(bert))


@pytest.mark.parametrize(
    "kind", ["sentence_transformers.models.LSTM", "modeling_mine.MyPooling", "WordEmbeddings"]
)
def test_an_unknown_module_is_refused(bert: Path, kind: str) -> None:
    save_modules(bert, pooling("mean"))
    listing = json.loads((bert / "modules.json").read_text())
    listing.append({"idx": 2, "name": "2", "path": "2_X", "type": kind})
    (bert / "modules.json").write_text(json.dumps(listing))
    with pytest.raises(ConfigError, match=kind.replace(".", r"\.")):
        load(bert)


def test_what_is_not_here_is_refused_with_the_remedy(tmp_path: Path, bert: Path) -> None:
    for model, remedy in [
        ("org/name", "40-hex"),
        ("org/name@" + "a" * 40, "hf download"),
        ("package:no-such-model-package", "pip install no-such-model-package"),
        ("package:numpy", "no modules.json"),
        (str(tmp_path / "nothing"), "not a directory"),
    ]:
        with pytest.raises(ConfigError, match=remedy):
            load_encoder(EncoderSpec(model))
    save_modules(bert, ("Normalize", {}))
    with pytest.raises(ConfigError, match="no Pooling"):
        load(bert)


def test_pickled_weights_are_refused(bert: Path) -> None:
    save_modules(bert, pooling("mean"))
    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        load(bert)


def test_a_pinned_revision_in_the_cache(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_modules(bert, pooling("mean"))
    revision = "0123456789abcdef" * 2 + "01234567"
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / revision
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(bert)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    encoder = load_encoder(EncoderSpec(f"org/name@{revision}"))
    assert encoder.description["revision"] == revision
    assert encoder.fingerprint == model_fingerprint(EncoderSpec(str(bert)))
