"""What a list is like beside being right, for some users of a back-test: novelty, variety, fit, stability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nightjar.kernels.beyond import Catalogue, novelty
from nightjar.kernels.interactions import Histories
from nightjar.kernels.ranked_lists import Csr
from nightjar.kernels.stability import stability
from nightjar.kernels.variety import calibration, ild_of_categories, ild_of_vectors
from nightjar.store import Committed


@dataclass(frozen=True)
class Shelf:
    """The item side as of t0. catalogue: availability and followings; categories: CSR of category numbers, a
    row an item; text: (n_items, d) raw text embeddings, mapped, which no ranking has optimised."""

    catalogue: Catalogue
    categories: Csr
    text: np.ndarray


def about(
    lists: np.ndarray, before: np.ndarray | None, shelf: Shelf, mine: Histories, ks: Sequence[int]
) -> dict[str, np.ndarray]:
    """Figures of each user's list (q, k), by name, (q,) float64; NaN where one has no value.

    before: the same users' lists of the night before; without it RBO and Jaccard are NaN.
    """
    liked = _liked(mine)
    made = {
        **novelty(lists, shelf.catalogue, ks),
        **ild_of_vectors(lists, shelf.text, ks),
        **ild_of_categories(lists, shelf.categories, ks),
        **calibration(lists, liked[0], shelf.categories, ks, liked[1]),
    }
    if before is not None:
        return {**made, **stability(lists, before, ks)}
    unknown = np.full(len(lists), np.nan)
    return {**made, **{f"{name}@{k}": unknown for k in ks for name in ("RBO", "Jaccard")}}


def names_of_about(ks: Sequence[int]) -> list[str]:
    """The names of `about` in their order."""
    none = np.zeros(0, np.int64)
    nobody = Histories(none.astype(object), np.zeros(1, np.int64), none, none, none, none.astype(bool), none)
    shelf = Shelf(Catalogue(none.astype(bool), none, 0), (np.zeros(1, np.int64), none), np.zeros((0, 1)))
    return list(about(np.zeros((0, max(ks)), np.int64), None, shelf, nobody, ks))


def _liked(mine: Histories) -> tuple[Csr, np.ndarray]:
    """What speaks for a user's taste, and how much: CSR and the weights of its entries."""
    kept = mine.weights > 0
    counts = np.add.reduceat(np.r_[kept.astype(np.int64), 0], mine.indptr[:-1]) if len(mine) else np.zeros(0)
    counts = np.where(np.diff(mine.indptr) > 0, counts, 0)
    indptr = np.r_[0, np.cumsum(counts)].astype(np.int64)
    return (indptr, mine.item_nums[kept].astype(np.int64)), mine.weights[kept].astype(np.float64)


def category_sets(category: pa.ChunkedArray, separator: str | None) -> Csr:
    """Category numbers of every item as CSR, ascending; a separator splits one text into several."""
    texts = category.combine_chunks() if isinstance(category, pa.ChunkedArray) else category
    texts = pc.fill_null(texts, "")
    named = (
        pc.split_pattern(texts, separator) if separator else pa.array([[text] for text in texts.to_pylist()])
    )
    flat = pc.utf8_trim_whitespace(pc.list_flatten(named).cast(pa.string()))
    row = pc.list_parent_indices(named).to_numpy()
    kept = pc.not_equal(flat, "").to_numpy(zero_copy_only=False)
    codes = flat.dictionary_encode().indices.to_numpy()
    pairs = np.unique(np.stack([row[kept], codes[kept]], axis=1).astype(np.int64), axis=0)
    indptr = np.searchsorted(pairs[:, 0], np.arange(len(texts) + 1))
    return indptr.astype(np.int64), np.ascontiguousarray(pairs[:, 1])


def catalogue_of(items: pa.Table, interactions: Committed) -> Catalogue:
    """Availability and followings before t0, read part by part: every interaction counts."""
    n_users, n_people = np.zeros(len(items), np.int64), 0
    for entry in interactions.parts:
        rows = interactions.read_part(entry, ["user_id", "item_num"])
        n_users += np.bincount(rows["item_num"].to_numpy(), minlength=len(items))
        n_people += pc.count_distinct(rows["user_id"]).as_py()
    return Catalogue(items["available"].to_numpy(), n_users, n_people)
