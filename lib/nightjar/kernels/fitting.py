"""Chooses what a night blends and how fast the past fades, on the newest likes of the log, held back for it.

The window before the end serves as truth; relations are learnt from what was known before it. So nothing that
a later test looks at is used, and a night fits on its own log and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from nightjar.kernels import by_segment, fusion, signals, taste
from nightjar.kernels.likes import Likes
from nightjar.kernels.relations import FROM_NEWEST
from nightjar.kernels.signals import F32, F64, I64, Fading

LENGTHS = (20, 100)
CATALOGUE_SHARE = 20
"""Length of the lists whose nDCG is fitted: a twentieth of the catalogue, within LENGTHS. Longer than what is
served: so few of 20 places hold what some thousand users chose that a fit follows chance (docs/log.md)."""
RECENCY_DAYS = (0.5, 2.0, 7.0, 30.0, 120.0, 480.0)
LONGER_DAYS = (0.5, 1.0, 2.0, 4.0, 7.0, 14.0, 30.0, 60.0, 120.0, 240.0, 480.0)
"""Half-lives of recency tried after the best of RECENCY_DAYS, from there on."""
HISTORY_DAYS = (2.0, 7.0, 30.0, 120.0, 480.0)
KEPT = Fading(None)
"""A history that does not fade."""
CERTAIN = 2.0
"""Standard errors by which histories that leave nothing of what is old must be better."""
SPANS = (1 / 1500, 1.0)
"""Half-lives that are tried, as shares of the days a log spans: much shorter ones forget nearly everything,
longer ones nothing. News live by hours, and reviews of fourteen years do not."""


@dataclass(frozen=True)
class Chosen:
    """Half-life in days of recent popularity, how a history fades, and the recipe.

    The recipe's weights are of the relations in their order, then of the vectors. by_activity: the recipe of
    users with so many liked items in their history and more, ascending, `recipe` being of those with fewer;
    they differ in weights alone.
    """

    recency_days: float
    history: Fading
    recipe: fusion.Recipe
    by_activity: tuple[tuple[int, fusion.Recipe], ...] = ()

    def recipes(self) -> tuple[tuple[int, fusion.Recipe], ...]:
        """Every recipe and the number of items from which it holds, the first from 0."""
        return ((0, self.recipe), *self.by_activity)

    def segments(self, n_liked: I64) -> I64:
        """Which of `recipes` is for users with so many liked items, int64 of the same shape."""
        starts = np.array([start for start, _ in self.recipes()])
        return np.searchsorted(starts, n_liked, side="right") - 1


@dataclass(frozen=True)
class Fit:
    """users: how many to fit on, at most; doubt: standard errors that a gain must exceed; pool_depth:
    candidates of each source; exclude_seen: what was liked before is neither proposed nor truth; threads: how
    many work at it; segments: liked items at which segments of users begin, beside those with fewer;
    segment_users: with fewer in the sample a segment has the weights of all; history_cap: newest liked items
    of a user that a history has."""

    users: int = 2000
    doubt: float = 0.5
    pool_depth: int = 100
    exclude_seen: bool = True
    seed: int = 0
    threads: int = 1
    segments: tuple[int, ...] = ()
    segment_users: int = 200
    history_cap: int = 2000


@dataclass(frozen=True)
class HeldBack:
    """Users of a log with what they liked next.

    known: likes before the window; users: (q,) int64 codes; truth: (q, n_items) CSR; barred: (q, n_items)
    CSR, non-zero where nothing may be proposed: what they have seen, and items that nobody knew.
    """

    known: Likes
    users: I64
    truth: sparse.csr_matrix
    barred: sparse.csr_matrix


def hold_back(likes: Likes, window_days: float, how: Fit) -> HeldBack:
    """The newest `window_days` of a log as truth for up to how.users of its users."""
    known, later = likes.before(window_days), likes.kept(likes.first < window_days)
    liked = known.matrix()
    warm = np.asarray(liked.sum(axis=0)).ravel() > 0
    has_history = np.diff(liked.indptr) > 0
    truth = later.kept(warm[later.item] & has_history[later.user]).matrix()
    users = drawn(np.flatnonzero(np.diff(truth.indptr)), how.users, np.random.default_rng(how.seed))
    cold = sparse.csr_matrix(np.broadcast_to(~warm, (len(users), len(warm))).astype(np.float32))
    barred = liked[users] + cold if how.exclude_seen else cold
    return HeldBack(known, users, truth[users], barred.tocsr())


def drawn(users: I64, most: int, rng: np.random.Generator) -> I64:
    """At most so many of these users, ascending."""
    return users if len(users) <= most else np.sort(rng.choice(users, most, replace=False))


def fitted_length(n_items: int) -> int:
    """How long the lists are that are fitted, for a catalogue of so many items."""
    least, most = LENGTHS
    return min(max(n_items // CATALOGUE_SHARE, least), most)


def half_lives(days: tuple[float, ...], span_days: float) -> tuple[float, ...]:
    """Those of `days` that could tell something in a log of that many days."""
    return tuple(one for one in days if SPANS[0] * span_days <= one <= SPANS[1] * span_days)


def by_history(
    known: Likes,
    users: I64,
    relations: Mapping[str, sparse.csr_matrix],
    V: F32,
    fading: Fading,
    history_cap: int,
) -> tuple[fusion.Source, ...]:
    """What each source makes of these users' histories, their `history_cap` newest items, and of the segment
    they belong to."""
    asked = np.zeros(known.n_users, bool)
    asked[users] = True
    mine = known.kept(asked[known.user]).newest(history_cap)
    x = mine.histories(fading)[users]
    starts = dict.fromkeys(FROM_NEWEST, mine.recent()[users])
    starts[by_segment.NAME] = by_segment.belongs(known)[users]
    profile = fusion.Product(taste.unit_rows(mine.weights(fading)[users] @ V), V)
    scores = ((starts.get(name, x) @ one).tocsr() for name, one in relations.items())
    return (*scores, profile)


def by_recency(known: Likes, recency_days: float) -> tuple[F64, F64]:
    """Recent popularity and freshness of every item, (n_items,) each."""
    recent = known.counts(recency_days)
    return recent, signals.freshness(recent, known.counts(None))


def fit(
    held: HeldBack,
    relations: Mapping[str, sparse.csr_matrix],
    V: F32,
    start: Chosen,
    how: Fit,
) -> Chosen:
    """Half-lives and weights that rank the truth best: first of recency, then of histories, of which what is
    old keeps start.history.floor, or nothing where that is better for certain; then the weights alone once
    more, on halves of the users, and those of each segment of users.

    Of half-lives between which the users do not decide the longest is taken, at most `doubt` standard errors
    worse than the best (one of them, with Breiman et al. 1984): the newest weeks overrate their own fashion
    (docs/log.md).

    relations and V (n_items, d), the items' directions, as learnt from held.known.
    Starts from `start` and leaves it where a gain is in doubt (fusion.fit), so few users change little.
    """
    truth = held.truth.indptr.astype(np.int64), held.truth.indices.astype(np.int64)
    k = fitted_length(held.known.n_items)
    span = float(held.known.first.max(initial=0.0) - held.known.last.min(initial=np.inf))
    scored: dict[Fading, tuple[fusion.Source, ...]] = {}

    def pool(one: Chosen) -> fusion.Pool:
        if one.history not in scored:
            scored.clear()
            cap = how.history_cap
            scored[one.history] = by_history(held.known, held.users, relations, V, one.history, cap)
        made = fusion.Sources(scored[one.history], *by_recency(held.known, one.recency_days))
        return fusion.make_pool(made, truth, held.barred, how.pool_depth, how.threads)

    recencies = [days for days in half_lives(RECENCY_DAYS, span) if days != start.recency_days]
    tried = [start, *(replace(start, recency_days=days) for days in recencies)]
    pools = [pool(one) for one in tried]
    at, recipe = fusion.fit(pools, start.recipe, k, how.doubt)
    begun, pools = (replace(tried[at], recipe=recipe), pools[at]), []  # the other pools are let go
    chosen, mine = _longest_recency(begun, half_lives(LONGER_DAYS, span), pool, k, how.doubt)
    lives = sorted({*half_lives(HISTORY_DAYS, span), *filter(None, [start.history.half_life_days])})
    chosen, mine = _longest_history((chosen, mine), start.recipe, lives, pool, k, how.doubt)
    recipe = fusion.fit_halves(mine, start.recipe, k, how.doubt, seed=how.seed, threads=how.threads)
    return _by_activity(replace(chosen, recipe=recipe), held, mine, how)


Pooled = tuple[Chosen, fusion.Pool]


def _longest_recency(
    begun: Pooled, recencies: tuple[float, ...], pool: Callable[[Chosen], fusion.Pool], k: int, doubt: float
) -> Pooled:
    """With the longest half-life of recency, from the one chosen on, that is not worse beyond doubt."""
    chosen = begun[0]
    tried, values = [begun], [fusion.quality(begun[1], chosen.recipe, k)]
    for days in recencies:
        if days > chosen.recency_days:
            longer = replace(chosen, recency_days=days)
            mine = pool(longer)
            _, recipe = fusion.fit([mine], chosen.recipe, k, doubt)
            tried.append((replace(longer, recipe=recipe), mine))
            values.append(fusion.quality(mine, recipe, k))
            if _last_undecided(values, doubt) < len(values) - 1:
                break
    return tried[_last_undecided(values, doubt)]


def _longest_history(
    begun: Pooled,
    default: fusion.Recipe,
    lives: Sequence[float],
    pool: Callable[[Chosen], fusion.Pool],
    k: int,
    doubt: float,
) -> Pooled:
    """With the longest half-life of histories that is not worse beyond doubt; with one that leaves nothing of
    what is old only where that is better by CERTAIN errors, as it hurts most where the newest weeks mislead
    (docs/log.md). Each is judged by the weights chosen or by `default`, whichever serve it better, as
    the former may have given up on histories that faded wrongly."""
    chosen, mine = begun

    def quality(of: fusion.Pool) -> F64:
        found = (fusion.quality(of, recipe, k) for recipe in dict.fromkeys((chosen.recipe, default)))
        return max(found, key=lambda one: float(one.mean()))

    def best(fadings: Sequence[Fading]) -> tuple[Pooled, F64]:
        tried = [replace(chosen, history=one) for one in fadings]
        pools = [mine if one == chosen else pool(one) for one in tried]
        values = [quality(one) for one in pools]
        at = _last_undecided(values, doubt)
        return (tried[at], pools[at]), values[at]

    found, its_quality = best([*(chosen.history._replace(half_life_days=days) for days in lives), KEPT])
    if chosen.history.floor and lives:
        forgetful, better = best([Fading(days) for days in lives])
        if _last_undecided([better, its_quality], CERTAIN) == 0:
            return forgetful
    return found


def _last_undecided(values: Sequence[F64], doubt: float) -> int:
    """The last of these qualities, (q,) each, that is within `doubt` standard errors of the best; within less
    where users are few, whom chance would let through."""
    best = max(values, key=lambda one: float(one.mean()))
    certain = (1 + fusion.FEW_USERS / len(best)) * len(best) ** 0.5
    losses = [best - one for one in values]
    return max(at for at, loss in enumerate(losses) if loss.mean() * certain <= doubt * loss.std())


def _by_activity(chosen: Chosen, held: HeldBack, pool: fusion.Pool, how: Fit) -> Chosen:
    """With the weights of each segment of users, searched from those of all."""
    n_liked, k = np.diff(held.known.matrix().indptr)[held.users], fitted_length(held.known.n_items)
    starts, found = (0, *how.segments), []
    for start, stop in zip(starts, (*how.segments, np.inf), strict=True):
        mine, own = (n_liked >= start) & (n_liked < stop), chosen.recipe
        if mine.sum() >= how.segment_users:
            part = fusion.part_of(pool, mine)
            own = fusion.fit_halves(part, own, k, how.doubt, False, how.seed, how.threads)
        found.append(own)
    if all(own == chosen.recipe for own in found):
        return chosen
    return replace(chosen, recipe=found[0], by_activity=tuple(zip(how.segments, found[1:], strict=True)))
