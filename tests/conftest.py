"""What tests share: one Spark session, nights over a temporary root, and where the real data is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from nightjar.config import NightConfig
from nightjar.progress import QUIET
from nightjar.stage import Night, RunStage, Stage, StageResult, run_stage

if TYPE_CHECKING:  # unit tests of kernels must not load an engine through this file
    from pyspark.sql import SparkSession

    from tests.small_night import Undisturbed

# The same examples on every machine, however slow; HYPOTHESIS_PROFILE=default looks for new ones.
settings.register_profile("stable", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "stable"))

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("NIGHTJAR_DATA", ROOT.parent / "shared" / "data"))
SPARK: dict[str, Any] = {
    "master": "local[2]",
    "driver_memory": "2g",
    "shuffle_partitions": 3,
    # Jobs this small are over before the second compiler or code made for a query pays; the undisturbed night
    # has the latter.
    "conf": {
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    },
}

MakeNight = Callable[..., Night]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where two workers share the tests (`make test`), each file stays whole, for what its tests share is
    made once; and so do, together, chaos/ and e2e/, which share the undisturbed night."""
    from xdist.scheduler import LoadFileScheduling

    class WholeFiles(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "nights" if {"chaos", "e2e"} & {*Path(file).parts} else file

    return WholeFiles(config, log)


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """The one Spark session of a test run: local[2], small; stages find it by getOrCreate."""
    from nightjar.engines.spark import session

    # Python workers start from the environment, not from this process' sys.path.
    paths = [str(ROOT / "lib"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    found = session(config_of("build/tests"))
    yield found
    found.stop()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """One small night as a process of its own, shared: what others publish of that world is held against it.

    Who adds days to the world or nights to the store does so in a copy.
    """
    from tests.small_night import undisturbed_night

    return undisturbed_night(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def make_night(tmp_path: Path) -> MakeNight:
    """`make_night(scenes=…, sources=…, ds=…)`: a Night whose root is in the test's own folder.

    Further sections go in by name (`rank={"k": 5}`); `cleaning` and `items` add to their sections.
    """

    def make(root: Path | None = None, ds: str = "2026-03-31", **sections: Any) -> Night:
        return Night(config_of(str(root or tmp_path / "root"), **sections), date.fromisoformat(ds), QUIET)

    return make


def config_of(
    root: str,
    scenes: Mapping[str, Any] | None = None,
    sources: list[Mapping[str, Any]] | None = None,
    cleaning: Mapping[str, Any] | None = None,
    items: Mapping[str, Any] | None = None,
    **sections: Any,
) -> NightConfig:
    """A whole configuration around the parts a test cares about."""
    columns = {"user_id": "user", "item_id": "item", "event_type": "type", "event_time": "time"}
    scene = {"path": "none/*.csv", "format": "csv", "columns": columns, "event_types": {"view": {}}}
    source = {"path": "none/items.csv", "format": "csv", "columns": {"item_id": "item", "title": "title"}}
    return NightConfig.model_validate(
        {
            "root": root,
            "spark": sections.pop("spark", SPARK),
            "clean_events": {"scenes": scenes or {"shop": scene}, **(cleaning or {})},
            "build_items": {"sources": sources or [source], **(items or {})},
            **sections,
        }
    )


def spark_with(shuffle_partitions: int, **conf: str) -> dict[str, Any]:
    """The tests' Spark section with other shuffle partitions and settings (`_` stands for a dot)."""
    dotted = {f"spark.{name.replace('_', '.')}": value for name, value in conf.items()}
    return {**SPARK, "shuffle_partitions": shuffle_partitions, "conf": {**SPARK["conf"], **dotted}}


def run(stage: Stage, function: RunStage, night: Night) -> StageResult:
    """Runs a stage on the raw files its configuration names."""
    from nightjar.stages.inputs import raw_inputs

    return run_stage(stage, function, night, raw_inputs(stage, night.config, night.ds))


def real_data(name: str) -> Path:
    """A folder of real data, or a skip that says where it was looked for."""
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"no {name} in {DATA}; set NIGHTJAR_DATA to run this test")
    return folder
