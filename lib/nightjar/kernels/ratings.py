"""Predicts ratings additively: what everybody gives, what item and user add, how alike items fared.

    r(u, i) = mean + b_i + b_u + p_text · near_text(u, i) + p_log · near_log(u, i)

b_i and b_u are means of residuals, shrunk (Koren 2010, doi:10.1145/1644873.1644874); an item's is shrunk not
to 0 but to what its text neighbours have, so a cold item starts there. near(u, i) is the mean of the user's
own residuals on items near i, weighted and shrunk; near by text, or by how residuals on both go together.
Every parameter is chosen on the newest tenth of the ratings known, so a part that does not pay gets weight 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from nightjar.errors import ContractError
from nightjar.kernels.signals import F64, I64, top_entries

ROUNDS = 8
SHRINK = (1.0, 3.0, 10.0, 30.0, 100.0)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
NEAR_SHRINK = 0.5
"""Added to the sum of weights that a mean over neighbours is divided by: few near items say little."""
CO_RATED_SHRINK = 0.5
"""Added to a cosine's denominator as a share of the mean item's sum of squares."""
N_NEIGHBOURS = 50
VALIDATION_SHARE = 0.1
BLOCK = 512


@dataclass(frozen=True)
class Ratings:
    """user, item: (n,) int64 codes, a pair once; value: (n,) float64; time: (n,) int64, any unit."""

    user: I64
    item: I64
    value: F64
    time: I64
    n_users: int
    n_items: int

    def __post_init__(self) -> None:
        """Raises ContractError for arrays of different lengths or a value that is no number."""
        lengths = {len(self.user), len(self.item), len(self.value), len(self.time)}
        if len(lengths) > 1 or not np.isfinite(self.value).all():
            raise ContractError("ratings need a user, an item, a finite value and a time each")

    def kept(self, which: np.ndarray) -> Ratings:
        """Some of them, under the same codes."""
        return replace(
            self,
            user=self.user[which],
            item=self.item[which],
            value=self.value[which],
            time=self.time[which],
        )


@dataclass(frozen=True)
class Settings:
    """item, user: ratings that the prior of a bias counts for; text: how far an item's bias is drawn to that
    of its text neighbours (0: to 0); near_text, near_log: weights of the neighbours' residuals."""

    item: float = 10.0
    user: float = 10.0
    text: float = 1.0
    near_text: float = 0.0
    near_log: float = 0.0


@dataclass(frozen=True)
class Biases:
    """mean: of all ratings; item (n_items,), user (n_users,): what each adds; residual: (n,) what is left."""

    mean: float
    item: F64
    user: F64
    residual: F64


@dataclass(frozen=True)
class Model:
    """A fitted model. text, log: (n_items, n_items) CSR of weights from 0 up and of either sign."""

    known: Ratings
    settings: Settings
    biases: Biases
    text: sparse.csr_matrix
    log: sparse.csr_matrix | None

    def predict(self, user: I64, item: I64) -> F64:
        """Ratings of pairs, (q,) float64, within the range of those known."""
        found = self.biases.mean + self.biases.item[item] + self.biases.user[user]
        settings = self.settings
        for weight, near in ((settings.near_text, self.text), (settings.near_log, self.log)):
            if weight and near is not None:
                found = found + weight * self._near(near, user, item)
        return np.clip(found, self.known.value.min(), self.known.value.max())

    def _near(self, near: sparse.csr_matrix, user: I64, item: I64) -> F64:
        return near_residuals(near, self.known, self.biases.residual, user, item)


def fit(known: Ratings, text: sparse.csr_matrix) -> Model:
    """The model with every setting chosen on the newest tenth of `known`, refitted on all of it.

    text: (n_items, n_items) CSR from 0 up, row i the items whose texts are near that of i. Raises
    ContractError without any rating.
    """
    if not len(known.value):
        raise ContractError("no rating is known before t0, so none can be predicted")
    settings = Settings()
    cut = np.quantile(known.time, 1 - VALIDATION_SHARE)
    before = known.kept(known.time <= cut)
    newest = known.kept(known.time > cut)
    if len(newest.value) and len(before.value):
        settings = _chosen(before, newest, text)
    return fit_with(known, text, settings)


def fit_with(known: Ratings, text: sparse.csr_matrix, settings: Settings) -> Model:
    """The model of given settings."""
    biases = fit_biases(known, text, settings)
    log = co_rated(known, biases.residual) if settings.near_log else None
    return Model(known, settings, biases, text, log)


def _chosen(before: Ratings, newest: Ratings, text: sparse.csr_matrix) -> Settings:
    """Coordinate descent on the squared error of the newest ratings."""

    def error(model: Model) -> float:
        return float(np.mean((model.predict(newest.user, newest.item) - newest.value) ** 2))

    settings = Settings()
    for _ in range(2):
        for name, values in (("item", SHRINK), ("user", SHRINK), ("text", SHARES)):
            settings = _best(name, values, settings, lambda one: error(fit_with(before, text, one)))
    whole = fit_with(before, text, replace(settings, near_log=1.0))
    for name in ("near_log", "near_text"):
        settings = _best(name, SHARES, settings, lambda one: error(replace(whole, settings=one)))
    return settings


