"""What a night would have been worth with something left out or set otherwise: `backtest --ablate`, `--vary`.

A variant has a root of its own under <root>/backtest/variants. What the night as it is has committed is
adopted there (files are linked, not copied), so only the stages that the change reaches run again. Its lists
are then held against the same truth, for the same users, by the same rules as those of the night as it is.
Then the root is dropped: what stays of a variant are its figures.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from nightjar.backtest import Tested, judged, measured_of
from nightjar.conf_files import changed
from nightjar.config import NightConfig
from nightjar.errors import ConfigError
from nightjar.night import function_of, run_declared
from nightjar.pipeline import CLEAN_EVENTS, FIT_BLEND, NIGHT, PUBLISH, RANK, WEIGH_EVENTS
from nightjar.stage import Night, Stage
from nightjar.stages.evaluation.part import OURS
from nightjar.stages.evaluation.user_means import Figure, figures
from nightjar.store import VARIANTS, Committed
from nightjar.tables import BLEND, RECOMMENDATIONS, USER_TEXTS

FRESHNESS = "freshness_exponent"
COLD = "cold_"
"""Prefix of a source's weight for items that nobody liked yet."""
FADING = ("history_days", "history_floor", "recency_days")
"""Rows of the blend table that are no weight."""
BEFORE_PUBLISH = tuple(stage.name for stage in NIGHT if stage is not PUBLISH)
ONLY_WEIGHED = ("weight", "half_life_days", "negative", "value_weight", "words")
"""Keys of a scene or kind of event that cleaning does not look at."""


