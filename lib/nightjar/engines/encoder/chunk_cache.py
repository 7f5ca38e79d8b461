"""Tokenise each word once: whitespace-separated chunks looked up in a table of token ids.

A catalogue repeats its words, and a tokenizer that splits at whitespace gives a word the same ids wherever it
stands. So a text's ids are the joined ids of its chunks, and a warm table costs a dict look-up a word. Two
rules:

* BERT's pre-tokenizer splits at any run of whitespace; one table serves.
* Others (byte-level BPE, SentencePiece) mark a leading space: texts of single spaces only, one table for the
first
  chunk and one for the others; any other text goes to the tokenizer itself.

Neither is assumed: the table is used only after it gave the tokenizer's own ids on a set of hard cases and on
the first texts of the data, and is switched off otherwise.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from nightjar.engines.encoder.packing import TokenRows

log = logging.getLogger(__name__)

Encode = Callable[[Sequence[str]], list[list[int]]]

# About 200 bytes an entry, so 60 MB; a table that is full starts again. Longer chunks are rarely seen twice.
_MOST_CHUNKS = 300_000
_LONGEST_CHUNK = 64
# Texts looked at together: small, so that words met in one lot are known in the next.
_LOT = 1024
# Separators for Python that BERT deletes as control characters, which joins the words beside them.
_JOINERS = "\x0b\x0c\x1c\x1d\x1e\x1f\x85"
_ANCHOR = "a"
# Unknown chunks tokenised as one text.
_FENCED = 8
# What BERT makes of an ASCII chunk before it looks into its vocabulary: runs of letters and digits, single
# signs.
_PARTS = re.compile("[A-Za-z0-9]+|[^A-Za-z0-9]")

HARD_CASES = [
    "",
    " ",
    "  two  spaces ",
    "a",
    "word",
    "Ünïcode ÀÉÎ naïve café",
    "don't can't it's o'clock 'quoted' \"x\"",
    "state-of-the-art e-mail@example.com http://a.b/c?d=1&e=2 #tag @user",
    "3.14 1,000 50% £9.99 $5 ½ 10th №5",
    "東京タワー 中文字符 한국어 日本 語",
    "ελληνικά עברית العربية हिन्दी ไทย",
    "🎉 👩‍👩‍👧 emoji🙂joined",
    "ﬁne ① Ⅳ ™ ®",
    "[SEP] [CLS] [MASK] <s> </s> <pad> <unk> <|endoftext|> [PAD]x x[UNK]",
    "tab\tnew\nline\r\ncarriage",
    "nbsp\u00a0thin\u2009ideographic\u3000space zero\u200bwidth soft\u00adhyphen",
    "\u0301combining e\u0301 a\u0308",
    "x" * 300,
    "word " * 60,
    "A B C D",
    "ALL CAPS Title Case camelCase snake_case",
    "(brackets) [square] {curly}",
    "\ufeffbom \u202eright-to-left",
    "a\u2028b\u2029c",
    "ve\x0brtical\x1ftab \x85 next \x00null \x7fdelete",
    "...!!! ?? -- — –",
    "_ __ ▁ ▁a Ġ",
]


class ChunkCache:
    """Token ids of texts by table look-up, or None where the tokenizer's rules do not allow it."""

    def __init__(self, encode: Encode, encode_special: Encode, backend: Any, max_length: int) -> None:
        """Around a tokenizer: ``encode`` (no special tokens, no cut), ``encode_special`` (as it must be)."""
        self._encode = encode
        self._full = encode_special
        self._splits_anywhere = _is_bert(backend)
        self._first: dict[str, bytes] = {}
        self._rest: dict[str, bytes] = self._first if self._splits_anywhere else {}
        self._anchor = encode([_ANCHOR])[0]
        self.off_because = ""
        self._added = [token.content for token in backend.get_added_tokens_decoder().values()]
        self._holds_added = re.compile("|".join(map(re.escape, self._added)) or "(?!)").search
        self._lowers = self._splits_anywhere and _lowers(backend)
        self._fence = _fence(backend) if self._splits_anywhere else None
        frame = frame_of(encode, encode_special)
        self._prefix, self._suffix = frame or (b"", b"")
        self._room = 4 * max_length - len(self._prefix) - len(self._suffix)
        if frame is None:
            self.off_because = "special tokens are not a fixed frame around a text"
        elif any(" " in token for token in self._added):
            self.off_because = "an added token contains a space"
        else:
            self.verify(HARD_CASES)

    def verify(self, texts: Sequence[str]) -> bool:
        """Compare with the tokenizer on ``texts``; one difference switches the table off for good."""
        if not self.off_because and (text := first_difference(self, self._full, texts)) is not None:
            self.off_because = f"its ids differ from the tokenizer's on {text[:40]!r}"
            log.warning("the chunk cache is off: %s", self.off_because)
        return not self.off_because

    def __call__(self, texts: Sequence[str]) -> TokenRows:
        """Ids of each text, special tokens included, cut at the maximum length."""
        rows: list[bytes] = []
        for at in range(0, len(texts), _LOT):
            rows.extend(self._lot(texts[at : at + _LOT]))
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=offsets[1:])
        frame = len(self._prefix) + len(self._suffix)
        offsets = (offsets + frame * np.arange(len(offsets))) // 4
        data = self._prefix + (self._suffix + self._prefix).join(rows) + self._suffix if rows else b""
        return TokenRows(np.frombuffer(data, np.int32), offsets)

    def _lot(self, texts: Sequence[str]) -> list[bytes]:
        """Ids of some texts without their special tokens."""
        if len(self._first) + len(self._rest) > _MOST_CHUNKS:
            self._first.clear()
            self._rest.clear()
        whole = "\n".join(texts)
        odd: set[int] = set()
        if any(joiner in whole for joiner in _JOINERS):  # one scan of the lot in the usual case of none
            odd.update(i for i, text in enumerate(texts) if any(joiner in text for joiner in _JOINERS))
        out, waiting = self._look_up(texts, odd)
        odd.update(i for i, words in waiting.items() if max(map(len, words)) > _LONGEST_CHUNK)
        again = {i: words for i, words in waiting.items() if i not in odd}
        self._learn(list(again.values()))
        first, rest = self._first.__getitem__, self._rest.__getitem__
        for i, words in again.items():
            out[i] = b"".join((first(words[0]), *map(rest, words[1:])))
        others = sorted(odd)
        for i, ids in zip(others, self._full([texts[i] for i in others]), strict=True):
            data = np.asarray(ids, np.int32).tobytes()
            out[i] = data[len(self._prefix) : len(data) - len(self._suffix)]
        room = self._room
        return [data if len(data) <= room else data[:room] for data in out]

    def _look_up(self, texts: Sequence[str], odd: set[int]) -> tuple[list[bytes], dict[int, list[str]]]:
        """Ids of the texts whose chunks are all known (b"" for the others), and chunks of those that wait.

        A text that the rules do not cover is added to ``odd``; those in it wait for nothing.
        """
        out: list[bytes] = []
        waiting: dict[int, list[str]] = {}
        first, rest, join = self._first.__getitem__, self._rest.__getitem__, b"".join
        anywhere = self._splits_anywhere
        for i, text in enumerate(texts):
            words, data = text.split(), b""
            try:
                if anywhere:
                    data = join(map(first, words))
                elif " ".join(words) != text:
                    odd.add(i)
                elif words:
                    data = first(words[0]) + join(map(rest, words[1:]))
            except KeyError:
                if i not in odd:
                    waiting[i] = words
            out.append(data)
        return out, waiting

    def _learn(self, texts: list[list[str]]) -> None:
        """Tokenise the chunks of some texts that no table holds yet."""
        if self._splits_anywhere:
            self._learn_by_parts(itertools.chain.from_iterable(texts))
        else:
            self._keep(self._first, "", (words[0] for words in texts))
            self._keep(self._rest, _ANCHOR + " ", (word for words in texts for word in words[1:]))

    def _learn_by_parts(self, words: Iterable[str]) -> None:
        """Learn chunks from their parts where they are plain ASCII: in lower case most are known already."""
        table, lower = self._first, self._lowers
        new = list(dict.fromkeys(word for word in words if word not in table))
        split: dict[str, list[str]] = {}
        for word in new:
            if word.isascii() and word.isprintable() and not self._holds_added(word):
                plain = word.lower() if lower else word
                split[word] = [plain] if plain.isalnum() else _PARTS.findall(plain)
        self._keep(table, "", (word for word in new if word not in split))
        self._keep(table, "", itertools.chain.from_iterable(split.values()))
        for word, parts in split.items():
            table[word] = b"".join(map(table.__getitem__, parts))

    def _keep(self, table: dict[str, bytes], before: str, words: Iterable[str]) -> None:
        new = list(dict.fromkeys(word for word in words if word not in table))
        if not before and self._fence is not None:
            for at in range(0, len(new), _FENCED):
                self._keep_fenced(table, new[at : at + _FENCED], *self._fence)
            return
        skip = len(self._anchor) if before else 0
        for word, ids in zip(new, self._encode([before + word for word in new]), strict=True):
            table[word] = np.asarray(ids[skip:], np.int32).tobytes()

    def _keep_fenced(self, table: dict[str, bytes], words: list[str], fence: str, fence_id: int) -> None:
        """Tokenise chunks as one text with a special token between them: alone they cost twice as much."""
        ids = np.asarray(self._encode([f" {fence} ".join(words)])[0], np.int32)
        ends = np.flatnonzero(ids == fence_id).tolist()
        if len(ends) != len(words) - 1:  # a chunk holds the fence itself
            for word, alone in zip(words, self._encode(words), strict=True):
                table[word] = np.asarray(alone, np.int32).tobytes()
            return
        data = ids.tobytes()
        start = 0
        for word, end in zip(words, [*ends, len(ids)], strict=True):
            table[word] = data[4 * start : 4 * end]
            start = end + 1


