"""Texts to encode: real item titles, texts of a known spread of lengths, sentences that people wrote."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

# fmt: off
_SYLLABLES = [
    "ba", "ce", "di", "fo", "gu", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "xo", "zu",
    "bra", "cle", "dri", "flo", "gru", "sta", "tre", "plo", "qui", "sha", "the",
]
# fmt: on


def data_folder() -> Path:
    """Where real data lies: NIGHTJAR_DATA, else ../shared/data beside the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("NIGHTJAR_DATA", default))


def titles(n: int, seed: int = 0) -> list[str]:
    """n distinct item titles, shuffled: of two shops and a recipe site; generated where these are absent."""
    found: dict[str, None] = {}
    for name in ("amazon_toy", "amazon_beauty", "food_recipes"):
        path = data_folder() / name / "items.parquet"
        if path.exists():
            found.update(dict.fromkeys(str(text) for text in pq.read_table(path)["text"].to_pylist() if text))
    rng = np.random.default_rng(seed)
    if not found:
        print("no real titles (NIGHTJAR_DATA is absent): generated ones stand in")
        lengths = rng.lognormal(2.2, 0.6, n).clip(1, 60).astype(int)
        return _generated(lengths, rng)
    listed = list(found)
    return [listed[i] for i in rng.permutation(len(listed))[:n]]


def lognormal_texts(n: int, seed: int = 1) -> list[str]:
    """n texts of 5 to 250 words, log-normal (median 30), of the words of the titles, as frequent."""
    rng = np.random.default_rng(seed)
    words = np.array([word for title in titles(20000) for word in title.split()], object)
    lengths = rng.lognormal(np.log(30), 0.9, n).clip(5, 250).astype(int)
    return [" ".join(rng.choice(words, length)) for length in lengths]


def natural_texts(n: int, seed: int = 2) -> list[str]:
    """Up to n paragraphs that people wrote: docstrings of the standard library, NumPy and SciPy."""
    import numpy
    import scipy

    roots = [Path(inspect.getfile(os)).parent, *(Path(m.__path__[0]) for m in (numpy, scipy))]
    found: dict[str, None] = {}
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            if "site-packages" in path.relative_to(root).parts or "test" in path.name:
                continue
            for text in re.findall(
                r'"""(.{40,1500}?)"""', path.read_text("utf-8", errors="ignore"), re.DOTALL
            ):
                found.update(dict.fromkeys(" ".join(p.split()) for p in text.split("\n\n") if len(p) > 40))
    listed = list(found)
    return [listed[i] for i in np.random.default_rng(seed).permutation(len(listed))[:n]]


def _generated(lengths: np.ndarray, rng: np.random.Generator) -> list[str]:
    vocabulary = np.array(["".join(rng.choice(_SYLLABLES, rng.integers(1, 4))) for _ in range(8000)], object)
    frequency = 1 / np.arange(1, len(vocabulary) + 1)
    frequency /= frequency.sum()
    return [" ".join(rng.choice(vocabulary, length, p=frequency)) for length in lengths]
