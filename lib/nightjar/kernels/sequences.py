"""What the order of a user's events tells: days too busy to be a person's, double clicks, sessions.

All arrays describe rows sorted by user, then time. Times are int64 microseconds since 1970 UTC.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

MICROS = 1_000_000
DAY = 86_400 * MICROS


def days(micros: I64) -> I64:
    """The UTC day number of each time; times before 1970 have negative ones."""
    out: I64 = micros // DAY
    return out


def run_starts(changes: Mask, days_of: I64) -> I64:
    """Positions (r,) where a user-day begins. changes[i]: row i belongs to another user than row i−1."""
    if not len(changes):
        return np.zeros(0, np.int64)
    first = changes | np.r_[True, days_of[1:] != days_of[:-1]]
    first[0] = True
    return np.flatnonzero(first).astype(np.int64)


def near_previous(changes: Mask, micros: I64, within: int) -> Mask:
    """True for rows less than `within` microseconds after a row of the same user, and for that row.

    Only these can be part of a double click, so only their items need comparing.
    """
    close = np.r_[False, micros[1:] - micros[:-1] < within][: len(micros)] & ~changes
    both: Mask = close | np.r_[close[1:], False][: len(close)]
    return both


def repeats(keys: I64, micros: I64, within: int) -> Mask:
    """True for rows less than `within` microseconds after the last row of their key that was kept.

    keys: one number for each combination of user, scene, type and item. The first row of a key is kept; a
    repeat does not move the clock, so a steady stream of clicks leaves one row every `within`.
    """
    out = np.zeros(len(keys), dtype=bool)
    if within <= 0 or len(keys) < 2:
        return out
    order = np.lexsort((micros, keys))
    k, t = keys[order], micros[order]
    close = np.r_[False, (k[1:] == k[:-1]) & (t[1:] - t[:-1] < within)]
    # Across a wide gap the last kept row no longer matters, so each run of close rows stands alone; a run
    # shorter than `within` keeps its first row only, which is nearly every run there is.
    first = np.flatnonzero(~close)
    last = np.r_[first[1:], len(k)] - 1
    flagged = close.copy()
    for start, stop in zip(*_long_runs(t, first, last, within), strict=True):
        flagged[start : stop + 1] = _greedy(t[start : stop + 1], within)
    out[order] = flagged
    return out


def _long_runs(t: I64, first: I64, last: I64, within: int) -> tuple[I64, I64]:
    long = t[last] - t[first] >= within
    return first[long], last[long]


def _greedy(t: I64, within: int) -> Mask:
    out = np.zeros(len(t), dtype=bool)
    kept = t[0]
    for at in range(1, len(t)):
        out[at] = t[at] - kept < within
        if not out[at]:
            kept = t[at]
    return out


def session_starts(changes: Mask, micros: I64, gap: int) -> Mask:
    """True where a session begins: another user, or `gap` microseconds or more after the row before."""
    begins: Mask = changes | np.r_[True, micros[1:] - micros[:-1] >= gap][: len(micros)]
    return begins
