"""Says why an item is recommended: which items of the user's history the score came from, to the last bit."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nightjar.errors import ConfigError, ContractError
from nightjar.kernels.ranked_lists import Csr, FloatArray, IntArray, check_csr, check_lists

# Parts of a vector are rounded to 2^-26 of its norm's power of two, so an inner product is a sum of integers
# below 2^53 (Cauchy-Schwarz), exact in float64 in whatever order a BLAS adds it. A float32 sum is coarser.
PART_BITS = 26
# Contributions are rounded to 2^-50 of their absolute sum, which leaves bits to spare: sums are exact too.
SUM_BITS = 50
# History items of one user whose vectors are held at once: 2^13 of 384 float64 are 25 MB.
SLICE = 1 << 13


Terms = Callable[[int, IntArray], FloatArray]
"""(user, ranked items) -> what each history item adds to each of them, (history, ranked) float64."""


class Reasons(NamedTuple):
    """Where the score of each recommended item came from.

    item_nums: (q, k, n) int64, history items by contribution, descending, ties by item number; -1 where the
    history is shorter or the slot empty. contributions: (q, k, n) float64, in the unit of the score, 0
    where -1. scores: (q, k) float64, the sum of the contributions of the whole history, 0 for an empty
    slot. positive: (q, k) float64, the sum of those above 0: dividing by it gives shares between 0 and 1.
    """

    item_nums: IntArray
    contributions: FloatArray
    scores: FloatArray
    positive: FloatArray


def contributions(
    history: Csr,
    weights: npt.NDArray[np.float32],
    vectors: npt.NDArray[np.floating],
    lists: npt.NDArray[np.integer],
    n: int,
) -> Reasons:
    """Splits each score u·v_i, with u the sum of w_h·v_h over the history, into its terms w_h·(v_h·v_i).

    history: CSR of q users' items, ascending. weights: (n_entries,) float32, of each entry, negative for a
    dislike. vectors: (n_items, d) floats, an array or a memmap of which a user's rows are read at a time.
    lists: (q, k) integers, -1 padding at the end. n: history items to name for each slot.

    The terms of a slot add up to its score without any rounding, in whatever order, because they lie on one
    grid (see SUM_BITS); the score is within 2^-25·sum |w_h|·|v_h|·|v_i|·sqrt(d) of the real number. It
    depends on the user's own history and list alone. Divide by |u| for the score of a normalised user
    vector.
    Raises ContractError for malformed history or lists and for a weight or vector that is not finite,
    ConfigError for n below 1.
    """
    if n < 1:
        raise ConfigError(f"at least one history item must be named, not {n}")
    lists = check_lists(lists, len(vectors))
    indptr, items = check_csr(history, len(lists), "history")
    if weights.shape != items.shape or not np.isfinite(weights).all():
        raise ContractError(f"history needs {len(items)} finite weights, one an entry")
    if len(items) and items.max() >= len(vectors):
        raise ContractError(f"history names item number {items.max()}, but there are {len(vectors)} vectors")
    matrix = np.asarray(vectors)

    def terms(user: int, ranked: IntArray) -> FloatArray:
        entries = slice(indptr[user], indptr[user + 1])
        return vector_terms(matrix, items[entries], weights[entries], ranked)

    return split((indptr, items), lists, n, terms)


def split(history: Csr, lists: IntArray, n: int, terms: Terms) -> Reasons:
    """Reasons of any score that is a sum over the history; `terms` gives a user's, and is rounded to a grid.

    history: CSR of q users' items, ascending; lists: (q, k) int64, −1 padding at the end.
    """
    indptr, items = history
    found = _nothing((*lists.shape, n))
    for user in range(len(lists)):
        entries = slice(indptr[user], indptr[user + 1])
        length = int(np.count_nonzero(lists[user] >= 0))
        if length and entries.stop > entries.start:
            made = _on_grid(terms(user, lists[user, :length]))
            _name(found, user, items[entries], made)
    return found


def _nothing(shape: tuple[int, int, int]) -> Reasons:
    nobody = np.full(shape, -1, dtype=np.int64)
    return Reasons(nobody, np.zeros(shape), np.zeros(shape[:2]), np.zeros(shape[:2]))


def vector_terms(
    matrix: npt.NDArray[np.floating], items: IntArray, weights: npt.NDArray[np.float32], ranked: IntArray
) -> FloatArray:
    """w_h·(v_h·v_i) for each history item h and ranked item i, (len(items), len(ranked)) float64."""
    wanted, wanted_exponent = _integer_parts(matrix[ranked], ranked)
    terms = np.empty((len(items), len(ranked)))
    for start in range(0, len(items), SLICE):
        part = slice(start, start + SLICE)
        seen, exponent = _integer_parts(matrix[items[part]], items[part])
        terms[part] = np.ldexp(seen @ wanted.T, exponent[:, None] + wanted_exponent - 2 * PART_BITS)
    terms *= weights[:, None].astype(np.float64)
    return terms


def _on_grid(terms: FloatArray) -> FloatArray:
    """Terms of each column rounded so that their sum needs no rounding, in whatever order."""
    _, exponent = np.frexp(np.abs(terms).sum(axis=0))
    rounded: FloatArray = np.ldexp(np.rint(np.ldexp(terms, SUM_BITS - exponent)), exponent - SUM_BITS)
    return rounded


def _integer_parts(
    vectors: npt.NDArray[np.floating], items: IntArray
) -> tuple[FloatArray, npt.NDArray[np.int32]]:
    wide = vectors.astype(np.float64)
    norms = np.sqrt(np.square(wide).sum(axis=1))
    if not np.isfinite(norms).all():
        bad = items[np.argmin(np.isfinite(norms))]
        raise ContractError(f"vector of item number {bad} is not finite; encode it again")
    _, exponent = np.frexp(norms)
    return np.rint(np.ldexp(wide, PART_BITS - exponent[:, None])), exponent


def _name(found: Reasons, user: int, items: IntArray, terms: FloatArray) -> None:
    length, n = terms.shape[1], min(found.item_nums.shape[2], len(items))
    # Stable, and history items ascend: equal contributions stay in the order of item numbers.
    first = np.argsort(-terms, axis=0, kind="stable")[:n]
    found.item_nums[user, :length, :n] = items[first].T
    found.contributions[user, :length, :n] = np.take_along_axis(terms, first, axis=0).T
    found.scores[user, :length] = terms.sum(axis=0)
    found.positive[user, :length] = np.maximum(terms, 0).sum(axis=0)
