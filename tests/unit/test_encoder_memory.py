"""Running out of memory costs time, never a vector; batches keep to their budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nightjar.engines.encoder import EncoderSpec, load_encoder
from nightjar.engines.encoder.packing import BatchQueue, PackedBatch, TokenRows
from nightjar.engines.encoder.runner import Runner
from nightjar.errors import StageError
from tests.unit.encoder_models import pooling, sample_texts, save_model, save_modules


def rows_of(lengths: list[int]) -> TokenRows:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenRows(np.arange(offsets[-1], dtype=np.int32), offsets)


@given(lengths=st.lists(st.integers(0, 50), max_size=60), budget=st.integers(1, 200), padded=st.booleans())
def test_every_row_with_a_token_is_in_one_batch_within_budget(
    lengths: list[int], budget: int, padded: bool
) -> None:
    rows, queue, seen = rows_of(lengths), BatchQueue(rows_of(lengths), padded=padded), []
    while queue:
        batch = queue.take(budget)
        cost = int(batch.lengths.max()) * len(batch.rows) if padded else batch.n_tokens
        assert cost <= budget or len(batch.rows) == 1
        for row, start, length in zip(batch.rows, batch.starts, batch.lengths, strict=True):
            expected = rows.ids[rows.offsets[row] : rows.offsets[row + 1]]
            np.testing.assert_array_equal(batch.ids[start : start + length], expected)
        covered = [(start + i * length, length) for start, n, length in batch.runs() for i in range(n)]
        assert covered == list(zip(batch.starts.tolist(), batch.lengths.tolist(), strict=True))
        np.testing.assert_array_equal(batch.positions, np.concatenate([np.arange(n) for n in batch.lengths]))
        seen += batch.rows.tolist()
    assert sorted(seen) == [i for i, length in enumerate(lengths) if length]


def first_ids(batch: PackedBatch) -> torch.Tensor:
    return torch.from_numpy(batch.ids[batch.starts].astype(np.float32))[:, None]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: not enough memory"),
    ],
)
def test_the_budget_halves_and_grows_back(error: Exception) -> None:
    limit, sizes = [100], []

    def forward(batch: PackedBatch) -> torch.Tensor:
        sizes.append(batch.n_tokens)
        if batch.n_tokens > limit[0]:
            raise error
        return first_ids(batch)

    runner = Runner(forward, 400, torch.device("cpu"), padded=False)
    rows = rows_of([5] * 400)
    np.testing.assert_array_equal(runner(rows, 1)[:, 0], rows.offsets[:-1])
    assert runner.n_out_of_memory >= 2
    assert max(sizes[5:25]) <= 100
    limit[0] = 10**9
    for _ in range(40):
        runner(rows, 1)
    assert max(sizes[-3:]) == 400


def test_one_text_that_does_not_fit_is_named() -> None:
    def forward(_batch: PackedBatch) -> torch.Tensor:
        raise MemoryError

    with pytest.raises(StageError, match="one text of 9 tokens"):
        Runner(forward, 64, torch.device("cpu"), padded=True)(rows_of([9]), 1)


def test_another_error_is_not_swallowed() -> None:
    def forward(_batch: PackedBatch) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        Runner(forward, 64, torch.device("cpu"), padded=True)(rows_of([3, 3]), 1)


def test_vectors_survive_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path, "bert")
    save_modules(folder, pooling("mean"))
    encoder = load_encoder(EncoderSpec(str(folder)))
    texts = sample_texts(60)
    expected = encoder.encode(texts)
    backbone = encoder._choice.backbone

    def short_of_memory(batch: PackedBatch) -> torch.Tensor:
        if batch.n_tokens > 300:
            raise torch.OutOfMemoryError
        return backbone(batch)

    monkeypatch.setattr(
        encoder._runner,
        "_forward",
        lambda b: encoder._head(encoder._pool(short_of_memory(b), torch.from_numpy(b.lengths))),
    )
    got = encoder.encode(texts)
    np.testing.assert_allclose(got / np.linalg.norm(got, axis=1, keepdims=True), expected, atol=1e-6)
