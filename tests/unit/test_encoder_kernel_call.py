"""What the GPU's variable-length kernel is asked for, where there is none: a slow stand-in answers.

The stand-in follows the documented meaning of torch.nn.attention.varlen.varlen_attn: (tokens, heads, size)
tensors, int32 cumulative lengths, a window (left, right) of keys around a query with -1 for no bound, grouped
heads.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nightjar.engines.encoder import EncoderSpec, attention, load_encoder, selection
from tests.unit.encoder_models import pooling, sample_texts, save_model, save_modules

# A bidirectional w of 16 reaches 8 to each side in both families; without a longer text there is no window.
WINDOWS = {
    "modernbert": {(-1, -1), (8, 8)},
    "gemma3": {(-1, -1), (8, 8)},
    "mistral": {(-1, 0), (23, 0)},
    "qwen3": {(-1, 0)},
}


def slow_kernel(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_q: torch.Tensor, cu_k: torch.Tensor, max_q: int,
    max_k: int, *, scale: float | None, window_size: tuple[int, int], enable_gqa: bool, num_splits: int | None
    = None,
) -> torch.Tensor:  # fmt: skip
    """varlen_attn in three loops."""
    assert q.ndim == k.ndim == v.ndim == 3
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert cu_q[0] == 0
    assert cu_q[-1] == len(q)
    assert int(torch.diff(cu_q).max()) == max_q == max_k
    assert num_splits == 1
    assert enable_gqa or q.shape[1] == k.shape[1]
    left, right = window_size
    out = torch.empty_like(q)
    group = q.shape[1] // k.shape[1]
    for start, end in zip(cu_q.tolist(), cu_q.tolist()[1:], strict=False):
        at = torch.arange(end - start)
        ahead = at[None, :] - at[:, None]
        seen = (ahead <= right if right >= 0 else ahead < end) & (
            -ahead <= left if left >= 0 else -ahead < end
        )
        for head in range(q.shape[1]):
            scores = q[start:end, head] @ k[start:end, head // group].T * (scale or q.shape[-1] ** -0.5)
            weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1)
            out[start:end, head] = weights @ v[start:end, head // group]
    return out


@pytest.mark.parametrize("family", ["bert", "modernbert", "qwen3", "mistral", "gemma3", "xlm-roberta"])
def test_the_kernel_gets_the_right_question(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(tmp_path, family)
    save_modules(folder, pooling(["mean", "lasttoken"]))
    texts = sample_texts(25)
    expected = load_encoder(EncoderSpec(str(folder))).encode(texts)
    calls = []

    def kernel(*tensors: torch.Tensor, **options: object) -> torch.Tensor:
        calls.append(options["window_size"])
        return slow_kernel(*tensors, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "_kernel_takes", lambda _q: True)
    monkeypatch.setattr(selection, "_fused", lambda *_: (_ for _ in ()).throw(ValueError("as on a GPU")))
    encoder = load_encoder(EncoderSpec(str(folder)))
    assert encoder.description["path"] == "packed"
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-5)
    assert set(calls) == WINDOWS.get(family, {(-1, -1)})
