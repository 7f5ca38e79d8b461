"""The fingerprint changes with everything that changes a vector, and with nothing else."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from nightjar.engines.encoder import EncoderSpec, model_fingerprint
from nightjar.errors import ConfigError
from tests.unit.encoder_models import pooling, save_model, save_modules


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    folder = save_model(tmp_path / "model", "bert")
    save_modules(folder, pooling("mean"), config={"prompts": {"query": "ask: "}})
    return folder


def test_params_change_it_and_resources_do_not(bert: Path) -> None:
    base = EncoderSpec(str(bert))
    params = [
        {}, {"prompt": "ask: "}, {"pooling": "cls"}, {"pooling": "cls+mean"}, {"max_length": 32},
        {"dims": 16}, {"normalize": False}, {"precision": "bf16"}, {"precision": "int8"},
    ]  # fmt: skip
    prints = [model_fingerprint(dataclasses.replace(base, **change)) for change in params]
    assert len(set(prints)) == len(prints)
    for resources in ({"threads": 2}, {"token_budget": 7}, {"device": "cuda:1"}):
        assert model_fingerprint(dataclasses.replace(base, **resources)) == prints[0]
    assert model_fingerprint(dataclasses.replace(base, prompt_name="query")) == prints[1]
    same = dataclasses.replace(base, pooling="mean", max_length=96)
    assert model_fingerprint(same) == prints[0]


def test_it_follows_the_content_and_not_the_place(bert: Path, tmp_path: Path) -> None:
    before = model_fingerprint(EncoderSpec(str(bert)))
    copy = Path(shutil.copytree(bert, tmp_path / "copy"))
    (copy / "README.md").write_text("words about the model")
    assert model_fingerprint(EncoderSpec(str(copy))) == before
    weights = load_file(copy / "model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert model_fingerprint(EncoderSpec(str(copy))) != before


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "1_Pooling/config.json", "modules.json"])
def test_every_file_that_matters_is_in_it(bert: Path, file: str) -> None:
    before = model_fingerprint(EncoderSpec(str(bert)))
    (bert / file).write_text((bert / file).read_text() + "\n")
    assert model_fingerprint(EncoderSpec(str(bert))) != before


def test_a_driver_needs_no_torch(bert: Path) -> None:
    code = (
        "import sys; from nightjar.engines.encoder import EncoderSpec, model_fingerprint as f; "
        f"f(EncoderSpec({str(bert)!r})); "
        "sys.exit(', '.join(m for m in ('torch', 'transformers', 'tokenizers') if m in sys.modules) or None)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "bad",
    [{"precision": "fp8"}, {"pooling": "mean+median"}, {"dims": 0}, {"max_length": -1}, {"token_budget": -5},
     {"model": ""}, {"precision": "int8", "device": "cuda"}],
)  # fmt: skip
def test_a_spec_that_means_nothing_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        EncoderSpec(**{"model": "somewhere", **bad})  # type: ignore[arg-type]
