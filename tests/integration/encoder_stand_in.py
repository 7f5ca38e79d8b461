"""An encoder without a model, for tests of what surrounds it: it notes what it gets, and some texts hurt."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nightjar.engines.encoder import EncoderSpec, EncodeStats
from nightjar.errors import ContractError

DIM = 12


def vector_of(text: str, precision: str = "fp32") -> np.ndarray:
    """The unit vector of a text."""
    seed = int.from_bytes(hashlib.sha256((precision + text).encode()).digest()[:8])
    drawn = np.random.default_rng(seed).standard_normal(DIM)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


@dataclass(frozen=True)
class StandIn:
    """Loads the encoder in an actor. What it encodes is noted under `notes`; `heals`: deadly texts hurt once;
    `seconds`: what every call takes.

    A text with DIE kills the process, RAISE raises, STOP raises on purpose, SLEEP dawdles the first time,
    NAN and ZERO give such vectors.
    """

    notes: Path
    heals: bool = False
    seconds: float = 0.0

    def __call__(self, spec: EncoderSpec) -> StandInEncoder:
        return StandInEncoder(self, spec)

    def encoded(self) -> Counter[str]:
        """How often each text came out of the encoder."""
        lines = (path.read_text().splitlines() for path in self.notes.glob("done-*"))
        return Counter(line for found in lines for line in found)

    def deaths(self) -> int:
        return len(list(self.notes.glob("death-*")))

    def once(self, name: str) -> bool:
        """True for the first who asks by this name."""
        try:
            (self.notes / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class StandInEncoder:
    def __init__(self, given: StandIn, spec: EncoderSpec) -> None:
        self.given, self.spec = given, spec
        self.dim, self.fingerprint, self.peak_flops = DIM, "stand-in", 1e6
        self.description: dict[str, Any] = {"model": "stand-in", "packed": True}
        self.last_stats = EncodeStats()
        self.bad_images: dict[int, str] = {}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        time.sleep(self.given.seconds)
        for text in texts:
            self._hurt(text)
        with (self.given.notes / f"done-{os.getpid()}").open("a") as notes:
            notes.writelines(f"{text}\n" for text in texts)
        tokens = sum(len(text.split()) for text in texts)
        self.last_stats = EncodeStats(len(texts), len(texts), tokens, 1, 100.0 * tokens, 0.001, 0.002)
        vectors = np.array([vector_of(text, self.spec.precision) for text in texts], np.float32)
        vectors = vectors.reshape(len(texts), DIM)
        vectors[["NAN" in text for text in texts], 3] = np.nan
        vectors[["ZERO" in text for text in texts]] = 0
        return vectors

    def _hurt(self, text: str) -> None:
        if "DIE" in text and (not self.given.heals or self.given.once("died")):
            (self.given.notes / f"death-{os.getpid()}").touch()
            os._exit(1)
        if "RAISE" in text and (not self.given.heals or self.given.once("raised")):
            raise RuntimeError("this text again")
        if "STOP" in text and self.given.once("stopped"):
            raise ContractError("stopped on purpose")
        if "SLEEP" in text and self.given.once("slept"):
            time.sleep(300)
