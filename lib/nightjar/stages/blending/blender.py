"""The fused score of a block of users, and its reasons: relations, vectors and recent popularity together.

What a night blends stands in the blend table (fit_blend). Candidates are the best of the relations and those
of the index; each then gets the score of all sources, so that a list does not depend on who proposed what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from nightjar.engines.blend import Ingredients, blend, relation_terms
from nightjar.kernels import by_segment
from nightjar.kernels.fitting import Chosen
from nightjar.kernels.fusion import reciprocal_ranks
from nightjar.kernels.interactions import Histories
from nightjar.kernels.limits import Limits
from nightjar.kernels.reasons import Reasons, split, vector_terms
from nightjar.kernels.relations import FROM_NEWEST
from nightjar.kernels.taste import blocks, unit_rows
from nightjar.kernels.topk import TopK, score_pairs, select_topk
from nightjar.matrix import mapped_matrix, mapped_stack
from nightjar.stages.blending.recipe import read_blend, source_names
from nightjar.store import Committed
from nightjar.tables import EVERYONE, WEIGHT_ONE

TINY = 1e-12


@dataclass(frozen=True)
class BlendInputs:
    """What a score is made of, as commits that travel to tasks."""

    items: Committed
    vectors: Committed
    neighbours: Committed
    blend: Committed
    signals: Committed
    popularity: Committed


@dataclass(frozen=True)
class Asked:
    """A block of q users who get lists.

    segments_of: the name of the segment each belongs to; limits: all that they must not get, what they have
    seen included; retrieved: (q, c) int64 candidates of the index within them, −1 anywhere; words: (q, d)
    float32 sums of what users wrote, faded like the history, which the vector source takes beside its items.
    """

    mine: Histories
    segments_of: Sequence[str | None]
    limits: Limits
    retrieved: np.ndarray
    words: np.ndarray | None = None


@dataclass(frozen=True)
class Blender:
    """In a worker: the sources in memory or mapped.

    segment_rows: where each segment (a country, a shop) stands in ingredients.by_segment; vector_weights:
    (S, 2) float64, of the vector source for each segment of activity (chosen.segments), for items liked and
    for cold ones; vectors: (n, d) float32, directions times norms (n,); gram: (d, d) float64, the sum of the
    outer products of direction · g, by which the length of a user's row of scores over the catalogue is known
    without it.
    """

    ingredients: Ingredients
    chosen: Chosen
    segment_rows: dict[str, int]
    vector_weights: np.ndarray
    vectors: np.ndarray
    norms: np.ndarray
    gram: np.ndarray

    @classmethod
    def load(cls, inputs: BlendInputs) -> Blender:
        """Maps the matrices and prepares what every user shares."""
        stack = mapped_stack(inputs.neighbours)
        chosen, for_cold = read_blend(inputs.blend, source_names(stack.names))
        signals = inputs.signals.read(["popularity", "freshness", "cold"])
        cold = signals["cold"].to_numpy().astype(np.int64)
        weights = np.array([recipe.weights for _, recipe in chosen.recipes()], np.float64)
        # Without cold items their weights must not have a relation walked that counts for nothing else.
        weights = np.stack([weights, np.array(for_cold, np.float64) if cold.any() else weights], axis=2)
        popular = signals["popularity"].to_numpy().astype(np.float64)
        fresh = signals["freshness"].to_numpy().astype(np.float64) ** chosen.recipe.exponent
        available = inputs.items.read(["available"])["available"].to_numpy()
        order = np.argsort(-popular, kind="stable")
        segment_rows, counts = _by_segment(inputs.popularity, len(popular))
        ingredients = Ingredients(
            stack,
            by_segment.scores(counts),
            np.ascontiguousarray(weights[:, :-1]),
            np.array([recipe.popularity for _, recipe in chosen.recipes()], np.float64),
            cold,
            np.array([int(name in FROM_NEWEST) for name in stack.names], np.int64),
            fresh,
            popular,
            order[(popular > 0)[order]],
            np.ascontiguousarray(available),
        )
        V = mapped_matrix(inputs.vectors)
        norms = inputs.vectors.read(["norm"])["norm"].to_numpy()
        gram = _gram(V, fresh / norms)
        return cls(ingredients, chosen, segment_rows, weights[:, -1], V, norms, gram)

    def best(self, asked: Asked, m: int, kept: int | None = None, by_ranks: bool = False) -> Scored:
        """The best m of each user's candidates by the fused score; none for users of whom nothing is known.

        kept: how many of all candidates are returned where that is not m. by_ranks: by reciprocal rank fusion
        of the best m of every source instead, as fit_blend weighs them.
        """
        scored = self._scored(asked, m, kept or m)
        if not by_ranks:
            return scored
        known = scored.best.item_nums[:, :1] >= 0
        return replace(scored, best=self._by_ranks(asked, known, m, kept or m))

    def _scored(self, asked: Asked, m: int, kept: int, known: np.ndarray | None = None) -> Scored:
        """known: (q, 1) bool, who gets candidates; found out where it is not given."""
        mine, retrieved, words = asked.mine, asked.retrieved, asked.words
        left = mine.left(self.chosen.history)
        x, profile = mine.relation_weights(left, len(self.norms)), mine.vector_weights(left, self.norms)
        raw = profile @ self.vectors if words is None else profile @ self.vectors + words
        history = x.indptr.astype(np.int64), x.indices.astype(np.int64)
        starts, segments = self._starts(x, mine), self.chosen.segments(mine.n_liked())
        belongs = self._belongs(asked.segments_of)
        made = blend(self.ingredients, history, starts, segments, belongs, asked.limits, retrieved, m)
        if known is None:
            # Where texts say nothing there is nothing to retrieve by, but relations still know the history.
            by_relations = made.factors[:, : len(self.ingredients.starts)] > 0
            known = np.asarray((retrieved >= 0).any(axis=1) | by_relations.any(axis=1))[:, None]
        nums = np.where(known, np.concatenate([made.item_nums, retrieved], axis=1), -1)
        scores = np.concatenate([made.scores, made.at], axis=1).astype(np.float64)
        nums = _without_repeats(nums)
        U = unit_rows(raw)
        lengths = np.sqrt(np.maximum(np.einsum("ud,de,ue->u", U, self.gram, U, optimize=True), 0))
        factor = np.where(lengths > TINY, 1.0 / np.maximum(lengths, TINY), 0.0)
        user, at = np.nonzero(nums >= 0)
        if self.vector_weights.any() and len(user):
            item = nums[user, at]
            products = score_pairs(U, self.vectors, user, item).astype(np.float64)
            scores[user, at] += factor[user] * products * self._per_norm(item, segments[user])
        best = select_topk(np.where(nums >= 0, scores, 0).astype(np.float32), nums, kept)
        long = np.linalg.norm(raw, axis=1)
        vector_factor = factor / np.maximum(long, TINY)
        return Scored(x, starts, segments, profile, made.factors, vector_factor, best, words)

    def _by_ranks(self, asked: Asked, known: np.ndarray, m: int, kept: int) -> TopK:
        segments, cold = self.chosen.segments(asked.mine.n_liked()), self.ingredients.cold
        orders, weights = [], []
        for source, its_weights in self._alone():
            best = source._scored(asked, m, kept, known).best
            order = np.where(best.scores > 0, best.item_nums, -1)  # what a source gives nothing has no rank
            orders.append(order)
            weights.append(np.where(order >= 0, its_weights[segments[:, None], cold[order]], 0.0))
        return reciprocal_ranks(orders, weights, kept)

    def _alone(self) -> list[tuple[Blender, np.ndarray]]:
        """Each source that counts as a blender of its own, and its weights (S, 2) as in `vector_weights`."""
        of, nothing = self.ingredients, np.zeros_like(self.vector_weights)
        silent = replace(of, weights=np.zeros_like(of.weights), popularity=np.zeros_like(of.popularity))
        by_vector = replace(self, ingredients=silent, vector_weights=np.ones_like(nothing))
        found = [(by_vector, self.vector_weights)]
        for at in range(of.weights.shape[1]):
            only = np.zeros_like(of.weights)
            only[:, at] = 1.0
            alone = replace(silent, weights=only)
            found.append((replace(self, ingredients=alone, vector_weights=nothing), of.weights[:, at]))
        popular = replace(silent, popularity=np.ones_like(of.popularity))
        everywhere = np.repeat(of.popularity[:, None], 2, axis=1)
        found.append((replace(self, ingredients=popular, vector_weights=nothing), everywhere))
        return [(source, weights) for source, weights in found if weights.any()]

    def best_of(self, among: np.ndarray, mine: Histories, limits: Limits, m: int) -> np.ndarray:
        """The best m items of a part of the catalogue, (q, m) int64, −1 padding, by the relations alone.

        among: (n_items,) bool. Popularity brings in nothing here.
        """
        x = mine.relation_weights(mine.left(self.chosen.history), len(self.norms))
        history = x.indptr.astype(np.int64), x.indices.astype(np.int64)
        part = replace(
            self.ingredients,
            available=np.ascontiguousarray(self.ingredients.available & among),
            by_popularity=np.empty(0, np.int64),
        )
        nobody = np.full((len(mine), 0), -1, np.int64)
        segments = self.chosen.segments(mine.n_liked())
        no_segment = np.full(len(mine), -1, np.int64)
        starts = self._starts(x, mine)
        return blend(part, history, starts, segments, no_segment, limits, nobody, m).item_nums

    def _belongs(self, segments_of: Sequence[str | None]) -> np.ndarray:
        """The row of each user's segment, (q,) int64: that of everyone for a segment without likes, −1 where
        the log knows no segments."""
        if len(self.segment_rows) < 2:
            return np.full(len(segments_of), -1, np.int64)
        rows = [self.segment_rows.get(name or EVERYONE, 0) for name in segments_of]
        return np.array(rows, np.int64)

    def _starts(self, x: sparse.csr_matrix, mine: Histories) -> np.ndarray:
        """What relations start from, (2, nnz) float32: the whole history, and its newest items."""
        return np.stack([x.data, mine.newest_weights(len(self.norms)).data])

    def reasons(self, scored: Scored, lists: np.ndarray, n: int) -> Reasons:
        """Splits the scores of lists (q, k) into what each history item adds; popularity is not among it.

        What a user's words add is in the sum that shares are taken of: items never claim it.
        """
        x, profile = scored.x, scored.profile
        V = np.asarray(self.vectors)

        def terms(user: int, ranked: np.ndarray) -> np.ndarray:
            part = slice(x.indptr[user], x.indptr[user + 1])
            items = x.indices[part].astype(np.int64)
            mine = scored.starts[:, part]
            factors, segment = scored.factors[user], scored.segments[user]
            found = relation_terms(self.ingredients, items, mine, factors, segment, ranked)
            if scored.vector_factor[user]:
                scale = scored.vector_factor[user] * self._per_norm(ranked, segment)
                found += vector_terms(V, items, profile.data[part], ranked) * scale
            return found

        made = split((x.indptr.astype(np.int64), x.indices.astype(np.int64)), lists, n, terms)
        if scored.words is None:
            return made
        return made._replace(positive=made.positive + np.maximum(self._by_words(scored, lists), 0))

    def _by_words(self, scored: Scored, lists: np.ndarray) -> np.ndarray:
        """What a user's words add to the score of each listed item, (q, k) float64."""
        assert scored.words is not None
        found = np.zeros(lists.shape)
        user, at = np.nonzero(lists >= 0)
        if len(user):
            item = lists[user, at]
            products = score_pairs(scored.words, self.vectors, user, item).astype(np.float64)
            found[user, at] = (
                products * scored.vector_factor[user] * self._per_norm(item, scored.segments[user])
            )
        return found

    def _per_norm(self, items: np.ndarray, segments: np.ndarray) -> np.ndarray:
        """What turns an inner product with an item's vector into one with direction · g · weight, float64;
        segments: of the users, one for all items or one for each."""
        weights = self.vector_weights[segments, self.ingredients.cold[items]]
        return np.asarray(weights * self.ingredients.fresh[items] / self.norms[items].astype(np.float64))