def frame_of(encode: Encode, encode_special: Encode) -> tuple[bytes, bytes] | None:
    """Special tokens before and after a text, as int32 bytes; None where they are not simply around it."""
    anchor, whole = encode([_ANCHOR])[0], encode_special([_ANCHOR])[0]
    for at in range(len(whole) - len(anchor) + 1):
        if whole[at : at + len(anchor)] == anchor:
            after = whole[at + len(anchor) :]
            return np.asarray(whole[:at], np.int32).tobytes(), np.asarray(after, np.int32).tobytes()
    return None


def first_difference(
    table: Callable[[Sequence[str]], TokenRows], full: Encode, texts: Sequence[str]
) -> str | None:
    """The first text on which a table gives other ids than the tokenizer, or None."""
    rows = table(texts)
    for i, (text, ids) in enumerate(zip(texts, full(texts), strict=True)):
        if ids != rows.ids[rows.offsets[i] : rows.offsets[i + 1]].tolist():
            return text
    return None


def _fence(backend: Any) -> tuple[str, int] | None:
    """A special token that is cut out of any text as it stands, and its id."""
    for number, token in backend.get_added_tokens_decoder().items():
        if token.special and not (token.normalized or token.single_word or token.lstrip or token.rstrip):
            return token.content, int(number)
    return None


def _lowers(backend: Any) -> bool:
    """Whether BERT's normalizer is told to lower-case."""
    normalizer = json.loads(backend.to_str()).get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    return any(step.get("type") == "BertNormalizer" and step.get("lowercase") for step in steps)


def _is_bert(backend: Any) -> bool:
    """Whether the tokenizer splits at all whitespace and treats every chunk by itself: BERT's two steps."""
    saved = json.loads(backend.to_str())
    normalizer, splitter = saved.get("normalizer") or {}, saved.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    return splitter.get("type") == "BertPreTokenizer" and "BertNormalizer" in {s.get("type") for s in steps}
