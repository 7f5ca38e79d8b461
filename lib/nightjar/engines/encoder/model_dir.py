"""Read an encoder's directory: where it is, what its sentence-transformers files say, and its fingerprint.

Nothing here imports torch or transformers, so a driver can fingerprint a model without loading it. The
meaning of every file follows sentence-transformers 6.2 (base/model.py, base/modules/transformer.py,
sentence_transformer/modules/pooling.py); what it cannot reproduce it refuses.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nightjar.engines.encoder.locate import locate
from nightjar.engines.encoder.spec import EncoderSpec
from nightjar.errors import ConfigError

Json = dict[str, Any]

_MODULE_TYPE = re.compile(r"sentence_transformers\.(?:[a-z_]+\.)*([A-Z]\w*)")
_PARAM_FILES = (
    "config.json", "modules.json", "config_sentence_transformers.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "merges.txt", "tekken.json",
)  # fmt: skip
_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Bool keys of old 1_Pooling/config.json files, in the order in which several true ones are concatenated.
_OLD_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Families whose positions start at padding_idx + 1, so that many fewer tokens fit than the table has rows.
_OFFSET_POSITIONS = {
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "mpnet",
    "longformer",
    "data2vec-text",
}
NO_LIMIT = 1_000_000
TWO_TOWERS: dict[str, dict[str, int]] = {
    "clip": {"positions": 77, "image": 224, "patch": 32},
    "siglip": {"positions": 64, "image": 224, "patch": 16},
}
"""Models with a text and an image tower, and the sizes that a config.json leaves out where they are these."""
_IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class HeadModule:
    """One module after pooling: ``kind`` is Dense, Normalize or LayerNorm; ``config`` is its JSON file."""

    kind: str
    path: Path
    config: Json


@dataclass(frozen=True)
class ImageSteps:
    """What a model's image processor does, as its file says.

    size: the shorter edge, or (height, width), or None where nothing is resized; resample: Pillow's number of
    the filter; crop: (height, width) of the middle, or None. A byte b of a channel becomes scale·b + offset.
    """

    size: int | tuple[int, int] | None
    resample: int
    crop: tuple[int, int] | None
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]


@dataclass(frozen=True)
class TwoTowers:
    """What else the directory of a model with a text and an image tower says.

    n_image_tokens: patches of a picture and the class token; pad_to: the length that texts are padded to
    where the model was trained so (SigLIP), or None.
    """

    steps: ImageSteps
    n_image_tokens: int
    pad_to: int | None


@dataclass(frozen=True)
class ModelLayout:
    """What a model directory says, with the spec's overrides applied: all that loading it needs to know."""

    root: Path
    revision: str | None
    transformer_dir: Path
    transformer_config: Json
    hf_config: Json
    pooling: tuple[str, ...]
    include_prompt: bool
    head: tuple[HeadModule, ...]
    prompt: str
    max_length: int
    dims: int | None
    files: tuple[Path, ...] = field(repr=False)
    towers: TwoTowers | None = None

    @property
    def do_lower_case(self) -> bool:
        """Whether the module file asks for lower-casing beyond the tokenizer's own."""
        return bool(self.transformer_config.get("do_lower_case", False))

    def kwargs_of(self, new: str, old: str) -> Json:
        """Keyword arguments saved for a loader, under the key of today's files or that of older ones."""
        saved = dict(self.transformer_config.get(new) or self.transformer_config.get(old) or {})
        saved.pop("trust_remote_code", None)
        return saved


def read_layout(spec: EncoderSpec) -> ModelLayout:
    """Everything the directory of ``spec.model`` says, checked, with the spec's overrides applied.

    Raises:
        ConfigError: files missing or unreadable, a module this engine cannot reproduce, or an override that
        the
            model cannot follow.
    """
    root, revision = locate(spec.model)
    modules = _modules(root)
    transformer_dir = root / modules[0]["path"]
    hf_config = _read_json(transformer_dir / "config.json")
    transformer_config = _transformer_config(transformer_dir)
    if hf_config.get("model_type") in TWO_TOWERS:
        return _two_towers(spec, root, revision, transformer_dir, hf_config)
    pooling, include_prompt, n_used = _pooling(root, modules, hf_config)
    head = tuple(_head_module(root, module) for module in modules[1 + n_used :] if _kind(module) != "Dropout")
    saved = _read_json(root / "config_sentence_transformers.json", missing_ok=True)
    return ModelLayout(
        root=root,
        revision=revision,
        transformer_dir=transformer_dir,
        transformer_config=transformer_config,
        hf_config=hf_config,
        pooling=spec.pooling_modes or pooling,
        include_prompt=include_prompt,
        head=head,
        prompt=_resolve_prompt(spec, saved),
        max_length=_max_length(spec, transformer_dir, transformer_config, hf_config),
        dims=spec.dims or saved.get("truncate_dim"),
        files=_param_files(root, transformer_dir, modules),
    )


