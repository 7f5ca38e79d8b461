"""IndexRecall@k every night: what the index found for sampled users against a search that skips nothing.

Told apart by how much history a user has, because busy users lie between tastes and lose the most to an
approximate index, and by before and after filters, because excluded items take places in a list that an
index over-fetches for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nightjar.kernels.sweep import sweep_topk
from nightjar.kernels.topk import F32, F64, I64, Filters, TopK, index_recall
from nightjar.stage import Metrics

SEGMENTS = (("0-4", 0), ("5-19", 5), ("20-99", 20), ("100+", 100))
"""Items in a user's history: the name of a segment and where it begins."""

Search = Callable[[F32, int, Filters | None], TopK]


@dataclass(frozen=True)
class Sample:
    """Recall of sampled users (m,): activity, items of their history; before and after filters."""

    activity: I64
    before: F64
    after: F64

    @classmethod
    def none(cls) -> Sample:
        return cls(np.empty(0, np.int64), np.empty(0), np.empty(0))

    @classmethod
    def together(cls, samples: Sequence[Sample]) -> Sample:
        return cls(
            np.concatenate([one.activity for one in samples] or [np.empty(0, np.int64)]),
            np.concatenate([one.before for one in samples] or [np.empty(0)]),
            np.concatenate([one.after for one in samples] or [np.empty(0)]),
        )

    def metrics(self) -> Metrics:
        """The mean recall after filters, the same before them, and both by activity."""
        segment = np.searchsorted([start for _, start in SEGMENTS], self.activity, side="right") - 1
        by_activity = {}
        for at, (name, _) in enumerate(SEGMENTS):
            mine = segment == at
            if mine.any():
                by_activity[name] = {
                    "users": int(mine.sum()),
                    "before_filters": float(self.before[mine].mean()),
                    "after_filters": float(self.after[mine].mean()),
                }
        return {
            "index_recall": float(self.after.mean()) if len(self.after) else 1.0,
            "index_recall_before_filters": float(self.before.mean()) if len(self.before) else 1.0,
            "index_recall_by_activity": by_activity,
            "recall_users": len(self.after),
        }


def drawn(seed: Sequence[int], positions: I64, share: float) -> I64:
    """Which of these positions a sample of `share` of all takes; a position is taken or not by itself.

    Its number hashed (splitmix64, Steele et al., OOPSLA 2014) is compared with the share.
    """
    key = np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        mixed = (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + key
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    return np.flatnonzero((mixed >> np.uint64(11)) * 2.0**-53 < share)


def recall_of(search: Search, matrix: F32, queries: F32, filters: Filters, found: TopK) -> tuple[F64, F64]:
    """IndexRecall@k of each user (q,) before and after filters; found is what the search gave after them."""
    k = found.item_nums.shape[1]
    after = index_recall(found, sweep_topk(queries, matrix, k, filters))
    everything = Filters()
    before = index_recall(search(queries, k, everything), sweep_topk(queries, matrix, k, everything))
    return before, after
