"""A made log of long sessions by users who seldom return, like those of film ratings, from a small real one.

    python -m bench.quality_sessions /tmp/films && make bench-quality DATA=/tmp/films

6,000 users, 2,080 films, 612,000 likes, 290 a film. Tastes are mixtures of those that implicit ALS finds in
ml_latest_small, whose titles the films have; two users in three rate all they rate on the day they come, the
others come back some weeks later, and most come within the first year.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from bench.quality_data import read_log, write_made_log
from nightjar.job import guarded

F64, I64 = NDArray[np.float64], NDArray[np.int64]
USERS, FILMS, FACTORS = 6_000, 3_500, 24
DAY, FIRST_DAY = 86_400, 11_000
ALPHA, RIDGE = 40.0, 30.0


def session_log() -> tuple[pd.DataFrame, pd.DataFrame]:
    """interactions (user_id, item_id, ts in seconds) and items (item_id, text)."""
    real = read_log("ml_latest_small")
    X = sparse.csr_matrix((np.ones(len(real.user)), (real.user, real.item)))
    rng = np.random.default_rng(1)
    P, Q = _factors(X, rng)
    counts = np.asarray(X.sum(axis=0)).ravel()
    kept = np.argsort(-counts, kind="stable")[:FILMS]
    Q, counts = Q[kept], counts[kept]
    first, second = rng.integers(0, len(P), (2, USERS))
    mixed = rng.random(USERS)[:, None] ** 2 * 0.5
    tastes = P[first] * (1 - mixed) + P[second] * mixed + rng.normal(0, P.std(axis=0) * 0.3, (USERS, FACTORS))
    sizes = np.clip(rng.lognormal(4.2, 0.95, USERS).astype(int), 12, 1500)
    late = rng.random(USERS) >= 0.85
    began = np.where(late, 330 + rng.random(USERS) * 700, rng.random(USERS) * 330)
    parts = []
    for user in range(USERS):
        films = _chosen(tastes[user] @ Q.T, counts, int(sizes[user]), rng)
        days = began[user] + _sessions(len(films), rng)
        seconds = ((FIRST_DAY + days) * DAY).astype(np.int64)
        parts.append(pd.DataFrame({"user_id": user, "item_id": kept[films], "ts": seconds}))
    items = pd.DataFrame({"item_id": np.arange(real.n_items), "text": real.texts})
    return pd.concat(parts, ignore_index=True), items[items["item_id"].isin(kept)]


def _factors(X: sparse.csr_matrix, rng: np.random.Generator) -> tuple[F64, F64]:
    """Implicit ALS (Hu et al. 2008), users and items."""
    P, Q = (rng.normal(0, 0.01, (n, FACTORS)) for n in X.shape)
    turned = X.T.tocsr()
    for _ in range(10):
        P = _half(X, Q)
        Q = _half(turned, P)
    return P, Q


def _half(X: sparse.csr_matrix, Q: F64) -> F64:
    shared = Q.T @ Q + RIDGE * np.eye(FACTORS)
    rows = (Q[X.indices[start:stop]] for start, stop in zip(X.indptr[:-1], X.indptr[1:], strict=True))
    return np.array([np.linalg.solve(shared + ALPHA * q.T @ q, (1 + ALPHA) * q.sum(axis=0)) for q in rows])


def _chosen(scores: F64, counts: F64, n: int, rng: np.random.Generator) -> I64:
    """n films drawn by taste and popularity, half of the users the popular ones first."""
    scores = scores / (np.abs(scores).mean() + 1e-9)
    wanted = 1.3 * scores + 0.75 * np.log(counts + 0.5) + rng.gumbel(size=len(scores))
    films = np.argpartition(-wanted, n)[:n]
    if rng.random() < 0.5:
        return rng.permutation(films)
    return films[np.argsort(-counts[films] * rng.random(n))]


def _sessions(n: int, rng: np.random.Generator) -> F64:
    """Days from the first of n likes: some seconds apart in a session, some weeks between sessions."""
    share = 1.0 if rng.random() < 0.65 else float(rng.random()) * 0.9
    gaps, done = [], 0
    while done < n:
        size = max(1, int((n - done) * share))
        gaps += [rng.exponential(40.0) if done else 0.0, *(rng.exponential(20.0, size - 1) / DAY)]
        done, share = done + size, float(rng.random()) * 0.6
    return np.cumsum(gaps)


def main() -> None:
    """Writes the folder that `make bench-quality DATA=…` reads."""
    write_made_log("python -m bench.quality_sessions", __doc__, session_log)


if __name__ == "__main__":
    guarded(main)