def model_fingerprint(spec: EncoderSpec) -> str:
    """sha256 over all that decides a vector: weights, configs, tokenizer, prompt, length, precision, pooling.

    Resources (device, threads, token budget) and the place of the directory are not in it. A prompt given as
    text and the same prompt given by name give the same fingerprint.
    """
    layout = read_layout(spec)
    content = {
        "scheme": 1,
        "files": {str(path.relative_to(layout.root)): _sha256(path) for path in layout.files},
        "prompt": layout.prompt,
        "pooling": layout.pooling,
        "max_length": layout.max_length,
        "dims": layout.dims,
        "normalize": spec.normalize,
        "precision": spec.precision,
    }
    if layout.towers is not None:
        content |= {"text_weight": spec.text_weight, "image_weight": spec.image_weight}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _two_towers(
    spec: EncoderSpec, root: Path, revision: str | None, folder: Path, hf_config: Json
) -> ModelLayout:
    """The layout of a CLIP or SigLIP directory: transformers' own files, no sentence-transformers modules."""
    kind = str(hf_config["model_type"])
    if spec.pooling is not None or spec.precision == "int8":
        what = f"pooling {spec.pooling!r}" if spec.pooling is not None else "precision int8"
        raise ConfigError(f"{folder} holds a two-tower model ({kind}), which knows no {what}")
    sizes = TWO_TOWERS[kind]
    text, vision = (hf_config.get(key) or {} for key in ("text_config", "vision_config"))
    positions = int(text.get("max_position_embeddings", sizes["positions"]))
    if (spec.max_length or 0) > positions:
        raise ConfigError(
            f"encoder max_length {spec.max_length} is more than the {positions} positions of the model"
        )
    edge, patch = (int(vision.get(f"{key}_size", sizes[key])) for key in ("image", "patch"))
    saved = _read_json(root / "config_sentence_transformers.json", missing_ok=True)
    files = set(_param_files(root, folder, [{"path": ""}]))
    files |= {folder / name for name in _IMAGE_FILES if (folder / name).is_file()}
    return ModelLayout(
        root=root,
        revision=revision,
        transformer_dir=folder,
        transformer_config={},
        hf_config=hf_config,
        pooling=("features",),
        include_prompt=True,
        head=(),
        prompt=_resolve_prompt(spec, saved),
        max_length=spec.max_length or positions,
        dims=spec.dims or saved.get("truncate_dim"),
        files=tuple(sorted(files)),
        towers=TwoTowers(
            read_image_steps(folder), (edge // patch) ** 2 + 1, positions if kind == "siglip" else None
        ),
    )


def read_image_steps(folder: Path) -> ImageSteps:
    """The steps of the image processor that the directory saved, by the keys of transformers' processors."""
    config = _read_json(folder / "preprocessor_config.json", missing_ok=True)
    config = (
        config or _read_json(folder / "processor_config.json", missing_ok=True).get("image_processor") or {}
    )
    if not config:
        raise ConfigError(
            f"{folder} has neither preprocessor_config.json nor an image_processor in processor_config.json: "
            "nothing says how its pictures are prepared"
        )
    if config.get("do_pad") or config.get("do_rescale") is False:
        raise ConfigError(
            f"{folder}: its image processor pads or does not rescale, which this engine does not do"
        )
    mean, std = (_three(config, key, folder) for key in ("image_mean", "image_std"))
    factor = float(config.get("rescale_factor", 1 / 255))
    crop = _edges(config.get("crop_size")) if config.get("do_center_crop", False) else None
    return ImageSteps(
        size=_edges(config.get("size")) if config.get("do_resize", True) else None,
        resample=int(config.get("resample", 3)),
        crop=(crop, crop) if isinstance(crop, int) else crop,
        scale=(factor / std[0], factor / std[1], factor / std[2]),
        offset=(-mean[0] / std[0], -mean[1] / std[1], -mean[2] / std[2]),
    )


def _three(config: Json, key: str, folder: Path) -> tuple[float, float, float]:
    """A value for each colour channel; the neutral one where nothing is normalised."""
    if not config.get("do_normalize", True):
        return (0.0, 0.0, 0.0) if key == "image_mean" else (1.0, 1.0, 1.0)
    found = config.get(key)
    if not isinstance(found, list) or len(found) != 3:
        raise ConfigError(
            f"{folder}: its image processor normalises, but {key} is {found!r}, not three numbers"
        )
    return float(found[0]), float(found[1]), float(found[2])


def _edges(size: Any) -> int | tuple[int, int] | None:
    """A size of a processor's file: a number or {shortest_edge} is an int, {height, width} a pair."""
    if size is None or isinstance(size, int):
        return size
    if set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"])
    if {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    raise ConfigError(f"an image size of {size} is not known: shortest_edge, or height and width")


def _modules(root: Path) -> list[Json]:
    path = root / "modules.json"
    if not path.exists():
        if not (root / "config.json").exists():
            raise ConfigError(f"{root} holds neither modules.json nor config.json: it is no model directory")
        return [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    modules: list[Json] = sorted(json.loads(path.read_text("utf-8")), key=lambda module: int(module["idx"]))
    if len(modules) == 1 and _kind(modules[0]) == "CLIPModel":
        return modules
    if not modules or _kind(modules[0]) != "Transformer":
        raise ConfigError(
            f"{path} does not start with a Transformer module: this engine encodes with transformers"
        )
    for module in modules:
        place = Path(module["path"])
        if place.is_absolute() or ".." in place.parts:
            raise ConfigError(f"{path} names the folder {module['path']!r} outside the model: refused")
        if _kind(module) not in {"Transformer", "Pooling", "Dense", "Normalize", "LayerNorm", "Dropout"}:
            raise ConfigError(
                f"{path} has a module of type {module['type']!r}, which this engine cannot run: it knows "
                "Transformer, Pooling, Dense, LayerNorm, Dropout and Normalize modules"
            )
    return modules


def _kind(module: Json) -> str:
    match = _MODULE_TYPE.fullmatch(str(module["type"]))
    return match[1] if match else "unknown"


def _transformer_config(folder: Path) -> Json:
    for name in _TRANSFORMER_CONFIGS:
        if config := _read_json(folder / name, missing_ok=True):
            task = config.get("transformer_task", "feature-extraction")
            if task != "feature-extraction":
                raise ConfigError(
                    f"{folder / name} asks for the task {task!r}: this engine reads token embeddings"
                )
            return config
    return {}


def _pooling(root: Path, modules: list[Json], hf_config: Json) -> tuple[tuple[str, ...], bool, int]:
    """Pooling modes, whether prompt tokens are pooled, and how many modules that took (0 or 1)."""
    if len(modules) == 1 and not (root / "modules.json").exists():
        architecture = (hf_config.get("architectures") or [""])[0]
        causal = architecture.endswith("ForCausalLM") and hf_config.get("is_causal", True)
        return (("lasttoken",) if causal else ("mean",)), True, 0
    if len(modules) < 2 or _kind(modules[1]) != "Pooling":
        raise ConfigError(
            f"{root / 'modules.json'} has no Pooling after the Transformer: there is no text vector"
        )
    config = _read_json(root / modules[1]["path"] / "config.json")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _OLD_POOLING.items() if config.get(key)] or ["mean"]
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    unknown = set(modes) - set(_OLD_POOLING.values())
    if unknown:
        raise ConfigError(
            f"{root / modules[1]['path']} pools by {sorted(unknown)}, which this engine does not know"
        )
    return modes, bool(config.get("include_prompt", True)), 1


def _head_module(root: Path, module: Json) -> HeadModule:
    kind, path = _kind(module), root / module["path"]
    if kind not in {"Dense", "Normalize", "LayerNorm"}:
        raise ConfigError(f"{root / 'modules.json'} has a second {kind}: this engine runs one of each")
    config = _read_json(path / "config.json", missing_ok=kind == "Normalize")
    for key in ("module_input_name", "module_output_name"):
        if (config.get(key) or "sentence_embedding") != "sentence_embedding":
            raise ConfigError(
                f"{path / 'config.json'} sets {key}={config[key]!r}: only sentence_embedding is known"
            )
    return HeadModule(kind, path, config)


def _resolve_prompt(spec: EncoderSpec, saved: Json) -> str:
    """Text put before every text: given, named, or the model's default.

    ``document`` means the first of document, passage, corpus that the model saved (what encode_document
    documents; its 6.x code stops at an empty ``document``); ``query`` and ``document`` mean no prompt where
    none is saved.
    """
    if spec.prompt is not None:
        return spec.prompt
    prompts: dict[str, str] = {name: text or "" for name, text in (saved.get("prompts") or {}).items()}
    name = spec.prompt_name if spec.prompt_name is not None else saved.get("default_prompt_name")
    if name is None:
        return ""
    if name == "document":
        return next((prompts[key] for key in ("document", "passage", "corpus") if prompts.get(key)), "")
    if name not in prompts and name != "query":
        raise ConfigError(f"encoder prompt_name {name!r} is not one the model saved: {sorted(prompts)}")
    return prompts.get(name, "")


def _max_length(spec: EncoderSpec, folder: Path, transformer_config: Json, hf_config: Json) -> int:
    """Effective maximum length in tokens, special tokens included, as sentence-transformers finds it.

    all-MiniLM-L6-v2 says 256 in its module file although its tokenizer says 512.
    """
    positions = hf_config.get("max_position_embeddings") or NO_LIMIT
    positions = NO_LIMIT if positions < 1 else positions
    room = positions
    if hf_config.get("model_type") in _OFFSET_POSITIONS and positions != NO_LIMIT:
        room = positions - int(hf_config.get("pad_token_id", 1)) - 1
    if spec.max_length is not None:
        if spec.max_length > room:
            raise ConfigError(
                f"encoder max_length {spec.max_length} is more than the {room} positions of the model"
            )
        return spec.max_length
    saved_kwargs = (
        transformer_config.get("processor_kwargs") or transformer_config.get("tokenizer_args") or {}
    )
    found = saved_kwargs.get("model_max_length") or transformer_config.get("max_seq_length")
    if not found:
        tokenizer = _read_json(folder / "tokenizer_config.json", missing_ok=True)
        found = min(tokenizer.get("model_max_length") or NO_LIMIT, positions)
    text = (transformer_config.get("processing_kwargs") or {}).get("text") or {}
    return int(min(text.get("max_length") or found, room))


def _param_files(root: Path, transformer_dir: Path, modules: list[Json]) -> tuple[Path, ...]:
    folders = {root, transformer_dir, *(root / module["path"] for module in modules)}
    files: set[Path] = set()
    for folder in folders:
        names = (*_PARAM_FILES, *_TRANSFORMER_CONFIGS)
        files.update(folder / name for name in names if (folder / name).is_file())
        files.update(
            folder.glob("*.safetensors"), folder.glob("*.model"), folder.glob("*.safetensors.index.json")
        )
    if not any(path.suffix == ".safetensors" and path.parent == transformer_dir for path in files):
        raise ConfigError(
            f"{transformer_dir} has no *.safetensors weights, and pickled weights are never loaded: "
            "convert them with `save_pretrained(..., safe_serialization=True)`"
        )
    return tuple(sorted(files))


def _read_json(path: Path, *, missing_ok: bool = False) -> Json:
    if not path.is_file():
        if missing_ok:
            return {}
        raise ConfigError(f"{path} is missing: the model directory is not complete")
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no JSON object")
    return value


def _sha256(path: Path) -> str:
    stat = path.stat()
    return _sha256_of(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _sha256_of(path: Path, _size: int, _mtime_ns: int) -> str:
    """Hash of a file; size and time are in the cache's key, so a file that changed is read again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
