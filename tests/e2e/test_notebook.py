"""The notebooks run as they stand on the committed night of a planted world."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from nightjar.night import function_of
from nightjar.pipeline import NIGHT
from nightjar.stage import run_stage
from nightjar.stages.inputs import raw_inputs
from tests import world

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    night = world.night(tmp_path_factory.mktemp("store"))
    world.commit_world(world.planted(), night)
    for stage in NIGHT[2:]:
        run_stage(stage, function_of(stage), night, raw_inputs(stage, night.config, night.ds))
    return Path(night.config.root)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTJAR_ROOT", str(root))
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit notebooks without outputs"
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()
    said = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert "personal" in said
    assert "history: 7 items" in said
