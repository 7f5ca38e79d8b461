"""BM25 between items: its definition word by word, and what is not looked up."""

from __future__ import annotations

import numpy as np
import pytest

from nightjar.kernels.bm25 import bm25, word_counts
from tests import oracle

TEXTS = (
    "Red wool SCARF, hand-knitted",
    "Blue wool scarf scarf",
    "Red silk tie",
    "USB-C cable 2m",
    "usb c Cable 3m black",
    "",
    "…",
    "Räucherlachs wool",
)


def test_every_pair_is_its_definition() -> None:
    found = bm25(word_counts(TEXTS), len(TEXTS), len(TEXTS)).toarray()
    wanted = oracle.bm25(TEXTS)
    np.fill_diagonal(wanted, 0)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert found[0, 1] > found[0, 7] > 0  # two shared words before one
    assert not found[5:7].any() and not found[:, 5:7].any()


@pytest.mark.parametrize("seed", range(3))
def test_a_row_keeps_its_strongest_and_asks_for_its_rarest_words(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = np.array([f"w{n}" for n in range(40)])
    share = 1 / np.arange(1, 41)
    texts = [" ".join(rng.choice(words, rng.integers(1, 9), p=share / share.sum())) for _ in range(60)]
    whole = oracle.bm25(texts)
    np.fill_diagonal(whole, 0)
    best = bm25(word_counts(texts), 5, len(texts)).toarray()
    for row, mine in zip(whole, best, strict=True):
        least = np.sort(row)[-5]
        assert (np.flatnonzero(mine) == np.flatnonzero(mine * row)).all() and (mine > 0).sum() <= 5
        assert (mine[row > least * (1 + 1e-5)] > 0).all()
    # A word in more than ten texts is as if it were not in any text that asks; lengths count it still.
    having = {word: sum(word in text.split() for text in texts) for word in words}
    asked = [" ".join(word for word in text.split() if having[word] <= 10) for text in texts]
    told = bm25(word_counts(texts), len(texts), 10).toarray()
    for h, text in enumerate(asked):
        reached = [i != h and bool(set(text.split()) & set(texts[i].split())) for i in range(len(texts))]
        assert np.array_equal(told[h] > 0, reached)
    one = bm25(word_counts(texts), len(texts), len(texts), query_words=1).toarray()
    for h, text in enumerate(texts):
        rarest = min(having[word] for word in text.split() if having[word] > 1)
        assert (one[h] > 0).sum() == rarest - 1


def test_no_texts_have_no_neighbours() -> None:
    assert bm25(word_counts([]), 3, 10).shape == (0, 0)
    assert bm25(word_counts(["", ""]), 3, 10).nnz == 0
