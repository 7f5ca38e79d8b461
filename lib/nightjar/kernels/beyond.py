"""Says what a night's lists do to the catalogue beside being right: spread, novelty, the long tail.

`catalogue_metrics` gives one number for all lists; `novelty` gives one for each user. What lists look like
inside (ILD, calibration) is in `variety`, and how they changed since last night in `stability`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nightjar.errors import ContractError
from nightjar.kernels.ranked_lists import (
    BoolArray,
    FloatArray,
    IntArray,
    check_ks,
    check_lists,
    check_no_repeats,
    lengths_at,
    row_blocks,
)

# The short head holds this much of all interactions, the long tail the rest (Abdollahpouri et al. 2019).
SHORT_HEAD_PERCENT = 80


@dataclass(frozen=True)
class Catalogue:
    """What is known of every item before t0, the moment the lists were made for.

    available: (n_items,) bool, whether the item could be recommended (cold ones included). n_users:
    (n_items,) int64, distinct users with an interaction with the item before t0. n_train_users: users with
    any interaction.
    """

    available: BoolArray
    n_users: IntArray
    n_train_users: int

    def __post_init__(self) -> None:
        """Raises ContractError when the arrays disagree in length or count more users than there are."""
        if self.available.shape != self.n_users.shape or self.available.ndim != 1:
            raise ContractError(
                f"available {self.available.shape} and n_users {self.n_users.shape} must both be (n_items,)"
            )
        if len(self.n_users) and not 0 <= self.n_users.min() <= self.n_users.max() <= self.n_train_users:
            raise ContractError(
                f"n_users must lie between 0 and n_train_users = {self.n_train_users} for every item"
            )

    @property
    def cold(self) -> BoolArray:
        """Items without an interaction before t0, (n_items,) bool."""
        cold: BoolArray = self.n_users == 0
        return cold

    @property
    def long_tail(self) -> BoolArray:
        """Items outside the short head, (n_items,) bool.

        The short head is the fewest most popular items that hold 80% of all interactions, ties by item number
        ascending (Abdollahpouri, Burke & Mobasher 2019, https://arxiv.org/abs/1901.07555).
        """
        order = np.argsort(-self.n_users, kind="stable")
        before = np.cumsum(self.n_users[order]) - self.n_users[order]
        tail = np.ones(len(self.n_users), dtype=np.bool_)
        tail[order[100 * before < SHORT_HEAD_PERCENT * self.n_users.sum()]] = False
        return tail


def catalogue_metrics(
    lists: npt.NDArray[np.integer], catalogue: Catalogue, ks: Sequence[int]
) -> dict[str, float]:
    """Measures how all lists together use the catalogue.

    lists: (n, w) integers with a row for every known user, -1 padding at the end. Returns {name: float}:
      CatalogueCoverage@k  distinct available items recommended / available items
      ColdItemShare@k      recommended slots given to items with no interaction before t0 / recommended slots
      UserCoverage@k       users with a list / users
      Fill@k               mean list length / k, users without a list counted as 0
      Gini@k               of the slots each available item got, zeros included: 0 even, towards 1 uneven
      Entropy@k            of the same, in bits: at most log2(available items)
    NaN where nothing was recommended, or there is no user or available item to measure. Raises
    ContractError for malformed lists, a repeat within a list, or an item number outside the catalogue.
    """
    lists = check_lists(lists, len(catalogue.available))
    check_no_repeats(lists)
    metrics: dict[str, float] = {}
    for k in check_ks(ks):
        counts, lengths = exposure(lists, k, len(catalogue.available)), lengths_at(lists, k)
        of_available = counts[catalogue.available]
        metrics |= {
            f"CatalogueCoverage@{k}": _ratio(int(np.count_nonzero(of_available)), len(of_available)),
            f"ColdItemShare@{k}": _ratio(int(counts[catalogue.cold].sum()), int(counts.sum())),
            f"UserCoverage@{k}": _ratio(int(np.count_nonzero(lengths)), len(lists)),
            f"Fill@{k}": _ratio(int(lengths.sum()), len(lists) * k),
            f"Gini@{k}": gini(of_available),
            f"Entropy@{k}": entropy_bits(of_available),
        }
    return metrics


def _ratio(part: int, whole: int) -> float:
    return float(part / whole) if whole else float("nan")


def exposure(lists: IntArray, k: int, n_items: int) -> IntArray:
    """Slots that each item got among the first `k` of every list, (n_items,) int64, for checked lists."""
    counts = np.zeros(n_items, dtype=np.int64)
    for start, stop in row_blocks(len(lists), min(k, lists.shape[1])):
        block = lists[start:stop, :k]
        counts += np.bincount(block[block >= 0], minlength=n_items)
    return counts


def gini(counts: IntArray) -> float:
    """Gini coefficient of counts from 0 up, zeros included; NaN when they are all 0 or there is none.

    Sum over i of (2i - n - 1)·x_(i) / (n · sum x) with x ascending, i from 1: 0 for equal counts, (n - 1)/n
    for one.
    """
    n, total = len(counts), float(counts.sum())
    if total == 0:
        return float("nan")
    weights = 2.0 * np.arange(1, n + 1) - n - 1
    return float((weights * np.sort(counts)).sum() / (n * total))


def entropy_bits(counts: IntArray) -> float:
    """Shannon entropy in bits of the shares that counts stand for; NaN when all are 0 or there is none."""
    used = counts[counts > 0]
    if len(used) == 0:
        return float("nan")
    shares = used / used.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def novelty(lists: npt.NDArray[np.integer], catalogue: Catalogue, ks: Sequence[int]) -> dict[str, FloatArray]:
    """Measures how far each user's list strays from what everybody already knows.

    lists: (n, w) integers, -1 padding at the end. Returns {name: (n,) float64}, a mean over the filled
    slots of the first k, NaN for a user without a list:
      ARP@k   users who had interacted with the item before t0 (Abdollahpouri et al. 2019)
      APLT@k  1 for a long-tail item, else 0: see `Catalogue.long_tail` (the same paper)
      MIUF@k  -log2(users of the item / all users with an interaction), in bits; an item nobody had counts
              as if one user had, since its own novelty would be infinite (Zhou et al. 2010,
              doi:10.1073/pnas.1000488107)
    Raises ContractError for malformed lists or an item number outside the catalogue.
    """
    lists, cutoffs = check_lists(lists, len(catalogue.available)), check_ks(ks)
    per_item = {
        "ARP": catalogue.n_users.astype(np.float64),
        "APLT": catalogue.long_tail.astype(np.float64),
        "MIUF": -np.log2(np.maximum(catalogue.n_users, 1) / max(catalogue.n_train_users, 1)) + 0.0,
    }
    return {
        f"{name}@{k}": mean_over_list(values, lists, k) for k in cutoffs for name, values in per_item.items()
    }


def mean_over_list(values: FloatArray, lists: IntArray, k: int) -> FloatArray:
    """Mean of an item's value over the filled slots among each row's first `k`, (n,) float64, NaN where none.

    values: (n_items,) float64; lists: (n, w) int64, checked.
    """
    means = np.full(len(lists), np.nan)
    if len(values) == 0:
        return means
    for start, stop in row_blocks(len(lists), min(k, lists.shape[1])):
        block = lists[start:stop, :k]
        total = np.where(block >= 0, values[block], 0.0).sum(axis=1)
        length = np.count_nonzero(block >= 0, axis=1)
        means[start:stop] = np.divide(total, length, out=np.full(len(block), np.nan), where=length > 0)
    return means
