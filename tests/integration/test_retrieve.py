"""build_index and retrieve on vectors that are given, against float64 and Python sets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nightjar.errors import ConfigError, ContractError, InputError
from nightjar.kernels.taste import unit_rows
from nightjar.pipeline import RETRIEVE
from nightjar.stages.searching.limits import read_limits
from nightjar.tables import CANDIDATES
from tests import world
from tests.searched import Vectors, lists_of, searched

N_ITEMS, N_USERS, K = 500, 40, 20
MANY = 5000  # so that 60 % of 70 % of the items are too many to score one by one


def made(seed: int = 0, n_items: int = N_ITEMS) -> Vectors:
    """Items of lengths 0.5 to 2, some twice; users with 0 to 30 seen items, two with all and all but 3."""
    rng = np.random.default_rng(seed)
    items = unit_rows(rng.standard_normal((n_items, 24)).astype(np.float32))
    items *= rng.uniform(0.5, 2, (n_items, 1)).astype(np.float32)
    items[n_items // 2 : n_items // 2 + 40] = items[:40]
    seen = [rng.choice(n_items, rng.integers(0, 30), replace=False).tolist() for _ in range(N_USERS)]
    seen[3], seen[4] = list(range(n_items)), list(range(3, n_items))
    available = rng.random(n_items) < 0.9
    available[:3] = True
    segment = [(None, "north", "south")[at % 3] for at in range(N_USERS)]
    users = unit_rows(rng.standard_normal((N_USERS, 24)).astype(np.float32))
    return Vectors(items, users, seen, available, segment, silent=("u99998", "u99999"))


def best(vectors: Vectors, user: int, allowed: set[int], k: int = K) -> list[int]:
    """The best allowed items by float32 score, ties by number; scores are compared with a tolerance below."""
    left = allowed - set(vectors.seen[user]) & allowed
    left &= set(np.flatnonzero(vectors.available).tolist())
    scores = vectors.items.astype(np.float64) @ vectors.users[user].astype(np.float64)
    return sorted(left, key=lambda item: (-round(float(scores[item]), 6), item))[:k]


def check(vectors: Vectors, lists: dict[str, list[tuple[int, float]]], allowed: list[set[int]]) -> None:
    """Every list has the items of a full sort: scores must agree, and so must items that do not tie."""
    scores = vectors.items.astype(np.float64) @ vectors.users.astype(np.float64).T
    assert list(lists) == vectors.user_ids
    for user, user_id in enumerate(vectors.user_ids):
        expected = best(vectors, user, allowed[user])
        found = [item for item, _ in lists[user_id]]
        assert len(found) == len(expected), user_id
        assert set(found) <= allowed[user] - set(vectors.seen[user]), user_id
        assert scores[found, user] == pytest.approx(scores[expected, user], abs=1e-5), user_id
        assert [score for _, score in lists[user_id]] == pytest.approx(scores[found, user], abs=1e-5)


def bytes_of(night: Any) -> list[str]:
    return [entry.sha256 for entry in night.dataset(CANDIDATES).require("retrieve").parts]


def test_auto_is_exact_here_and_the_bytes_do_not_depend_on_how(tmp_path: Path) -> None:
    vectors = made()
    everything = [set(range(N_ITEMS))] * N_USERS
    first: list[str] = []
    for at, (shards, factory, resources) in enumerate(
        (
            (1, "auto", {}),
            (3, "exact", {"num_cpus": 2, "block_users": 7, "actors": 1}),
            (4, "Flat", {"block_users": 11}),
        )
    ):
        night, results = searched(
            tmp_path / str(at),
            vectors,
            on_ray=factory != "Flat",
            build_index={"shards": shards, "factory": factory},
            retrieve={"k_prime": K, "resources": resources},
        )
        first = first or bytes_of(night)
        assert bytes_of(night) == first, factory
        check(vectors, lists_of(night), everything)
        metrics = results["retrieve"].metrics
        assert metrics["index_recall"] == metrics["index_recall_before_filters"] == 1
        assert metrics["short"] == 2
        by_activity = metrics["index_recall_by_activity"]
        assert sum(one["users"] for one in by_activity.values()) == metrics["recall_users"] == N_USERS
        assert by_activity["100+"]["users"] == 2
        index = results["build_index"].metrics
        assert index["factory"] == ("Flat" if factory == "Flat" else "exact")
        if factory == "auto":
            assert "500 items" in index["why"] and index["tried"]["exact"]["micros"] > 0


def with_interests(vectors: Vectors) -> Vectors:
    """Every third user has two to four vectors near random items."""
    rng, interests = np.random.default_rng(3), {}
    for user in range(0, N_USERS, 3):
        count = int(rng.integers(2, 5))
        near = vectors.items[rng.choice(len(vectors.items), count)]
        mine = unit_rows(near + 0.02 * rng.standard_normal((count, 24)).astype(np.float32))
        weights = rng.choice(np.arange(1, 9), count) / 8
        interests[user] = list(zip(mine, weights.tolist(), strict=True))
    return replace(vectors, interests=interests)


def merged(vectors: Vectors, user: int, how: str) -> list[float]:
    """The scores of a user's list by a full sort for each vector, in float64."""
    mine = vectors.of(user)
    shares = np.array([weight for _, weight in mine])
    each = [vectors.items.astype(np.float64) @ vector.astype(np.float64) for vector, _ in mine]
    left = [
        item for item in np.flatnonzero(vectors.available).tolist() if item not in set(vectors.seen[user])
    ]
    orders = [sorted(left, key=lambda item, of=of: (-of[item], item)) for of in each]
    if how == "importance" and len(mine) > 1:
        weighed = np.max(
            [of * weight / shares.max() for of, weight in zip(each, shares, strict=True)], axis=0
        )
        return sorted((float(weighed[item]) for item in left), reverse=True)[:K]
    places = np.floor(K * shares / shares.sum() + 1e-9).astype(int)
    rest = np.argsort(-(K * shares / shares.sum() - places), kind="stable")
    places[rest[: K - places.sum()]] += 1
    taken: dict[int, float] = {}
    for allowed in (places, np.full(len(mine), K)):
        for at in np.argsort(-shares, kind="stable"):
            free = [(item, float(each[at][item])) for item in orders[at] if item not in taken]
            taken.update(free[: min(int(allowed[at]), K - len(taken))])
    return sorted(taken.values(), reverse=True)


