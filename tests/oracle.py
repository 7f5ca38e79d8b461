"""The night again from clean events on, slow and obvious: plain loops and float64, no code of the stages.

Factors of ALS alone are the kernel's: sweeps that end before they settle cannot be had another way, and
test_als.py holds each to the normal equations.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from scipy import sparse

from nightjar.config import NightConfig
from nightjar.kernels.als import Factorisation, item_factors

ONE = 2**20


@dataclass(frozen=True)
class Expected:
    """What the night must come to.

    lists: user -> (item id, score where personal, source) in order. terms: user -> history item -> what it
    adds to the score of each item number.
    """

    weights: dict[tuple[str, str], int]
    vectors: np.ndarray
    lists: dict[str, list[tuple[str, float | None, str]]]
    terms: dict[str, dict[str, np.ndarray]]


def night(
    config: NightConfig,
    end: datetime,
    events: Sequence[Mapping[str, Any]],
    items: Sequence[Mapping[str, Any]],
    embeddings: np.ndarray,
    segments: Mapping[str, str],
) -> Expected:
    """items: in item number order; embeddings: (n, d), a row an item; segments: of every known user."""
    num = {item["item_id"]: at for at, item in enumerate(items)}
    weights, strengths, last, liked, first = weigh(config, [e for e in events if e["item_id"] in num])
    seen: dict[str, set[str]] = defaultdict(set)
    for user, item in weights:
        seen[user].add(item)
    directions = item_vectors(config, embeddings.astype(np.float64), weights, num)
    vectors = directions * norms(config, end, liked, weights, len(items), num)[:, None]
    popular = popularity(config, end, liked, weights, items, segments)
    titles = [str(item["title"]) for item in items]
    E = embeddings.astype(np.float64)
    blend = Blend(config, end, E, titles, weights, strengths, last, liked, first, num)
    users = sorted({e["user_id"] for e in events} | set(segments))
    lists, terms = {}, {}
    for user in users:
        mine = {item: w for (who, item), w in weights.items() if who == user}
        recent = sorted(mine, key=lambda item: (-last[user, item].timestamp(), num[item]))
        profile = recent[: config.weigh_events.history_cap]
        terms[user] = blend.terms(user, profile, directions)
        unearned = blend.popular_share + blend.popular_in(segments.get(user) or "", popular)
        scores = sum(terms[user].values(), unearned) if terms[user] else None
        if terms[user] and config.rank.fusion == "reciprocal_ranks":
            able = [bool(item.get("available", True)) and item["item_id"] not in seen[user] for item in items]
            scores = blend.by_ranks(user, profile, directions, np.array(able))
        lists[user] = one_list(config, scores, items, seen[user], popular, segments.get(user))
    return Expected(weights, vectors, lists, terms)


Weights = dict[tuple[str, str], int]
Times = dict[tuple[str, str], datetime]


def weigh(
    config: NightConfig, events: Sequence[Mapping[str, Any]]
) -> tuple[Weights, Weights, Times, Times, Times]:
    weights: dict[tuple[str, str], int] = defaultdict(int)
    strengths: dict[tuple[str, str], int] = defaultdict(int)
    last: dict[tuple[str, str], datetime] = {}
    liked: dict[tuple[str, str], datetime] = {}
    first: dict[tuple[str, str], datetime] = {}
    newest: dict[str, datetime] = {}
    for event in events:
        newest[event["user_id"]] = max(newest.get(event["user_id"], event["event_time"]), event["event_time"])
    for event in events:
        scene = config.clean_events.scenes[event["scene"]]
        kind = scene.event_types[event["event_type"]]
        age = (newest[event["user_id"]] - event["event_time"]) / timedelta(days=1)
        sign = -1 if kind.negative else 1
        amount = kind.weight * scene.weight * 2 ** (-age / config.weigh_events.half_life_days)
        weight = max(round(amount * ONE), 1) * sign
        key = event["user_id"], event["item_id"]
        weights[key] += weight
        strengths[key] += round(kind.weight * scene.weight * ONE) * sign
        last[key] = max(last.get(key, datetime.min.replace(tzinfo=UTC)), event["event_time"])
        if weight > 0:
            liked[key] = max(liked.get(key, datetime.min.replace(tzinfo=UTC)), event["event_time"])
            first[key] = min(first.get(key, event["event_time"]), event["event_time"])
    return dict(weights), dict(strengths), last, liked, first


def item_vectors(
    config: NightConfig, E: np.ndarray, weights: Mapping[tuple[str, str], int], num: Mapping[str, int]
) -> np.ndarray:
    params = config.learn_taste
    V = whitened(config, E)
    total = np.zeros_like(V)
    for user in {user for user, _ in weights}:
        mine = [num[item] for (who, item), weight in weights.items() if who == user and weight > 0]
        if mine:
            mean = unit(V[mine].sum(axis=0, keepdims=True))[0]
            for item in mine:
                total[item] += mean / math.sqrt(len(mine))
    return unit(V + params.smooth_weight * unit(total))


def whitened(config: NightConfig, E: np.ndarray) -> np.ndarray:
    params = config.learn_taste
    centred = E - E.mean(axis=0)
    values, directions = np.linalg.eigh(centred.T @ centred / len(E))
    values = np.maximum(values, 0)
    values = (1 - params.shrinkage) * values + params.shrinkage * values.mean()
    values = np.maximum(values, 1e-6 * values.max())
    return unit(centred @ directions @ np.diag(values ** (-params.whiten_power / 2)))


def shared(S: np.ndarray) -> np.ndarray:
    """A relation, each pair divided by the root of what the one says and the other is told in all."""
    S = S - np.diag(np.diag(S))
    says, told = S.sum(axis=1), S.sum(axis=0)
    return S * says[says > 0].mean() / np.sqrt(np.maximum(np.outer(says, told), 1e-30))


class Blend:
    """The fused score by its definition: dense matrices, one user at a time."""

    def __init__(
        self,
        config: NightConfig,
        end: datetime,
        E: np.ndarray,
        texts: Sequence[str],
        weights: Mapping[tuple[str, str], int],
        strengths: Mapping[tuple[str, str], int],
        last: Mapping[tuple[str, str], datetime],
        liked: Mapping[tuple[str, str], datetime],
        first: Mapping[tuple[str, str], datetime],
        num: Mapping[str, int],
    ) -> None:
        self.config, self.strengths, self.last, self.num = config, strengths, last, num
        n, params, fit = len(num), config.learn_taste, config.fit_blend
        positive = {key: when for key, when in liked.items() if weights[key] > 0}
        users = sorted({user for user, _ in positive})
        X = np.zeros((len(users), n))
        self.popular = np.zeros(n)
        for (user, item), when in positive.items():
            X[users.index(user), num[item]] = 1
            self.popular[num[item]] += 2 ** (-((end - when) / timedelta(days=1)) / fit.recency_days)
        ever = X.sum(axis=0)
        self.cold = ever == 0
        share = self.popular.sum() / ever.sum()
        self.fresh = ((self.popular + 5 * share) / (share * (ever + 5))) ** fit.freshness_exponent
        per_user = X / np.sqrt(X.sum(axis=1, keepdims=True))
        together = X.T @ per_user
        own = np.diag(together)
        half = np.sqrt(np.maximum(own, 1e-9))
        self.relations = {
            "co_occurrence": together / (half[:, None] * half + 0.3 * own[own > 0].mean()),
            "text": shared(cosines(whitened(config, E)) ** params.text_power),
            "smoothed_text": shared(cosines(item_vectors(config, E, weights, num)) ** params.smoothed_power),
            "followers": followers({key: first[key] for key in positive}, n, num),
            "bm25": shared(bm25(texts)),
            "als": cosines(factors(config, X, whitened(config, E))),
            "ease": np.zeros((n, n)),
        }
        near = np.where(ever > 0, self.relations["text"], 0)
        np.fill_diagonal(near, 0)
        np.fill_diagonal(self.relations["co_occurrence"], 0)
        for item in np.flatnonzero(ever == 0):
            lent = self.relations["co_occurrence"] @ near[item] / max(near[item].sum(), 1e-9)
            self.relations["co_occurrence"][:, item] = lent
        P = np.linalg.inv(X.T @ X + params.ease_ridge * np.eye(n))
        used = (ever > 0)[:, None] & (ever > 0)
        self.relations["ease"] = np.where(used, -P / np.diag(P), 0)
        for S in self.relations.values():
            np.fill_diagonal(S, 0)

    @property
    def popular_share(self) -> np.ndarray:
        return self.config.fit_blend.weights.popularity * self.popular / np.linalg.norm(self.popular)

    def popular_in(self, segment: str, popular: Mapping[str, list[tuple[int, int]]]) -> np.ndarray:
        """What popularity in the user's segment adds to the scores (n,)."""
        everyone = np.zeros(len(self.fresh))
        for weight, item in popular[""]:
            everyone[item] = weight / ONE
        row = everyone * 100 / everyone.sum()
        for weight, item in popular.get(segment, []) if segment else []:
            row[item] += weight / ONE
        row = row * self.fresh
        return self.config.fit_blend.weights.popular_segment * row / np.linalg.norm(row)

    def terms(self, user: str, profile: Sequence[str], D: np.ndarray) -> dict[str, np.ndarray]:
        """What each history item adds to the scores (n,); nothing where the user has no direction."""
        parts = self.parts(user, profile, D)
        found = {item: np.zeros(len(self.fresh)) for item in profile} if parts else {}
        for weight, rows in parts.values():
            for item, row in rows.items():
                found[item] += weight * row
        return found

    def by_ranks(self, user: str, profile: Sequence[str], D: np.ndarray, able: np.ndarray) -> np.ndarray:
        """Reciprocal rank fusion (n,) over the items that the user may get."""
        sources = [(weight, sum(rows.values())) for weight, rows in self.parts(user, profile, D).values()]
        sources.append((np.full(len(able), self.config.fit_blend.weights.popularity), self.popular))
        found = np.zeros(len(able))
        for weight, scores in sources:
            ranked = sorted(np.flatnonzero(able & (scores > 0)), key=lambda at: (-scores[at], at))
            for rank, at in enumerate(ranked, start=1):
                found[at] += weight[at] / (60 + rank)
        return found

    def parts(
        self, user: str, profile: Sequence[str], D: np.ndarray
    ) -> dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Source -> its weight for each item, and what each history item adds by it, scaled to length 1."""
        fit = self.config.fit_blend
        newest = max((when for (who, _), when in self.last.items() if who == user), default=None)
        x, w = {}, {}
        for item in profile:
            age = (newest - self.last[user, item]) / timedelta(days=1)
            strength, floor = self.strengths[user, item] / ONE, fit.history_floor
            left = floor + (1 - floor) * 2 ** (-age / fit.history_days)
            x[item] = math.copysign(math.sqrt(abs(strength)), strength) * left
            w[item] = strength * left
        newer = {
            item: len({t for (who, _), t in self.last.items() if who == user and t > self.last[user, item]})
            for item in profile
        }
        new = {item: np.sign(x[item]) * 2 ** (-newer[item] / 2) for item in profile}
        parts = {
            name: {item: (new if name == "followers" else x)[item] * S[self.num[item]] for item in profile}
            for name, S in self.relations.items()
        }
        parts["vector"] = {item: w[item] * (D @ D[self.num[item]]) for item in profile}
        u = sum((w[item] * D[self.num[item]] for item in profile), np.zeros(D.shape[1]))
        if np.linalg.norm(u) <= 1e-6 and not any(x.values()):
            return {}
        for_warm = {name: getattr(fit.weights, name) for name in parts}
        for_cold = for_warm | {"vector": fit.weights.cold_vector, "bm25": fit.weights.cold_bm25}
        of_segment = fit.weights.popular_segment
        larger = (sum(for_warm.values()) + of_segment) / (sum(for_cold.values()) + of_segment)
        found = {}
        for name, rows in parts.items():
            length = np.linalg.norm(sum(rows.values()) * self.fresh) or 1
            scaled = {item: row * self.fresh / length for item, row in rows.items()}
            found[name] = np.where(self.cold, for_cold[name] * larger, for_warm[name]), scaled
        return found


def followers(liked: Mapping[tuple[str, str], datetime], n: int, num: Mapping[str, int]) -> np.ndarray:
    """What each user came to like soon after what, one pair at a time; liked: when each pair began."""
    counts = np.zeros((n, n))
    for user in {user for user, _ in liked}:
        order = sorted((when, num[item]) for (who, item), when in liked.items() if who == user)
        for at, (when, item) in enumerate(order):
            for distance, (later, other) in enumerate(order[at + 1 : at + 7], start=1):
                counts[item, other] += 1 / distance
                counts[other, item] += (1 / distance) if later == when else 0
    out, into = counts.sum(axis=1), counts.sum(axis=0)
    return counts / (np.sqrt(out[:, None] * into) + 0.3 * out[out > 0].mean())


def factors(config: NightConfig, X: np.ndarray, V: np.ndarray) -> np.ndarray:
    """Unit rows, near where ALS factors are alike; those of items nobody liked come from their texts."""
    params = config.learn_taste
    how = Factorisation(params.als_factors, params.als_confidence, params.als_ridge, params.als_sweeps)
    Y = item_factors(sparse.csr_matrix(X.astype(np.float32)), how).astype(np.float64)
    known = X.any(axis=0)
    mapping = np.linalg.inv(V[known].T @ V[known] + params.als_text_ridge * np.eye(V.shape[1]))
    Y[~known] = V[~known] @ mapping @ V[known].T @ Y[known]
    W = np.linalg.inv(Y.T @ Y + params.als_ridge * np.eye(Y.shape[1]))
    return unit(Y @ np.linalg.cholesky(W))


def bm25(texts: Sequence[str]) -> np.ndarray:
    """Robertson & Zaragoza 2009, each text a query to all, word by word."""
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    n, mean = len(words), sum(map(len, words)) / len(words)
    having = Counter(word for text in words for word in set(text))
    idf = {word: math.log(1 + (n - df + 0.5) / (df + 0.5)) for word, df in having.items()}
    S = np.zeros((n, n))
    for h, asked in enumerate(words):
        for i, text in enumerate(words):
            for word in set(text) & set(asked):
                tf = text.count(word)
                weight = idf[word] * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * len(text) / mean))
                S[h, i] += asked.count(word) * weight
    return S


def cosines(V: np.ndarray) -> np.ndarray:
    return np.maximum(V @ V.T, 0)


def norms(
    config: NightConfig,
    end: datetime,
    liked: Mapping[tuple[str, str], datetime],
    weights: Mapping[Any, int],
    n: int,
    num: Mapping[str, int],
) -> np.ndarray:
    """How much each item counts: its share of recent users against everybody's, pulled to 1 by 5 users."""
    ever, recent = [0.0] * n, [0.0] * n
    for key, weight in weights.items():
        if weight > 0:
            age = (end - liked[key]) / timedelta(days=1)
            ever[num[key[1]]] += 1
            recent[num[key[1]]] += 2 ** (-age / config.learn_taste.freshness_half_life_days)
    share = sum(recent) / sum(ever)
    ratios = [(r + 5 * share) / (share * (e + 5)) for r, e in zip(recent, ever, strict=True)]
    return np.array(ratios) ** config.learn_taste.freshness_power


