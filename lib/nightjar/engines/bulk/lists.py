"""Group items into lists of neighbours, so that a user's best items are met early."""

import numpy as np
import torch

from nightjar.kernels.topk import F32, I64

MIN_ITEMS = 8192  # below this the first tile of a sweep already gives a good threshold
TRAIN_PER_LIST = 40
ITERATIONS = 6
BLOCK = 512  # 2,000 lists make it 4 MB of scores, which stay in the cache


def n_lists(n_items: int) -> int:
    """Five times the square root of the number of items: 2,236 lists for 200,000; one list where few.

    Fewer hold several topics each: with 894 lists for 2,000 topics half of them must be visited for recall
    0.99, with 2,236 a twentieth.
    """
    return 1 if n_items < MIN_ITEMS else int(5 * np.sqrt(n_items))


def train_centroids(vectors: F32, count: int, seed: int) -> F32:
    """k-means centroids (count, d) of vectors (n, d) float32, on TRAIN_PER_LIST sampled vectors a list.

    The sample is read again block by block in each round, so that it needs no memory.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(vectors), min(len(vectors), count * TRAIN_PER_LIST), replace=False))
    centroids = np.array(vectors[chosen[rng.choice(len(chosen), count, replace=False)]])
    for _ in range(ITERATIONS):
        sums, sizes = torch.zeros((count, vectors.shape[1])), np.zeros(count, np.int64)
        for start in range(0, len(chosen), BLOCK):
            block = np.array(vectors[chosen[start : start + BLOCK]])
            nearest = assign(block, centroids)
            sizes += np.bincount(nearest, minlength=count)
            sums.index_add_(0, torch.from_numpy(nearest), torch.from_numpy(block))
        centroids = sums.numpy() / np.maximum(sizes, 1)[:, None].astype(np.float32)
        empty = np.flatnonzero(sizes == 0)
        centroids[empty] = vectors[chosen[rng.choice(len(chosen), len(empty), replace=False)]]
    return centroids


def assign(vectors: F32, centroids: F32) -> I64:
    """The nearest centroid of each vector by distance, (n,) int64."""
    nearest = np.empty(len(vectors), dtype=np.int64)
    columns = torch.from_numpy(centroids)
    half = (columns * columns).sum(dim=1) / 2
    for start in range(0, len(vectors), BLOCK):
        block = torch.from_numpy(np.array(vectors[start : start + BLOCK]))  # a copy: a map may be read-only
        scores = torch.addmm(-half, block, columns.T).numpy()
        nearest[start : start + BLOCK] = scores.argmax(axis=1)  # NumPy's takes a third of the time of torch's
    return nearest
