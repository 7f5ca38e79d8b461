"""The quality benchmark measures the night: its lists are those of the brute-force night, item by item."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from bench import quality
from bench.quality_data import MIN_EVENTS, Log, moment, read_log, split
from bench.quality_measure import Measured, held_against, pooled
from bench.quality_night import Pairs, default_config, lists_for, night_of
from bench.quality_trials import Method, methods
from nightjar.job import guarded
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
    return Log("planted", user[order], item[order], time, texts, np.arange(N_USERS)), E


Ran = tuple[Night, Log, np.ndarray, np.ndarray, np.ndarray]


def run(root: Path, k_prime: int, rank: dict[str, object]) -> Ran:
    log, E = planted()
    available = np.arange(N_ITEMS) % 7 != 3
    sections = {"rank": rank, "retrieve": {"k_prime": k_prime}, "fit_blend": {"min_users": 1000}}
    night = night_of(log, 200.0, available, E, default_config(root, **sections))
    return night, log, E, available, lists_for(night, np.arange(0, N_USERS, 2))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(tmp_path_factory.mktemp("bench"), 12, {"k": K})


@pytest.fixture(scope="module")
def ran_by_ranks(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """As many candidates as there are items: ranks of every source go all the way down."""
    return run(tmp_path_factory.mktemp("ranks"), N_ITEMS, {"k": K, "fusion": "reciprocal_ranks"})


def expected(ran: Ran) -> oracle.Expected:
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


@pytest.mark.parametrize(("world", "tolerance"), [("ran", 2e-3), ("ran_by_ranks", 2e-4)])
def test_lists_are_those_of_the_oracle(world: str, tolerance: float, request: pytest.FixtureRequest) -> None:
    ran: Ran = request.getfixturevalue(world)
    wanted, lists = expected(ran).lists, ran[-1]
    for at, user in enumerate(np.arange(0, N_USERS, 2)):
        rows = wanted[f"u{user:010d}"]
        scores = {int(item_id[1:]): score for item_id, score, _ in rows}
        assert {source for _, _, source in rows} == {"personal"}
        for item, (_, score, _) in zip(lists[at], rows, strict=True):
            # Two items closer than the tolerance may change places; their scores may not differ.
            assert scores[item] == pytest.approx(score, abs=tolerance), (user, item)


def test_interactions_are_those_of_weigh_events(ran: Ran) -> None:
    rows = ran[0].dataset(INTERACTIONS).require("the log").read().to_pylist()
    ours = {(row["user_id"], f"i{row['item_num']:010d}"): row["weight"] for row in rows}
    theirs = expected(ran).weights
    assert ours.keys() == theirs.keys()
    assert max(abs(ours[key] - theirs[key]) for key in ours) <= 2


def test_what_is_not_available_or_seen_comes_nowhere(ran: Ran) -> None:
    _, log, _, available, lists = ran
    assert available[lists[lists >= 0]].all()
    pairs = Pairs.of(log, 200.0)
    for at, user in enumerate(np.arange(0, N_USERS, 2)):
        assert not set(lists[at]) & set(pairs.item[pairs.user == user])


def written(folder: Path) -> Path:
    """Twenty users who choose five to fourteen of twenty items, one a day, some beginning late."""
    rng = np.random.default_rng(3)
    rows = [
        (f"u{user}", f"i{item}", 86_400.0 * (user * 3 + day))
        for user in range(20)
        for day, item in enumerate(rng.permutation(20)[: 5 + user % 10])
    ]
    user, item, ts = (list(column) for column in zip(*rows, strict=True))
    pq.write_table(pa.table({"user_id": user, "item_id": item, "ts": ts}), folder / "interactions.parquet")
    items = {"item_id": [f"i{n}" for n in range(20)], "text": [f"thing {n}" for n in range(20)]}
    pq.write_table(pa.table(items), folder / "items.parquet")
    return folder


def test_a_log_that_ends_earlier_is_the_log_read_then(tmp_path: Path) -> None:
    whole, early = read_log(str(written(tmp_path))), read_log(str(tmp_path), until=0.8)
    last = early.time.max()
    assert 0.6 * len(whole.time) < len(early.time) < 0.8 * len(whole.time) and last < whole.time.max()
    assert np.bincount(early.item).min() >= MIN_EVENTS
    there = set(early.texts)
    kept = [n for n, at in enumerate(whole.item) if whole.time[n] <= last and whole.texts[at] in there]
    assert [whole.texts[whole.item[n]] for n in kept] == [early.texts[at] for at in early.item]
    assert np.array_equal(whole.time[kept], early.time)


def test_a_user_of_several_windows_is_drawn_with_all_of_them() -> None:
    rng = np.random.default_rng(5)
    windows, of, n = [], dict[str, list[tuple[float, float]]](), 20
    for n_users in (7, 12, 1):
        users = rng.permutation([f"u{at}" for at in range(15)])[:n_users]
        recall, ndcg = rng.random((2, n_users))
        windows.append((users, Measured(recall, ndcg, rng.random())))
        for user, *values in zip(users, recall, ndcg, strict=True):
            of.setdefault(user, []).append((values[0], values[1]))
    found = pooled(windows)
    every = np.array([value for values in of.values() for value in values])
    assert len(every) == n and 0 < n - len(of) < n
    assert np.allclose([found.recall.mean(), found.ndcg.mean()], every.mean(axis=0))
    sums = np.array([np.sum(of[user], axis=0) for user in sorted(of)])
    assert np.allclose(np.stack([found.recall, found.ndcg], axis=1) / sums, len(of) / n)
    assert found.coverage == pytest.approx(np.mean([one.coverage for _, one in windows]))


def test_windows_follow_each_other_and_are_measured_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logs, windows = list[Log](), list[quality.Window]()
    table = quality.run

    def seen(log: Log, *asked: Any) -> quality.Window:
        logs.append(log)
        windows.append(table(log, *asked))
        return windows[-1]

    monkeypatch.setattr(quality, "run", seen)
    monkeypatch.setattr(quality, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(quality, "embeddings", lambda log: planted()[1][: log.n_items])
    asked = ["--data", str(written(tmp_path)), "--only", "random", "popular", "--windows", "2"]
    monkeypatch.setattr("sys.argv", ["quality", *asked])
    quality.main()
    newer, older = logs
    assert older.time.max() < moment(newer, quality.TEST_FROM) <= newer.time.max()
    assert older.time.max() == newer.time[newer.time < moment(newer, quality.TEST_FROM)].max()
    everybody = {user for one in windows for user in one.users}
    assert 0 < sum(len(one.users) for one in windows) - len(everybody) < len(everybody)
    said = capsys.readouterr().out.strip().splitlines()
    ndcg = np.concatenate([one.ours[1].ndcg for one in windows]).mean()
    assert f"ndcg@20: ours {ndcg:.4f}" in said[-2] and f"ndcg20={ndcg:.4f}" in said[-1]
    withheld = np.concatenate([one.cold["withheld"].rows["BM25"][1] for one in windows]).mean()
    assert f"R@100 {withheld:.4f}" in [line for line in said if "cold withheld  BM25" in line][-1]
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["users"] for row in rows[-3:]] == [len(everybody)] * 3


def test_a_setting_that_varies_is_held_against_the_default_for_the_same_users(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(quality, "embeddings", lambda log: planted()[1][: log.n_items])
    log = read_log(str(written(tmp_path)))
    (variant,) = quality.variants_of(["rank.k=1"])
    window = quality.run(log, ["popular"], ["withheld"], variants=[variant])
    said = capsys.readouterr().out
    test = split(log, quality.TEST_FROM, 1.0, quality.TEST_USERS)
    firsts = quality.nightjar(log, planted()[1][: log.n_items], test, test.warm).lists[:, :1]
    fewer = held_against(test, firsts)
    assert np.array_equal(window.varied["rank.k=1"].recall, fewer.recall)
    assert 0 < fewer.recall.mean() < window.ours[1].recall.mean()
    assert f"rank.k=1: R@20 {window.ours[1].recall.mean():.4f} -> {fewer.recall.mean():.4f}, " in said
    cold = window.cold["withheld"]
    assert (cold.varied["rank.k=1"][0] <= cold.rows["Nightjar"][0]).all()
    assert f"cold withheld  rank.k=1: R@20 {cold.rows['Nightjar'][0].mean():.4f} -> " in said


def test_milliseconds_are_read_as_such(tmp_path: Path) -> None:
    events = pq.read_table(written(tmp_path) / "interactions.parquet").to_pandas()
    logs = []
    for unit in (1, 1000):
        events.assign(ts=(events["ts"] + 1.6e9) * unit).to_parquet(tmp_path / "interactions.parquet")
        logs.append(read_log(str(tmp_path)))
    assert np.array_equal(logs[0].time, logs[1].time) and np.array_equal(logs[0].item, logs[1].item)


def test_items_without_a_text_have_an_empty_one(tmp_path: Path) -> None:
    items = pq.read_table(written(tmp_path) / "items.parquet").to_pydict()
    items["text"][3], items["text"][7] = None, ""
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    texts = read_log(str(tmp_path)).texts
    assert len(texts) == 20 and sorted(texts)[:3] == ["", "", "thing 0"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--data", "nonsense"], "nonsense: no data set of that name and no folder"),
        (
            ["--data", "FOLDER", "--only", "popluar"],
            "--only popluar: no single method of that name; there are ",
        ),
        (["--data", "FOLDER", "--until", "1.5"], "1.5 is no share of the log's time"),
        (["--data", "FOLDER", "--ease-items", "0"], "0 is no whole number of 1 or more"),
        (["--data", "FOLDER", "--vary", "weigh_events.text_cap=3"], "with one of relate_items, learn_taste"),
        (["--data", "FOLDER", "--vary", "rank.mmr=3"], "rank.mmr"),
        (["--data", "FOLDER", "--windows", "two"], "two is no whole number of 1 or more"),
        (
            ["--data", "NO_TEXT"],
            "items.parquet: no column text; it needs item_id, text and has item_id, title",
        ),
        (["--data", "DATES"], "ts must be numbers, (milli)seconds since 1970"),
        (["--data", "TORN"], "items.parquet: cannot be read as Parquet"),
        (["--data", "FOLDER", "--until", "0.1"], "no item has 5 events"),
        (["--data", "FOLDER", "--until", "0.3"], "this takes a larger log"),
    ],
)
def test_what_it_cannot_measure_it_says_in_a_sentence(
    args: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("FOLDER", "NO_TEXT", "DATES", "TORN"):
        (tmp_path / name).mkdir()
        written(tmp_path / name)
    items = pq.read_table(tmp_path / "NO_TEXT/items.parquet").rename_columns(["item_id", "title"])
    pq.write_table(items, tmp_path / "NO_TEXT/items.parquet")
    events = pq.read_table(tmp_path / "DATES/interactions.parquet")
    events = events.set_column(2, "ts", pa.array(["2020-01-01"] * len(events)))
    pq.write_table(events, tmp_path / "DATES/interactions.parquet")
    (tmp_path / "TORN/items.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(quality, "embeddings", lambda log: planted()[1][: log.n_items])
    args = [str(tmp_path / arg) if (tmp_path / arg).exists() else arg for arg in args]
    monkeypatch.setattr("sys.argv", ["quality", *args])
    with pytest.raises(SystemExit) as stopped:
        guarded(quality.main)
    assert stopped.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("n_neighbours", [400, None])
def test_ease_of_a_larger_catalogue_has_its_most_liked_items_and_says_so(
    n_neighbours: int | None, tmp_path: Path
) -> None:
    log = read_log(str(written(tmp_path)))
    held, E = split(log, 0.8, 0.9, 100), np.eye(log.n_items, 8, dtype=np.float32)

    def settings(most: int) -> tuple[Method, list[dict[str, Any]]]:
        (ease,) = (one for one in methods(log, E, E, most) if one.name == "EASE")
        return ease, [one.params for one in ease.settings]

    ease, params = settings(3)
    assert {one["items"] for one in params} == {3}
    assert not any("items" in one for one in settings(log.n_items)[1])
    scored = ease.fit(held, ridge=50.0, n_neighbours=n_neighbours, items=3)(held.liked)
    dense = scored.toarray() if sparse.issparse(scored) else scored
    most = np.asarray(held.liked.sum(axis=0)).ravel()
    used = np.flatnonzero(np.abs(dense).sum(axis=0))
    assert 0 < len(used) <= 3 and most[used].min() >= np.sort(most)[-3]


def test_by_their_own_clocks_everybody_ends_in_the_window(tmp_path: Path) -> None:
    whole, own = read_log(str(written(tmp_path))), read_log(str(tmp_path), own_clocks=True)
    assert len(whole.time) == len(own.time)
    for user in range(own.n_users):
        mine, before = own.user == user, whole.user == user
        assert [own.texts[at] for at in own.item[mine]] == [whole.texts[at] for at in whole.item[before]]
        assert own.time[mine].max() > 365 * 0.9 > own.time[mine].min()
