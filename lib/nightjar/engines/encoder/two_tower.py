"""A model with a text and an image tower in one space (CLIP, SigLIP): item texts, with or without a picture.

The vector of an illustrated text is text_weight · text + image_weight · image, both of unit length first, and
unit length again; a text without a picture, or with one that cannot be used, has its text's vector. Features
are transformers' get_text_features and get_image_features on batches of a bounded number of tokens.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nightjar.engines.encoder.backbone import load_model
from nightjar.engines.encoder.images import Bounds, ImageReader, Pixels, to_pixel_values
from nightjar.engines.encoder.model_dir import ModelLayout, TwoTowers, model_fingerprint
from nightjar.engines.encoder.peak import measured_peak
from nightjar.engines.encoder.pooling import finish
from nightjar.engines.encoder.runner import is_out_of_memory, keep_freed_memory
from nightjar.engines.encoder.spec import EncoderSpec, EncodeStats, Illustrated
from nightjar.engines.encoder.tokens import Tokenizer
from nightjar.errors import ConfigError, StageError

log = logging.getLogger(__name__)

MOST_IMAGES = 512
"""Pictures of one batch: 300 MB of floats at 224 x 224."""

Vectors = NDArray[np.float32]


class TwoTower:
    """A loaded two-tower model on one device. Not safe for use from several threads at once."""

    def __init__(self, spec: EncoderSpec, layout: ModelLayout) -> None:
        """Load tokenizer and weights; use ``load_encoder``."""
        if layout.towers is None:
            raise ConfigError(f"{spec.model} has no image tower")
        self.spec, self.layout = spec, layout
        self._towers: TwoTowers = layout.towers
        self.fingerprint = model_fingerprint(spec)
        self.last_stats = EncodeStats()
        self.bad_images: Mapping[int, str] = {}
        self._device = torch.device(spec.device)
        bounds = Bounds(spec.max_image_bytes, spec.max_image_pixels)
        self._read = ImageReader(layout.towers.steps, bounds, spec.threads)
        self._tokenizer = Tokenizer(layout, spec.threads)
        if spec.device == "cpu":
            torch.set_num_threads(spec.threads)
            keep_freed_memory()
        self._model: Any = load_model(layout, spec.precision, self._device)
        self._dtype = next(self._model.parameters()).dtype
        self._cost = {name: _Cost.of(self._model, name) for name in ("text", "vision")}
        with torch.inference_mode():
            full = self._dim = int(self._texts([self._tokenizer(["a"]).ids]).shape[1])
        if layout.dims is not None and full < layout.dims:
            raise ConfigError(f"encoder dims {layout.dims} is more than the {full} values of {spec.model}")

    @property
    def dim(self) -> int:
        """Values in a vector."""
        return self._dim

    @property
    def description(self) -> dict[str, Any]:
        """What encoded, for a manifest."""
        return {
            "model": self.spec.model,
            "revision": self.layout.revision,
            "fingerprint": self.fingerprint,
            "architecture": type(self._model).__name__,
            "prompt": self.layout.prompt,
            "max_length": self.layout.max_length,
            "dim": self._dim,
            "normalize": self.spec.normalize,
            "precision": self.spec.precision,
            "ran_in": self.spec.precision,
            "text_weight": self.spec.text_weight,
            "image_weight": self.spec.image_weight,
            "packed": False,
        }

    @functools.cached_property
    def peak_flops(self) -> float:
        """Operations a second of a bare matrix product here, measured at the first use."""
        with torch.inference_mode():
            return measured_peak(self._device, self.spec.precision)

    def encode(self, texts: Sequence[str | Illustrated]) -> Vectors:
        """Vectors (n, dim) float32, row i for text i; equal texts and pictures are encoded once.

        `bad_images` then tells of which places the picture was not used, and why. Raises StageError where a
        single text or picture does not fit in memory, OSError where storage fails.
        """
        started, meter = time.perf_counter(), _Meter()
        words = [one.text if isinstance(one, Illustrated) else one for one in texts]
        shown = {place: one.image for place, one in enumerate(texts) if isinstance(one, Illustrated)}
        with torch.inference_mode():
            vectors = self._encoded(words, self._text_batches, meter)
            images, bad = self._pictures(list(shown.values()), meter)
        places = np.array([place for place, image in shown.items() if image not in bad], np.int64)
        self.bad_images = {place: bad[image] for place, image in shown.items() if image in bad}
        if len(places):
            joined = self.spec.text_weight * _unit(vectors[places])
            joined += self.spec.image_weight * _unit(images[np.isin(list(shown), places)])
            vectors[places] = _unit(joined) if self.spec.normalize else joined
        self.last_stats = meter.stats(len(texts), len(set(texts)), time.perf_counter() - started)
        return vectors

    def encode_images(self, images: Sequence[str]) -> tuple[Vectors, Mapping[int, str]]:
        """The image tower alone: vectors (n, dim), 0 for a bad one, and place -> why it is bad."""
        with torch.inference_mode():
            vectors, bad = self._pictures(images, _Meter())
        return vectors, {place: bad[image] for place, image in enumerate(images) if image in bad}

    def _encoded(self, texts: Sequence[str], batches: Callable[..., Any], meter: _Meter) -> Vectors:
        distinct = list(dict.fromkeys(texts))
        out = np.zeros((len(distinct), self._dim), np.float32)
        for places, vectors in batches(distinct, meter):
            out[places] = vectors
        at = {text: place for place, text in enumerate(distinct)}
        return out[[at[text] for text in texts]] if texts else out

    def _text_batches(self, texts: Sequence[str], meter: _Meter) -> Iterator[tuple[Any, Vectors]]:
        """Texts sorted by length, as many as the budget holds when padded."""
        before = time.perf_counter()
        rows = self._tokenizer(texts)
        meter.tokenizing += time.perf_counter() - before
        lengths, order, start = rows.lengths, np.argsort(-rows.lengths, kind="stable"), 0
        while start < len(order):
            width = self._towers.pad_to or max(1, int(lengths[order[start]]))
            places = order[start : start + max(1, self.spec.budget // width)]
            tokens = [rows.ids[rows.offsets[place] : rows.offsets[place + 1]] for place in places]
            yield places, self._within_memory(tokens, self._texts)
            meter.add(self._cost["text"], np.full(len(places), width, np.float64))
            start += len(places)

    def _texts(self, tokens: Sequence[NDArray[np.int32]]) -> Tensor:
        """Features (n, dim) of token ids, padded on the right."""
        width = self._towers.pad_to or max(1, *(len(ids) for ids in tokens))
        ids = np.full((len(tokens), width), self._tokenizer.hf.pad_token_id or 0, np.int64)
        mask = np.arange(width) < np.array([len(one) for one in tokens])[:, None]
        ids[mask] = np.concatenate(tokens)
        given = torch.from_numpy(ids).to(self._device)
        # SigLIP was trained without a mask: its padding is seen.
        seen = None if self._towers.pad_to else torch.from_numpy(mask.astype(np.int64)).to(self._device)
        return self._features(self._model.get_text_features(input_ids=given, attention_mask=seen))

    def _pictures(self, images: Sequence[str], meter: _Meter) -> tuple[Vectors, dict[str, str]]:
        """Vectors of pictures (n, dim), 0 for a bad one, and image -> why it is bad."""
        bad: dict[str, str] = {}

        def batches(distinct: Sequence[str], meter: _Meter) -> Iterator[tuple[Any, Vectors]]:
            for start, found in self._read_ahead(distinct):
                good = [place for place, one in enumerate(found) if not isinstance(one, str)]
                bad.update({distinct[start + p]: one for p, one in enumerate(found) if isinstance(one, str)})
                if good:
                    pixels = [found[place] for place in good]
                    yield np.array(good) + start, self._within_memory(pixels, self._images)
                    meter.add(self._cost["vision"], np.full(len(good), float(self._towers.n_image_tokens)))

        return self._encoded(images, batches, meter), bad

    def _read_ahead(self, images: Sequence[str]) -> Iterator[tuple[int, list[Pixels | str]]]:
        """Batches of decoded pictures; beside a GPU the next one is read while this one runs."""
        size = min(MOST_IMAGES, max(1, self.spec.budget // self._towers.n_image_tokens))
        starts = range(0, len(images), size)
        if not self.spec.on_gpu:
            yield from ((at, self._read(images[at : at + size])) for at in starts)
            return
        with ThreadPoolExecutor(max_workers=1) as ahead:
            following: Future[list[Pixels | str]] | None = None
            for at in starts:
                found = following.result() if following else self._read(images[at : at + size])
                more = at + size < len(images)
                following = ahead.submit(self._read, images[at + size : at + 2 * size]) if more else None
                yield at, found

    def _images(self, pixels: Sequence[Pixels]) -> Tensor:
        values = to_pixel_values(pixels, self._towers.steps, self._device).to(self._dtype)
        return self._features(self._model.get_image_features(pixel_values=values))

    def _features(self, out: Any) -> Tensor:
        features: Tensor = out if isinstance(out, Tensor) else out.pooler_output
        return finish(features.float(), self.layout.dims, normalize=self.spec.normalize)

    def _within_memory(self, inputs: Sequence[Any], run: Callable[[Sequence[Any]], Tensor]) -> Vectors:
        """The vectors of a batch, in halves where memory asks for it."""
        try:
            vectors: Vectors = run(inputs).cpu().numpy()
            return vectors
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(inputs) == 1:
                raise StageError(
                    f"one text or picture does not fit in the memory of {self._device}: use a larger device"
                ) from None
        # Out of the except block: its traceback holds the tensors of the failed batch.
        log.warning("out of memory on %d inputs: in halves", len(inputs))
        if self.spec.on_gpu:
            torch.cuda.empty_cache()
        middle = len(inputs) // 2
        halves = (self._within_memory(part, run) for part in (inputs[:middle], inputs[middle:]))
        return np.concatenate(list(halves))


@dataclass(frozen=True)
class _Cost:
    """Operations of a tower: two a weight and token, and four a layer, width and pair of tokens."""

    n_weights: int
    n_layers: int
    width: int

    @classmethod
    def of(cls, model: Any, name: str) -> _Cost:
        tower, config = getattr(model, f"{name}_model"), getattr(model.config, f"{name}_config")
        linear = [m for m in tower.modules() if isinstance(m, torch.nn.Linear)]
        weights = sum(m.weight.numel() for m in linear)
        return cls(weights, int(config.num_hidden_layers), int(config.hidden_size))


@dataclass
class _Meter:
    """What a call cost."""

    n_tokens: int = 0
    n_batches: int = 0
    flops: float = 0.0
    tokenizing: float = field(default=0.0)

    def add(self, cost: _Cost, lengths: NDArray[np.float64]) -> None:
        self.n_batches += 1
        self.n_tokens += int(lengths.sum())
        self.flops += float(2 * cost.n_weights * lengths.sum())
        self.flops += float(4 * cost.n_layers * cost.width * np.square(lengths).sum())

    def stats(self, n_texts: int, n_distinct: int, seconds: float) -> EncodeStats:
        forward = max(0.0, seconds - self.tokenizing)
        return EncodeStats(
            n_texts, n_distinct, self.n_tokens, self.n_batches, self.flops, self.tokenizing, forward
        )


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = F.normalize(torch.from_numpy(vectors), dim=-1).numpy()
    return unit