@dataclass(frozen=True)
class Variant:
    """One change. settings: path of a key -> value; first: the first stage it reaches; without: rows of the
    blend table that become 0, all other weights staying as fitted.
    """

    name: str
    first: Stage
    settings: Mapping[tuple[str, ...], Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()


def ablations(night: Night) -> list[Variant]:
    """Without each signal that the night blends, each scene, kind of event and kind of words it has."""
    rows = night.dataset(BLEND).require(FIT_BLEND.name).read(["name", "value"]).to_pylist()
    names = {row["name"].removeprefix(COLD) for row in rows if row["value"]} - set(FADING)
    named = {name: "freshness" if name == FRESHNESS else name for name in sorted(names)}
    made = [Variant(said, RANK, without=(name, f"{COLD}{name}")) for name, said in named.items()]
    scenes = night.config.clean_events.scenes
    if len(scenes) > 1:
        made += [_unheard(f"scene {name}", (name,)) for name in scenes]
    for name, scene in scenes.items():
        if len(scene.event_types) > 1:
            made += [_unheard(f"{name} {kind}", (name, "event_types", kind)) for kind in scene.event_types]
    texts = night.dataset(USER_TEXTS).require(WEIGH_EVENTS.name).read(["kind"])["kind"]
    for kind in sorted(pc.unique(texts).to_pylist()):
        made.append(Variant(f"words {kind}", WEIGH_EVENTS, {("weigh_events", "words", kind): 0.0}))
    return made


def _unheard(name: str, place: tuple[str, ...]) -> Variant:
    """Events that weigh nothing: they say nothing of taste, though what they touched stays seen."""
    return Variant(name, WEIGH_EVENTS, {("clean_events", "scenes", *place, "weight"): 0.0})


def varied(config: NightConfig, text: str, names: Sequence[str] = BEFORE_PUBLISH) -> list[Variant]:
    """`rank.mmr_lambda=0.9,0.7` as a variant for each value; ConfigError for what no configuration allows.

    names: of the stages whose settings may vary.
    """
    key, equals, values = text.partition("=")
    key = key.strip()
    if not equals or key.partition(".")[0] not in names:
        raise ConfigError(
            f"--vary {text}: write it as section.key=value,value with one of {', '.join(names)}"
        )
    made = []
    for value in re.split(r",(?![^\[]*\])", values):
        settings = {tuple(key.split(".")): yaml.safe_load(value)}
        changed(config, settings)  # refused here rather than after the back-test
        made.append(Variant(f"{key}={value.strip()}", _first_reached(key), settings))
    return made


def _first_reached(key: str) -> Stage:
    stage = next(stage for stage in NIGHT if stage.name == key.partition(".")[0])
    return WEIGH_EVENTS if stage is CLEAN_EVENTS and key.rpartition(".")[2] in ONLY_WEIGHED else stage


def compare(windows: list[Tested], variants: Iterable[Variant]) -> list[Figure]:
    """The figures of the night as it is and of every variant, all windows together, on the same users."""
    chosen = list(variants)
    tables = []
    for window in windows:
        base = window.user_metrics.read()
        rows = [base.filter(pc.equal(base["method"], OURS))]
        for variant in chosen:
            window.night.report.line(f"variant {variant.name}")
            rows.append(_renamed(_user_metrics(window, variant), variant.name))
        tables.append(pa.concat_tables(rows))
    return figures(measured_of(tables, windows), windows[0].night.config.evaluate)


def _renamed(rows: pa.Table, name: str) -> pa.Table:
    at = rows.schema.get_field_index("method")
    return rows.set_column(at, rows.schema.field(at), pa.array([name] * len(rows), pa.string()))


def _user_metrics(window: Tested, variant: Variant) -> pa.Table:
    """A variant's lists made and judged; an interrupted comparison goes on where it was."""
    base = window.night
    folder = f"{VARIANTS}/{_slug(variant)}"
    root = base.store.below(folder).root
    config = changed(base.config, variant.settings).model_copy(update={"root": root})
    night = replace(base, config=config, lender=base.store)
    reached = NIGHT[NIGHT.index(variant.first) : NIGHT.index(PUBLISH)]
    _adopt(base, night, [stage for stage in NIGHT if stage not in (*reached, PUBLISH)])
    _adopt(base, night, reached, only_missing=True)  # a stage the change does not reach is then up to date
    if variant.without:
        _commit_without(base.dataset(BLEND).require(FIT_BLEND.name), night, variant.without)
    for stage in reached:
        run_declared(stage, function_of(stage), night)
    rules = base.config.evaluate.model_copy(update={"baselines": (), "night_before": False})
    judging = base.config.model_copy(update={"root": f"{root}/judged", "evaluate": rules})
    judge = replace(base, config=judging)
    _adopt(base, judge, [stage for stage in NIGHT if stage not in (RANK, PUBLISH)])
    judge.dataset(RECOMMENDATIONS).adopt(night.dataset(RECOMMENDATIONS).require(RANK.name))
    rows = judged(judge, window.truth).user_metrics.read()
    base.store.drop(folder)
    return rows


def _slug(variant: Variant) -> str:
    """A folder's name: readable, and another one for another change."""
    told = repr((variant.name, sorted(variant.settings.items()), variant.without))
    words = re.sub(r"[^a-z0-9]+", "-", variant.name.lower()).strip("-")[:40]
    return f"{words}-{hashlib.sha256(told.encode()).hexdigest()[:6]}"


def _adopt(base: Night, night: Night, stages: Iterable[Stage], only_missing: bool = False) -> None:
    """Commits what the base has of these stages; only_missing: where the other night has nothing yet."""
    for table in [table for stage in stages for table in stage.writes]:
        committed = base.dataset(table).committed()
        if committed is not None and not (only_missing and night.dataset(table).committed()):
            night.dataset(table).adopt(committed)


def _commit_without(blend: Committed, night: Night, names: tuple[str, ...]) -> None:
    """The fitted blend with some rows set to 0, under a fingerprint of its own."""
    rows = blend.read()
    gone = pc.is_in(rows["name"], pa.array(names, pa.string()))
    at = rows.schema.get_field_index("value")
    rows = rows.set_column(at, rows.schema.field(at), pc.if_else(gone, 0.0, rows["value"]))
    told = f"{blend.manifest.fingerprint} without {' '.join(names)}"
    fingerprint = hashlib.sha256(told.encode()).hexdigest()[:20]
    attempt = night.dataset(BLEND).attempt(fingerprint)
    entry = attempt.write_part(0, [rows])
    attempt.commit(
        replace(blend.manifest, fingerprint=fingerprint, files=(entry,), metrics={"without": names})
    )