def test_several_vectors_of_a_user_become_one_list(tmp_path: Path) -> None:
    """Also where a block holds fewer rows than a user has, and with everything but three items seen."""
    vectors = with_interests(made())
    first: dict[str, list[str]] = {}
    for at, (how, shards, block) in enumerate(
        (("quotas", 1, 8192), ("quotas", 3, 2), ("importance", 2, 5), ("importance", 1, 8192))
    ):
        night, results = searched(
            tmp_path / str(at),
            vectors,
            build_index={"shards": shards},
            retrieve={"k_prime": K, "interests": how, "resources": {"block_users": block}},
        )
        assert bytes_of(night) == first.setdefault(how, bytes_of(night))
        lists = lists_of(night)
        assert list(lists) == vectors.user_ids
        for user, user_id in enumerate(vectors.user_ids):
            items, scores = [item for item, _ in lists[user_id]], [score for _, score in lists[user_id]]
            assert len(set(items)) == len(items)
            assert not set(items) & set(vectors.seen[user])
            assert scores == pytest.approx(merged(vectors, user, how), abs=1e-5), (how, user_id)
        metrics = results["retrieve"].metrics
        assert metrics["users"] == N_USERS and metrics["short"] == 2 and metrics["index_recall"] == 1
    assert first["quotas"] != first["importance"]


def test_a_run_again_searches_only_the_buckets_that_were_not_done(tmp_path: Path) -> None:
    """As if the stage had been killed after two of its three buckets."""
    vectors = replace(with_interests(made()), buckets=3)
    deny = write(tmp_path / "deny.csv", [{"user": "u00001", "sku": "i00003"}])
    deny["columns"] = {"user_id": "user", "item_id": "sku"}
    night, results = searched(tmp_path / "store", vectors, retrieve={"k_prime": K, "deny": [deny]})
    parts, folder = bytes_of(night), night.dataset(CANDIDATES)
    committed = folder.require("retrieve")
    files = [Path(committed.path(entry)) for entry in committed.parts]
    (files[0].parent.parent / "MANIFEST.json").unlink()
    files[1].with_name(f"{files[1].name}.done.json").unlink()
    before = [file.stat().st_mtime_ns for file in files]
    again = world.run(night, [RETRIEVE], on_ray=True)["retrieve"]
    assert again.ran and bytes_of(night) == parts
    assert [file.stat().st_mtime_ns == time for file, time in zip(files, before, strict=True)] == [
        True,
        False,
        True,
    ]
    assert again.metrics == results["retrieve"].metrics


