"""BM25 between items: whose texts share words that few texts have. Embeddings blur names, sizes and codes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
from scipy import sparse

from nightjar.kernels.signals import BLOCK, strongest_others

WORD = re.compile(r"\w+")
K1, B = 1.2, 0.75
QUERY_WORDS = 16


def word_counts(texts: Iterable[str]) -> sparse.csr_matrix:
    """How often each word is in each text, (n_texts, n_words) float32: runs of letters, digits and _ in lower
    case, numbered as they first appear."""
    numbers: dict[str, int] = {}
    words, counts, indptr = [], [], [0]
    for text in texts:
        for word, count in Counter(WORD.findall(text.lower())).items():
            words.append(numbers.setdefault(word, len(numbers)))
            counts.append(count)
        indptr.append(len(words))
    entries = np.array(counts, np.float32), np.array(words, np.int64), np.array(indptr, np.int64)
    return sparse.csr_matrix(entries, (len(indptr) - 1, max(len(numbers), 1)))


def bm25(
    counts: sparse.csr_matrix, n_neighbours: int, most_items: int, query_words: int = QUERY_WORDS
) -> sparse.csr_matrix:
    """The relation (n_items, n_items) float32 of each item's text as a query to the texts of the others.

    S[h, i] = Σ_w tf_hw · idf_w · tf_iw (k1 + 1) / (tf_iw + k1 (1 − b + b · |i| / mean length)), with
    idf_w = ln(1 + (n − df_w + ½) / (df_w + ½)) (Robertson & Zaragoza 2009, doi:10.1561/1500000019), the
    n_neighbours strongest of a row. Asked for are a text's query_words rarest words, and none of more than
    most_items texts, which says little: so time grows with items and not with their square.
    """
    n_items, n_words = counts.shape
    df = np.bincount(counts.indices, minlength=n_words)
    idf = np.log1p((n_items - df + 0.5) / (df + 0.5))
    lengths = np.asarray(counts.sum(axis=1)).ravel()
    held_back = K1 * (1 - B + B * lengths / max(float(lengths.mean()) if n_items else 0.0, 1.0))
    text = np.repeat(np.arange(n_items), np.diff(counts.indptr))
    weight = idf[counts.indices] * counts.data * (K1 + 1) / (counts.data + held_back[text])
    by_word = sparse.csr_matrix((weight, counts.indices, counts.indptr), counts.shape).T.tocsr()
    asked = _rarest(counts, np.where((df > 1) & (df <= most_items), idf, 0.0), query_words)
    rows = []
    for start in range(0, n_items, BLOCK):
        block = (asked[start : start + BLOCK] @ by_word).tocsr()
        rows.append(strongest_others(block, start, n_neighbours))
    return sparse.vstack(rows, "csr") if rows else sparse.csr_matrix((0, 0), dtype=np.float32)


def _rarest(counts: sparse.csr_matrix, idf: np.ndarray, m: int) -> sparse.csr_matrix:
    """`counts` with the m words of largest idf above 0 of each text, ties by number."""
    value, row = idf[counts.indices], np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    order = np.lexsort((counts.indices, -value, row))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - counts.indptr[row[order]]
    kept = (place < m) & (value > 0)
    entries = counts.data[kept].astype(np.float64), (row[kept], counts.indices[kept])
    return sparse.csr_matrix(entries, counts.shape)
