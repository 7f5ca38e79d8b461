"""Per-user values of one or several windows -> means by slice, bootstrap intervals, paired differences.

A slice is a part of the users (warm, cold, by length of history) or a cell of users and items: truth among
warm or cold items, for warm or cold users. Users are drawn once for all metrics and methods of a slice, and a
user who stands in several windows is drawn with all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nightjar.config import Evaluate
from nightjar.kernels.beyond import Catalogue, catalogue_metrics, entropy_bits, exposure, gini
from nightjar.kernels.resampling import bounds, effect_size, resampled
from nightjar.stages.evaluation.part import OURS
from nightjar.stages.users.buckets import list_matrix, strings
from nightjar.store import Committed
from nightjar.tables import GROUPS

UNITS = {"MIUF": "bits", "Entropy": "bits", "Calibration": "nats", "ARP": "users", "users": "users"}
WARM_USERS, COLD_USERS = ("warm",), ("cold", "unknown")
CELLS = (
    ("warm users, warm items", "warm_items", WARM_USERS),
    ("warm users, cold items", "cold_items", WARM_USERS),
    ("cold users, warm items", "warm_items", COLD_USERS),
    ("cold users, cold items", "cold_items", COLD_USERS),
    ("new scene", "new_scene", WARM_USERS),
)
"""Slice, target, groups. A cold user has no history before t0, known or not."""


class Figure(NamedTuple):
    """One row of the metrics table."""

    name: str
    slice: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str | None = None


@dataclass(frozen=True)
class Measured:
    """What one or several windows measured: rows of user_metrics and the catalogue of each, and the names of
    their lists of values."""

    tables: tuple[pa.Table, ...]
    catalogues: tuple[Catalogue, ...]
    accuracy: Sequence[str]
    about_list: Sequence[str]


def figures(measured: Measured, params: Evaluate) -> list[Figure]:
    """Every figure of every slice that somebody is in, and how the lists use the catalogue."""
    made: list[Figure] = []
    for name, target, first, last, groups in _slices(params.activity):
        windows = []
        for table in measured.tables:
            n = table["n_history"]
            inside = pc.and_(pc.equal(table["target"], target), pc.is_in(table["group"], pa.array(groups)))
            inside = pc.and_(inside, pc.and_(pc.greater_equal(n, first), pc.less_equal(n, last)))
            windows.append(table.filter(inside))
        names = [*measured.accuracy, *(measured.about_list if target == "all" else ())]
        if sum(len(window) for window in windows):
            made += _slice(name, _gather(windows, names, target == "all"), len(measured.accuracy), params)
    return [*made, *_use_of_catalogue(measured, params)]


MOST = np.iinfo(np.int64).max


def _slices(activity: Sequence[int]) -> Iterator[tuple[str, str, int, int, tuple[str, ...]]]:
    """Name, target, least and most items of history, groups."""
    yield "all", "all", 0, MOST, GROUPS
    for group in GROUPS:
        yield group, "all", 0, MOST, (group,)
    starts = sorted({1, *activity})
    for start, after in itertools.pairwise([*starts, None]):
        name = f"history {start}+" if after is None else f"history {start}-{after - 1}"
        yield name, "all", start or 1, MOST if after is None else after - 1, WARM_USERS
    for name, target, groups in CELLS:
        yield name, target, 0, MOST, groups


@dataclass(frozen=True)
class Gathered:
    """Values of a slice. totals, counts: (users, methods, metrics), summed over windows."""

    methods: list[str]
    names: list[str]
    totals: np.ndarray
    counts: np.ndarray


def _gather(windows: Sequence[pa.Table], names: list[str], with_lists: bool) -> Gathered:
    users = np.unique(np.concatenate([strings(window["user_id"]) for window in windows]))
    methods = sorted(
        {str(name) for window in windows for name in pc.unique(window["method"]).to_pylist()},
        key=lambda name: (name != OURS, name),
    )
    totals = np.zeros((len(users), len(methods), len(names)))
    counts = np.zeros(totals.shape, np.int64)
    for window in windows:
        if not len(window):
            continue
        columns = ["accuracy", "about_list"] if with_lists else ["accuracy"]
        values = np.concatenate([_matrix(window[column]) for column in columns], axis=1)
        row = np.searchsorted(users, strings(window["user_id"]))
        method = pc.index_in(window["method"], pa.array(methods)).to_numpy()
        totals[row, method] += np.nan_to_num(values)
        counts[row, method] += ~np.isnan(values)
    return Gathered(methods, names, totals, counts)


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    flat: np.ndarray = pc.list_flatten(column).to_numpy()
    return flat.reshape(len(column), -1)


def _slice(name: str, found: Gathered, n_accuracy: int, params: Evaluate) -> Iterator[Figure]:
    n, n_methods, n_names = found.totals.shape
    yield Figure("users", name, float(n), unit="users")
    flat = (found.totals.reshape(n, -1), found.counts.reshape(n, -1))
    means, drawn = resampled(*flat, params.n_resamples, params.seed)
    means, drawn = means.reshape(n_methods, n_names), drawn.reshape(-1, n_methods, n_names)
    own = np.divide(found.totals, found.counts, out=np.zeros_like(found.totals), where=found.counts > 0)
    for m, method in enumerate(found.methods):
        for at, metric in enumerate(found.names):
            if math.isnan(means[m, at]):
                continue
            unit = UNITS.get(metric.partition("@")[0])
            yield Figure(f"{method}.{metric}", name, *bounds(float(means[m, at]), drawn[:, m, at]), unit)
            same = bool(
                (found.counts[:, 0, at] == found.counts[:, m, at]).all()
            )  # not ranked in every window
            if m and at < n_accuracy and same:
                difference = float(means[0, at] - means[m, at])
                lift = bounds(difference, drawn[:, 0, at] - drawn[:, m, at])
                yield Figure(f"{OURS}-{method}.{metric}", name, *lift)
                effect = effect_size(own[:, 0, at] - own[:, m, at])
                if math.isfinite(effect):
                    yield Figure(f"{OURS}-{method}.{metric}.effect", name, effect, unit="d_z")


def _use_of_catalogue(measured: Measured, params: Evaluate) -> Iterator[Figure]:
    """How each method's lists of the users with truth use the catalogue; the mean over windows."""
    found: dict[str, list[float]] = {}
    for table, catalogue in zip(measured.tables, measured.catalogues, strict=True):
        whole = table.filter(pc.equal(table["target"], "all"))
        for method in pc.unique(whole["method"]).to_pylist():
            lists = _padded(whole.filter(pc.equal(whole["method"], method))["item_nums"], max(params.ks))
            for name, value in catalogue_metrics(lists, catalogue, params.ks).items():
                found.setdefault(f"{method}.{name}", []).append(value)
    for name, values in found.items():
        if not math.isnan(value := float(np.mean(values))):
            yield Figure(name, "all", value, unit=UNITS.get(name.rpartition(".")[2].partition("@")[0]))


