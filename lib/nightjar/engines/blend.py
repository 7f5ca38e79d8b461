"""Scores all items that a user's history leads to through the relations, and keeps the best: compiled loops.

For user u with history x: score(i) = g_i · Σ_s f_s · w_s · (x @ S_s)_i + w_p · popular_i, with the factor f_s
= 1 / the length of the row (x @ S_s)∘g over the whole catalogue, so that relations weigh alike for every user
(kernels/fusion.py), and w_s one weight for items that somebody liked, another for the others; users come in
segments of activity, each with weights of its own. The last S_s is what is popular in the segment (a country,
a shop) that a user belongs to, and its x is that segment. Only items that some relation leads to and the
popular ones are visited: a user costs as much as the neighbours of their history, whatever the size of the
catalogue. Sums run in float64 in the order of the history, so a user's scores do not depend on who is scored
beside them.
"""

# numba's decorator and the functions it compiles carry no annotations that mypy could read.
# mypy: disable-error-code="untyped-decorator, import-untyped, no-untyped-def, no-untyped-call"

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import sparse

from nightjar.kernels.limits import Limits
from nightjar.kernels.ranked_lists import Csr
from nightjar.kernels.relations import Stack
from nightjar.kernels.signals import F32, F64, I64

TINY = 1e-12


@dataclass(frozen=True)
class Ingredients:
    """What is the same for every user. by_segment: what is popular in each of B segments, (B, n_items)
    float32 CSR; weights: (S, R + 1, 2) float64, of the stack's relations and of by_segment, for each segment
    of activity, for items liked and for cold ones; popularity: (S,) float64, w_p of each segment; cold:
    (n_items,) int64, 1 for those; starts: (R,) int64, which row of a history's weights a relation starts
    from; fresh, popular: (n_items,) float64, g and recent popularity; by_popularity: (p,) int64, the items
    that popularity alone may bring into a list, best first; available: (n_items,) bool."""

    stack: Stack
    by_segment: sparse.csr_matrix
    weights: F64
    popularity: F64
    cold: I64
    starts: I64
    fresh: F64
    popular: F64
    by_popularity: I64
    available: NDArray[np.bool_]


@dataclass(frozen=True)
class Blended:
    """item_nums: (q, m) int64, −1 padding at the end, the best first, ties by number; scores: (q, m) float32,
    −inf padding; at: (q, c) float32, the scores of the items asked for, wherever they rank, −inf for −1;
    factors: (q, R + 1) float64, f_s."""

    item_nums: I64
    scores: F32
    at: F32
    factors: F64


def blend(
    with_: Ingredients,
    history: Csr,
    x: F32,
    segments: I64,
    belongs: I64,
    limits: Limits,
    asked: I64,
    m: int,
) -> Blended:
    """The best m items of each of q users, and the scores of those asked for.

    history: CSR of q users' items with weights x (rows, n_entries) float32, below 0 for a dislike; segments:
    (q,) int64, whose weights each user has; belongs: (q,) int64, the row of by_segment of each, −1 for none;
    limits: all that the q users must not get, what they have seen included; asked: (q, c) int64, −1 padding,
    scored whether allowed or not.
    """
    q, n_sources = len(history[0]) - 1, with_.weights.shape[1]
    out = Blended(
        np.full((q, m), -1, np.int64),
        np.full((q, m), -np.inf, np.float32),
        np.full(asked.shape, -np.inf, np.float32),
        np.zeros((q, n_sources)),
    )
    stack, rows, member = with_.stack, with_.by_segment, belongs >= 0
    _blend(
        (stack.indptr, stack.item_nums, stack.scores),
        (rows.indptr.astype(np.int64), rows.indices.astype(np.int32, copy=False), rows.data),
        (with_.weights, with_.popularity, with_.cold, with_.starts, segments.astype(np.int64)),
        (with_.fresh, with_.popular, with_.by_popularity, with_.available),
        (history[0].astype(np.int64), history[1].astype(np.int64), x),
        (np.r_[0, np.cumsum(member)], belongs[member], np.ones((1, int(member.sum())), np.float32)),
        (limits.denied.indptr.astype(np.int64), limits.denied.item_nums.astype(np.int64)),
        _allowed(limits),
        asked.astype(np.int64),
        (out.item_nums, out.scores, out.at, out.factors),
    )
    return out


Allowed = tuple[I64, I64, I64, I64, I64, I64]


