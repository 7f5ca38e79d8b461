"""Configuration: clear refusals, merging, the environment, and what enters a fingerprint."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from nightjar.conf_files import load_config
from nightjar.config import NightConfig, Section
from nightjar.errors import ConfigError
from nightjar.pipeline import NIGHT
from nightjar.stage import Night
from tests.world import DS

CONF = Path(__file__).resolve().parents[2] / "conf"
SMALL: dict[str, Any] = {
    "root": "r",
    "clean_events": {
        "scenes": {
            "shop": {
                "path": "raw/*.csv",
                "format": "csv",
                "columns": {"user_id": "u", "event_type": "t", "event_time": "at"},
                "event_types": {"view": {"weight": 1.0}},
            }
        }
    },
    "build_items": {"sources": [{"path": "items.csv", "format": "csv", "columns": {"item_id": "id"}}]},
}


def _write(folder: Path, content: Any, name: str = "night.yaml") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def _changed(path: str, value: Any, base: dict[str, Any] | None = None) -> dict[str, Any]:
    """A copy of the small configuration with one value put at a dotted path."""
    out: dict[str, Any] = yaml.safe_load(yaml.safe_dump(base or SMALL))
    at: Any = out
    *folders, last = path.split(".")
    for name in folders:
        at = at[int(name)] if isinstance(at, list) else at.setdefault(name, {})
    at[last] = value
    return out


def _refused(folder: Path, content: Any, *overrides: str) -> str:
    with pytest.raises(ConfigError) as refused:
        load_config([_write(folder, content)], overrides)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_small_configuration_gets_the_defaults(tmp_path: Path) -> None:
    config = load_config([_write(tmp_path, SMALL)])
    assert (config.rank.k, config.retrieve.k_prime, config.ds) == (20, 100, None)
    assert config.clean_events.scenes["shop"].path == ("raw/*.csv",)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: str(path.name))
def test_every_configuration_of_the_repository_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIGHTJAR_DATA", raising=False)
    raw = yaml.safe_load(path.read_text())
    if path.name != "base.yaml":
        assert load_config([path]).root
        return
    for name in raw:  # base is no whole night; each of its sections must be right
        assert name in NightConfig.model_fields
    load_config([path], [f"{name}={yaml.safe_dump(SMALL[name], default_flow_style=True)}" for name in SMALL])


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("rnak", "rank"),
        ("rank.kk", "k"),
        ("retrieve.kprime", "k_prime"),
        ("encode_items.resources.num_gpu", "num_gpus"),
        ("clean_events.scens", "scenes"),
        ("clean_events.scenes.shop.fromat", "format"),
        ("clean_events.scenes.shop.time.zne", "zone"),
        ("clean_events.scenes.shop.event_types.view.wieght", "weight"),
        ("build_items.sources.0.colums", "columns"),
        ("build_items.sources.0.time.formt", "format"),
        ("spark.mastr", "master"),
        ("ray.adress", "address"),
    ],
)
def test_a_mistyped_key_gets_a_hint(tmp_path: Path, path: str, hint: str) -> None:
    said = _refused(tmp_path, _changed(path, 1))
    assert f"unknown key {path}; did you mean {hint!r}?" in said
    assert "night.yaml" in said


@pytest.mark.parametrize("starts", [[20, 5], [5, 5]])
def test_segments_that_do_not_rise_are_refused(tmp_path: Path, starts: list[int]) -> None:
    said = _refused(tmp_path, _changed("fit_blend.segments", starts))
    assert f"segments {starts} must rise" in said


def test_a_key_like_no_other_lists_the_known_ones(tmp_path: Path) -> None:
    said = _refused(tmp_path, _changed("rank.zzzzzz", 1))
    assert "unknown key rank.zzzzzz; known: cold_share, fusion, k, max_per_category" in said


@pytest.mark.parametrize("column", ["user", "itm_id", "evnt_time"])
def test_a_mistyped_column_gets_a_hint(tmp_path: Path, column: str) -> None:
    said = _refused(tmp_path, _changed(f"clean_events.scenes.shop.columns.{column}", "x"))
    assert f"{column!r} is no column of ours; did you mean" in said


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("rank.k", "many", "rank.k"),
        ("rank.k", 0, "rank.k"),
        ("rank.k", None, "rank.k"),
        ("rank", None, "rank"),
        ("rank", 5, "rank"),
        ("rank", [5], "rank"),
        ("rank.mmr_lambda", 1.5, "rank.mmr_lambda"),
        ("rank.k", 101, "raise it"),
        ("weigh_events.half_life_days", float("inf"), "half_life_days"),
        ("weigh_events.half_life_days", float("nan"), "half_life_days"),
        ("learn_taste.smooth_weight", float("inf"), "smooth_weight"),
        ("learn_taste.transform", "melt", "learn_taste.transform"),
        ("encode_items.precision", "fp64", "precision"),
        ("ds", "tomorrow", "ds"),
        ("ds", "9999-12-31", "ds"),
        ("ds", "0001-01-01", "ds"),
        ("clean_events.window_days", 10**9, "window_days"),
        ("clean_events.scenes", {}, "scenes"),
        ("clean_events.scenes", {"../x": SMALL["clean_events"]["scenes"]["shop"]}, "'../x'"),
        ("clean_events.scenes.shop.columns", {"user_id": "u"}, "no mapping for event_type, event_time"),
        ("clean_events.scenes.shop.sql", {"user_id": "u"}, "mapped in both"),
        ("clean_events.scenes.shop.reject", {"Bad Price": "true"}, "'Bad Price' is no reason"),
        ("build_items.sources", [], "build_items.sources"),
        ("root", None, "root"),
        ("spark.conf", {"a": ["b"]}, "spark.conf.a"),
        ("spark.conf", "a=b", "spark.conf"),
        ("12", "x", "12"),
    ],
)
def test_a_bad_value_names_its_place(tmp_path: Path, path: str, value: Any, named: str) -> None:
    assert named in _refused(tmp_path, _changed(path, value))


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    said = _refused(tmp_path, {"rank": {"k": 0}, "rnak": {}})
    assert all(word in said for word in ("root is missing", "clean_events is missing", "rank.k", "rnak"))


def test_a_long_value_is_not_printed_whole(tmp_path: Path) -> None:
    assert len(_refused(tmp_path, _changed("rank.k", ["x" * 5000]))) < 400


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "a: b: c",
        "\tx: 1",
        "- a\n- b",
        "just words",
        "3",
        "a: 1\n---\nb: 2",
        "ds: 2025-02-30",
        "ds: 2025-02-28 25:00:00",
        "a: &a [*a]",
        "a: &a {b: *a}",
        "a: *unknown",
        "a: !!python/object/apply:os.system ['true']",
        "a: \0",
        "? [1]\n: 2",
    ],
)
def test_what_is_no_yaml_is_one_sentence(tmp_path: Path, text: str) -> None:
    assert "night.yaml" in _refused(tmp_path, text)


def test_files_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"root: \xff\xfe")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "bytes.yaml", tmp_path / "bytes.yaml/x"):
        with pytest.raises(ConfigError, match=str(path)) as refused:
            load_config([path])
        assert "\n" not in str(refused.value)


def test_an_empty_file_and_no_file_say_what_is_missing(tmp_path: Path) -> None:
    assert "root is missing" in _refused(tmp_path, "")
    with pytest.raises(ConfigError, match="root is missing"):
        load_config([])


def test_later_files_and_extends_are_merged_key_by_key(tmp_path: Path) -> None:
    _write(
        tmp_path,
        {**SMALL, "rank": {"k": 3, "n_reasons": 1}, "spark": {"conf": {"a": "1", "b": "1"}}},
        "base.yaml",
    )
    (tmp_path / "deep").mkdir()
    _write(
        tmp_path,
        {"extends": "../base.yaml", "rank": {"k": 4}, "spark": {"conf": {"b": "2"}}},
        "deep/middle.yaml",
    )
    top = _write(tmp_path, {"extends": "deep/middle.yaml", "spark": {"conf": {"c": "3"}}}, "top.yaml")
    later = _write(tmp_path, {"rank": {"n_reasons": 7}}, "later.yaml")
    config = load_config([top, later], ["spark.conf.a=9"])
    assert (config.rank.k, config.rank.n_reasons) == (4, 7)
    assert config.spark.conf == {"a": "9", "b": "2", "c": "3"}


def test_lists_are_replaced_not_merged(tmp_path: Path) -> None:
    _write(tmp_path, _changed("evaluate", {"ks": [1, 2, 3]}), "base.yaml")
    top = _write(tmp_path, {"extends": "base.yaml", "evaluate": {"ks": [5]}}, "top.yaml")
    assert load_config([top]).evaluate.ks == (5,)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_cycle_of_extends_is_refused(tmp_path: Path, length: int) -> None:
    for number in range(length):
        _write(tmp_path, {"extends": f"c{(number + 1) % length}.yaml"}, f"c{number}.yaml")
    with pytest.raises(ConfigError, match="extends itself"):
        load_config([tmp_path / "c0.yaml"])


def test_a_missing_base_names_it(tmp_path: Path) -> None:
    assert "nowhere.yaml" in _refused(tmp_path, {"extends": "nowhere.yaml"})


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("rank.k=7", lambda c: c.rank.k == 7),
        (" rank.k =7", lambda c: c.rank.k == 7),
        ("rank.max_per_category=null", lambda c: c.rank.max_per_category is None),
        ("evaluate.ks=[1, 2]", lambda c: c.evaluate.ks == (1, 2)),
        ("rank={k: 6}", lambda c: c.rank.k == 6),
        ("retrieve.exclude_seen=false", lambda c: c.retrieve.exclude_seen is False),
        ("ds=2025-03-31", lambda c: c.ds == DS),
        ("spark.conf={x.y: a=b}", lambda c: c.spark.conf == {"x.y": "a=b"}),
        (
            "spark.conf.spark.sql.ansi.enabled=false",
            lambda c: c.spark.conf == {"spark.sql.ansi.enabled": "false"},
        ),
        ("spark.conf={spark.executor.cores: 2}", lambda c: c.spark.conf == {"spark.executor.cores": "2"}),
        ("encode_items.model=org/name@abc=d", lambda c: c.encode_items.model == "org/name@abc=d"),
    ],
)
def test_overrides_win(tmp_path: Path, override: str, read: Any) -> None:
    assert read(load_config([_write(tmp_path, _changed("rank", {"k": 5}))], [override]))


@pytest.mark.parametrize(
    "override", ["rank.k", "=3", " =3", "rank.k=[", "rank.k=2025-02-30", "rank..k=3", "rank.k.x=3", "rank=3"]
)
def test_an_override_that_is_none_is_refused(tmp_path: Path, override: str) -> None:
    _refused(tmp_path, SMALL, override)


def test_the_environment_fills_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NJ_A", "seen")
    monkeypatch.delenv("NJ_B", raising=False)
    content = _changed("root", "${NJ_A}/${NJ_B:-else}/${NJ_B:-}x/$NJ_A/${nope")
    content = _changed("clean_events.scenes.shop.path", ["${NJ_A}", "b"], content)
    content = _changed("rank", {"k": "${NJ_B:-9}"}, content)
    config = load_config([_write(tmp_path, content)], ["encode_items.model=${NJ_A}"])
    assert config.root == "seen/else/x/$NJ_A/${nope"
    assert config.clean_events.scenes["shop"].path == ("seen", "b")
    assert (config.rank.k, config.encode_items.model) == (9, "seen")
    assert "uses ${NJ_B}, which is not set" in _refused(tmp_path, _changed("root", "${NJ_B}"))


def test_models_are_frozen(tmp_path: Path) -> None:
    config = load_config([_write(tmp_path, SMALL)])
    with pytest.raises(ValidationError):
        config.rank.k = 3


Place = tuple[str | int, ...]


def _fields(section: Section, place: Place = ()) -> Iterator[tuple[Place, FieldInfo, bool]]:
    """Every field below a section: its place, its declaration and whether it is under a resource mark."""
    for name, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        marked = isinstance(extra, dict) and bool(extra.get("resource"))
        yield (*place, name), field, marked
        if not marked:
            yield from _fields_in(getattr(section, name), (*place, name))


def _fields_in(value: Any, place: Place) -> Iterator[tuple[Place, FieldInfo, bool]]:
    if isinstance(value, Section):
        yield from _fields(value, place)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _fields_in(one, (*place, key))
    elif isinstance(value, tuple):
        for at, one in enumerate(value):
            yield from _fields_in(one, (*place, at))


def _put(value: Any, place: Place, new: Any) -> Any:
    """A copy of nested frozen models with one value changed, without validation."""
    if not place:
        return new
    first, rest = place[0], place[1:]
    if isinstance(value, Section):
        name = str(first)
        return value.model_copy(update={name: _put(getattr(value, name), rest, new)})
    if isinstance(value, dict):
        return {**value, first: _put(value[first], rest, new)}
    return tuple(_put(one, rest, new) if at == first else one for at, one in enumerate(value))


def _get(value: Any, place: Place) -> Any:
    for step in place:
        value = getattr(value, step) if isinstance(value, Section) else value[step]
    return value


def _values(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _values(arguments[0])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(_values(argument) for argument in arguments))
    if origin is tuple:
        return st.lists(_values(arguments[0]), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(st.text("ab", min_size=1, max_size=2), _values(arguments[1]), max_size=2)
    plain: dict[Any, st.SearchStrategy[Any]] = {
        str: st.text("xyz/*", max_size=4),
        int: st.integers(0, 5),
        float: st.floats(0, 4, width=16),
        bool: st.booleans(),
        type(None): st.none(),
    }
    if annotation in plain:
        return plain[annotation]
    assert issubclass(annotation, Section)
    needed = {n: _values(f.annotation) for n, f in annotation.model_fields.items() if f.is_required()}
    return st.builds(annotation.model_construct, **needed)


DEMO = load_config([CONF / "demo.yaml"])
PLACES = {
    (stage.name, *place): (field, marked)
    for stage in NIGHT
    for place, field, marked in _fields(getattr(DEMO, stage.name))
}


@settings(max_examples=250)
@given(st.sampled_from(sorted(PLACES, key=str)), st.data())
def test_a_change_of_a_param_changes_the_identity_and_one_of_a_resource_never(
    place: Place, data: st.DataObject
) -> None:
    field, marked = PLACES[place]
    new = data.draw(_values(field.annotation))
    old = _get(DEMO, place)
    changed: NightConfig = _put(DEMO, place, new)
    stage = str(place[0])
    same = getattr(changed, stage).identity() == getattr(DEMO, stage).identity()
    if marked:
        assert same
    elif _plainly(new) != _plainly(old):
        assert not same


def _plainly(value: Any) -> Any:
    """Values as JSON tells them apart: lists are tuples, and models their params."""
    if isinstance(value, Section):
        return value.identity()
    if isinstance(value, dict):
        return {key: _plainly(one) for key, one in value.items()}
    return [_plainly(one) for one in value] if isinstance(value, tuple) else value


def test_what_is_marked_a_resource() -> None:
    """The marks are few, and each is a place, a speed or a price."""
    marked = {place[-1] for place, (_, mark) in PLACES.items() if mark}
    assert marked == {"resources", "path", "hourly_price"}


def test_yaml_and_json_say_the_same_config(tmp_path: Path) -> None:
    """A dumped configuration is one that loads, and loads as the same."""
    dumped = _write(tmp_path, DEMO.model_dump(mode="json"))
    assert load_config([dumped]) == DEMO
    assert Night(load_config([dumped]), DS).config == DEMO


def test_a_key_given_twice_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("root: a\nrank: {k: 5}\nrank: {k: 6}\n")
    with pytest.raises(ConfigError, match="key 'rank' stands twice"):
        load_config([path])
