"""Raw input files: globs over any file system, {ds} expanded to dates, and an identity for each file.

A file is identified by its name below the glob's fixed part, its size and its modification time, as make
and rsync do: hashing terabytes of logs on the driver each night would cost more than reading them once.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta

import pyarrow.fs as pafs

from nightjar.config import Files
from nightjar.errors import ConfigError, InputError
from nightjar.store import locate

_MAGIC = "*?["


@dataclass(frozen=True)
class RawFile:
    """One raw file. path: what Spark opens; name: its place below the glob's fixed part."""

    path: str
    name: str
    bytes: int
    modified_ns: int


def raw_files(files: Files, ds: date, days: int, where: str) -> tuple[RawFile, ...]:
    """The files a source has for the `days` dates up to ds, sorted by name.

    A path with {ds} is expanded for each date and a date without files is no fault; a path without it
    must match something. Raises InputError naming the pattern, ConfigError for an unusable path.
    """
    found: dict[str, RawFile] = {}
    for pattern in files.path:
        dated = "{ds}" in pattern
        patterns = (
            [pattern.replace("{ds}", str(ds - timedelta(days=back))) for back in range(days)]
            if dated
            else [pattern]
        )
        matches = [raw for one in patterns for raw in _glob(one, where)]
        if not matches:
            upto = f" for the {days} days up to {ds}" if dated else ""
            raise InputError(f"{where}: no file matches {pattern}{upto}; check the path in the configuration")
        found.update({raw.path: raw for raw in matches})
    return tuple(sorted(found.values(), key=lambda raw: (raw.name, raw.path)))


def fingerprint(files: Iterable[RawFile]) -> str:
    """One hash over names, sizes and modification times."""
    digest = hashlib.sha256()
    for raw in files:
        digest.update(f"{raw.name}\0{raw.bytes}\0{raw.modified_ns}\n".encode())
    return digest.hexdigest()


def _glob(pattern: str, where: str) -> list[RawFile]:
    fs, path = locate(pattern)
    prefix = pattern[: pattern.index("://") + 3] if "://" in pattern else ""
    fixed = _fixed_part(path)
    try:
        infos = _listing(fs, path, fixed)
    except OSError as error:
        raise InputError(
            f"{where}: {pattern} cannot be listed ({error}); check that the folder is readable"
        ) from None
    kept: list[RawFile] = []
    for info in infos:
        hidden = info.base_name.startswith((".", "_"))
        if info.type != pafs.FileType.File or hidden or not _matches(info.path, path):
            continue
        # Without a wildcard the name is the base name; with one, what lies below the fixed folder.
        name = info.path[len(fixed) :].lstrip("/") or info.base_name
        shown = info.path if isinstance(fs, pafs.LocalFileSystem) else _uri(prefix, info.path)
        kept.append(RawFile(shown, name, info.size or 0, info.mtime_ns or 0))
    return kept


def _listing(fs: pafs.FileSystem, path: str, fixed: str) -> list[pafs.FileInfo]:
    if fixed == path:
        info = fs.get_file_info(path)
        if info.type != pafs.FileType.Directory:
            return [info]
    return list(fs.get_file_info(pafs.FileSelector(fixed, recursive=True, allow_not_found=True)))


def _fixed_part(path: str) -> str:
    """The longest leading run of folders without a wildcard; the whole path where there is none."""
    kept: list[str] = []
    for name in path.split("/"):
        if any(letter in name for letter in _MAGIC):
            return "/".join(kept)
        kept.append(name)
    return path


def _matches(path: str, pattern: str) -> bool:
    """Component-wise match; a pattern that names a folder matches everything below it."""
    names, wanted = path.split("/"), pattern.rstrip("/").split("/")
    if len(names) < len(wanted):
        return False
    return all(fnmatch.fnmatchcase(name, want) for name, want in zip(names, wanted, strict=False))


def _uri(prefix: str, path: str) -> str:
    if not prefix:
        raise ConfigError(f"{path} has no protocol; write it as a URI")
    return prefix + path.lstrip("/")