def _allowed(limits: Limits) -> Allowed:
    """Allow lists for the loops: users in the order of their groups and the group of each, the sets as one
    CSR, the sets of each group as another."""
    set_ends = np.cumsum([0, *map(len, limits.sets)]).astype(np.int64)
    group_ends = np.cumsum([0, *map(len, limits.groups)]).astype(np.int64)
    items = np.concatenate([np.empty(0, np.int64), *limits.sets]).astype(np.int64)
    numbers = np.array([number for group in limits.groups for number in group], np.int64)
    order = np.argsort(limits.group, kind="stable").astype(np.int64)
    return order, limits.group.astype(np.int64), set_ends, items, group_ends, numbers


def relation_terms(with_: Ingredients, items: I64, x: F32, factors: F64, segment: int, wanted: I64) -> F64:
    """What each history item adds to the score of each wanted item, (len(items), len(wanted)) float64.

    x: (rows, len(items)) float32; factors: (R + 1,) float64 and the segment of that user.
    """
    found = np.zeros((len(items), len(wanted)))
    stack = with_.stack
    place = np.full(stack.n_items, -1, np.int64)
    place[wanted] = np.arange(len(wanted))
    blended = factors[:, None] * with_.weights[segment], with_.cold, with_.starts
    _terms((stack.indptr, stack.item_nums, stack.scores), stack.n_items, (items, x), blended, place, found)
    found *= with_.fresh[wanted]
    return found


@njit(cache=True, nogil=True)
def _terms(stack, n_items, history, blended, place, found):
    indptr, neighbours, values = stack
    items, x = history
    weights, cold, starts = blended
    for r in range(len(starts)):
        if weights[r, 0] == 0.0 and weights[r, 1] == 0.0:
            continue
        for h in range(len(items)):
            row = r * n_items + items[h]
            for entry in range(indptr[row], indptr[row + 1]):
                item = neighbours[entry]
                at = place[item]
                if at >= 0:
                    found[h, at] += (
                        weights[r, cold[item]] * np.float64(x[starts[r], h]) * np.float64(values[entry])
                    )


@njit(cache=True, nogil=True)
def _blend(stack, by_segment, blended, items, history, member, barred, limited, asked, out):
    weights_of, popularity_of, cold, starts, segments = blended
    fresh, popular, by_popularity, available = items
    n = len(fresh)
    own, total = np.zeros(n), np.zeros(n)
    # A user's mark says that an entry is theirs, so nothing is cleared between users.
    in_own, in_total, is_barred = np.full(n, -1), np.full(n, -1), np.full(n, -1)
    met, touched = np.empty(n, np.int64), np.empty(n, np.int64)
    mark = 0
    # As many marks on an item as the user's group has sets: it stands in all of them. Users come group by
    # group, so a set is walked once and not once a user.
    is_open, open_mark, last, made = np.full(n if len(limited[5]) else 0, -1), -1, -1, 0
    for u in limited[0]:
        if limited[1][u] != last:
            last = limited[1][u]
            open_mark, made = _open_group(limited, last, is_open, made)
        allowed = (available, is_barred, is_open, open_mark)
        for entry in range(barred[0][u], barred[0][u + 1]):
            is_barred[barred[1][entry]] = u
        n_touched = 0
        weights, popularity = weights_of[segments[u]], popularity_of[segments[u]]
        for r in range(len(weights)):
            if weights[r, 0] == 0.0 and weights[r, 1] == 0.0:
                continue
            scratch = (own, in_own, met)
            if r < len(starts):
                n_met, mark = _spread(stack, (r * n, starts[r]), history, u, scratch, mark)
            else:
                n_met, mark = _spread(by_segment, (0, 0), member, u, scratch, mark)
            squares = 0.0
            for at in range(n_met):
                squares += (own[met[at]] * fresh[met[at]]) ** 2
            length = np.sqrt(squares)
            if length <= TINY:
                continue
            factor = 1.0 / length
            out[3][u, r] = factor
            for at in range(n_met):
                item = met[at]
                if in_total[item] != u:
                    in_total[item] = u
                    total[item] = 0.0
                    touched[n_touched] = item
                    n_touched += 1
                total[item] += factor * weights[r, cold[item]] * own[item]
        for at in range(n_touched):
            item = touched[at]
            total[item] = total[item] * fresh[item] + popularity * popular[item]
        for at in range(asked.shape[1]):
            item = asked[u, at]
            if item >= 0:
                out[2][u, at] = total[item] if in_total[item] == u else popularity * popular[item]
        if popularity > 0.0:
            order = (by_popularity, popular, popularity)
            n_touched = _with_popular(
                order, allowed, u, out[0].shape[1], (total, in_total, touched), n_touched
            )
        _keep_best(touched[:n_touched], total, allowed, u, (out[0][u], out[1][u]))


