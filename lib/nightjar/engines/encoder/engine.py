"""The encoder itself: texts in, vectors out, in the order they came."""

from __future__ import annotations

import functools
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nightjar.engines.encoder.attention import to_device
from nightjar.engines.encoder.backbone import load_model
from nightjar.engines.encoder.model_dir import ModelLayout, model_fingerprint, read_layout
from nightjar.engines.encoder.packing import PackedBatch, TokenRows
from nightjar.engines.encoder.peak import measured_peak
from nightjar.engines.encoder.pooling import Head, Pooler, finish, load_head
from nightjar.engines.encoder.runner import Runner, keep_freed_memory
from nightjar.engines.encoder.selection import choose
from nightjar.engines.encoder.spec import EncoderSpec, EncodeStats, TextEncoder
from nightjar.engines.encoder.tokens import Tokenizer
from nightjar.engines.encoder.two_tower import TwoTower
from nightjar.errors import ConfigError, InputError

# Texts sorted by token count together. 32,768 titles give batches whose lengths differ by a token or two;
# their tokens take about 4 MB.
WINDOW = 32768


class Encoder:
    """A loaded model on one device. Not safe for use from several threads at once."""

    def __init__(self, spec: EncoderSpec, layout: ModelLayout) -> None:
        """Load tokenizer and weights and check the model against itself; use ``load_encoder``."""
        self.spec = spec
        self.layout = layout
        self.fingerprint = model_fingerprint(spec)
        self.last_stats = EncodeStats()
        self.bad_images: dict[int, str] = {}  # a model for texts alone is given none
        self._device = torch.device(spec.device)
        self._tokenizer = Tokenizer(layout, spec.threads)
        with torch.inference_mode():
            self._load()

    @property
    def dim(self) -> int:
        """Values in a vector."""
        return self._dim

    @property
    def description(self) -> dict[str, Any]:
        """What encoded, for a manifest: model, revision, pooling, prompt, lengths, precision, packing."""
        return {
            "model": self.spec.model,
            "revision": self.layout.revision,
            "fingerprint": self.fingerprint,
            "architecture": self._architecture,
            "pooling": "+".join(self.layout.pooling),
            "prompt": self.layout.prompt,
            "max_length": self.layout.max_length,
            "dim": self._dim,
            "normalize": self.spec.normalize,
            "precision": self.spec.precision,
            "ran_in": self._choice.precision,
            "path": self._choice.path,
            "packed": self._choice.backbone.packed,
            "passed_over": self._choice.passed_over,
            "tokenized_by": self._tokenizer.way,
            "word_table_off": self._tokenizer.table_is_off_because,
        }

    @functools.cached_property
    def peak_flops(self) -> float:
        """Operations a second of a bare matrix product here, measured at the first use."""
        with torch.inference_mode():
            return measured_peak(self._device, self._choice.precision)

    def flops_per_token(self, length: float) -> float:
        """Operations a token of a text of ``length`` tokens costs: two a weight, and the attention."""
        attended = length / 2 if self._causal else length
        return float(2 * self._n_weights + 4 * self._n_layers * self._attention_width * attended)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (n, dim) float32 of ``texts``, row i for text i; equal texts are encoded once.

        The same list gives the same bytes on the same machine. A text without a token gives a zero vector.

        Raises:
            InputError: an entry is not a string.
            StageError: a single text does not fit in memory.
        """
        started = time.perf_counter()
        distinct, inverse = _distinct(texts)
        vectors = np.empty((len(distinct), self._dim), np.float32)
        n_tokens, flops, tokenizing, n_batches = 0, 0.0, 0.0, self._runner.n_batches
        under_way: list[tuple[int, int, Callable[[], NDArray[np.float32]]]] = []

        def finish_windows(but: int) -> None:
            """Takes the vectors of all windows but the last few, which the device is still at."""
            while len(under_way) > but:
                at, n, wait = under_way.pop(0)
                vectors[at : at + n] = wait()

        for at, rows, seconds in self._tokenized(distinct):
            with torch.inference_mode():
                under_way.append((at, len(rows), self._runner.start(rows, self._dim)))
            finish_windows(1)
            lengths = rows.lengths
            n_tokens += int(lengths.sum())
            flops += self._flops(lengths)
            tokenizing += seconds
        finish_windows(0)
        self.last_stats = EncodeStats(
            n_texts=len(texts),
            n_distinct=len(distinct),
            n_tokens=n_tokens,
            n_batches=self._runner.n_batches - n_batches,
            flops=flops,
            tokenize_seconds=tokenizing,
            forward_seconds=max(
                0.0, time.perf_counter() - started - (0.0 if self.spec.on_gpu else tokenizing)
            ),
        )
        return vectors if len(distinct) == len(texts) else vectors[inverse]

    def _tokenized(self, texts: list[str]) -> Iterator[tuple[int, TokenRows, float]]:
        """Windows of texts as (first text, rows, seconds of tokenising).

        Beside a GPU the next windows are tokenised while this one runs, on as many threads as there are
        cores where the compiled tokenizer does it, which needs no lock; a CPU actor has one core for both.
        """

        def tokenize(at: int) -> tuple[int, TokenRows, float]:
            before = time.perf_counter()
            rows = self._tokenizer(texts[at : at + WINDOW])
            return at, rows, time.perf_counter() - before

        starts = iter(range(0, len(texts), WINDOW))
        if not self.spec.on_gpu:
            yield from map(tokenize, starts)
            return
        yield from map(tokenize, itertools.islice(starts, 1))  # before the others: it may change the way
        n_threads = self.spec.threads if self._tokenizer.way == "WordPiece" else 1
        with ThreadPoolExecutor(n_threads) as pool:
            ahead = deque(pool.submit(tokenize, at) for at in itertools.islice(starts, n_threads))
            while ahead:
                window = ahead.popleft().result()
                ahead.extend(pool.submit(tokenize, at) for at in itertools.islice(starts, 1))
                yield window

    def _forward(self, batch: PackedBatch) -> torch.Tensor:
        hidden = self._choice.backbone(batch)
        lengths = to_device(torch.from_numpy(batch.lengths), self._device)
        vectors = self._head(self._pool(hidden, lengths))
        return finish(vectors, self.layout.dims, normalize=self.spec.normalize)

    def _load(self) -> None:
        spec, layout = self.spec, self.layout
        if spec.device == "cpu":
            torch.set_num_threads(spec.threads)
            keep_freed_memory()
        model = load_model(layout, spec.precision, self._device)
        self._architecture = type(model).__name__
        self._measure(model)
        pad_id = self._tokenizer.hf.pad_token_id or 0
        self._choice = choose(model, layout.max_length, pad_id, spec.precision)
        n_prompt = 0 if layout.include_prompt else self._tokenizer.n_prompt_tokens
        self._pool = Pooler(layout.pooling, n_prompt)
        self._head: Head = load_head(layout, self._device)
        padded = not self._choice.backbone.packed
        self._runner = Runner(self._forward, spec.budget, self._device, padded=padded)
        one = PackedBatch(np.array([5], np.int32), np.array([1]), np.array([0]))
        full = self._dim = int(self._forward(one).shape[1])
        if layout.dims is not None and full < layout.dims:
            raise ConfigError(f"encoder dims {layout.dims} is more than the {full} values of {spec.model}")

    def _measure(self, model: Any) -> None:
        config: Any = model.config
        config = config.get_text_config()
        linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
        self._n_weights = sum(m.weight.numel() for m in linear)
        self._n_layers = int(config.num_hidden_layers)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._attention_width = int(head_dim * config.num_attention_heads)
        self._causal = any(getattr(m, "is_causal", False) for m in model.modules())

    def _flops(self, lengths: NDArray[np.int64]) -> float:
        per_weight, per_length = self.flops_per_token(0), self.flops_per_token(1) - self.flops_per_token(0)
        return float(per_weight * lengths.sum() + per_length * np.square(lengths.astype(np.float64)).sum())


def load_encoder(spec: EncoderSpec) -> TextEncoder:
    """Load the model of ``spec`` from local files: one for texts, or one for texts and pictures.

    Raises:
        ConfigError: the model is not here, is incomplete, or is one this engine cannot reproduce.
    """
    layout = read_layout(spec)
    return Encoder(spec, layout) if layout.towers is None else TwoTower(spec, layout)


def _distinct(texts: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct texts in order of first appearance, and for each text the number of its distinct one."""
    seen: dict[str, int] = {}
    inverse = np.empty(len(texts), np.int64)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                f"text {i} to encode is {type(text).__name__}, not a string: give '' where it is missing"
            )
        inverse[i] = seen.setdefault(text, len(seen))
    return list(seen), inverse
