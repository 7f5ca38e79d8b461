"""Raw files: globs against pathlib, dates, hidden names, folders that cannot be read, identities."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightjar.config import Files
from nightjar.errors import InputError, StorageError
from nightjar.sources import RawFile, fingerprint, raw_files

DS = date(2025, 3, 1)


def files(*patterns: Path | str) -> Files:
    return Files(path=tuple(map(str, patterns)), format="csv")


def found(*patterns: Path | str, ds: date = DS, days: int = 1) -> tuple[RawFile, ...]:
    return raw_files(files(*patterns), ds, days, "clean_events.scenes.shop")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def paths(folder: Path, raw: tuple[RawFile, ...]) -> list[str]:
    return [str(Path(one.path).relative_to(folder)) for one in raw]


NAMES = st.lists(st.sampled_from(["a", "b", "aa", "ab", "x.csv", "y.csv", "b.txt"]), min_size=1, max_size=3)
PATTERN = st.lists(
    st.sampled_from(["a", "b", "*", "a*", "?", "[ab]", "[!a]*", "*.csv", "x.csv"]), min_size=1, max_size=3
)


@settings(max_examples=60)
@given(st.lists(NAMES, min_size=1, max_size=8), PATTERN)
def test_globs_find_what_pathlib_finds(trees: list[list[str]], pattern: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for tree in trees:
            with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
                touch(folder, "/".join(tree))
        matched = list(folder.glob("/".join(pattern)))
        # A pattern that names a folder means everything below it.
        wanted = {path for path in matched if path.is_file()} | {
            path for top in matched if top.is_dir() for path in top.rglob("*") if path.is_file()
        }
        try:
            got = {Path(raw.path) for raw in found(folder.joinpath(*pattern))}
        except InputError as error:
            assert re.search("no file matches|Not a directory", str(error))
            got = set()
        assert got == wanted


def test_files_come_sorted_and_once(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.csv", "a/1.csv", "a/0.csv")
    raw = found(tmp_path / "*/*.csv", tmp_path / "a/*.csv", tmp_path / "b/2.csv")
    assert sorted(paths(tmp_path, raw)) == ["a/0.csv", "a/1.csv", "b/2.csv"]
    assert [one.name for one in raw] == sorted(one.name for one in raw)
    assert [one.bytes for one in raw] == [7, 7, 7]


def test_hidden_files_and_folders_are_no_data(tmp_path: Path) -> None:
    touch(tmp_path, "a/_SUCCESS", "a/.x.csv.crc", "a/1.csv", "a/_temporary/0/2.csv", "a/.git/3.csv")
    touch(tmp_path, "_staging/4.csv", "_staging/b/5.csv", "_staging/_tmp/6.csv")
    for pattern in ("a", "a/*", "*", "*/*.csv", "[a-z]"):
        assert paths(tmp_path, found(tmp_path / pattern)) == ["a/1.csv"]
    # A folder that the pattern itself names so is meant.
    assert paths(tmp_path, found(tmp_path / "_staging")) == ["_staging/4.csv", "_staging/b/5.csv"]
    assert paths(tmp_path, found(tmp_path / "_*/*.csv")) == ["_staging/4.csv"]


def test_a_root_below_a_hidden_folder_is_fine(tmp_path: Path) -> None:
    touch(tmp_path, ".cache/_x/raw/1.csv")
    assert paths(tmp_path, found(tmp_path / ".cache/_x/raw/*.csv")) == [".cache/_x/raw/1.csv"]


def test_dates_are_expanded_backwards(tmp_path: Path) -> None:
    touch(
        tmp_path, "dt=2025-03-01/a.csv", "dt=2025-02-28/a.csv", "dt=2025-02-26/a.csv", "dt=2025-03-02/a.csv"
    )
    pattern = tmp_path / "dt={ds}/*.csv"
    assert paths(tmp_path, found(pattern)) == ["dt=2025-03-01/a.csv"]
    wanted = ["dt=2025-02-26/a.csv", "dt=2025-02-28/a.csv", "dt=2025-03-01/a.csv"]
    assert sorted(paths(tmp_path, found(pattern, days=4))) == wanted
    assert sorted(paths(tmp_path, found(pattern, days=300))) == wanted
    assert paths(tmp_path, found(tmp_path / "dt={ds}", days=2)) != []


@pytest.mark.parametrize(
    "pattern", ["dt={ds}/*.csv", "{ds}.csv", "*/{ds}", "d?={ds}/{ds}-[ab].csv", "dt={ds}", "x/{ds}/{ds}/*"]
)
def test_many_dates_are_found_in_one_listing(
    tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = ("2025-03-01", "2025-02-28", "2024-12-25", "2024-12-24", "2025-03-02", "2025-3-1")
    for day in days:
        touch(
            tmp_path,
            f"dt={day}/a.csv",
            f"dt={day}/b.txt",
            f"{day}.csv",
            f"x/{day}/{day}/c",
            f"dt={day}x/a.csv",
        )
        touch(tmp_path, f"dt={day}/{day}-a.csv", f"dt={day}/2025-03-01-b.csv", f"y/{day}")
    once = found(tmp_path / pattern, days=67)
    assert {day for day in days if any(day in one.path for one in once)} >= {"2025-03-01", "2025-02-28"}
    monkeypatch.setattr("nightjar.sources.LISTED_ONE_BY_ONE", 100)
    assert found(tmp_path / pattern, days=67) == once


def test_the_same_file_name_on_two_dates_is_told_apart(tmp_path: Path) -> None:
    """Yesterday's a.csv and today's are two inputs: swapping their contents is a change."""
    touch(tmp_path, "dt=2025-03-01/a.csv", "dt=2025-02-28/a.csv")
    names = [raw.name for raw in found(tmp_path / "dt={ds}/a.csv", days=2)]
    assert len(set(names)) == 2


def test_no_file_names_the_pattern_and_the_place(tmp_path: Path) -> None:
    for pattern in ("none/*.csv", "none.csv", "*"):
        with pytest.raises(InputError, match=re.escape(f"scenes.shop: no file matches {tmp_path}/{pattern}")):
            found(tmp_path / pattern)
    with pytest.raises(InputError, match="for the 3 days up to 2025-03-01"):
        found(tmp_path / "{ds}.csv", days=3)
    touch(tmp_path, "ok.csv")
    with pytest.raises(InputError, match=r"other\.csv"):  # one of two patterns is still a fault
        found(tmp_path / "ok.csv", tmp_path / "other.csv")


def test_an_unreadable_folder_is_one_sentence() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        touch(folder, "locked/a.csv")
        (folder / "locked").chmod(0)
        folder.chmod(0o755)
        with _without_root():
            for pattern in ("locked/*.csv", "locked", "*/*.csv"):
                with pytest.raises(InputError, match="cannot be listed") as refused:
                    found(folder / pattern)
                assert "\n" not in str(refused.value)
        (folder / "locked").chmod(0o755)


@contextlib.contextmanager
def _without_root() -> Iterator[None]:
    is_root = os.getuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_a_name_that_is_no_utf8_is_one_sentence(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.csv")).touch()
    with pytest.raises(InputError, match="name is no UTF-8"):
        found(tmp_path / "*.csv")


def test_odd_names_are_kept(tmp_path: Path) -> None:
    names = ["a b.csv", "ümlaut.csv", "x%20y.csv", "x=1,2.csv", "it's.csv"]
    touch(tmp_path, *names)
    assert sorted(paths(tmp_path, found(tmp_path / "*.csv"))) == sorted(names)


def test_relative_paths_and_file_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "raw/1.csv", "other/2.csv")
    monkeypatch.chdir(tmp_path / "other")
    assert [Path(raw.path).name for raw in found("../raw/*.csv")] == ["1.csv"]
    assert [Path(raw.path).name for raw in found("2.csv")] == ["2.csv"]
    assert [raw.name for raw in found(f"file://{tmp_path}/raw/*.csv")] == ["1.csv"]


@pytest.fixture
def bucket() -> Iterator[str]:
    name = f"raw{uuid.uuid4().hex}"
    memory = fsspec.filesystem("memory")
    for path in ("dt=2025-03-01/a.csv", "dt=2025-02-28/b.csv", "dt=2025-03-01/_SUCCESS", "items.csv"):
        memory.pipe(f"/{name}/{path}", b"x")
    yield f"memory://{name}"
    memory.rm(f"/{name}", recursive=True)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("items.csv", ["items.csv"]),
        ("*.csv", ["items.csv"]),
        ("*/*.csv", ["dt=2025-02-28/b.csv", "dt=2025-03-01/a.csv"]),
        ("dt={ds}/*.csv", ["dt=2025-03-01/a.csv"]),
        ("dt=2025-03-01", ["a.csv"]),
    ],
)
def test_object_stores_are_searched_alike(bucket: str, pattern: str, names: list[str]) -> None:
    raw = found(f"{bucket}/{pattern}")
    assert [one.name for one in raw] == names
    for one in raw:
        assert one.path.startswith(f"{bucket}/")
        assert one.path.endswith(one.name)


def test_an_unknown_protocol_is_one_sentence() -> None:
    with pytest.raises(StorageError, match="no library here reads nosuch://"):
        found("nosuch://bucket/*.csv")


def test_the_identity_is_names_sizes_and_times(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.csv", "a/2.csv", "b/1.csv", "b/2.csv")
    for path in tmp_path.rglob("*.csv"):
        os.utime(path, ns=(1, 10**18))
    before = fingerprint(found(tmp_path / "a/*.csv"))
    assert fingerprint(found(tmp_path / "b/*.csv")) == before  # a copy elsewhere is the same input
    os.utime(tmp_path / "a/2.csv", ns=(1, 10**18 + 1))
    touched = fingerprint(found(tmp_path / "a/*.csv"))
    (tmp_path / "a/2.csv").write_text("longer than before")
    os.utime(tmp_path / "a/2.csv", ns=(1, 10**18))
    longer = fingerprint(found(tmp_path / "a/*.csv"))
    (tmp_path / "b/2.csv").rename(tmp_path / "b/3.csv")
    renamed = fingerprint(found(tmp_path / "b/*.csv"))
    assert len({before, touched, longer, renamed}) == 4


@given(
    st.lists(
        st.builds(
            RawFile, st.just("p"), st.text("a\0\n1", max_size=3), st.integers(0, 11), st.integers(0, 11)
        )
    )
)
def test_equal_identities_mean_equal_files(raw: list[RawFile]) -> None:
    """Names cannot hold NUL on any file system; with them out, no two lists share a text."""
    if any("\0" in one.name for one in raw):
        return
    rotated = [*raw[1:], *raw[:1]]
    assert (fingerprint(raw) == fingerprint(rotated)) == (raw == rotated)
