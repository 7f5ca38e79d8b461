"""Raw input files: globs over any file system, {ds} expanded to dates, and an identity for each file.

A file is identified by its name below the glob's fixed part, its size and its modification time, as make
and rsync do: hashing terabytes of logs on the driver each night would cost more than reading them once.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import pyarrow.fs as pafs

from nightjar.config import Files
from nightjar.errors import ConfigError, InputError
from nightjar.store import locate

_MAGIC = "*?["
_UNSEEN = (".", "_")
_MARK = "YYYYMMDD"
LISTED_ONE_BY_ONE = 62
"""Dates up to which a listing for each is made; with more the folder above them is listed once."""


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
        # All dates share one fixed part, so that a file's name says which date it is of.
        fixed = _fixed_part(locate(pattern.replace("{ds}", "*"))[1])
        dated = "{ds}" in pattern
        dates = [str(ds - timedelta(days=back)) for back in range(days)]
        matches = _of_dates(pattern, dates, where, fixed) if dated else _glob(pattern, where, fixed)
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


def _of_dates(pattern: str, dates: Sequence[str], where: str, fixed: str) -> list[RawFile]:
    """The files of each date. Many dates are found in one listing: ten years would be 3,650 requests."""
    if len(dates) <= LISTED_ONE_BY_ONE:
        return [raw for one in dates for raw in _glob(pattern.replace("{ds}", one), where, fixed)]
    wanted, listed = set(dates), _glob(pattern.replace("{ds}", "*"), where, fixed)
    names = locate(pattern.replace("{ds}", _MARK))[1].rstrip("/").split("/")
    # Each component that names the date must name the same one, and the rest of it must match as a glob does.
    shapes = [
        (at, re.compile(fnmatch.translate(name).replace(_MARK, r"(\d{4}-\d\d-\d\d)")))
        for at, name in enumerate(names)
        if _MARK in name
    ]

    def of_date(raw: RawFile) -> bool:
        components = locate(raw.path)[1].split("/")
        matched = [shape.match(components[at]) for at, shape in shapes]
        found = {date for match in matched if match for date in match.groups()}
        return all(matched) and len(found) == 1 and found <= wanted

    return [raw for raw in listed if of_date(raw)]


def _glob(pattern: str, where: str, fixed: str) -> list[RawFile]:
    fs, path = locate(pattern)
    prefix = pattern[: pattern.index("://") + 3] if "://" in pattern else ""
    try:
        # fsspec's memory file system answers with a leading slash that its paths do not have.
        lead = "/" if path.startswith("/") else ""
        listed = _listing(fs, path, _fixed_part(path))
        infos = [(lead + info.path.lstrip("/"), info) for info in listed if info.type == pafs.FileType.File]
    except OSError as error:
        raise InputError(
            f"{where}: {pattern} cannot be listed ({error}); check that the folder is readable"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{where}: {pattern} meets a file whose name is no UTF-8; rename it") from None
    kept: list[RawFile] = []
    for found, info in infos:
        if not _matches(found, path) or _hidden(found, path):
            continue
        # Without a wildcard the name is the base name; with one, what lies below the fixed folder.
        name = found[len(fixed) :].lstrip("/") or info.base_name
        shown = found if isinstance(fs, pafs.LocalFileSystem) else _uri(prefix, found)
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


def _hidden(path: str, pattern: str) -> bool:
    """Names with a leading . or _ are no data, as in Spark: half-written files, checksums, table logs.

    A folder that the pattern itself names so is meant; a file never is, since Spark would not read it.
    """
    *folders, file = path.split("/")
    wanted = itertools.chain(pattern.split("/"), itertools.repeat(""))
    return file.startswith(_UNSEEN) or any(
        name.startswith(_UNSEEN) and not want.startswith(_UNSEEN)
        for name, want in zip(folders, wanted, strict=False)
    )


def _uri(prefix: str, path: str) -> str:
    if not prefix:
        raise ConfigError(f"{path} has no protocol; write it as a URI")
    return prefix + path.lstrip("/")
