"""What `factory: auto` comes to: exact search as long as it is affordable, else what the memory holds.

The plan follows from sizes alone, so that every run of a night plans alike. An approximate factory is then
tuned: each shard is searched exactly and with one setting after the other, for users made up from the item
vectors, and the first setting with which every shard finds enough is taken. Time is measured and reported,
but decides nothing.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nightjar.engines.search import EXACT, LISTS, Searcher
from nightjar.kernels.sweep import sweep_topk
from nightjar.kernels.topk import F32, Filters, TopK, index_recall, item_norms

BULK_BYTES = 64  # of an item in a bulk shard, beside a byte a dimension: terms, norm, number, share of lists
FAISS_BYTES = 16  # of an item in an inverted list, beside its code: its number, twice
K = 100
N_USERS = 256
SAMPLE = 8192
NEIGHBOURS = 8
TOPICS = 3
SHARES = (0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.4)  # of lists visited; from a half on, exact search is faster
K_FACTOR = 5.0  # 4-bit codes misorder: five times as many candidates for fp32 to put in order


@dataclass(frozen=True)
class Limits:
    """exact_up_to: items; memory_bytes: of index a host may hold; recall_target: IndexRecall to reach."""

    exact_up_to: int
    memory_bytes: int
    recall_target: float


@dataclass(frozen=True)
class Trial:
    """One setting of `Effort` tried on one shard, {} for exact search; micros: CPU microseconds a user."""

    settings: dict[str, Any]
    recall: float
    micros: float


def plan(n_items: int, n_dims: int, n_shards: int, limits: Limits) -> tuple[str, str]:
    """A factory by size, and the reason in words."""
    if n_items <= limits.exact_up_to:
        return EXACT, f"{n_items} items, not more than exact_up_to {limits.exact_up_to}"
    coded = n_items * (n_dims + BULK_BYTES)
    if coded <= limits.memory_bytes:
        return (
            LISTS,
            f"{n_items} items, more than exact_up_to {limits.exact_up_to}, in {coded} bytes of codes",
        )
    n_codes = n_dims if n_dims % 2 else n_dims // 2
    packed = n_items * (n_codes // 2 + FAISS_BYTES)
    if packed <= limits.memory_bytes:
        n_lists = max(1, int(4 * np.sqrt(n_items // n_shards)))
        why = f"{coded} bytes of codes are more than memory_bytes {limits.memory_bytes}, {packed} are not"
        return f"IVF{n_lists},PQ{n_codes}x4fs", why
    return EXACT, f"no index of {n_items} items fits into {limits.memory_bytes} bytes; exact search streams"


def made_up_users(items: F32, seed: int) -> F32:
    """N_USERS unit vectors (q, d) float32: means of item directions that lie near a few random items.

    items (n, d) float32, not all zero.
    """
    rng = np.random.default_rng(seed)
    known = np.flatnonzero(item_norms(items, "items") > 0)
    sample = items[np.sort(rng.choice(known, min(len(known), SAMPLE), replace=False))]
    sample = sample / np.linalg.norm(sample, axis=1, keepdims=True)
    near = min(NEIGHBOURS, len(sample))
    users = np.empty((N_USERS, items.shape[1]), np.float32)
    for user in range(N_USERS):
        topics = sample[rng.choice(len(sample), rng.integers(1, TOPICS + 1))]
        liked = np.argpartition(-(topics @ sample.T), near - 1, axis=1)[:, :near]
        users[user] = sample[liked.reshape(-1)].mean(axis=0)
    lengths = np.linalg.norm(users, axis=1, keepdims=True)
    users[:] = np.where(lengths > 1e-6, users / np.maximum(lengths, 1e-6), sample[:1])
    return users


def trials(searcher: Searcher, items: slice, seed: int) -> list[Trial]:
    """Exact search and then every setting of the factory, on one shard that holds these items."""
    mine = searcher.matrix[items]
    users = made_up_users(mine, seed)
    if searcher.factory == EXACT:
        searcher.search(users[:2], K)  # compiles
        return [Trial({}, 1.0, _timed(searcher, users)[1])]
    truth = sweep_topk(users, mine, K, Filters(eligible=item_norms(mine, "items") > 0))
    found = []
    for settings in settings_of(searcher.factory, items.stop - items.start):
        result, micros = _timed(searcher.tuned(settings), users)
        found.append(Trial(settings, float(index_recall(result, truth).mean()), micros))
    return found


def settings_of(factory: str, n_items: int) -> list[dict[str, Any]]:
    """What is tried of a factory that `plan` names, cheapest first."""
    if factory == LISTS:
        return [{"probe_share": share} for share in SHARES]
    n_lists = max(1, int(4 * np.sqrt(n_items)))
    probes = sorted({max(1, int(share * n_lists)) for share in SHARES})
    return [{"nprobe": probe, "k_factor": K_FACTOR} for probe in probes]


def _timed(searcher: Searcher, users: F32) -> tuple[TopK, float]:
    start = time.process_time()
    found = searcher.search(users, K)
    return found, 1e6 * (time.process_time() - start) / len(users)


def settled(factory: str, why: str, shards: Sequence[Sequence[Trial]], target: float) -> dict[str, Any]:
    """The choice and what was measured, plain JSON: factory, why, effort, recall, micros.

    recall is that of the worst shard, micros the sum over shards. Where no setting finds enough, the bulk
    engine's shards are searched exactly and a FAISS index with the last setting (the gate of `retrieve`
    judges it).
    """
    tried = [
        Trial(column[0].settings, min(one.recall for one in column), sum(one.micros for one in column))
        for column in zip(*shards, strict=True)
    ]
    report = {
        " ".join(f"{name} {value}" for name, value in one.settings.items()) or EXACT: {
            "recall": one.recall,
            "micros": round(one.micros, 1),
        }
        for one in tried
    }
    enough = [one for one in tried if one.recall >= target]
    if factory == LISTS and not enough:
        factory, why = EXACT, f"{why}; no share of lists reaches recall {target}"
        return {"factory": factory, "why": why, "effort": {}, "tried": report}
    best = enough[:1] or tried[-1:]
    return {
        "factory": factory,
        "why": why,
        "effort": best[0].settings if best else {},  # no shard holds an item
        "tried": report,
    }
