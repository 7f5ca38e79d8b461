"""The night again from clean events on, slow and obvious: plain loops and float64, no code of the stages."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from nightjar.config import NightConfig

ONE = 2**20


@dataclass(frozen=True)
class Expected:
    """What the night must come to. lists: user -> (item id, score where personal, source) in order."""

    weights: dict[tuple[str, str], int]
    vectors: np.ndarray
    lists: dict[str, list[tuple[str, float | None, str]]]


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
    weights, last, liked = weigh(config, end, [e for e in events if e["item_id"] in num])
    seen: dict[str, set[str]] = defaultdict(set)
    for user, item in weights:
        seen[user].add(item)
    directions = item_vectors(config, embeddings.astype(np.float64), weights, num)
    vectors = directions * norms(config, end, last, weights, len(items), num)[:, None]
    popular = popularity(config, end, liked, weights, items, segments)
    users = sorted({e["user_id"] for e in events} | set(segments))
    lists = {}
    for user in users:
        mine = {item: w for (who, item), w in weights.items() if who == user}
        recent = sorted(mine, key=lambda item: (-last[user, item].timestamp(), num[item]))
        profile = recent[: config.weigh_events.history_cap]
        lists[user] = one_list(
            config, profile, mine, vectors, items, num, seen[user], popular, segments.get(user)
        )
    return Expected(weights, vectors, lists)


def weigh(
    config: NightConfig, end: datetime, events: Sequence[Mapping[str, Any]]
) -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], datetime], dict[tuple[str, str], datetime]]:
    weights: dict[tuple[str, str], int] = defaultdict(int)
    last: dict[tuple[str, str], datetime] = {}
    liked: dict[tuple[str, str], datetime] = {}
    for event in events:
        scene = config.clean_events.scenes[event["scene"]]
        kind = scene.event_types[event["event_type"]]
        age = (end - event["event_time"]) / timedelta(days=1)
        amount = kind.weight * scene.weight * (-1 if kind.negative else 1)
        weight = round(amount * 2 ** (-age / config.weigh_events.half_life_days) * ONE)
        key = event["user_id"], event["item_id"]
        weights[key] += weight
        last[key] = max(last.get(key, datetime.min.replace(tzinfo=UTC)), event["event_time"])
        if weight > 0:
            liked[key] = max(liked.get(key, datetime.min.replace(tzinfo=UTC)), event["event_time"])
    return dict(weights), last, liked


def item_vectors(
    config: NightConfig, E: np.ndarray, weights: Mapping[tuple[str, str], int], num: Mapping[str, int]
) -> np.ndarray:
    params = config.learn_taste
    centred = E - E.mean(axis=0)
    values, directions = np.linalg.eigh(centred.T @ centred / len(E))
    values = np.maximum(values, 0)
    values = (1 - params.shrinkage) * values + params.shrinkage * values.mean()
    values = np.maximum(values, 1e-6 * values.max())
    V = unit(centred @ directions @ np.diag(values ** (-params.whiten_power / 2)))
    total = np.zeros_like(V)
    for user in {user for user, _ in weights}:
        mine = [num[item] for (who, item), weight in weights.items() if who == user and weight > 0]
        if mine:
            mean = unit(V[mine].sum(axis=0, keepdims=True))[0]
            for item in mine:
                total[item] += mean / math.sqrt(len(mine))
    return unit(V + params.smooth_weight * unit(total))


def norms(
    config: NightConfig,
    end: datetime,
    last: Mapping[tuple[str, str], datetime],
    weights: Mapping[Any, int],
    n: int,
    num: Mapping[str, int],
) -> np.ndarray:
    """How much each item counts: its share of recent users against everybody's, pulled to 1 by 5 users."""
    ever, recent = [0.0] * n, [0.0] * n
    for key, weight in weights.items():
        if weight > 0:
            age = (end - last[key]) / timedelta(days=1)
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
    profile: Sequence[str],
    mine: Mapping[str, int],
    V: np.ndarray,
    items: Sequence[Mapping[str, Any]],
    num: Mapping[str, int],
    seen: set[str],
    popular: Mapping[str, list[tuple[int, int]]],
    segment: str | None,
) -> list[tuple[str, float | None, str]]:
    k, allowed = (
        config.rank.k,
        [at for at, item in enumerate(items) if item.get("available", True) and item["item_id"] not in seen],
    )
    user = sum((mine[item] / ONE * unit(V)[num[item]] for item in profile), np.zeros(V.shape[1]))
    out: list[tuple[str, float | None, str]] = []
    if np.linalg.norm(user) > 1e-6:
        user = user / np.linalg.norm(user)
        candidates = sorted(allowed, key=lambda at: (-float(V[at] @ user), at))[: config.retrieve.k_prime]
        top = max((w for w, _ in popular.get("", [])), default=1)
        heat = {at: w / top for w, at in popular.get("", [])}
        fused = {
            at: float(V[at] @ user) + config.rank.popularity_weight * heat.get(at, 0.0) for at in candidates
        }
        ranked = sorted(fused, key=lambda at: (-fused[at], at))[:k]
        out = [(items[at]["item_id"], fused[at], "personal") for at in ranked]
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
