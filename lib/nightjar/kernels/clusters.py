"""Splits a user's history into interests: Ward clusters of its item vectors, and what stands for each.

PinnerSage (Pal et al. 2020, arXiv 2007.03634): a mean of everything a user likes may lie where nothing does,
so a user gets several vectors. Clusters are merged bottom-up by Ward's criterion, the least growth of the
squared distances to the mean, until `most` are left and no two closer than `distance`; a cluster counts as
much as its items do, which the half-life has already faded. PinnerSage searches with medoids; means find
more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.cluster.hierarchy import fcluster, linkage

from nightjar.errors import ConfigError, ContractError
from nightjar.kernels.signals import F32, F64, I64
from nightjar.kernels.taste import unit_rows


@dataclass(frozen=True)
class Splitting:
    """most: interests of a user, at most; distance: clusters closer than it are one, by Ward's distance of
    unit vectors (two items of cosine c are sqrt(2 - 2c) apart); recent: items clustered, the weightiest;
    medoids: an interest's vector is that of its medoid rather than its mean.
    """

    most: int = 3
    distance: float = 1.0
    recent: int = 50
    medoids: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for a value outside its range."""
        if self.most < 1 or self.recent < 1 or self.distance < 0:
            raise ConfigError(f"interests need most and recent from 1, distance from 0: {self}")


@dataclass(frozen=True)
class Interests:
    """user: (r,) int64 rows, rising; vector: (r, d) float32 unit vectors; importance: (r,) float32, the
    shares of a user's interests, falling, adding up to 1; medoid: (r,) int64 item numbers."""

    user: I64
    vector: F32
    importance: F32
    medoid: I64


def interests(profile: sparse.csr_matrix, V: NDArray[np.floating], how: Splitting) -> Interests:
    """The interests of every user that has two or more; the others are not among the rows.

    profile: (q, n_items) CSR of weights; only those above 0 speak for an interest. V: (n_items, d) item
    vectors of any length above 0, an array or a memmap of which the rows of one user at a time are read. A
    cluster's mean is the weighted one of its items' directions; its medoid the item nearest to it, of equals
    the lower number. Equal importance goes by the lower number of the medoid.
    """
    if profile.shape[1] != len(V):
        raise ContractError(f"profiles name {profile.shape[1]} items, there are {len(V)} vectors")
    rows: list[tuple[int, F64, float, int]] = []
    for user in range(profile.shape[0]):
        part = slice(profile.indptr[user], profile.indptr[user + 1])
        items, weights = profile.indices[part].astype(np.int64), profile.data[part].astype(np.float64)
        items, weights = _strongest(items, weights, how.recent)
        if len(items) < 2 or how.most < 2:
            continue
        U = unit_rows(np.asarray(V[items], np.float32)).astype(np.float64)
        label = cluster(U, how.most, how.distance)
        if label.max() > 0:
            each = (label == one for one in range(label.max() + 1))
            found = [_interest(U, items, weights, inside, how.medoids) for inside in each]
            found.sort(key=lambda one: (-one[1], one[2]))
            rows += [(user, *one) for one in found]
    if not rows:
        none = np.zeros(0, np.int64)
        return Interests(none, np.zeros((0, V.shape[1]), np.float32), np.zeros(0, np.float32), none)
    users, vectors, importance, medoid = zip(*rows, strict=True)
    return Interests(
        np.array(users, np.int64),
        unit_rows(np.stack(vectors).astype(np.float32)),
        np.array(importance, np.float32),
        np.array(medoid, np.int64),
    )


def _strongest(items: I64, weights: F64, n: int) -> tuple[I64, F64]:
    """The n items of most weight among those above 0, ties to the lower number, in order of number."""
    order = np.lexsort((items, -weights))
    order = np.sort(order[weights[order] > 0][:n])
    return items[order], weights[order]


def cluster(U: F64, most: int, distance: float) -> I64:
    """Ward clusters of the rows of U (m, d) as labels 0 …, (m,) int64, in order of first appearance."""
    tree = linkage(U, "ward")
    # Heights never fall, so a number of clusters and a distance are each one cut; the coarser one counts.
    by_count = fcluster(tree, most, "maxclust")
    by_distance = fcluster(tree, distance, "distance")
    label = by_count if by_count.max() <= by_distance.max() else by_distance
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    place: I64 = np.argsort(np.argsort(first)).astype(np.int64)
    return place[inverse]


def _interest(
    U: F64, items: I64, weights: F64, inside: NDArray[np.bool_], as_medoid: bool
) -> tuple[F64, float, int]:
    """Vector, share of the user's weight, medoid."""
    mean = (weights[inside, None] * U[inside]).sum(axis=0)  # in one order, as a product by BLAS would not be
    closeness = (U[inside] * mean).sum(axis=1) / np.linalg.norm(mean)
    nearest = int(np.argmax(np.round(closeness, 9)))
    vector = U[inside][nearest] if as_medoid else mean
    return vector, float(weights[inside].sum() / weights.sum()), int(items[inside][nearest])
