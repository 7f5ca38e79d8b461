"""The doctor names what is missing with its remedy, on a machine made sick on purpose."""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from nightjar import doctor as doctor_module
from nightjar.doctor import BELOW, MINIMUM, doctor
from tests.world import config

Lines = dict[str, tuple[str, str]]
"""The name of a check: what was found, and the remedy or nothing."""


class Patient:
    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.config(folder / "store")

    def config(self, root: Path | str, **sections: Any) -> None:
        content = config(root, **sections).model_dump(mode="json")
        (self.folder / "night.yaml").write_text(yaml.safe_dump(content))

    def examine(self) -> tuple[int, Lines]:
        code = doctor(argparse.Namespace(config=[str(self.folder / "night.yaml")], set=[]))
        said: Lines = {}
        lines = self._capsys.readouterr().out.splitlines()
        for at, line in enumerate(lines):
            if line.startswith(("ok   ", "FIX  ")):
                name, _, found = line[5:].partition(": ")
                said[name] = (found, lines[at + 1].strip() if line.startswith("FIX") else "")
        return code, said


@pytest.fixture
def patient(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Patient:
    """Everything in order, so that each test makes one thing wrong."""
    for name in (
        "PYSPARK_PYTHON",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "RAY_ADDRESS",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAVA_HOME", str(_java(tmp_path, 'echo "openjdk version \\"17.0.1\\"" >&2')))
    monkeypatch.setattr(doctor_module, "MEMORY_NEEDED", 1)
    monkeypatch.setattr(doctor_module, "_package", lambda name: doctor_module.Finding(name, "there"))
    monkeypatch.setattr(doctor_module, "_model", lambda _: doctor_module.Finding("model", "there"))
    return Patient(tmp_path, capsys)


def _java(folder: Path, script: str) -> Path:
    """A JAVA_HOME whose java is a shell script."""
    home = folder / f"java{len(list(folder.iterdir()))}"
    (home / "bin").mkdir(parents=True)
    (home / "bin/java").write_text(f"#!/bin/sh\n{script}\n")
    (home / "bin/java").chmod(0o755)
    return home


def test_a_sound_machine_needs_nothing(patient: Patient) -> None:
    code, said = patient.examine()
    assert code == 0
    assert {"Python", "Java", "memory", "threads", "Ray authentication", "root", "model", *MINIMUM} <= set(
        said
    )
    assert [remedy for _, remedy in said.values() if remedy] == []


def test_no_java_on_the_path(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(patient.folder))
    code, said = patient.examine()
    assert code == 1
    assert said["Java"][0] == "not found"
    assert "apt-get install openjdk-17" in said["Java"][1]


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ('echo "openjdk version \\"11.0.2\\"" >&2', "11 ("),
        ('echo "java version \\"1.8.0_402\\"" >&2', "1 ("),
        ("echo no JVM here >&2; exit 1", "does not run (no JVM here)"),
        ("kill -9 $$", "does not run ()"),
    ],
)
def test_a_java_that_will_not_do(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, script: str, found: str
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(_java(patient.folder, script)))
    code, said = patient.examine()
    assert code == 1
    assert found in said["Java"][0]
    assert "needs Java 17 or 21" in said["Java"][1]