@dataclass(frozen=True)
class Scored:
    """A block of users scored. x, profile: (q, n_items) CSR of one pattern, what relations and vectors start
    from; starts: (2, nnz) float32, the data of x and what relations that start from the newest items do;
    segments: (q,) int64, of users by their activity; factors: (q, R) float64; vector_factor: (q,) float64
    for the profile's unnormalised sum; best: the candidates; words: (q, d) float32 what users' texts added to
    that sum, or None."""

    x: sparse.csr_matrix
    starts: np.ndarray
    segments: np.ndarray
    profile: sparse.csr_matrix
    factors: np.ndarray
    vector_factor: np.ndarray
    best: TopK
    words: np.ndarray | None = None


def _by_segment(popularity: Committed, n_items: int) -> tuple[dict[str, int], sparse.csr_matrix]:
    """The rows of the largest segments, EVERYONE's the first, and in each how many users like an item,
    decayed."""
    rows = popularity.read(["segment", "item_num", "weight"])
    segments = rows["segment"].combine_chunks().dictionary_encode()
    numbers = {EVERYONE: 0}
    named = [numbers.setdefault(name, len(numbers)) for name in segments.dictionary.to_pylist()]
    number = np.array(named, np.int64)[segments.indices.to_numpy()]
    counts = rows["weight"].to_numpy() / WEIGHT_ONE
    row = by_segment.rows_of(np.bincount(number, counts, minlength=len(numbers)))
    kept = (row[number] > 0) | (number == 0)
    entries = counts[kept], (row[number[kept]], rows["item_num"].to_numpy()[kept])
    found = {name: int(row[at]) for name, at in numbers.items() if row[at] or not at}
    return found, sparse.csr_matrix(entries, (len(found), n_items))


def _gram(V: np.ndarray, scale: np.ndarray) -> np.ndarray:
    total = np.zeros((V.shape[1], V.shape[1]))
    for rows in blocks(len(V)):
        part = V[rows] * scale[rows, None].astype(np.float32)
        total += (part.T @ part).astype(np.float64)
    return total


def _without_repeats(nums: np.ndarray) -> np.ndarray:
    """Rows (q, m) with every item once: where it stands a second time it becomes −1."""
    order = np.argsort(nums, axis=1, kind="stable")
    ordered = np.take_along_axis(nums, order, axis=1)
    again = np.zeros(nums.shape, bool)
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return np.where(again, -1, nums)
