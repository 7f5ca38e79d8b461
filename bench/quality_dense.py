"""A made log denser than the real ones, to hold recommendations against single methods there.

    python -m bench.quality_dense /tmp/dense && make bench-quality DATA=/tmp/dense

60,000 users, 15,000 items, 3.9 million likes. Every user draws from four of forty topics, one in five times
from any, by popularity within the topic and all along the same; texts name the topic and words of its own,
which says less than who likes what. So there is no fashion, and nothing of a history fades.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from bench.quality_data import write_made_log
from nightjar.job import guarded

USERS, ITEMS, TOPICS = 60_000, 15_000, 40
DAY = 86_400


def dense_log() -> tuple[pd.DataFrame, pd.DataFrame]:
    """interactions (user_id, item_id, ts in seconds), a pair once, and items (item_id, text)."""
    rng = np.random.default_rng(0)
    popular = 1 / np.arange(1, ITEMS + 1) ** 0.8
    popular = popular[rng.permutation(ITEMS)]
    topic = rng.integers(0, TOPICS, ITEMS)
    sizes = np.clip(rng.lognormal(3.9, 1.0, USERS).astype(int), 5, 3000)
    user = np.repeat(np.arange(USERS), sizes)
    liked = rng.integers(0, TOPICS, (USERS, 4))
    about = liked[user, rng.integers(0, 4, len(user))]
    any_topic = rng.random(len(user)) < 0.2
    about[any_topic] = rng.integers(0, TOPICS, any_topic.sum())
    item = np.empty(len(user), np.int64)
    for number in range(TOPICS):
        (mine,), (items,) = np.nonzero(about == number), np.nonzero(topic == number)
        share = np.cumsum(popular[items]) / popular[items].sum()
        item[mine] = items[np.searchsorted(share, rng.random(len(mine))).clip(0, len(items) - 1)]
    began = rng.random(USERS) * 1000
    days = began[user] + rng.random(len(user)) * rng.exponential(200, USERS)[user]
    likes = pd.DataFrame(
        {"user_id": user.astype(str), "item_id": item.astype(str), "ts": (days * DAY).astype(np.int64)}
    )
    texts = [
        f"topic {of} thing " + " ".join(f"w{word}" for word in rng.integers(of * 75, of * 75 + 75, 6))
        for of in topic.tolist()
    ]
    items_table = pd.DataFrame({"item_id": np.arange(ITEMS).astype(str), "text": texts})
    return likes.drop_duplicates(["user_id", "item_id"]), items_table


def main() -> None:
    """Writes the folder that `make bench-quality DATA=…` reads."""
    write_made_log("python -m bench.quality_dense", __doc__, dense_log)


if __name__ == "__main__":
    guarded(main)
