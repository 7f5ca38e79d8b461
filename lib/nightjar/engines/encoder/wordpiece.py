"""BERT's tokenizer as tables for a compiled kernel: characters learned as they come, the vocabulary hashed.

What the normalizer and the splitter do to a character is asked of them, one character at a time, at its first
appearance: both are char-local in BERT (cleaning, accents, lower case, signs), so this is a table and no
second implementation of Unicode. A text that holds an added token, or a character that the table cannot
carry, goes to the tokenizer itself; and like every table this one is used only after it gave the tokenizer's
own ids on hard cases and on the first texts of the data.
"""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightjar.engines.encoder import wordpiece_kernels as kernels
from nightjar.engines.encoder.chunk_cache import HARD_CASES, Encode, first_difference, frame_of
from nightjar.engines.encoder.packing import TokenRows

log = logging.getLogger(__name__)

_CODE_POINTS = 0x110000
# Bytes of the filter before the table: 256 KB stay in a second-level cache, one in eight is set by 30,000
# pieces.
_FILTER = 1 << 18
_NORMALIZERS = {"BertNormalizer", "Lowercase"}


def refusal(backend: Any) -> str:
    """Why a tokenizer is not BERT's, or empty."""
    saved = json.loads(backend.to_str())
    normalizer, model = saved.get("normalizer") or {}, saved.get("model") or {}
    steps = normalizer.get("normalizers", [normalizer])
    kinds = {step.get("type") for step in steps}
    if not kinds <= _NORMALIZERS or "BertNormalizer" not in kinds:
        return f"the normalizer is {normalizer.get('type')}"
    if (saved.get("pre_tokenizer") or {}).get("type") != "BertPreTokenizer":
        return "the text is not split by BERT's rules"
    if model.get("type") != "WordPiece" or model.get("continuing_subword_prefix") != "##":
        return "the model is not WordPiece with ##"
    added = backend.get_added_tokens_decoder().values()
    if any(token.normalized or "\n" in token.content or not token.content for token in added):
        return "an added token is looked for in normalised text"
    return ""


@dataclass
class Characters:
    """What becomes of each code point; learned from the tokenizer at its first appearance."""

    backend: Any
    ascii_kind: NDArray[np.uint8] = field(init=False)
    ascii_byte: NDArray[np.uint8] = field(init=False)
    entry: NDArray[np.int32] = field(init=False)
    _spelled: bytearray = field(default_factory=bytearray)
    _refused: set[str] = field(default_factory=set)
    _kinds: dict[str, int] = field(default_factory=dict)
    _learning: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        """Learn ASCII.

        Raises:
            ValueError: an ASCII character becomes more than one.
        """
        self.entry = np.full(_CODE_POINTS, kernels.UNKNOWN, np.int32)
        self.ascii_kind = np.full(kernels.N_ASCII, kernels.DROPPED, np.uint8)
        self.ascii_byte = np.zeros(kernels.N_ASCII, np.uint8)
        for point in range(kernels.N_ASCII):
            becomes = self.backend.normalizer.normalize_str(chr(point))
            if len(becomes) > 1 or not becomes.isascii():
                raise ValueError(f"the normalizer makes {becomes!r} of {chr(point)!r}")
            if becomes:
                self.ascii_kind[point], self.ascii_byte[point] = self._kind(becomes), ord(becomes)

    def learn(self, texts: Sequence[str]) -> bool:
        """Learn what no text had before; whether these texts may do better now."""
        seen = {c for c in set().union(*texts) if ord(c) >= kernels.N_ASCII} - self._refused
        with self._learning:
            for character in sorted(seen):
                if self.entry[ord(character)] == kernels.UNKNOWN:
                    self._learn(character)
        return bool(seen)

    @property
    def tables(self) -> tuple[NDArray[Any], ...]:
        """As the kernel takes them. What another thread learns meanwhile lies past the end of ``spelled``."""
        spelled = np.frombuffer(bytes(self._spelled) or b"\0", np.uint8)
        return self.ascii_kind, self.ascii_byte, self.entry, spelled

    def _learn(self, character: str) -> None:
        becomes = self.backend.normalizer.normalize_str(character)
        # Marks that keep a combining class may change places with their neighbours: not char-local. And a
        # character must not become more words than it has bytes, which is the room its text gets.
        if any(unicodedata.combining(c) for c in becomes) or len(becomes) > len(character.encode()):
            self._refused.add(character)
            return
        place = len(self._spelled)
        self._spelled.append(len(becomes))
        for c in becomes:
            spelling = c.encode()
            self._spelled += bytes([self._kind(c), len(spelling)]) + spelling
        self.entry[ord(character)] = place  # last: other threads read it

    def _kind(self, c: str) -> int:
        """Whether the splitter takes a normalised character for a letter, a gap or a word of its own."""
        if c not in self._kinds:
            n_words = len(self.backend.pre_tokenizer.pre_tokenize_str(f"a{c}a"))
            self._kinds[c] = {1: kernels.LETTER, 2: kernels.SPACE, 3: kernels.SIGN}[n_words]
        return self._kinds[c]