@njit(cache=True, nogil=True)
def _open_group(limited, group, is_open, made):
    """Marks what a group may get; returns the mark (−1: everything) and how many marks are used up."""
    _, _, set_ends, items, group_ends, numbers = limited
    first, end = group_ends[group], group_ends[group + 1]
    if first == end:
        return -1, made
    for at in range(first, end):
        number = numbers[at]
        for entry in range(set_ends[number], set_ends[number + 1]):
            item = items[entry]
            if item < len(is_open) and (at == first or is_open[item] == made - 1):
                is_open[item] = made
        made += 1
    return made - 1, made


@njit(cache=True, nogil=True)
def _may_get(allowed, u, item):
    available, is_barred, is_open, open_mark = allowed
    if not available[item] or is_barred[item] == u:
        return False
    return open_mark < 0 or is_open[item] == open_mark


@njit(cache=True, nogil=True)
def _spread(stack, relation, history, u, scratch, mark):
    """own = x_u @ S: adds up the neighbours of the history; returns how many items were met."""
    indptr, neighbours, values = stack
    own, in_own, met = scratch
    first, start = relation
    mark += 1
    n_met = 0
    for entry in range(history[0][u], history[0][u + 1]):
        x, row = np.float64(history[2][start, entry]), first + history[1][entry]
        if x == 0.0:
            continue
        for at in range(indptr[row], indptr[row + 1]):
            item = neighbours[at]
            if in_own[item] != mark:
                in_own[item] = mark
                own[item] = 0.0
                met[n_met] = item
                n_met += 1
            own[item] += x * np.float64(values[at])
    return n_met, mark


@njit(cache=True, nogil=True)
def _with_popular(order, allowed, u, wanted, scratch, n_touched):
    """Adds the most popular of the other items, as many as a list could need."""
    by_popularity, popular, weight = order
    total, in_total, touched = scratch
    found = 0
    for at in range(len(by_popularity)):
        item = by_popularity[at]
        if in_total[item] == u or not _may_get(allowed, u, item):
            continue
        in_total[item] = u
        total[item] = weight * popular[item]
        touched[n_touched] = item
        n_touched += 1
        found += 1
        if found == wanted:
            break
    return n_touched


@njit(cache=True, nogil=True)
def _keep_best(touched, total, allowed, u, out):
    """The best of what was touched, into the rows of out: a heap with its worst entry first, then emptied."""
    items, scores = out
    n = 0
    for item in touched:
        if not _may_get(allowed, u, item):
            continue
        score = np.float32(total[item])
        if n < len(items):
            n += 1
            _rise(items, scores, n - 1, item, score)
        elif _worse(scores[0], items[0], score, item):
            _sink(items, scores, n, item, score)
    for end in range(n - 1, 0, -1):
        item, score = items[end], scores[end]
        items[end], scores[end] = items[0], scores[0]
        _sink(items, scores, end, item, score)


@njit(cache=True, nogil=True)
def _worse(score, item, than_score, than_item):
    return score < than_score or (score == than_score and item > than_item)


@njit(cache=True, nogil=True)
def _rise(items, scores, at, item, score):
    """Puts an entry at the end of the heap and lets it rise to its place."""
    while at > 0:
        above = (at - 1) // 2
        if not _worse(score, item, scores[above], items[above]):
            break
        items[at], scores[at] = items[above], scores[above]
        at = above
    items[at], scores[at] = item, score


@njit(cache=True, nogil=True)
def _sink(items, scores, n, item, score):
    """Puts an entry at the head of a heap of n and lets it sink to its place."""
    at = 0
    while True:
        below = 2 * at + 1
        if below >= n:
            break
        if below + 1 < n and _worse(scores[below + 1], items[below + 1], scores[below], items[below]):
            below += 1
        if not _worse(scores[below], items[below], score, item):
            break
        items[at], scores[at] = items[below], scores[below]
        at = below
    items[at], scores[at] = item, score