def _padded(column: pa.ChunkedArray, k: int) -> np.ndarray:
    lengths = pc.list_value_length(column).to_numpy()
    lists = np.full((len(column), k), -1, np.int64)
    lists[np.arange(k) < lengths[:, None]] = pc.list_flatten(column).to_numpy()
    return lists


def known_user_figures(
    lists: Committed, item_ids: pa.ChunkedArray, catalogue: Catalogue, n_users: int, ks: Sequence[int]
) -> Iterator[Figure]:
    """How the lists of all known users, with truth or without, use the catalogue; read part by part."""
    n_items = len(item_ids)
    counts = {k: np.zeros(n_items, np.int64) for k in ks}
    rows, with_list = dict.fromkeys(ks, 0), 0
    for entry in lists.parts:
        part = lists.read_part(entry, ["user_id", "rank", "item_id"])
        people = pc.unique(part["user_id"].combine_chunks())
        with_list += len(people)
        matrix = list_matrix(part, people, item_ids.combine_chunks(), max(ks))
        for k in ks:
            counts[k] += exposure(matrix, k, n_items)
            rows[k] += int((matrix[:, :k] >= 0).sum())
    for k in ks:
        named = {
            "CatalogueCoverage": float((counts[k][catalogue.available] > 0).mean()) if n_items else math.nan,
            "ColdItemShare": float(counts[k][catalogue.cold].sum() / max(rows[k], 1)),
            "UserCoverage": with_list / max(n_users, 1),
            "Fill": rows[k] / max(n_users * k, 1),
            "Gini": gini(counts[k][catalogue.available]),
            "Entropy": entropy_bits(counts[k][catalogue.available]),
        }
        for name, value in named.items():
            if not math.isnan(value):
                yield Figure(f"{OURS}.{name}@{k}", "known users", value, unit=UNITS.get(name))
    yield Figure("users", "known users", float(n_users), unit="users")


def metrics_table(rows: Sequence[Figure]) -> pa.Table:
    """Figures as rows of the metrics table, sorted by name and slice."""
    ordered = sorted(rows, key=lambda row: row[:2])
    bound = [[_or_none(row.low), _or_none(row.high)] for row in ordered]
    return pa.table(
        {
            "name": pa.array([row.name for row in ordered], pa.string()),
            "slice": pa.array([row.slice for row in ordered], pa.string()),
            "value": pa.array([row.value for row in ordered], pa.float64()),
            "low": pa.array([low for low, _ in bound], pa.float64()),
            "high": pa.array([high for _, high in bound], pa.float64()),
            "unit": pa.array([row.unit for row in ordered], pa.string()),
        }
    )


def _or_none(bound: float | None) -> float | None:
    return None if bound is None or math.isnan(bound) else bound
