"""Who may load what: kernels only NumPy and SciPy, each engine only its adapter and the stages on it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from nightjar.pipeline import EVALUATE, NIGHT

LIB = Path(__file__).resolve().parents[2] / "lib"
ENCODER = frozenset({"torch", "transformers", "tokenizers", "safetensors", "numba", "PIL"})
SEARCH = frozenset({"faiss", "numba", "torch"})
ENGINES = ENCODER | SEARCH | {"pyspark", "ray"}
ADAPTERS = {
    "spark": {"pyspark"},
    "raw": {"pyspark"},
    "outcome": {"pyspark"},
    "actors": {"ray"},
    "index": {"faiss"},
    "bulk": {"numba", "torch"},
    "nearest": {"numba", "torch"},
    "blend": {"numba"},
    "search": SEARCH,
    "choose": SEARCH,
    "threads": {"torch"},
    "encoder": ENCODER,
}
"""What each file or folder of engines/ may load; one that is not named here: nothing."""
STAGES = {
    **{
        stage.name: {"spark": {"pyspark"}, "ray": {"ray"}, "local": set()}[stage.engine]
        for stage in (*NIGHT, EVALUATE)
    },
    "encode_items": {"ray", *ENCODER},
    "encode_queries": {"ray", *ENCODER},
    "learn_taste": {"ray", "numba", "torch"},
    "fit_blend": {"ray", "numba", "torch"},
    "build_index": {"ray", *SEARCH},
    "retrieve": {"ray", *SEARCH},
    "rank": {"pyspark", "numba"},
    "encoding": {"ray", *ENCODER},
    "encoding.spec": set(),
    "blending": set(),
    "blending.blender": {"numba"},
    "users": set(),
    "users.texts": {"pyspark"},
    "cleaning.forget_list": set(),
    # What the command line and the doctor need without any engine.
    "inputs": set(),
    "plain_lists": set(),
}
"""What each stage, and what stages are made of, may load; the rest belongs to Spark stages."""
PLAIN_ENCODER = ("", "spec", "model_dir", "packing")
"""What fingerprints a model on a driver that has no torch."""


def modules() -> list[str]:
    found = []
    for path in sorted((LIB / "nightjar").rglob("*.py")):
        parts = path.relative_to(LIB).with_suffix("").parts
        found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def allowed(module: str) -> frozenset[str]:
    """The engines that importing a module may load."""
    _, package, name, below = (*module.split("."), "", "", "", "")[:4]
    if package == "engines" and not (name == "encoder" and below in PLAIN_ENCODER):
        return frozenset(ADAPTERS.get(name, ()))
    if package == "stages" and name:
        return frozenset(STAGES.get(f"{name}.{below}", STAGES.get(name, {"pyspark"})))
    return frozenset()


LOAD = """
import importlib, json, sys
before = set(sys.modules)
for module in json.loads(sys.argv[1]):
    importlib.import_module(module)
    now = set(sys.modules)
    tops = sorted({name.partition(".")[0] for name in now - before} - sys.stdlib_module_names)
    print(json.dumps([module, tops]))
    before = now
