"""The night through `spark-submit` and `ray job submit`, on a Spark and a Ray cluster of this machine."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nightjar.pipeline import NIGHT, PUBLISH
from nightjar.store import Dataset, Store
from tests.clusters import RayCluster, python_without_nightjar, ray_cluster
from tests.conftest import ROOT
from tests.small_night import SMALL, SmallWorld, Undisturbed, environment, published

pytestmark = pytest.mark.timeout(1500)  # fixtures run whole nights; a busy machine takes minutes for one

SPARK_MASTER = "local-cluster[2,1,1024]"
"""Two workers of one core and 1 GiB, each a process with executors of its own."""
SOME = ("clean_events", "encode_items", "learn_taste", "rank")
"""The short version: Spark over raw files and over mapped matrices, actors on both nodes, and one that asks
for more cores than a node has."""


@dataclass(frozen=True)
class Here:
    """What the tests share. python: an interpreter that finds no Nightjar but a shipped one."""

    folder: Path
    world: SmallWorld
    python: Path
    ray: RayCluster

    def submit(self, config: Path, *stages: str, **env: str) -> subprocess.CompletedProcess[str]:
        """spark-submit.sh against both clusters."""
        # Nodes of a standalone cluster share a secret; conf/spark-defaults.conf turns authentication on.
        conf = {**SMALL["spark"]["conf"], "spark.authenticate.secret": "of-this-test"}
        arguments = " ".join(f"--conf {name}={value}" for name, value in conf.items())
        spark = {"SPARK_MASTER": SPARK_MASTER, "SPARK_ARGS": arguments}
        spark |= {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_HOSTNAME": "127.0.0.1"}
        return subprocess.run(
            [str(ROOT / "spark-submit.sh"), self.world.facts["last_day"], str(config), *stages],
            env={**self.ray.env, **spark, "RAY_ADDRESS": self.ray.jobs, "PYTHON": str(self.python), **env},
            capture_output=True,
            text=True,
            timeout=1400,
            check=False,
        )


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, undisturbed: Undisturbed) -> Iterator[Here]:
    folder = tmp_path_factory.mktemp("cluster")
    python = python_without_nightjar(folder / "bare")
    # A session that earlier tests left in this process may have put our sources on PYTHONPATH.
    env = {name: value for name, value in environment(folder).items() if name != "PYTHONPATH"}
    probe = [str(python), "-c", "import pyspark, ray, nightjar"]
    found = subprocess.run(probe, capture_output=True, cwd=folder, env=env)
    assert b"No module named 'nightjar'" in found.stderr, "this interpreter must depend on what is shipped"
    with ray_cluster(python, folder / "cache") as cluster:
        yield Here(folder, undisturbed.world, python, cluster)


def test_a_wrong_or_missing_token_is_refused_before_anything_runs(here: Here) -> None:
    config = here.world.config(here.folder / "refused")
    wrong = here.folder / "wrong-token"
    wrong.write_text("0" * 64)
    for env, word in (
        ({"RAY_AUTH_TOKEN_PATH": str(wrong)}, "Invalid authentication token"),
        ({"RAY_AUTH_TOKEN_PATH": str(here.folder / "no-such-file")}, "cannot be opened"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": ""}, "Missing authentication token"),
    ):
        refused = here.submit(config, **env)
        assert refused.returncode == 2, refused.stderr
        assert word in refused.stderr
        assert "Traceback" not in refused.stderr
        assert here.ray.token.read_text() not in refused.stdout + refused.stderr
    assert not (here.folder / "refused").exists()


@pytest.mark.parametrize("stages", [SOME, pytest.param((), marks=pytest.mark.slow)], ids=["some", "all"])
def test_both_clusters_commit_what_one_machine_does(
    here: Here, undisturbed: Undisturbed, stages: tuple[str, ...]
) -> None:
    """Of a finished night these stages have lost what they committed; none named: the whole night."""
    lost = [stage for stage in NIGHT if not stages or stage.name in stages]
    root, day = here.folder / f"lost-{len(lost)}", here.world.facts["last_day"]
    shutil.copytree(undisturbed.root, root)
    for stage in lost:
        for table in stage.writes:
            shutil.rmtree(root / table.name / f"ds={day}")
    submitted = here.submit(here.world.config(root), *stages)
    assert submitted.returncode == 0, submitted.stdout[-3000:] + submitted.stderr[-6000:]
    on_ray = [stage.name for stage in lost if stage.engine == "ray"]
    for stage in on_ray:
        assert f"jobs/{stage}.py" in submitted.stdout, f"{stage} did not go through ray job submit"
    assert submitted.stdout.count("succeeded") == len(on_ray)
    for table in (table for stage in lost if stage is not PUBLISH for table in stage.writes):
        ours, theirs = (
            Dataset(Store(str(one)), table, day).require("the night").manifest.files
            for one in (root, undisturbed.root)
        )
        assert ours == theirs, table.name
    assert published(root) == undisturbed.files


def test_a_failing_job_fails_the_night(here: Here) -> None:
    empty = here.world.config(here.folder / "nothing-cleaned")
    for stage, says in (("encode_items", "item_text has no commit"), ("rank", "candidates has no commit")):
        failed = here.submit(empty, stage)
        assert failed.returncode != 0
        assert says in failed.stdout + failed.stderr
