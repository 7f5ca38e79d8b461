"""The wheel that goes to Spark and Ray: the whole package with its data, and the same bytes every time."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from nightjar import __version__
from nightjar.pipeline import NIGHT

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", ".gitignore")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed; pip install hatchling"
)


def _copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for name in SOURCES:
        if (source / name).exists():
            shutil.copy(source / name, target / name)
    shutil.copytree(source / "lib", target / "lib")
    return target


def _build(folder: Path) -> Path:
    """What spark-submit.sh does."""
    environment = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "out"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "out").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that nothing changes between two builds."""
    return _copy(ROOT, tmp_path_factory.mktemp("wheel") / "first")


@pytest.fixture(scope="module")
def wheel(sources: Path) -> Path:
    return _build(sources)


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: Path, sources: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in names if name.startswith("nightjar/")}
    on_disk = {
        str(path.relative_to(sources / "lib"))
        for path in (sources / "lib").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert package == on_disk
    assert {
        "nightjar/pipeline.py",
        "nightjar/generate/tastes.toml",
        "nightjar/engines/log4j2.properties",
    } <= package
    assert {f"nightjar/stages/{stage.name}.py" for stage in NIGHT} <= package
    assert {name.partition("/")[0] for name in names} == {"nightjar", f"nightjar-{__version__}.dist-info"}


def test_two_builds_have_the_same_bytes(wheel: Path, sources: Path) -> None:
    """In another folder, with other times, modes and an order of creation turned round."""
    second = _copy(sources, sources.parent / "second")
    for path in sorted((second / "lib").rglob("*"), reverse=True):
        os.utime(path, (time.time(), 1_700_000_000 + len(path.name)))
        if path.is_file():
            path.chmod(0o600)
    again = _build(second)
    assert again.name == wheel.name == f"nightjar-{__version__}-py3-none-any.whl"
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(wheel.read_bytes()).digest()


READ = """
import importlib.resources, sys
import nightjar, nightjar.pipeline
from nightjar.generate.vocabulary import *
print(nightjar.__file__)
for package, name in (("nightjar.generate", "tastes.toml"), ("nightjar.engines", "log4j2.properties")):
    print(len((importlib.resources.files(package) / name).read_bytes()))
"""


def test_code_and_data_are_read_from_the_zip_that_spark_gets(wheel: Path, tmp_path: Path) -> None:
    copy = tmp_path / "nightjar.zip"
    shutil.copy(wheel, copy)
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    command = [sys.executable, "-c", READ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    where, *sizes = done.stdout.split()
    assert where == f"{copy}/nightjar/__init__.py"
    folders = ("generate/tastes.toml", "engines/log4j2.properties")
    assert [int(size) for size in sizes] == [
        (ROOT / "lib/nightjar" / name).stat().st_size for name in folders
    ]


def test_the_wheel_names_its_command_and_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = f"nightjar-{__version__}.dist-info"
    assert "nightjar = nightjar.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
    metadata = archive.read(f"{info}/METADATA").decode()
    assert f"Version: {__version__}\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "torch" not in [
        line.split()[1]
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist") and "extra" not in line
    ]
