"""What this machine lacks for a night, with the remedies. Imports no engine, so it runs where one fails."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nightjar.config import NightConfig
from nightjar.errors import NightjarError
from nightjar.job import config_of
from nightjar.masking import masked
from nightjar.pipeline import NIGHT
from nightjar.store import Store

MINIMUM = {
    "pyspark": "3.5.6",
    "ray": "2.58",
    "torch": "2.6",
    "transformers": "5.3",
    "faiss-cpu": "1.12",
    "pyarrow": "18",
    "numpy": "2",
    "pandas": "2.2",
    "numba": "0.61",
}
BELOW = {"pyspark": "4.4", "pandas": "3"}
ON_RAY = tuple(stage.name for stage in NIGHT if stage.engine == "ray")
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
MEMORY_NEEDED = 6 << 30
"""Bytes a night on one machine wants: Spark's driver 3 GiB, two encoder actors, the vectors."""


@dataclass(frozen=True)
class Finding:
    """One check. remedy: what to do, empty where all is well."""

    name: str
    found: str
    remedy: str = ""


def doctor(options: argparse.Namespace) -> int:
    """Prints a line a check; returns 1 where something needs a remedy."""
    findings = list(_findings(options))
    for finding in findings:
        mark = "ok  " if not finding.remedy else "FIX "
        remedy = f"\n      {finding.remedy}" if finding.remedy else ""
        print(masked(f"{mark} {finding.name}: {finding.found}{remedy}"))
    return 1 if any(finding.remedy for finding in findings) else 0


def _findings(options: argparse.Namespace) -> Iterator[Finding]:
    yield _python()
    yield _java()
    for name in MINIMUM:
        yield _package(name)
    yield _workers()
    yield _memory()
    yield _ray_auth()
    try:
        config = config_of(options)
    except NightjarError as error:
        yield _threads(None)
        yield Finding("configuration", "not read", str(error))
        return
    yield _threads(config)
    yield _root(config)
    yield _model(config)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", version, "" if sys.version_info >= (3, 11) else "install Python 3.11 or newer")


def _java() -> Finding:
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if not java or not Path(java).exists():
        return Finding(
            "Java", "not found", "install a Java 17 runtime (Debian: apt-get install openjdk-17-jre-headless)"
        )
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60).stderr
    except (OSError, subprocess.SubprocessError) as error:
        said = str(error)
    match = re.search(r'version "(\d+)', said)
    major = int(match.group(1)) if match else 0
    return Finding(
        "Java",
        f"{major} ({java})" if match else f"{java} does not run ({' '.join(said.split())[:200]})",
        "" if major >= 17 else "Spark 4 needs Java 17 or 21; set JAVA_HOME to one",
    )


def _package(name: str) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "not installed", 'pip install "nightjar[local]"')
    low, high = MINIMUM[name], BELOW.get(name)
    fits = _numbers(version) >= _numbers(low) and (high is None or _numbers(version) < _numbers(high))
    wanted = f">={low}" + (f",<{high}" if high else "")
    return Finding(name, version, "" if fits else f'pip install "{name}{wanted}"')


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _workers() -> Finding:
    """Without PYSPARK_PYTHON executors start the system's python; the session sets it unless it is set."""
    set_to = os.environ.get("PYSPARK_PYTHON")
    if set_to is None:
        return Finding("Python of Spark workers", f"{sys.executable} (set by nightjar)")
    there = shutil.which(set_to) is not None or set_to.startswith("./")
    return Finding(
        "Python of Spark workers",
        set_to,
        "" if there else "PYSPARK_PYTHON names no program; unset or mend it",
    )


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    low = "lower spark.driver_memory and encode_items.resources.actors in the configuration"
    return Finding("memory", f"{total / (1 << 30):.1f} GiB", "" if total >= MEMORY_NEEDED else low)


def _threads(config: NightConfig | None) -> Finding:
    """How many threads FAISS, BLAS and torch will use, and what in the environment would overrule it.

    Ray sets OMP_NUM_THREADS to an actor's num_cpus unless it is set already, Spark always to spark.task.cpus
    (1 by default). `build_index` and `retrieve` set all libraries themselves; other stages go by it.
    """
    wanted = 1.0
    found = "an actor uses num_cpus, a Spark worker spark.task.cpus"
    if config is not None:
        stages = {name: getattr(config, name).resources.num_cpus for name in ON_RAY}
        found += " (" + ", ".join(f"{name} {max(1, int(cores))}" for name, cores in stages.items()) + ")"
        wanted = max(1.0, min(stages.values()))
    odd = [name for name in THREAD_VARIABLES if name in os.environ]
    found = ", ".join([*(f"{name}={os.environ[name]}" for name in odd), found])
    wide = [name for name in odd if os.environ[name].isdigit() and int(os.environ[name]) > wanted]
    if not wide:
        return Finding("threads", found)
    has = f"{wanted:g} {'core' if wanted == 1 else 'cores'}"
    return Finding(
        "threads",
        found,
        f"unset {', '.join(wide)}: an actor with {has} would start that many threads; set num_cpus instead",
    )


def _ray_auth() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    token = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    has_token = bool(token) or (Path.home() / ".ray" / "auth_token").exists()
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    found = (
        f"mode {mode}, "
        + ("token there" if has_token else "no token")
        + (f", cluster {address}" if address else "")
    )
    if not address:
        return Finding("Ray authentication", found + "; a local cluster makes its own token")
    local = "127.0.0.1" in address or "localhost" in address
    if mode == "disabled" and not local:
        return Finding(
            "Ray authentication",
            found,
            "anyone who reaches that cluster can run code: set RAY_AUTH_MODE=token",
        )
    if not has_token and mode != "disabled":
        return Finding(
            "Ray authentication", found, "run `ray get-auth-token --generate`, or set RAY_AUTH_TOKEN_PATH"
        )
    return Finding("Ray authentication", found)


def _root(config: NightConfig) -> Finding:
    store = Store(config.root)
    probe = "_locks/doctor"
    try:
        store.put(probe, b"")
        store.drop(probe)
    except NightjarError as error:
        return Finding("root", config.root, str(error))
    return Finding("root", f"{config.root} can be written")


def _model(config: NightConfig) -> Finding:
    from nightjar.engines.encoder import model_fingerprint
    from nightjar.stages.encoding.spec import encoder_spec

    try:
        fingerprint = model_fingerprint(encoder_spec(config.encode_items, config.encode_items.resources))
    except NightjarError as error:
        return Finding("model", config.encode_items.model, str(error))
    return Finding("model", f"{config.encode_items.model} ({fingerprint[:12]})")
