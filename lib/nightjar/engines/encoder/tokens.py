"""Texts to token ids: the model's own tokenizer, given flat arrays instead of lists of lists."""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence
from transformers import AutoTokenizer

from nightjar.engines.encoder.chunk_cache import ChunkCache
from nightjar.engines.encoder.model_dir import NO_LIMIT, ModelLayout
from nightjar.engines.encoder.packing import TokenRows
from nightjar.errors import ConfigError

# Texts of the data on which the word table is compared with the tokenizer before it is used: 10 ms of work.
_CHECKED_TEXTS = 256


class Table(Protocol):
    """A faster way to the tokenizer's ids; ``off_because`` says why it may not be used."""

    off_because: str

    def __call__(self, texts: Sequence[str]) -> TokenRows:
        """Ids of each text, special tokens included, cut at the maximum length."""
        ...

    def verify(self, texts: Sequence[str]) -> bool:
        """Compare with the tokenizer on ``texts``; one difference switches it off for good."""
        ...


class Tokenizer:
    """The tokenizer of a model directory, with the prompt, lower-casing and maximum length that apply."""

    def __init__(self, layout: ModelLayout, threads: int = 1) -> None:
        """Load it from files alone.

        Raises:
            ConfigError: the files give no tokenizer, or one that gives a single text several segments
            (XLNet).
        """
        # tokenizers reads this at every call; its thread pool would compete with the actors on the other
        # cores.
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
        saved = layout.kwargs_of("processor_kwargs", "tokenizer_args")
        saved.pop("model_max_length", None)
        try:
            self.hf: Any = AutoTokenizer.from_pretrained(
                str(layout.transformer_dir), local_files_only=True, trust_remote_code=False, **saved
            )
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{layout.transformer_dir} gives no tokenizer: {error}") from error
        self.max_length = layout.max_length
        self.prompt = layout.prompt
        self.backend: Any = getattr(self.hf, "backend_tokenizer", None)
        self._tables: list[Table] = []
        self._checked = False
        self._check_segments()
        if (
            self.backend is not None
        ):  # after the check: a call of the transformers tokenizer resets truncation
            self._set_up_backend(layout.do_lower_case)
            self._tables = self._make_tables()

    @property
    def n_prompt_tokens(self) -> int:
        """Tokens of the prompt alone without a trailing special token, as its peer counts them."""
        if not self.prompt:
            return 0
        ids = self._encode([self.prompt])[0]
        return len(ids) - (len(ids) > 0 and ids[-1] in self.hf.all_special_ids)

    def __call__(self, texts: Sequence[str]) -> TokenRows:
        """Token ids of ``prompt + text`` for every text, special tokens included, cut at max_length."""
        if self.prompt:
            texts = [self.prompt + text for text in texts]
        if (table := self._checked_on(texts)) is not None:
            return table(texts)
        rows = self._encode(texts)
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        ids = np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(offsets[-1]))
        return TokenRows(ids, offsets)

    @property
    def table_is_off_because(self) -> str:
        """Why every text goes through the tokenizer itself; empty while a faster way gives its ids."""
        if not self._tables:
            return "the tokenizer is not a fast one that cuts on the right"
        return "" if self._table is not None else "; ".join(table.off_because for table in self._tables)

    @property
    def way(self) -> str:
        """How texts are tokenised: by the compiled kernel, by the table of words, or by the tokenizer."""
        return type(self._table).__name__ if self._table is not None else "tokenizer"

    @property
    def _table(self) -> Table | None:
        """The fastest way that gave the tokenizer's own ids so far."""
        return next((table for table in self._tables if not table.off_because), None)

    def _checked_on(self, texts: Sequence[str]) -> Table | None:
        """The way to use: the first that gives the tokenizer's ids on the first texts of the data too."""
        if not self._checked:
            self._checked = True
            any(table.verify(texts[:_CHECKED_TEXTS]) for table in self._tables)
        return self._table

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self._uncut.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        if self.backend is not None:
            return [
                encoding.ids
                for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=True)
            ]
        cut = (
            {"truncation": "longest_first", "max_length": self.max_length}
            if self.max_length < NO_LIMIT
            else {}
        )
        encoded: list[list[int]] = self.hf(list(texts), return_attention_mask=False, **cut)["input_ids"]
        return encoded

    def _set_up_backend(self, lower_case: bool) -> None:
        # tokenizer.json of all-MiniLM-L6-v2 itself pads to 128 and cuts at 128: both are undone here.
        self.backend.no_padding()
        self.backend.no_truncation()
        if self.max_length < NO_LIMIT:
            self.backend.enable_truncation(self.max_length, direction=self.hf.truncation_side)
        normalizer = self.backend.normalizer
        if lower_case and not _lowercases(normalizer):
            steps = [Lowercase(), *([normalizer] if normalizer is not None else [])]
            self.backend.normalizer = NormalizerSequence(steps)

    def _make_tables(self) -> list[Table]:
        """The faster ways, the fastest first; each knows whether it may be used."""
        if self.hf.truncation_side != "right":
            return []
        self._uncut = type(self.backend).from_str(self.backend.to_str())
        self._uncut.no_truncation()
        given = self._plain, self._encode, self.backend, self.max_length
        tables: list[Table] = [ChunkCache(*given)]
        if importlib.util.find_spec("numba") is not None:
            # Imported here: numba is optional and takes a second to load.
            from nightjar.engines.encoder.wordpiece import WordPiece

            tables.insert(0, WordPiece(*given))
        return tables

    def _check_segments(self) -> None:
        encoded = self.hf("a probe of two words", return_token_type_ids=True)
        if any(encoded.get("token_type_ids") or ()):
            raise ConfigError(
                "this tokenizer gives one text several segment ids (XLNet does): it cannot be packed"
            )


def _lowercases(normalizer: Any) -> bool:
    if isinstance(normalizer, NormalizerSequence):
        return any(isinstance(step, Lowercase) for step in normalizer)  # type: ignore[attr-defined]
    return isinstance(normalizer, Lowercase)
