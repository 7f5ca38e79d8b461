"""A back-test as text for people and as JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from nightjar.backtest import Tested, pooled
from nightjar.inspect import table_text
from nightjar.stages.evaluation.part import OURS
from nightjar.stages.evaluation.user_means import CELLS, Figure

COLD_CELL = "warm users, cold items"
ACCURACY = ("nDCG", "Recall", "HitRate", "MRR", "MAP", "Precision")
LISTS = (
    "CatalogueCoverage",
    "Gini",
    "ColdItemShare",
    "ARP",
    "APLT",
    "MIUF",
    "ILD",
    "ILD(categories)",
    "Calibration",
    "RBO",
    "Jaccard",
)
WIDTH = 240
SHORT = {"CatalogueCoverage": "coverage", "ColdItemShare": "cold share", "ILD(categories)": "ILD categories"}

Found = dict[tuple[str, str], Figure]


def text(windows: Sequence[Tested]) -> str:
    """The tables of every window, and of all together where there are several."""
    pieces = [_window(window) for window in windows]
    if len(windows) > 1:
        ks = windows[0].night.config.evaluate.ks
        head = f"ALL {len(windows)} WINDOWS; a user who stands in several is drawn with all of them"
        pieces.append("\n".join([head, *_tables(pooled(list(windows)), max(ks))]))
    return "\n\n".join(pieces)


def as_json(windows: Sequence[Tested], variants: Mapping[str, Sequence[Figure]] | None = None) -> str:
    """Everything measured: each window's figures, those of all windows, and of variants by their kind."""
    document: dict[str, Any] = {
        "windows": [
            {
                "t0": window.manifest.metrics["t0"],
                "test_days": window.night.config.evaluate.test_days,
                "described": window.manifest.metrics,
                "figures": [figure._asdict() for figure in window.figures],
            }
            for window in windows
        ]
    }
    if len(windows) > 1:
        document["all_windows"] = [figure._asdict() for figure in pooled(list(windows))]
    for name, figures in (variants or {}).items():
        document[name] = [figure._asdict() for figure in figures]
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def ablation_text(figures: Sequence[Figure], windows: Sequence[Tested]) -> str:
    """What each signal, scene and kind of event adds: the night as it is minus the night without it."""
    found, k = _by_key(figures), max(windows[0].night.config.evaluate.ks)
    rows = []
    for name in _methods(found, k)[1:]:
        cells = [
            _signed(found, f"{OURS}-{name}.{metric}@{k}", slice_)
            for metric, slice_ in (("nDCG", "all"), ("Recall", "all"), ("nDCG", COLD_CELL))
        ]
        rows.append((name, *cells, _plain(found.get((f"{name}.CatalogueCoverage@{k}", "all")))))
    users = int(found["users", "all"].value)
    head = f"\nWHAT EACH ADDS: with it minus without it, {users:,} users, the same ones"
    columns = ("without", f"nDCG@{k}", f"Recall@{k}", f"nDCG@{k} of cold items", "coverage without")
    return f"{head}\n{_table(columns, sorted(rows, key=lambda row: row[0]))}"


def variation_text(figures: Sequence[Figure], windows: Sequence[Tested]) -> str:
    """Settings beside each other: how right the lists are, and what they are like."""
    found, k = _by_key(figures), max(windows[0].night.config.evaluate.ks)
    methods = list(dict.fromkeys([OURS, *sorted(_methods(found, k)[1:])]))
    shown = ("ILD", "ILD(categories)", "CatalogueCoverage", "Gini", "ColdItemShare", "APLT", "MIUF")
    rows = []
    for name in methods:
        cold = _plain(found.get((f"{name}.Recall@{k}", COLD_CELL)))
        lists = [_plain(found.get((_at(name, metric, k), "all"))) for metric in shown]
        accuracy = [_plain(found.get((f"{name}.{metric}@{k}", "all"))) for metric in ("nDCG", "Recall")]
        rows.append((name, *accuracy, _signed(found, f"{OURS}-{name}.nDCG@{k}", "all"), cold, *lists))
    columns = (f"nDCG@{k}", f"Recall@{k}", f"{OURS} minus it, nDCG", "Recall of cold items")
    head = f"\nSETTINGS, {int(found['users', 'all'].value):,} users, the same ones"
    return f"{head}\n{_table(('setting', *columns, *(SHORT.get(one, one) for one in shown)), rows)}"


def _window(window: Tested) -> str:
    told, days = window.manifest.metrics, window.night.config.evaluate.test_days
    last = window.night.ds + timedelta(days=days)
    found = _by_key(window.figures)
    groups = ", ".join(
        f"{int(found['users', name].value):,} {name}"
        for name in ("warm", "cold", "unknown")
        if ("users", name) in found
    )
    lines = [
        f"LISTS AS OF {window.night.ds}, HELD AGAINST {told['t0']} TO {last}",
        f"users with truth: {int(found['users', 'all'].value):,} ({groups}); cold: known without a history, "
        "unknown: first seen later, without a list",
        f"liked in these days: {told['liked_later']:,} pairs; {told['truth']:,} are truth, "
        f"{told['items_not_there_yet']:,} of items not there yet, {told['seen_before']:,} seen before "
        f"(seen items: {told['seen']})",
    ]
    return "\n".join([*lines, *_tables(window.figures, max(window.night.config.evaluate.ks))])