class WordPiece:
    """Token ids of texts by the compiled kernel; ``off_because`` says why not, where it may not be used."""

    def __init__(self, encode: Encode, encode_special: Encode, backend: Any, max_length: int) -> None:
        """Around a tokenizer: ``encode`` (no special tokens, no cut), ``encode_special`` (as it must be)."""
        self._full = encode_special
        self.off_because = refusal(backend)
        frame = None if self.off_because else frame_of(encode, encode_special)
        if frame is None:
            self.off_because = self.off_because or "special tokens are not a fixed frame around a text"
            return
        model = json.loads(backend.to_str())["model"]
        try:
            self._characters = Characters(backend)
            self._vocabulary = _vocabulary(model["vocab"])
        except ValueError as error:
            self.off_because = str(error)
            return
        self._added = [token.content for token in backend.get_added_tokens_decoder().values()]
        prefix, suffix = (np.frombuffer(ids, np.int32) for ids in frame)
        self._n_frame = len(prefix) + len(suffix)
        room = max(0, max_length - self._n_frame)
        unknown, longest = int(model["vocab"][model["unk_token"]]), int(model["max_input_chars_per_word"])
        self._rules = (prefix, suffix, room, unknown, longest)
        self.verify(HARD_CASES)

    def verify(self, texts: Sequence[str]) -> bool:
        """Compare with the tokenizer on ``texts``; one difference switches the kernel off for good."""
        if not self.off_because and (text := first_difference(self, self._full, texts)) is not None:
            self.off_because = f"its ids differ from the tokenizer's on {text[:40]!r}"
            log.warning("the compiled tokenizer is off: %s", self.off_because)
        return not self.off_because

    def __call__(self, texts: Sequence[str]) -> TokenRows:
        """Ids of each text, special tokens included, cut at the maximum length."""
        ids, ends = self._run(texts)
        failed = np.flatnonzero(ends < 0).tolist()
        if failed and self._characters.learn([texts[i] for i in failed]):
            ids, ends = self._run(texts)
            failed = np.flatnonzero(ends < 0).tolist()
        odd = set(failed) | self._holding_added(texts)
        filled = np.maximum.accumulate(np.concatenate([[0], ends]))
        return TokenRows(ids, filled) if not odd else self._with(TokenRows(ids, filled), texts, sorted(odd))

    def _run(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        whole = "".join(texts)
        data = np.frombuffer(whole.encode() or b"\0", np.uint8)
        each = map(len, texts) if whole.isascii() else (len(text.encode()) for text in texts)
        lengths = np.fromiter(each, np.int64, len(texts))
        room = min(self._rules[2], int(lengths.max(initial=0)))
        out = np.empty(int(np.minimum(lengths, room).sum()) + self._n_frame * len(texts), np.int32)
        ends = np.empty(len(texts), np.int64)
        starts = np.cumsum(lengths) - lengths
        tables = self._characters.tables
        kernels.encode(data, starts, lengths, tables, self._vocabulary, self._rules, out, ends)
        return out[: int(ends.max(initial=0))].copy(), ends

    def _holding_added(self, texts: Sequence[str]) -> set[int]:
        """Texts in which an added token such as [SEP] stands: the tokenizer cuts it out before all else."""
        whole = "\n".join(texts)
        present = [token for token in self._added if token in whole]
        return (
            {i for i, text in enumerate(texts) if any(token in text for token in present)}
            if present
            else set()
        )

    def _with(self, rows: TokenRows, texts: Sequence[str], odd: list[int]) -> TokenRows:
        """The rows with those of ``odd`` as the tokenizer gives them."""
        given = self._full([texts[i] for i in odd])
        lengths = np.concatenate([rows.lengths, np.fromiter(map(len, given), np.int64, len(given))])
        ids = np.concatenate([rows.ids, *(np.asarray(row, np.int32) for row in given)])
        order = np.arange(len(texts))
        order[odd] = len(texts) + np.arange(len(odd))
        return TokenRows(ids, np.concatenate([[0], np.cumsum(lengths)])).take(order)


def _vocabulary(vocabulary: dict[str, int]) -> tuple[NDArray[Any], ...]:
    """The kernel's tables of a WordPiece vocabulary, half the slots empty.

    Raises:
        ValueError: it is larger than a slot can say.
    """
    inner = np.array([piece.startswith("##") for piece in vocabulary])
    spelled = [piece.removeprefix("##").encode() for piece in vocabulary]
    lengths = np.fromiter(map(len, spelled), np.int64, len(spelled))
    ids = np.fromiter(vocabulary.values(), np.int64, len(vocabulary))
    too_large = ids.max() >= kernels.MOST_PIECES or lengths.sum() >= kernels.MOST_BYTES
    if too_large or lengths.max() > kernels.LONGEST_PIECE:
        raise ValueError("the vocabulary is too large for the compiled tokenizer")
    slots = np.zeros((1 << (2 * len(spelled)).bit_length(), 2), np.int64)
    slots[:, 1] = -1
    maybe = np.zeros(_FILTER, np.uint8)
    pieces = np.frombuffer(b"".join(spelled), np.uint8)
    kernels.fill(pieces, np.cumsum(lengths), inner, ids, slots, maybe)
    return slots, maybe, pieces