def _best(
    name: str, values: tuple[float, ...], settings: Settings, error: Callable[[Settings], float]
) -> Settings:
    trials = [settings, *(replace(settings, **{name: value}) for value in values)]
    errors = [error(trial) for trial in trials]
    return trials[int(np.argmin(errors))]  # the first of equals: what it was


def fit_biases(known: Ratings, text: sparse.csr_matrix, settings: Settings) -> Biases:
    """Means of residuals of items and users, by turns, `ROUNDS` times."""
    mean = float(known.value.mean())
    of_item = np.bincount(known.item, minlength=known.n_items)
    of_user = np.bincount(known.user, minlength=known.n_users)
    item, user = np.zeros(known.n_items), np.zeros(known.n_users)
    for _ in range(ROUNDS):
        prior = settings.text * _text_prior(item, of_item, text, settings) if settings.text else 0.0
        left = np.bincount(known.item, known.value - mean - user[known.user], known.n_items)
        item = (left + settings.item * prior) / (of_item + settings.item)
        left = np.bincount(known.user, known.value - mean - item[known.item], known.n_users)
        user = left / (of_user + settings.user)
    residual = known.value - mean - item[known.item] - user[known.user]
    return Biases(mean, item, user, residual)


def _text_prior(item: F64, of_item: I64, text: sparse.csr_matrix, settings: Settings) -> F64:
    """The mean bias of each item's text neighbours, weighted by nearness and by how well theirs is known."""
    trust = of_item / (of_item + settings.item)
    weight = np.asarray(text @ trust)
    near: F64 = np.asarray(text @ (trust * item)) / (weight + NEAR_SHRINK)
    return near


def co_rated(known: Ratings, residual: F64) -> sparse.csr_matrix:
    """Cosines of items by the residuals of users who rated both, shrunk; the strongest of each row.

    (n_items, n_items) CSR float64, of either sign, nothing on the diagonal (Sarwar et al. 2001, adjusted).
    """
    shape = known.n_users, known.n_items
    E = sparse.csr_matrix((residual, (known.user, known.item)), shape)
    by_item = E.T.tocsr()
    squares = np.asarray(E.multiply(E).sum(axis=0)).ravel()
    shrunk = CO_RATED_SHRINK * float(squares[squares > 0].mean()) if (squares > 0).any() else 1.0
    length = np.sqrt(squares)
    rows = []
    for start in range(0, known.n_items, BLOCK):
        block = (by_item[start : start + BLOCK] @ E).tocsr()
        row = np.repeat(np.arange(block.shape[0], dtype=np.int64), np.diff(block.indptr))
        column = block.indices.astype(np.int64)
        cosine = block.data / (length[row + start] * length[column] + shrunk)
        cosine[row + start == column] = 0
        kept = _strongest(np.abs(cosine), block.indptr)
        rows.append(top_entries((row[kept], column[kept], cosine[kept]), block.shape, N_NEIGHBOURS))
    return sparse.vstack(rows, "csr") if rows else sparse.csr_matrix((known.n_items, known.n_items))


def _strongest(strength: F64, indptr: np.ndarray) -> np.ndarray:
    """Which entries of CSR rows are among the N_NEIGHBOURS largest of their row, ties included."""
    kept = strength > 0
    for row in np.flatnonzero(np.diff(indptr) > N_NEIGHBOURS):
        part = slice(indptr[row], indptr[row + 1])
        kept[part] &= strength[part] >= -np.partition(-strength[part], N_NEIGHBOURS - 1)[N_NEIGHBOURS - 1]
    return kept


def near_residuals(near: sparse.csr_matrix, known: Ratings, residual: F64, user: I64, item: I64) -> F64:
    """Σ_j w_ij · e_uj / (Σ_j |w_ij| + NEAR_SHRINK) over the items j that u rated, (q,); 0 without any.

    e: the residual of each known rating, in the order of `known`.
    """
    shape = known.n_users, known.n_items
    E = sparse.csr_matrix((residual, (known.user, known.item)), shape)
    ones = sparse.csr_matrix((np.ones(len(residual)), (known.user, known.item)), shape)
    found = np.zeros(len(user))
    for start in range(0, len(user), BLOCK * 8):
        part = slice(start, start + BLOCK * 8)
        weights = near[item[part]]
        total = np.asarray(weights.multiply(E[user[part]]).sum(axis=1)).ravel()
        size = np.asarray(abs(weights).multiply(ones[user[part]]).sum(axis=1)).ravel()
        found[part] = total / (size + NEAR_SHRINK)
    return found


def means(known: Ratings, user: I64, item: I64) -> dict[str, F64]:
    """What plain means predict for pairs, by name: of all ratings, of the user's, of the item's.

    A user or item without a rating gets the mean of all.
    """
    mean = float(known.value.mean())

    def of(code: I64, n: int, at: I64) -> F64:
        count = np.bincount(code, minlength=n)
        total = np.bincount(code, known.value, n)
        return np.where(count > 0, total / np.maximum(count, 1), mean)[at]

    return {
        "global_mean": np.full(len(user), mean),
        "item_mean": of(known.item, known.n_items, item),
        "user_mean": of(known.user, known.n_users, user),
    }