"""


def loaded(names: list[str]) -> Iterator[tuple[str, set[str]]]:
    """Each module and the packages that it was the first of `names` to load, in one fresh process."""
    environment = {**os.environ, "PYTHONPATH": str(LIB)}
    command = [sys.executable, "-c", LOAD, json.dumps(names)]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        if line.startswith("["):
            module, tops = json.loads(line)
            yield module, set(tops)


def _processes() -> list[list[str]]:
    """Modules in as few processes as tell who is at fault.

    One that may load more comes after those that may load less, and only after those whose engines it may
    load too: then the first module to load an engine that it may not is the one to blame.
    """
    layers: dict[frozenset[str], list[str]] = defaultdict(list)
    for module in modules():
        layers[allowed(module)].append(module)
    chains: list[list[frozenset[str]]] = []
    for may in sorted(layers, key=lambda may: (len(may), sorted(may))):
        longest = max(
            (chain for chain in chains if chain[-1] < may), key=lambda chain: len(chain[-1]), default=None
        )
        if longest is None:
            chains.append([may])
        else:
            longest.append(may)
    return [[module for may in chain for module in layers[may]] for chain in chains]


@pytest.mark.parametrize("names", _processes(), ids=lambda names: names[-1])
def test_a_module_loads_only_the_engines_of_its_layer(names: list[str]) -> None:
    at_fault = {module: tops & ENGINES - allowed(module) for module, tops in loaded(names)}
    assert {module: tops for module, tops in at_fault.items() if tops} == {}


def test_the_check_of_layers_sees_a_fault() -> None:
    """Held against a module that does load an engine."""
    found = dict(loaded(["nightjar.pipeline", "nightjar.engines.index"]))
    assert found["nightjar.engines.index"] & ENGINES == {"faiss"}
    assert found["nightjar.pipeline"] & ENGINES == set()
    assert {"pyspark", "ray", "torch"} <= {
        name.partition(".")[0]
        for name in _imports("nightjar.engines.spark", True)
        | _imports("nightjar.engines.actors", True)
        | _imports("nightjar.engines.encoder.backbone", True)
    }


def test_kernels_load_numpy_and_scipy_alone() -> None:
    kernels = [module for module in modules() if module.startswith("nightjar.kernels")]
    assert len(kernels) > 10
    direct = {name.partition(".")[0] for module in kernels for name in _imports(module, everywhere=True)}
    assert direct - sys.stdlib_module_names - {"__future__"} == {"numpy", "scipy", "nightjar"}
    heavy = ENGINES | {"pyarrow", "pandas", "pydantic", "yaml", "rich", "fsspec"}
    at_fault = {module: tops & heavy for module, tops in loaded(kernels)}
    assert {module: tops for module, tops in at_fault.items() if tops} == {}


def test_the_pipeline_alone_loads_no_engine() -> None:
    (found,) = [tops for _, tops in loaded(["nightjar.pipeline"])]
    assert "pyarrow" in found
    assert found & (ENGINES | {"pandas", "scipy"}) == set()


def _imports(module: str, everywhere: bool) -> set[str]:
    """What a file imports by name: everywhere in it, or only what runs when it is loaded."""
    path = LIB / Path(*module.split("."))
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())
    found: set[str] = set()
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        only_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if everywhere or not (inside or only_types):
            todo += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("module", modules())
def test_an_engine_is_named_only_by_its_adapter(module: str) -> None:
    """Also inside functions: ray, torch, faiss, numba in engines/ only, pyspark also in Spark stages."""
    named = {name.partition(".")[0] for name in _imports(module, everywhere=True)} & ENGINES
    if module.startswith("nightjar.engines."):
        assert named <= set(ADAPTERS.get(module.split(".")[2], ()))
    elif module.startswith("nightjar.stages."):
        assert named <= {"pyspark"} & allowed(module)
    else:
        assert named == set()


BELOW = {
    "nightjar.errors": (),
    "nightjar.tables": ("errors",),
    "nightjar.config": ("errors",),
    "nightjar.masking": (),
    "nightjar.progress": ("masking",),
    "nightjar.store": ("errors", "tables"),
    "nightjar.sources": ("config", "errors", "store"),
    "nightjar.published": ("errors", "store", "tables"),
    "nightjar.matrix": ("errors", "kernels", "store", "tables"),
    "nightjar.pipeline": ("stage", "tables"),
}
"""What the foundation may import of ourselves while it is loaded: nothing above it."""


@pytest.mark.parametrize("module", modules())
def test_imports_go_downwards(module: str) -> None:
    ours = {name for name in _imports(module, everywhere=False) if name.startswith("nightjar.")}
    packages = {name.split(".")[1] for name in ours}
    if module in BELOW:
        assert packages <= set(BELOW[module])
    elif module.startswith("nightjar.kernels."):
        assert packages <= {"kernels", "errors"}
    elif module.startswith("nightjar.engines."):
        assert packages.isdisjoint({"stages", "cli", "night", "pipeline", "job", "stage"})
    elif module.startswith("nightjar.stages."):
        assert packages.isdisjoint({"cli", "night", "pipeline", "job"})