def write(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows as a file of the format that its name says; a declaration for it."""
    if path.suffix == ".csv":
        lines = [";".join(rows[0])] + [";".join(map(str, row.values())) for row in rows]
        path.write_text("\n".join(lines) + "\n")
        return {"path": str(path), "format": "csv", "delimiter": ";", "columns": {}}
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return {"path": str(path), "format": "jsonl", "columns": {}}
    pq.write_table(pa.Table.from_pylist(rows), path)
    return {"path": str(path), "format": "parquet", "columns": {}}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Vectors, list[set[int]], dict[str, Any], Path]:
    """Lists of every kind and format, and the set of items that they leave each user."""
    folder = tmp_path_factory.mktemp("lists")
    vectors, rng = made(n_items=MANY), np.random.default_rng(1)
    ids, people = vectors.item_ids, vectors.user_ids
    left = [set(range(MANY)) for _ in range(N_USERS)]
    denied = []
    for user in range(0, N_USERS, 2):
        for item in rng.choice(MANY, 200, replace=False).tolist():
            denied.append({"user": f" {people[user]} ", "thing": ids[item]})
            left[user].discard(item)
    noise = [{"user": "stranger", "thing": ids[0]}, {"user": people[0], "thing": "no-such-item"}]
    first = write(folder / "deny.csv", [*denied[::2], *noise, {"user": "", "thing": ids[1]}, denied[0]])
    second = write(folder / "deny.parquet", denied[1::2])
    for one in (first, second):
        one["columns"] = {"user_id": "user", "item_id": "thing"}
    north = set(rng.choice(MANY, 3000, replace=False).tolist())
    region = write(folder / "region.jsonl", [{"s": "north", "i": ids[item]} for item in sorted(north)])
    region["columns"] = {"segment": "s", "item_id": "i"}
    band = {name: set(rng.choice(MANY, 3500, replace=False).tolist()) for name in ("young", "old")}
    ages = write(
        folder / "ages.csv", [{"s": name, "i": ids[item]} for name, items in band.items() for item in items]
    )
    members = write(
        folder / "members.parquet",
        [{"who": people[user], "age": ("young", "old")[user % 2]} for user in range(30)]
        + [{"who": people[0], "age": "zoomer"}],
    )
    members["columns"] = {"user_id": "who", "segment": "age"}
    ages |= {"columns": {"segment": "s", "item_id": "i"}, "members": members, "others": "nothing"}
    mine = {user: set(rng.choice(MANY, 30, replace=False).tolist()) for user in (5, 6)}
    own = write(
        folder / "own.csv",
        [{"u": people[user], "i": ids[item]} for user, items in mine.items() for item in items]
        + [{"u": people[7], "i": "no-such-item"}],
    )
    own["columns"] = {"user_id": "u", "item_id": "i"}
    for user in range(N_USERS):
        if vectors.segment[user] == "north":
            left[user] &= north
        left[user] &= band[("young", "old")[user % 2]] if user < 30 else set()
        left[user] &= mine.get(user, left[user])
    left[7] = set()
    return vectors, left, {"deny": [first, second], "allow": [region, ages, own]}, folder


def test_lists_hold_in_the_search_and_for_whoever_reads_them(
    limited: tuple[Vectors, list[set[int]], dict[str, Any], Path], tmp_path: Path
) -> None:
    vectors, left, lists, _ = limited
    first: list[str] = []
    for at, (factory, shards) in enumerate((("auto", 2), ("IVF8,Flat", 1))):
        night, results = searched(
            tmp_path / str(at),
            vectors,
            build_index={"shards": shards, "factory": factory},
            retrieve={"k_prime": K, "nprobe": 8, **lists},
        )
        first = first or bytes_of(night)
        check(vectors, lists_of(night), left)
        counts = results["retrieve"].metrics["lists"]
        assert counts["deny"] == {
            "rows": 4004,
            "unusable": 1,
            "of_unknown_items": 1,
            "of_known_users": 4002,
        }
        assert counts["allow0"] == {"rows": 3000, "unusable": 0, "of_unknown_items": 0}
        assert counts["allow2"]["of_unknown_items"] == 1
        assert counts["members1"]["rows"] == 31
        candidates = night.dataset(CANDIDATES).require("retrieve")
        for bucket in range(2):
            users = np.array_split(np.arange(N_USERS), 2)[bucket]
            known = [vectors.user_ids[user] for user in users] + (["u99998", "u99999"] if bucket else [])
            limits = read_limits(candidates, bucket, np.array(known, object))
            permitted = limits.permits(np.tile(np.arange(MANY), (len(known), 1)), MANY)
            for row, user in enumerate(users):
                assert set(np.flatnonzero(permitted[row]).tolist()) == left[user]
            # Users without a vector are filled later, so their limits must be there too.
            assert not permitted[len(users) :].any()


def test_nothing_is_limited_where_nothing_is_declared(tmp_path: Path) -> None:
    night, results = searched(tmp_path, made(), retrieve={"k_prime": K})
    candidates = night.dataset(CANDIDATES).require("retrieve")
    assert results["retrieve"].metrics["lists"] == {}
    assert len(candidates.manifest.files) == len(candidates.parts) == 2
    limits = read_limits(candidates, 0, np.array(["u00000", "nobody"], object))
    assert limits.permits(np.array([[0], [1]]), N_ITEMS).all()


def test_another_list_is_another_night(
    limited: tuple[Vectors, list[set[int]], dict[str, Any], Path], tmp_path: Path
) -> None:
    vectors, _, lists, folder = limited
    source = dict(lists["deny"][0])
    before, _ = searched(tmp_path, vectors, retrieve={"k_prime": K, "deny": [source]})
    marks = before.dataset(CANDIDATES).require("retrieve").manifest.fingerprint
    other = folder / "other"
    other.mkdir()
    text = Path(source["path"]).read_text()
    (other / "deny.csv").write_text(text + "u00001;i00001\n")
    source["path"] = str(other / "deny.csv")
    after, results = searched(tmp_path, vectors, retrieve={"k_prime": K, "deny": [source]})
    assert results["retrieve"].ran and not results["build_index"].ran
    assert after.dataset(CANDIDATES).require("retrieve").manifest.fingerprint != marks


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("a;b\n1;2\n", {"user_id": "a", "item_id": "c"}, "retrieve.deny.0: .*cannot be read.*'c'"),
        (None, {"user_id": "a", "item_id": "b"}, "retrieve.deny.0: no file matches"),
    ],
)
def test_a_list_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, text: str | None, columns: dict[str, str], message: str
) -> None:
    path = tmp_path / "deny.csv"
    if text is not None:
        path.write_text(text)
    source = {"path": str(path), "format": "csv", "delimiter": ";", "columns": columns}
    with pytest.raises(InputError, match=message):
        searched(tmp_path / "root", made(), retrieve={"k_prime": K, "deny": [source]})


@pytest.mark.parametrize("factory", ["auto", "Flat"])
def test_three_items_and_one_without_a_vector_in_nine_shards(tmp_path: Path, factory: str) -> None:
    """Fewer items than k and than shards; a user who has seen them all; nobody is padded or dropped."""
    rng = np.random.default_rng(0)
    items = unit_rows(rng.standard_normal((4, 5)).astype(np.float32))
    items[2] = 0
    users = -unit_rows(
        items[[0, 1, 3]].sum(axis=0, keepdims=True) + rng.standard_normal((3, 5)).astype(np.float32)
    )
    vectors = Vectors(items, users, [[], [0, 1, 2, 3], [3]], np.ones(4, bool), [None] * 3)
    night, results = searched(
        tmp_path, vectors, build_index={"shards": 9, "factory": factory}, retrieve={"k_prime": K}
    )
    check(vectors, lists_of(night), [{0, 1, 3}] * 3)
    index, found = results["build_index"].metrics, results["retrieve"].metrics
    assert (index["items"], index["items_without_vector"]) == (3, 1)
    assert (found["users"], found["short"], found["index_recall"]) == (3, 3, 1)


def test_no_items_and_no_users_are_a_night_too(tmp_path: Path) -> None:
    empty, one = np.empty((0, 5), np.float32), np.eye(5, dtype=np.float32)[:1]
    for at, (items, users) in enumerate(((empty, one), (one, empty), (0 * one, one))):
        vectors = Vectors(items, users, [[]] * len(users), np.ones(len(items), bool), [None] * len(users))
        night, results = searched(tmp_path / str(at), vectors)
        assert list(lists_of(night).values()) == [[]] * len(users)
        assert results["retrieve"].metrics["short"] == len(users)


def test_five_thousand_seen_items_leave_k_whatever_the_index(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    items = unit_rows(rng.standard_normal((6000, 16)).astype(np.float32))
    users = unit_rows(rng.standard_normal((3, 16)).astype(np.float32))
    best_first = np.argsort(-(items @ users[0])).tolist()
    seen = [best_first[:5000], best_first[:5950], []]
    vectors = Vectors(items, users, seen, np.ones(6000, bool), [None] * 3)
    for factory in ("auto", "IVF16,Flat"):
        night, results = searched(
            tmp_path / factory,
            vectors,
            build_index={"factory": factory},
            retrieve={"k_prime": K, "nprobe": 16},
        )
        check(vectors, lists_of(night), [set(range(6000))] * 3)
        recall = results["retrieve"].metrics["index_recall_by_activity"]
        assert recall["100+"] == {"users": 2, "before_filters": 1.0, "after_filters": 1.0}


def test_vectors_that_do_not_fit_are_one_sentence(tmp_path: Path) -> None:
    vectors = made()
    other = replace(vectors, users=unit_rows(vectors.users[:, :9]))
    with pytest.raises(ContractError, match=r"queries: expected \(n, 24\) vectors, got shape \(20, 9\)"):
        searched(tmp_path / "dim", other, on_ray=True)
    bad = vectors.items.copy()
    bad[7] = np.nan
    with pytest.raises(ContractError, match="not finite"):
        searched(tmp_path / "nan", replace(vectors, items=bad))
    with pytest.raises(ConfigError, match="does not know the index factory 'Flatt'"):
        searched(tmp_path / "factory", vectors, build_index={"factory": "Flatt"})
