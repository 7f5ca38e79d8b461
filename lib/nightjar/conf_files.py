"""Reading conf/*.yaml: files over files, `extends`, the environment, `--set`; a fault is one sentence."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from nightjar.config import NightConfig, Section
from nightjar.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """safe_load, but a key given twice in one place is a fault: the second would silently win."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue  # construct_mapping refuses it
        if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
            twice = f"key {key.value!r} stands twice"
            raise yaml.constructor.ConstructorError(None, None, twice, key.start_mark)
        seen.add(key.value)

    loader.flatten_mapping(node)
    return dict(loader.construct_mapping(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_config(paths: Iterable[str | Path], overrides: Sequence[str] = ()) -> NightConfig:
    """Reads YAML files, later ones over earlier ones, then `a.b=c` overrides, into a NightConfig.

    A file's `extends: other.yaml` (relative to it) is merged below it; `${NAME}` and `${NAME:-default}`
    in a string come from the environment. Raises ConfigError with the file, the key and a remedy.
    """
    merged: dict[str, Any] = {}
    names = [str(path) for path in paths]
    for path in names:
        merged = _merge(merged, _read_yaml(Path(path), ()))
    for override in overrides:
        merged = _merge(merged, _override(override))
    where = " + ".join(names) or "the configuration"
    try:
        return NightConfig.model_validate(_from_environment(merged))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_sentence(error)}") from None
    except RecursionError:
        raise ConfigError(f"{where}: an anchor (&name) holds itself; write it out") from None


def changed(config: NightConfig, settings: Mapping[tuple[str, ...], Any]) -> NightConfig:
    """A configuration with some keys, given by their path, set otherwise; or a ConfigError."""
    merged = config.model_dump()
    for path, value in settings.items():
        nested: Any = value
        for name in reversed(path):
            nested = {name: nested}
        merged = _merge(merged, nested)
    try:
        return NightConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from None


def _read_yaml(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path} extends itself; remove one `extends`")
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}; name one with --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # 2025-02-30
        raise ConfigError(f"{path} holds a value that cannot be: {error}") from None
    if loaded is None:
        loaded = {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} must hold sections (key: value), not a {type(loaded).__name__}")
    base = loaded.pop("extends", None)
    if base is None:
        return loaded
    return _merge(_read_yaml(path.parent / str(base), (*seen, path.resolve())), loaded)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(below)
    for key, value in above.items():
        old = out.get(key)
        out[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def _override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: write it as section.key=value")
    try:
        nested: Any = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"--set {text}: the value is no valid YAML") from None
    for name in reversed(key.strip().split(".")):
        nested = {name: nested}
    return dict(nested)


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def _from_environment(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _from_environment(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_environment(item) for item in value]
    return _VARIABLE.sub(_variable, value) if isinstance(value, str) else value


def _variable(match: re.Match[str]) -> str:
    name, default = match.group(1), match.group(2)
    value = os.environ.get(name, default)
    if value is None:
        raise ConfigError(
            f"the configuration uses ${{{name}}}, which is not set; set it or write ${{{name}:-default}}"
        )
    return value


def _sentence(error: ValidationError) -> str:
    """All faults of a configuration as one readable sentence, with a hint for a mistyped key."""
    return "; ".join(_fault(fault) for fault in error.errors())


def _fault(fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    where = ".".join(location) or "top level"
    if fault["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        hint = difflib.get_close_matches(location[-1], known, 1)
        tail = f"did you mean {hint[0]!r}?" if hint else f"known: {', '.join(sorted(known))}"
        return f"unknown key {where}; {tail}"
    if fault["type"] == "missing":
        return f"{where} is missing; set it"
    message = str(fault["msg"]).removeprefix("Value error, ")
    return (
        f"{where}: {message}"
        if fault["type"] == "value_error"
        else f"{where}: {message} (got {_short(fault['input'])})"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _fields_at(location: Sequence[str]) -> list[str]:
    """Names of the fields of the model at a location, looking through dicts and tuples of models."""
    annotation: Any = NightConfig
    for part in location:
        annotation = _step(annotation, part)
    model = _model_in(annotation)
    return list(model.model_fields) if model else []


def _step(annotation: Any, part: str) -> Any:
    """The annotation one part of a location further in: a model's field, or what a dict or tuple holds."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        field = annotation.model_fields.get(part)
        return field.annotation if field else None
    if get_origin(annotation) in (dict, tuple):
        return get_args(annotation)[1 if get_origin(annotation) is dict else 0]
    inner = (_step(argument, part) for argument in get_args(annotation))
    return next((found for found in inner if found is not None), None)


def _model_in(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) in (dict, tuple):
        return None
    inner = (_model_in(argument) for argument in get_args(annotation))
    return next((model for model in inner if model is not None), None)
