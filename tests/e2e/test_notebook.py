"""The notebooks run as they stand on a committed night."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from nightjar.store import Dataset, Store
from nightjar.tables import USERS
from tests.small_night import Undisturbed

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTJAR_ROOT", str(undisturbed.root))
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit notebooks without outputs"
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()
    said = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert "personal" in said
    assert f"history: {n_items_shown(undisturbed)} items" in said


def n_items_shown(undisturbed: Undisturbed) -> int:
    """How many items the user has whom the notebook shows: a quarter down from who has most."""
    found = Dataset(Store(str(undisturbed.root)), USERS, undisturbed.world.facts["last_day"]).committed()
    assert found is not None
    counts = sorted(found.read(["n_items"])["n_items"].to_pylist(), reverse=True)
    return int(counts[len(counts) // 4])