def test_a_java_that_is_no_program(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    home = _java(patient.folder, "")
    (home / "bin/java").write_bytes(b"\x7fELF nonsense")
    monkeypatch.setenv("JAVA_HOME", str(home))
    code, said = patient.examine()
    assert code == 1
    assert "does not run" in said["Java"][0]
    monkeypatch.setenv("JAVA_HOME", str(patient.folder / "nowhere"))
    assert patient.examine()[1]["Java"][0] == "not found"


@pytest.mark.parametrize(
    ("name", "version", "fits"),
    [
        ("pyspark", "3.5.5", False),
        ("pyspark", "3.5.6", True),
        ("pyspark", "4.3.9", True),
        ("pyspark", "4.4.0", False),
        ("pyspark", "4.4.0.dev1", False),
        ("pandas", "3.0.0", False),
        ("torch", "2.13.0+cpu", True),
        ("torch", "2.10", True),
        ("ray", "2.9.3", False),
        ("numpy", "2.0.0rc1", True),
        ("numpy", "1.26.4", False),
        ("transformers", None, False),
    ],
)
def test_versions_are_compared_as_numbers(
    monkeypatch: pytest.MonkeyPatch, name: str, version: str | None, fits: bool
) -> None:
    def installed(_: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    finding = doctor_module._package(name)
    assert (finding.remedy == "") == fits
    assert fits or "pip install" in finding.remedy
    assert set(BELOW) <= set(MINIMUM)


def test_a_machine_too_small(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "MEMORY_NEEDED", 1 << 60)
    code, said = patient.examine()
    assert code == 1
    assert "lower spark.driver_memory" in said["memory"][1]


@pytest.mark.parametrize(
    ("name", "value", "cores", "wrong"),
    [
        ("OMP_NUM_THREADS", "2", 1, True),  # two actors on two cores would run four threads
        ("OMP_NUM_THREADS", "2", 2, False),
        ("OPENBLAS_NUM_THREADS", "9999", 4, True),
        ("MKL_NUM_THREADS", "1", 1, False),
        ("OMP_NUM_THREADS", "x", 1, False),
        ("OMP_NUM_THREADS", "1", 0.5, False),
    ],
)
def test_threads_wider_than_an_actor_are_named(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, name: str, value: str, cores: float, wrong: bool
) -> None:
    sections = {stage: {"resources": {"num_cpus": cores}} for stage in doctor_module.ON_RAY}
    patient.config(patient.folder / "store", **sections)
    monkeypatch.setenv(name, value)
    code, said = patient.examine()
    assert (code == 1) == wrong
    assert f"{name}={value}" in said["threads"][0]
    assert f"retrieve {max(1, int(cores))}" in said["threads"][0]
    assert (name in said["threads"][1]) == wrong


def test_the_narrowest_actor_decides(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    patient.config(patient.folder / "store", retrieve={"resources": {"num_cpus": 8}})
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert "an actor with 1 core" in patient.examine()[1]["threads"][1]


def test_threads_are_told_without_a_configuration_too(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    (patient.folder / "night.yaml").write_text("root: [")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    code, said = patient.examine()
    assert code == 1 and "unset OMP_NUM_THREADS" in said["threads"][1]


def test_a_python_of_workers_that_is_not_there(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPARK_PYTHON", "/nowhere/python3")
    code, said = patient.examine()
    assert code == 1
    assert "unset or mend it" in said["Python of Spark workers"][1]
    monkeypatch.setenv("PYSPARK_PYTHON", "./environment/bin/python")  # inside a shipped archive
    assert patient.examine()[0] == 0


@pytest.mark.parametrize(
    ("address", "mode", "token", "remedy"),
    [
        ("", None, "", ""),
        ("10.0.0.1:6379", "disabled", "", "set RAY_AUTH_MODE=token"),
        ("127.0.0.1:6379", "disabled", "", ""),
        ("10.0.0.1:6379", None, "", "ray get-auth-token --generate"),
        ("10.0.0.1:6379", "token", "secret-words", ""),
    ],
)
def test_ray_authentication(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, address: str, mode: str | None, token: str, remedy: str
) -> None:
    monkeypatch.setenv("HOME", str(patient.folder))
    for name, value in (("RAY_ADDRESS", address), ("RAY_AUTH_MODE", mode), ("RAY_AUTH_TOKEN", token)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    code, said = patient.examine()
    found, advice = said["Ray authentication"]
    assert (code == 1) == bool(remedy)
    assert remedy in advice
    assert "secret-words" not in found


@pytest.mark.parametrize("root", ["/dev/null/store", "nosuch://x", "/proc/nightjar"])
def test_a_root_that_cannot_be_written(patient: Patient, root: str) -> None:
    patient.config(root)
    code, said = patient.examine()
    assert code == 1
    assert said["root"][1] != ""


def test_a_configuration_that_cannot_be_read_is_a_finding(patient: Patient) -> None:
    (patient.folder / "night.yaml").write_text("rnak: 1")
    code, said = patient.examine()
    assert code == 1
    assert "did you mean 'rank'?" in said["configuration"][1]


@pytest.mark.parametrize("model", ["/nowhere", "package:no-such-package", "org/name"])
def test_a_model_that_is_not_there(patient: Patient, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.undo()
    patient.config(patient.folder / "store", encode_items={"model": model})
    _, said = patient.examine()
    found, remedy = said["model"]
    assert found == model
    assert remedy != ""
