"""Files that appear whole or not at all, and a folder that holds one world."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from nightjar.errors import ConfigError, StorageError
from nightjar.generate.spec import GenerateSpec


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file under a hidden name and put it in place at the end.

    A file of the same bytes that is there already stays, its time of change too: a night tells by it that the
    first days of a world did not change when a day is appended.
    """
    hidden = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with hidden.open("wb") as file:
            yield file
        if path.exists() and filecmp.cmp(hidden, path, shallow=False):
            hidden.unlink()
        else:
            hidden.replace(path)
    except OSError as error:
        raise StorageError(f"generate: cannot write {path}: {error.strerror or error}") from error


def plain(spec: GenerateSpec) -> dict[str, Any]:
    """The spec as JSON."""
    return {name: str(value) if name == "start" else value for name, value in vars(spec).items()}


def claim(spec: GenerateSpec, out: Path) -> None:
    """Mark ``out`` as the folder of this world.

    Raises ConfigError where it holds another world, or the same with more days: their files would mingle.
    """
    mark = out / "truth" / "spec.json"
    mine = plain(spec)
    if mark.exists():
        there = json.loads(mark.read_text(encoding="utf-8"))
        other = [name for name in mine if name != "next_days" and there.get(name) != mine[name]]
        if not other and there["next_days"] > mine["next_days"]:
            other = ["next_days"]
        if other:
            what = ", ".join(f"{name} {there.get(name)} and not {mine[name]}" for name in other)
            raise ConfigError(f"generate: {out} holds another world ({what}); name an empty folder")
    with whole_file(mark) as file:
        file.write((json.dumps(mine, indent=1) + "\n").encode())
