"""The quality benchmark measures the night: its lists are those of the brute-force night, item by item."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from bench.quality_data import Log
from bench.quality_night import Pairs, default_config, lists_for, night_of
from nightjar.kernels import taste
from nightjar.stage import Night
from nightjar.tables import INTERACTIONS
from tests import oracle

N_USERS, N_ITEMS, K = 30, 40, 8


def planted(seed: int = 0) -> tuple[Log, np.ndarray]:
    """Users of four tastes who choose twelve times, some things again; and embeddings that show the taste."""
    rng = np.random.default_rng(seed)
    taste_of = np.arange(N_ITEMS) % 4
    user = np.repeat(np.arange(N_USERS), 12)
    likely = np.where(taste_of == (user % 4)[:, None], 6.0, 1.0) * (np.arange(N_ITEMS) < 36)
    item = np.array([rng.choice(N_ITEMS, p=row / row.sum()) for row in likely])
    time = np.sort(rng.integers(0, 200, len(user))).astype(np.float64)
    order = rng.permutation(len(user))
    E = taste.unit_rows((np.eye(16)[taste_of] + 0.4 * rng.standard_normal((N_ITEMS, 16))).astype(np.float32))
    texts = tuple(f"taste {i % 4} kind {i % 7} t{i}" for i in range(N_ITEMS))
    return Log("planted", user[order], item[order], time, texts, N_USERS), E


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Night, Log, np.ndarray, np.ndarray, np.ndarray]:
    log, E = planted()
    available = np.arange(N_ITEMS) % 7 != 3
    sections = {"rank": {"k": K}, "retrieve": {"k_prime": 12}, "fit_blend": {"min_users": 1000}}
    root: Path = tmp_path_factory.mktemp("bench")
    night = night_of(log, 200.0, available, E, default_config(root, **sections))
    return night, log, E, available, lists_for(night, np.arange(0, N_USERS, 2))


def expected(ran: tuple[Night, Log, np.ndarray, np.ndarray, np.ndarray]) -> oracle.Expected:
    night, log, E, available, _ = ran
    events = [
        {
            "user_id": f"u{user:010d}",
            "item_id": f"i{item:010d}",
            "scene": "log",
            "event_type": "event",
            "event_time": night.end - timedelta(days=200.0 - when),
        }
        for user, item, when in zip(log.user, log.item, log.time, strict=True)
    ]
    items = [
        {"item_id": f"i{at:010d}", "title": text, "available": bool(ok)}
        for at, (text, ok) in enumerate(zip(log.texts, available, strict=True))
    ]
    return oracle.night(night.config, night.end, events, items, E, {})


def test_lists_are_those_of_the_oracle(ran: tuple[Night, Log, np.ndarray, np.ndarray, np.ndarray]) -> None:
    wanted, lists = expected(ran).lists, ran[-1]
    for at, user in enumerate(np.arange(0, N_USERS, 2)):
        rows = wanted[f"u{user:010d}"]
        scores = {int(item_id[1:]): score for item_id, score, _ in rows}
        assert {source for _, _, source in rows} == {"personal"}
        for item, (_, score, _) in zip(lists[at], rows, strict=True):
            # Two items closer than the tolerance may change places; their scores may not differ.
            assert scores[item] == pytest.approx(score, abs=2e-3), (user, item)


def test_interactions_are_those_of_weigh_events(
    ran: tuple[Night, Log, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    rows = ran[0].dataset(INTERACTIONS).require("the log").read().to_pylist()
    ours = {(row["user_id"], f"i{row['item_num']:010d}"): row["weight"] for row in rows}
    theirs = expected(ran).weights
    assert ours.keys() == theirs.keys()
    assert max(abs(ours[key] - theirs[key]) for key in ours) <= 2


def test_what_is_not_available_or_seen_comes_nowhere(
    ran: tuple[Night, Log, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    _, log, _, available, lists = ran
    assert available[lists[lists >= 0]].all()
    pairs = Pairs.of(log, 200.0)
    for at, user in enumerate(np.arange(0, N_USERS, 2)):
        assert not set(lists[at]) & set(pairs.item[pairs.user == user])
