"""Weights for items nobody liked yet: some that were liked are withheld as if nobody had, and serve as truth.

A fit on the newest likes sees only items somebody liked before, and leans on what new ones lack. So a share
of the liked items loses its likes, and what is left has to find who liked them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from nightjar.kernels import fitting, fusion, signals
from nightjar.kernels.likes import Likes
from nightjar.kernels.relations import OF_TEXTS, Learning, factored, from_smoothed, with_unliked
from nightjar.kernels.signals import F32, I64

TINY = 1e-12


@dataclass(frozen=True)
class Withheld:
    """A log without some of its items, and who liked them.

    known: likes of all other items; cold: (n_items,) bool, those withheld; users: (q,) int64 codes of users
    with a history left; truth: (q, n_cold) CSR, which of the withheld they like.
    """

    known: Likes
    cold: NDArray[np.bool_]
    users: I64
    truth: sparse.csr_matrix


def withhold(likes: Likes, share: float, how: fitting.Fit) -> Withheld:
    """Withholds a share of the liked items, drawn at random; up to how.users of those who like them stay."""
    rng = np.random.default_rng(how.seed)
    liked = np.unique(likes.item)
    cold = np.zeros(likes.n_items, bool)
    cold[rng.choice(liked, int(share * len(liked)), replace=False)] = True
    known = likes.kept(~cold[likes.item])
    has_history = np.bincount(known.user, minlength=likes.n_users) > 0
    truth = likes.kept(cold[likes.item] & has_history[likes.user]).matrix()[:, cold].tocsr()
    users = fitting.drawn(np.flatnonzero(np.diff(truth.indptr)), how.users, rng)
    return Withheld(known, cold, users, truth[users])


def without(
    relations: Mapping[str, sparse.csr_matrix],
    held: Withheld,
    V: F32,
    smoothed: F32,
    how: Learning,
    nearest: signals.Nearest | None = None,
) -> dict[str, sparse.csr_matrix]:
    """Relations as they would be had nobody liked the withheld items, nearly: of those that a log teaches ALS
    alone is learnt anew.

    V: (n_items, d) float32, the texts; smoothed: the same bent by what is left of the log. Texts stay;
    co-occurrence is borrowed; what else behaviour taught (order, EASE) knows nothing of such items.
    """
    cold = held.cold
    warm_only = sparse.diags((~cold).astype(np.float32))
    text = relations["text"]
    found: dict[str, sparse.csr_matrix] = {}
    for name, relation in relations.items():
        if name in OF_TEXTS:
            found[name] = relation
        elif name == "smoothed_text":
            found[name] = from_smoothed(smoothed, how, nearest)
        elif name == "als":
            found[name] = factored(held.known.matrix(), V, how, nearest)
        else:
            found[name] = (relation @ warm_only).tocsr()
            found[name].eliminate_zeros()
            if name == "co_occurrence":
                found[name] = signals.borrowed(found[name], text, cold, how.n_neighbours)
    return with_unliked(found, held.known.unliked(), how)


def fit(
    held: Withheld,
    relations: Mapping[str, sparse.csr_matrix],
    V: F32,
    begun: tuple[float, ...],
    chosen: fitting.Chosen,
    how: fitting.Fit,
) -> tuple[float, ...]:
    """The weights that find the withheld items best, searched from `begun` as those of other items are.

    relations and V (n_items, d), the items' directions, as `without` has them; half-lives and the exponent of
    freshness are those chosen. Sources keep the length they have over the whole catalogue, as in a night.
    """
    scores = fitting.by_history(held.known, held.users, relations, V, chosen.history, how.history_cap)
    _, fresh = fitting.by_recency(held.known, chosen.recency_days)
    fresh = fresh**chosen.recipe.exponent
    n_cold = int(held.cold.sum())
    sources = fusion.Sources(
        tuple(_of_length_one(one, fresh, held.cold) for one in scores), np.zeros(n_cold), np.ones(n_cold)
    )
    truth = held.truth.indptr.astype(np.int64), held.truth.indices.astype(np.int64)
    nothing = sparse.csr_matrix((len(held.users), n_cold), dtype=np.float32)
    pool = fusion.make_pool(sources, truth, nothing, how.pool_depth, how.threads)
    pool = replace(pool, norms=tuple(np.ones_like(norm) for norm in pool.norms))
    recipe = fusion.Recipe(begun, 0.0, 0.0)
    k = fitting.fitted_length(held.known.n_items)
    found = fusion.fit_halves(pool, recipe, k, how.doubt, False, how.seed, how.threads)
    return found.weights


def _of_length_one(source: fusion.Source, fresh: signals.F64, columns: NDArray[np.bool_]) -> fusion.Source:
    """Some columns of a source whose rows, over all columns and times freshness, have length 1."""
    if isinstance(source, fusion.Product):
        # Blocks of users: a dense row has an entry for every item.
        step = max(fusion.BLOCK_SCORES // source.shape[1], 1)
        parts = [source[start : start + step] for start in range(0, len(source.left), step)]
        lengths = np.concatenate([fusion.lengths(part, fresh) for part in parts] or [np.zeros(0)])
        left = source.left / np.maximum(lengths, TINY)[:, None]
        return fusion.Product(left.astype(np.float32), source.right[columns])
    lengths = fusion.lengths(source, fresh)
    scaled = sparse.diags(1.0 / np.maximum(lengths, TINY)) @ source[:, columns]
    return scaled.tocsr().astype(np.float32)