def _tables(figures: Sequence[Figure], k: int) -> Iterator[str]:
    found = _by_key(figures)
    methods = _methods(found, k)
    for slice_ in ("all", "warm"):
        if ("users", slice_) in found:
            users = int(found["users", slice_].value)
            yield f"\naccuracy at {k}, {slice_} users ({users:,}), mean [95% bootstrap interval over users]"
            yield _accuracy(found, methods, slice_, k)
    if len(methods) > 1:
        yield f"\n{OURS} minus each, the same users (effect: mean over standard deviation)"
        yield _differences(found, methods[1:], k)
    yield f"\nwhat the lists are like at {k}, users with truth"
    yield _lists(found, methods, k)
    yield f"\nparts of the users and of their truth: nDCG@{k}, and Recall@{k} of {OURS}"
    yield _cells(found, methods, k)
    if ("users", "known users") in found:
        yield _known(found, k)
    if ("ratings", "ratings") in found:
        yield "\nratings predicted: MAE and RMSE, and RMSE of nightjar minus each, the same ratings"
        yield _ratings(found)


def _by_key(figures: Iterable[Figure]) -> Found:
    return {(figure.name, figure.slice): figure for figure in figures}


def _methods(found: Found, k: int) -> list[str]:
    """Every method ranked, ours first, then by nDCG."""
    scores = {
        name.removesuffix(f".nDCG@{k}"): figure.value
        for (name, slice_), figure in found.items()
        if slice_ == "all" and name.endswith(f".nDCG@{k}") and not name.startswith(f"{OURS}-")
    }
    return sorted(scores, key=lambda name: (name != OURS, -scores[name]))


def _accuracy(found: Found, methods: list[str], slice_: str, k: int) -> str:
    rows = [
        (method, *(_interval(found.get((f"{method}.{name}@{k}", slice_))) for name in ACCURACY))
        for method in methods
    ]
    return _table(("method", *(f"{name}@{k}" for name in ACCURACY)), rows)


def _differences(found: Found, others: list[str], k: int) -> str:
    rows = []
    for slice_ in ("all", "warm"):
        for other in others:
            cells = [
                _signed(found, f"{OURS}-{other}.{name}@{k}", slice_) for name in ("nDCG", "Recall", "HitRate")
            ]
            if any(cells):
                rows.append((slice_, other, *cells))
    return _table(("users", "minus", f"nDCG@{k}", f"Recall@{k}", f"HitRate@{k}"), rows)


def _lists(found: Found, methods: list[str], k: int) -> str:
    columns = [name for name in LISTS if any((_at(m, name, k), "all") in found for m in methods)]
    rows = [
        (method, *(_plain(found.get((_at(method, name, k), "all"))) for name in columns))
        for method in methods
    ]
    return _table(("method", *(SHORT.get(name, name) for name in columns)), rows)


def _at(method: str, name: str, k: int) -> str:
    """`ILD(categories)` is written ILD@20(categories)."""
    base, bracket, rest = name.partition("(")
    return f"{method}.{base}@{k}{bracket}{rest}"


def _cells(found: Found, methods: list[str], k: int) -> str:
    parts = [slice_ for _, slice_ in found if slice_.startswith("history ")]
    order = [*sorted(set(parts), key=lambda part: int(part.split()[1].split("-")[0].rstrip("+")))]
    rows = []
    for slice_ in ("cold", "unknown", *order, *(name for name, _, _ in CELLS)):
        if ("users", slice_) in found:
            cells = [_plain(found.get((f"{method}.nDCG@{k}", slice_))) for method in methods]
            recall = _interval(found.get((f"{OURS}.Recall@{k}", slice_)))
            rows.append((slice_, f"{int(found['users', slice_].value):,}", *cells, recall))
    return _table(("part", "users", *methods, f"Recall@{k}"), rows)


def _known(found: Found, k: int) -> str:
    names = ("CatalogueCoverage", "ColdItemShare", "Gini", "UserCoverage", "Fill")
    cells = [f"{name} {_plain(found.get((f'{OURS}.{name}@{k}', 'known users')))}" for name in names]
    return f"\nlists of all {int(found['users', 'known users'].value):,} known users: {', '.join(cells)}"


def _ratings(found: Found) -> str:
    rows = []
    methods = [
        name.removesuffix(".MAE") for name, slice_ in found if name.endswith(".MAE") and slice_ == "ratings"
    ]
    for slice_ in sorted({slice_ for name, slice_ in found if name == "ratings"}):
        for method in (name for name in methods if not name.startswith(f"{OURS}-")):
            cells = [_interval(found.get((f"{method}.{metric}", slice_))) for metric in ("MAE", "RMSE")]
            number = f"{int(found['ratings', slice_].value):,}"
            lift = _signed(found, f"{OURS}-{method}.RMSE", slice_)
            rows.append((slice_.removeprefix("ratings: "), number, method, *cells, lift))
    return _table(("of", "ratings", "method", "MAE", "RMSE", "nightjar minus it"), rows)


def _interval(figure: Figure | None) -> str:
    if figure is None:
        return ""
    bounds = "" if figure.low is None else f" [{figure.low:.3f}, {figure.high:.3f}]"
    return f"{figure.value:.4f}{bounds}"


def _signed(found: Found, name: str, slice_: str) -> str:
    figure, effect = found.get((name, slice_)), found.get((f"{name}.effect", slice_))
    if figure is None:
        return ""
    size = "" if effect is None else f" ({effect.value:+.2f})"
    return f"{figure.value:+.4f} [{figure.low:+.4f}, {figure.high:+.4f}]{size}"


def _plain(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return f"{figure.value:.1f}" if figure.unit == "users" else f"{figure.value:.4f}"


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Figures side by side are compared, so rows are not folded where a terminal may be wide."""
    return table_text(columns, rows, WIDTH)
