"""Co-occurrence counted block by block over buckets of users; users drawn where a log is too large."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from nightjar.config import RelateItems
from nightjar.kernels.signals import Neighbourhood, co_occurrence
from nightjar.stages.blending.relation_rows import read_relation
from nightjar.stages.blending.taste_log import bucket_likes, read_likes
from nightjar.stages.relate_items import RelatePart
from nightjar.store import Committed, Dataset, Manifest, Store
from nightjar.tables import CO_OCCURRENCE, INTERACTIONS, WEIGHT_ONE
from tests.unit.committed_rows import commit

N_ITEMS, DS = 40, date(2026, 1, 2)
END = datetime(2026, 1, 3, tzinfo=UTC)
Likes = Mapping[str, Mapping[int, float]]
"""user -> item -> days ago; below 0: an item that events speak against."""


def log(seed: int, n_users: int) -> dict[str, dict[int, float]]:
    """Users of a few items each, one of half of all, one of none they like; the last item is nobody's."""
    rng = np.random.default_rng(seed)
    sizes = {f"u{user:04d}": int(rng.integers(1, 6)) for user in range(n_users)} | {"busy": N_ITEMS // 2}
    made = {}
    for user, size in sizes.items():
        items = rng.choice(N_ITEMS - 1, size, replace=False)
        made[user] = {int(item): float(rng.integers(0, 9)) for item in items}
        made[user][int(items[0])] *= -1 if rng.random() < 0.2 else 1
    return made | {"dislikes": {3: -1.0, 4: -2.0}}


def committed(root: Path, likes: Likes, buckets: int) -> Committed:
    """The interactions of a log, users dealt into buckets and sorted there."""
    store, parts = Store(str(root)), []
    for bucket in range(buckets):
        rows = []
        for user in sorted(likes)[bucket::buckets]:
            for item, days in sorted(likes[user].items()):
                liked, weight = (None, -WEIGHT_ONE) if days < 0 else (END - timedelta(days=days), WEIGHT_ONE)
                rows.append(
                    {
                        "user_id": user, "item_num": item, "weight": weight, "strength": weight,
                        "n_events": 1, "last_event_time": END - timedelta(days=abs(days)),
                        "first_liked": liked, "last_liked": liked, "in_profile": True,
                    }
                )  # fmt: skip
        parts.append(pa.Table.from_pylist(rows, INTERACTIONS.arrow_schema(None)))
    commit(store, INTERACTIONS, DS, parts)
    return Dataset(store, INTERACTIONS, str(DS)).require("weigh_events")


def related(root: Path, interactions: Committed, params: RelateItems) -> sparse.csr_matrix:
    """What the stage's tasks write, in any order, and learn_taste reads."""
    fingerprint = f"{params.block_items}-{params.n_neighbours}"
    attempt = Dataset(Store(str(root)), CO_OCCURRENCE, str(DS)).attempt(fingerprint)
    task = RelatePart(interactions, attempt, N_ITEMS, params, END)
    numbers = range(-(-N_ITEMS // params.block_items))
    entries = tuple(reversed([task(part) for part in reversed(numbers)]))
    rows = sum(entry.rows for entry in entries)
    made = attempt.commit(Manifest("co_occurrence", str(DS), "planted", fingerprint, entries, rows, ()))
    return read_relation(made, N_ITEMS)


def slow(likes: Likes, newest: int) -> np.ndarray:
    """Cosine with shrinkage over the newest likes of each user, who counts less the more they are."""
    together = np.zeros((N_ITEMS, N_ITEMS))
    for mine in likes.values():
        kept = sorted((days, item) for item, days in mine.items() if days >= 0)[:newest]
        for _, one in kept:
            for _, other in kept:
                together[one, other] += len(kept) ** -0.5
    own = together.diagonal()
    found = together / (np.sqrt(own[:, None] * own) + 0.3 * own[own > 0].mean())
    np.fill_diagonal(found, 0)
    return found


@pytest.mark.parametrize("block_items", [1, 7, 40, 1000])
@pytest.mark.parametrize("newest", [3, 2000])
def test_blocks_of_items_make_what_everybodys_pairs_do(tmp_path: Path, block_items: int, newest: int) -> None:
    likes = log(0, 60)
    interactions = committed(tmp_path, likes, 3)
    params = RelateItems(user_likes=newest, block_items=block_items, n_neighbours=N_ITEMS)
    found = related(tmp_path, interactions, params)
    assert np.allclose(found.toarray(), slow(likes, newest), rtol=1e-5)
    # To the last bit what learn_taste would count from the whole log, cut to the strongest.
    few = related(
        tmp_path, interactions, RelateItems(user_likes=newest, block_items=block_items, n_neighbours=4)
    )
    whole = co_occurrence(
        read_likes(interactions, N_ITEMS, END).newest(newest).matrix(),
        Neighbourhood(n_neighbours=4),
    )
    assert (few != whole).nnz == 0
    assert whole.nnz > N_ITEMS


def test_a_log_without_likes_relates_nothing(tmp_path: Path) -> None:
    nothing = related(tmp_path, committed(tmp_path, {"dislikes": {3: -1.0}}, 2), RelateItems(block_items=16))
    assert nothing.shape == (N_ITEMS, N_ITEMS)
    assert nothing.nnz == 0


def test_of_a_log_too_large_whole_users_are_drawn_and_the_same_ones_again(tmp_path: Path) -> None:
    likes = log(1, 2000)
    interactions = committed(tmp_path, likes, 3)
    everybody = read_likes(interactions, N_ITEMS, END)
    most = interactions.manifest.rows // 4
    some = read_likes(interactions, N_ITEMS, END, most=most)
    assert 0.8 * most < len(some) < 1.2 * most
    ids = {user for user, mine in likes.items() if max(mine.values()) >= 0}
    kept = set()
    for bucket in range(3):
        kept |= set(bucket_likes(interactions, bucket, N_ITEMS, END, 0.25)[1].to_pylist())
    assert len(kept) == some.n_users
    assert sorted(np.bincount(some.user)) == sorted(
        sum(days >= 0 for days in likes[user].values()) for user in kept
    )
    # Another night has other users and buckets, and a larger share: who was drawn still is.
    newcomers = {f"new{user}": {1: 2.0} for user in range(500)}
    tomorrow = committed(tmp_path / "tomorrow", likes | newcomers, 5)
    again = set()
    for bucket in range(5):
        again |= set(bucket_likes(tomorrow, bucket, N_ITEMS, END, 0.3)[1].to_pylist())
    assert kept <= again
    assert kept < ids
    assert len(read_likes(interactions, N_ITEMS, END, most=10**9)) == len(everybody)
