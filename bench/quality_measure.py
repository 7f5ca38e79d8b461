"""Lists held against what users chose next; results of single methods are kept on disk.

A kept result is named by all that it depends on (log, split, method, setting, code), so that a changed
Nightjar costs Nightjar's part alone. Files lie in NIGHTJAR_BENCH_CACHE; delete the folder to start anew.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from bench import quality_baselines
from bench.quality_data import Log, Split, cache_folder
from nightjar.kernels import als, bm25, signals
from nightjar.kernels.metrics import accuracy
from nightjar.kernels.statistics import paired_difference
from nightjar.kernels.topk import select_topk

BLOCK_USERS = 256
K = 20
RESAMPLES = 1000
F32, F64, I64 = NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]
CODE: tuple[ModuleType | Callable[..., Any], ...] = (
    quality_baselines,
    als,
    bm25,
    signals.co_occurrence,
    signals.co_occurrence_rows,
    signals.add_weights,
    signals.cosine_neighbours,
    signals.ease,
)
"""Whose source decides what a single method comes to."""


@dataclass(frozen=True)
class Measured:
    """A method's result on a split, user by user. coverage: share of the items it may recommend in any
    list.
    """

    recall: F64
    ndcg: F64
    coverage: float


def pooled(found: Sequence[tuple[NDArray[Any], Measured]]) -> Measured:
    """One result of several windows, each with the ids of its users."""
    ids = [users for users, _ in found]
    recall, ndcg = (by_user(ids, [getattr(one, of) for _, one in found]) for of in ("recall", "ndcg"))
    return Measured(recall, ndcg, float(np.mean([one.coverage for _, one in found])))


def by_user(ids: Sequence[NDArray[Any]], values: Sequence[F64]) -> F64:
    """A value for each user (n,) from those of several windows, each with the ids of its users.

    Their mean is that of all values of all windows, and who draws a user draws all that he stands in: the
    sum of a user's values, times users by values.
    """
    _, row = np.unique(np.concatenate(ids), return_inverse=True)
    sums: F64 = np.bincount(row, np.concatenate(values))
    return sums * (len(sums) / len(row))


def difference(ours: F64, theirs: F64) -> str:
    """What the first has more than the second for the same users (n,), with its 95% interval, as a text."""
    if len(ours) < 2:
        return f"{float(np.mean(ours - theirs)):+.4f}"
    gap = paired_difference(ours, theirs, RESAMPLES, 0)
    return f"{gap.difference:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"


def change(metric: str, before: F64, after: F64) -> str:
    """From which mean to which, and by how much, for the same users (n,), as a text."""
    return f"{metric} {before.mean():.4f} -> {after.mean():.4f}, {difference(after, before)}"


def lists_of(held: Split, scores: Callable[[I64], NDArray[np.floating]], k: int = K) -> I64:
    """The best k (len(held.users), k) of dense scores (users, n_items), what they may not get left out."""
    lists = np.full((len(held.users), k), -1, np.int64)
    for start in range(0, len(held.users), BLOCK_USERS):
        users = held.users[start : start + BLOCK_USERS]
        found = np.array(scores(users), np.float32)
        found[:, ~held.warm] = -np.inf
        found[held.liked[users].nonzero()] = -np.inf
        lists[start : start + BLOCK_USERS] = ranked(found, k)
    return lists


def ranked(scores: F32, k: int) -> I64:
    """The best k items (q, k) of dense scores, −1 where a score is −inf; ties by item number.

    What reaches the k-th largest is chosen first: sorting whole rows costs ten times as much.
    """
    if scores.shape[1] > 4 * k:
        least = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
        row, item = np.nonzero((scores >= least) & (scores > -np.inf))
        counts = np.bincount(row, minlength=len(scores))
        nums = np.full((len(scores), max(int(counts.max(initial=0)), k)), -1, np.int64)
        nums[row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)] = item
        return select_topk(np.take_along_axis(scores, np.maximum(nums, 0), axis=1), nums, k).item_nums
    nums = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    return select_topk(scores, np.where(np.isneginf(scores), -1, nums), k).item_nums


def held_against(held: Split, lists: I64) -> Measured:
    """Recall@20 and nDCG@20 of lists (users, ≥ 20) by the definitions of kernels/metrics.py."""
    values = accuracy(lists, csr(held.truth), [K])
    shown = lists[:, :K]
    coverage = len(np.unique(shown[shown >= 0])) / max(int(held.warm.sum()), 1)
    return Measured(values[f"Recall@{K}"], values[f"nDCG@{K}"], coverage)


def csr(truth: sparse.csr_matrix) -> tuple[I64, I64]:
    return truth.indptr.astype(np.int64), truth.indices.astype(np.int64)


def history(held: Split, users: I64, half_life_days: float | None) -> sparse.csr_matrix:
    """Histories (len(users), n_items) for the single methods: 2^(−days before the user's own last event /
    half-life).
    """
    ages = held.ages[users].copy()
    if half_life_days is not None and ages.nnz:
        filled = np.diff(ages.indptr) > 0
        newest = np.minimum.reduceat(ages.data, ages.indptr[:-1][filled])
        since = ages.data - np.repeat(newest, np.diff(ages.indptr)[filled])
        ages.data = np.exp2(-since / half_life_days)
    else:
        ages.data = np.ones(ages.nnz)
    return ages.astype(np.float32)


def digest(log: Log, held: Split) -> str:
    """What a result depends on beside its method: the split itself, the texts, and the code."""
    found = hashlib.sha256()
    for part in (held.liked, held.ages, held.truth):
        for array in (part.indptr.astype(np.int64), part.indices.astype(np.int64), part.data):
            found.update(np.ascontiguousarray(array).tobytes())
    for array in (held.users, held.warm):
        found.update(array.tobytes())
    found.update("\0".join(log.texts).encode())
    for code in CODE:
        found.update(inspect.getsource(code).encode())
    return found.hexdigest()


def kept(key: Sequence[Any], make: Callable[[], Measured]) -> Measured:
    """The result under this key: from disk, or made now and kept."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    path: Path = cache_folder() / f"result-{name}.npz"
    if path.exists():
        with np.load(path) as found:
            return Measured(found["recall"], found["ndcg"], float(found["coverage"]))
    made = make()
    aside = path.with_name(f"making-{path.name}")
    np.savez(aside, recall=made.recall, ndcg=made.ndcg, coverage=np.float64(made.coverage))
    aside.replace(path)
    return made