def unit(X: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    return np.where(norms > 1e-9, X / np.maximum(norms, 1e-9), 0)


def popularity(
    config: NightConfig,
    end: datetime,
    liked: Mapping[tuple[str, str], datetime],
    weights: Mapping[tuple[str, str], int],
    items: Sequence[Mapping[str, Any]],
    segments: Mapping[str, str],
) -> dict[str, list[tuple[int, int]]]:
    """segment -> (weight, item number) best first; "" is everyone."""
    num = {item["item_id"]: at for at, item in enumerate(items)}
    totals: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for (user, item), when in liked.items():
        if weights[user, item] <= 0 or not items[num[item]].get("available", True):
            continue
        age = (end - when) / timedelta(days=1)
        amount = round(2 ** (-age / config.weigh_events.popularity_half_life_days) * ONE)
        for segment in {"", segments.get(user) or ""}:
            totals[segment][num[item]] += amount
    return {s: sorted(((w, i) for i, w in t.items()), key=lambda p: (-p[0], p[1])) for s, t in totals.items()}


def one_list(
    config: NightConfig,
    scores: np.ndarray | None,
    items: Sequence[Mapping[str, Any]],
    seen: set[str],
    popular: Mapping[str, list[tuple[int, int]]],
    segment: str | None,
) -> list[tuple[str, float | None, str]]:
    k, allowed = (
        config.rank.k,
        [at for at, item in enumerate(items) if item.get("available", True) and item["item_id"] not in seen],
    )
    out: list[tuple[str, float | None, str]] = []
    if scores is not None:
        ranked = sorted(allowed, key=lambda at: (-scores[at], at))[:k]
        out = [(items[at]["item_id"], float(scores[at]), "personal") for at in ranked]
    taken = {item for item, _, _ in out}
    orders = [
        (popular.get(segment, []) if segment else [], "popular_segment"),
        (popular.get("", []), "popular"),
    ]
    for order, source in orders:
        for _, at in order:
            if len(out) < k and at in allowed and items[at]["item_id"] not in taken:
                out.append((items[at]["item_id"], None, source))
                taken.add(items[at]["item_id"])
    for at in allowed:
        if len(out) < k and items[at]["item_id"] not in taken:
            out.append((items[at]["item_id"], None, "popular"))
            taken.add(items[at]["item_id"])
    return out
