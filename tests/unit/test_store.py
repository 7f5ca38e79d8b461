"""The store: what committed means under crashes, bytes that rows alone decide, contracts, damage."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nightjar import store as store_module
from nightjar.errors import ContractError, NotCommitted, StorageError
from nightjar.store import (
    ROWS_PER_GROUP,
    Attempt,
    Committed,
    Dataset,
    FileEntry,
    Manifest,
    Store,
    committed_dates,
    damage,
    sha256_of,
)
from nightjar.tables import CANDIDATES, ITEM_EMBEDDINGS, RECOMMENDATIONS, USERS, Table, vector_column

PAIRS = Table("pairs", pa.schema([pa.field("k", pa.string(), nullable=False), ("n", pa.int64())]), key=("k",))
DS = "2025-03-31"


class Killed(BaseException):
    """Stands for kill -9: no handler of ours may catch it."""


@contextlib.contextmanager
def killed_at(step: int, after: bool) -> Iterator[None]:
    """The process dies just before or just after its step-th file is put in place."""
    whole, count = store_module._replace, iter(range(1_000))

    def replace(aside: Path, target: Path) -> None:
        last = next(count) == step
        if last and not after:
            raise Killed
        whole(aside, target)
        if last:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(store_module, "_replace", replace)
        yield


def pairs(numbers: range, shift: int = 0) -> pa.Table:
    columns = {"k": [f"k{n:07d}" for n in numbers], "n": [n + shift for n in numbers]}
    return pa.table(columns, schema=PAIRS.schema)


def dataset(root: Path | str, table: Table = PAIRS) -> Dataset:
    return Dataset(Store(str(root)), table, DS)


def commit(attempt: Attempt, entries: list[FileEntry]) -> Committed:
    rows = sum(entry.rows for entry in entries)
    table, fingerprint = attempt.dataset.table.name, attempt.fingerprint
    return attempt.commit(Manifest(table, DS, "s", fingerprint, tuple(entries), rows, ()))


def committed(root: Path | str, fingerprint: str = "one", shift: int = 0) -> Committed:
    attempt = dataset(root).attempt(fingerprint)
    return commit(attempt, [attempt.write_part(p, [pairs(range(9 * p, 9 * p + 9), shift)]) for p in range(2)])


@settings(max_examples=30, stateful_step_count=20)
class Crashes(RuleBasedStateMachine):
    """Attempts written, committed and killed at any step; a reader sees one whole commit or none."""

    @initialize()
    def start(self) -> None:
        in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # thousands of fsyncs
        self.folder = tempfile.TemporaryDirectory(dir=in_memory)
        self.dataset = dataset(self.folder.name)
        self.live: str | None = None
        self.ever: set[str] = set()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    fingerprints = st.sampled_from(["a", "b", "c"])
    parts = st.integers(0, 2)

    def _rows(self, fingerprint: str, part: int) -> pa.Table:
        return pairs(range(part * 5, part * 5 + ord(fingerprint) % 3 + part), ord(fingerprint) * 100)

    def _write(self, fingerprint: str, part: int) -> FileEntry:
        return self.dataset.attempt(fingerprint).write_part(part, [self._rows(fingerprint, part)])

    def _whole(self, fingerprint: str) -> list[FileEntry]:
        """What a stage does: parts that are done stay, the others are written."""
        attempt = self.dataset.attempt(fingerprint)
        return [attempt.done(part) or self._write(fingerprint, part) for part in range(3)]

    @rule(fingerprint=fingerprints, part=parts)
    def write(self, fingerprint: str, part: int) -> None:
        self._write(fingerprint, part)

    @rule(fingerprint=fingerprints, part=parts, step=st.integers(0, 1), after=st.booleans())
    def killed_while_writing(self, fingerprint: str, part: int, step: int, after: bool) -> None:
        with killed_at(step, after):
            self._write(fingerprint, part)

    @rule(fingerprint=fingerprints, part=parts)
    def refused(self, fingerprint: str, part: int) -> None:
        """The second batch breaks the contract after the first was written."""
        with pytest.raises(ContractError):
            self.dataset.attempt(fingerprint).write_part(part, [pairs(range(3)), pairs(range(2, 4))])

    @rule(fingerprint=fingerprints)
    def commits(self, fingerprint: str) -> None:
        commit(self.dataset.attempt(fingerprint), self._whole(fingerprint))
        self.live = fingerprint
        self.ever.add(fingerprint)

    @rule(fingerprint=fingerprints, step=st.integers(0, 1), after=st.booleans())
    def killed_while_committing(self, fingerprint: str, step: int, after: bool) -> None:
        entries = self._whole(fingerprint)
        with killed_at(step, after):
            commit(self.dataset.attempt(fingerprint), entries)
        if step == 1 and after:
            self.live = fingerprint
        if (step, after) != (0, False):
            self.ever.add(fingerprint)

    @invariant()
    def one_whole_commit(self) -> None:
        if not hasattr(self, "dataset"):
            return
        found = self.dataset.committed()
        assert (found.manifest.fingerprint if found else None) == self.live
        seen = [found] if found else []
        for fingerprint in self.ever:
            attempt = self.dataset.of_attempt(fingerprint)
            assert attempt is not None
            seen.append(attempt)
        for one in seen:
            rows = pa.concat_tables(self._rows(one.manifest.fingerprint, part) for part in range(3))
            assert one.read().to_pydict() == rows.to_pydict()
            assert damage(one) == []


TestCrashes = Crashes.TestCase


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", range(6))
def test_death_at_each_step_of_a_second_night_leaves_the_first_whole(
    tmp_path: Path, step: int, after: bool
) -> None:
    first = committed(tmp_path).read()
    with killed_at(step, after):
        committed(tmp_path, "two", shift=1)
    found = dataset(tmp_path).require("s")
    wanted = pairs(range(18), 1) if (step, after) == (5, True) else first
    assert found.read().to_pydict() == wanted.to_pydict()


def test_an_exception_inside_the_rows_leaves_no_part_and_no_litter(tmp_path: Path) -> None:
    committed(tmp_path)
    attempt = dataset(tmp_path).attempt("two")

    def rows() -> Iterator[pa.Table]:
        yield pairs(range(ROWS_PER_GROUP))
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        attempt.write_part(0, rows())
    assert attempt.done(0) is None
    assert list(Path(tmp_path, attempt.folder).rglob("*")) == []


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '"x"', '{"name": "x"}', '{"files": 3}', "\xff"])
def test_bytes_that_are_no_manifest_are_named(tmp_path: Path, text: str) -> None:
    data = committed(tmp_path).dataset
    path = Path(data.store.path(data.folder, "MANIFEST.json"))
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(StorageError, match=r"MANIFEST\.json is no manifest"):
        data.committed()


@pytest.mark.parametrize("text", [b"", b"{", b"null", b'{"odd": 1}'])
def test_a_marker_that_cannot_be_read_means_not_done(tmp_path: Path, text: bytes) -> None:
    attempt = dataset(tmp_path).attempt("one")
    entry = attempt.write_part(0, [pairs(range(5))])
    assert attempt.done(0) == entry
    Path(tmp_path, attempt.folder, f"{entry.name}.done.json").write_bytes(text)
    assert attempt.done(0) is None


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"PAR1")])
def test_a_part_that_is_gone_or_cut_is_not_done(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    attempt = dataset(tmp_path).attempt("one")
    entry = attempt.write_part(0, [pairs(range(5))])
    spoil(Path(tmp_path, attempt.folder, entry.name))
    assert attempt.done(0) is None


def test_parts_must_be_dense_and_of_the_attempt(tmp_path: Path) -> None:
    attempt = dataset(tmp_path).attempt("one")
    first, third = (attempt.write_part(part, [pairs(range(3))]) for part in (0, 2))
    with pytest.raises(ContractError, match="0…1"):
        commit(attempt, [first, third])
    with pytest.raises(ContractError, match="another fingerprint"):
        attempt.commit(Manifest("pairs", DS, "s", "two", (first,), 3, ()))
    with pytest.raises(NotCommitted, match=f"pairs has no commit for {DS} under {tmp_path}; run `nightjar s"):
        attempt.dataset.require("s")


N_ROWS = 2 * ROWS_PER_GROUP + 77
LONG = pairs(range(N_ROWS))


@pytest.fixture(scope="module")
def long_sha(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("long")
    return dataset(folder).attempt("f").write_part(0, [LONG]).sha256


@settings(max_examples=12)
@given(st.lists(st.integers(0, N_ROWS), max_size=6), st.booleans())
def test_bytes_do_not_depend_on_batches(long_sha: str, cuts: list[int], as_batches: bool) -> None:
    edges = [0, *sorted(cuts), N_ROWS]
    pieces = [LONG.slice(start, stop - start) for start, stop in itertools.pairwise(edges)]
    rows = [batch for piece in pieces for batch in piece.to_batches()] if as_batches else pieces
    with tempfile.TemporaryDirectory() as folder:
        entry = dataset(folder).attempt("f").write_part(0, rows)
        assert (entry.sha256, entry.rows) == (long_sha, N_ROWS)
        assert sha256_of(Path(folder, f"pairs/ds={DS}/f/part-00000.parquet")) == long_sha


@settings(max_examples=15)
@given(st.lists(st.integers(0, 40), max_size=5), st.integers(0, 2))
def test_bytes_of_nested_columns_do_not_depend_on_batches(cuts: list[int], column: int) -> None:
    """Vectors, lists and nulls, in slices with offsets of their own."""
    rng = np.random.default_rng(3)
    ids = [f"i{n:03d}" for n in range(40)]
    vectors = rng.normal(size=(40, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    lists = [sorted(rng.normal(size=n % 4).tolist(), reverse=True) for n in range(40)]
    table, rows = [
        (
            ITEM_EMBEDDINGS,
            pa.table({"item_id": ids, "text_hash": ids, "embedding": vector_column(vectors)}),
        ),
        (
            CANDIDATES,
            pa.table(
                {
                    "user_id": ids,
                    "source": ["personal"] * 40,
                    "item_nums": pa.array([list(range(n % 4)) for n in range(40)], pa.list_(pa.int64())),
                    "scores": pa.array(lists, pa.list_(pa.float32())),
                }
            ),
        ),
        (
            USERS,
            pa.table(
                {
                    "user_id": ids,
                    "segment": [None if n % 3 else f"s{n % 2}" for n in range(40)],
                    "n_events": list(range(40)),
                    "n_items": list(range(40)),
                    "last_event_time": pa.nulls(40, pa.timestamp("us", tz="UTC")),
                }
            ),
        ),
    ][column]
    edges = [0, *sorted(cuts), 40]
    pieces = [rows.slice(start, stop - start) for start, stop in itertools.pairwise(edges)]
    with tempfile.TemporaryDirectory() as folder:
        data = dataset(folder, table)
        whole = data.attempt("f", dim=4).write_part(0, [rows])
        cut = data.attempt("g", dim=4).write_part(0, pieces)
        assert whole.sha256 == cut.sha256
        found = commit(data.attempt("g"), [cut]).read()
        assert found.to_pylist() == rows.cast(found.schema).to_pylist()


@pytest.mark.parametrize("at", [1, 100, ROWS_PER_GROUP - 1, ROWS_PER_GROUP, ROWS_PER_GROUP + 1, N_ROWS - 1])
def test_a_repeated_key_is_refused_also_where_a_row_group_ends(tmp_path: Path, at: int) -> None:
    rows = pa.concat_tables([LONG.slice(0, at), LONG.slice(at - 1)])
    attempt = dataset(tmp_path).attempt("f")
    with pytest.raises(ContractError, match=r"pairs: 1 rows repeat a key \(k\)"):
        attempt.write_part(0, [rows])
    assert attempt.done(0) is None
    assert list(Path(tmp_path, attempt.folder).rglob("*")) == []


def _recommendations(ranks: list[int], users: list[str] | None = None) -> pa.Table:
    n = len(ranks)
    return pa.table(
        {
            "user_id": users or ["u"] * n,
            "rank": pa.array(ranks, pa.int32()),
            "item_id": [f"i{number}" for number in range(n)],
            "score": pa.array(np.linspace(1, 0, n), pa.float32()),
            "source": ["personal"] * n,
            "reason": pa.array([[]] * n, RECOMMENDATIONS.schema.field("reason").type),
        }
    )


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of three rows, so that lists cross them."""
    monkeypatch.setattr(store_module, "ROWS_PER_GROUP", 3)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("fault", ["gap", "start", "item", None])
@pytest.mark.parametrize("first", range(6))
def test_lists_that_cross_row_groups_are_held_whole(tmp_path: Path, fault: str | None, first: int) -> None:
    """A list of `first` rows, then one of 7 that crosses two edges, then one more."""
    users = ["a"] * first + ["b"] * 7 + ["c"] * 2
    ranks = [*range(1, first + 1), *range(1, 8), 1, 2]
    rows = _recommendations(ranks, users)
    if fault == "gap":
        ranks[first + 4 :] = [9, 10, 11, 1, 2]
        rows = _recommendations(ranks, users)
    elif fault == "start":
        rows = rows.slice(first + 1)
    elif fault == "item":
        items = rows["item_id"].to_pylist()
        items[first + 6] = items[first]
        rows = rows.set_column(2, "item_id", pa.array(items))
    attempt = dataset(tmp_path, RECOMMENDATIONS).attempt("f")
    if fault is None:
        assert attempt.write_part(0, [rows]).rows == first + 9
        return
    with pytest.raises(ContractError, match=r"^recommendations: (ranks|an item)"):
        attempt.write_part(0, [rows])
    assert attempt.done(0) is None


def _embeddings(matrix: np.ndarray, **columns: object) -> pa.Table:
    ids = [f"i{n}" for n in range(len(matrix))]
    return pa.table({"item_id": ids, "text_hash": ids, "embedding": vector_column(matrix), **columns})


UNIT = np.eye(4, dtype=np.float32)
WITH_NAN = np.where(UNIT == 1, np.nan, 0).astype(np.float32)
REFUSED = {
    "extra column": (_embeddings(UNIT, more=[1] * 4), "more"),
    "missing column": (_embeddings(UNIT).drop_columns(["text_hash"]), "text_hash"),
    "column twice": (_embeddings(UNIT).append_column("text_hash", pa.array(["x"] * 4)), "text_hash"),
    "null": (_embeddings(UNIT).set_column(1, "text_hash", pa.array(["x", None, "x", "x"])), "text_hash"),
    "null in a vector": (
        _embeddings(UNIT).set_column(
            2, "embedding", pa.array([[1.0, None, 0, 0]] * 4, pa.list_(pa.float32(), 4))
        ),
        "embedding",
    ),
    "null vector": (
        _embeddings(UNIT).set_column(
            2, "embedding", pa.array([[1.0, 0, 0, 0], None] * 2, pa.list_(pa.float32()))
        ),
        "embedding",
    ),
    "NaN": (_embeddings(WITH_NAN), "4 values of embedding"),
    "not of length 1": (_embeddings(2 * UNIT), "4 vectors of embedding"),
    "too long": (_embeddings(np.eye(5, dtype=np.float32)), "embedding"),
    "too short": (_embeddings(np.eye(3, dtype=np.float32)), "embedding"),
    "ragged": (
        _embeddings(UNIT).set_column(2, "embedding", pa.array([[1.0]] * 4, pa.list_(pa.float32()))),
        "embedding",
    ),
    "no vector": (_embeddings(UNIT).set_column(2, "embedding", pa.array(["x"] * 4)), "embedding"),
    "another type": (_embeddings(UNIT).set_column(0, "item_id", pa.array([[1]] * 4)), "item_id"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_breach_of_contract_names_the_column_and_leaves_nothing(tmp_path: Path, fault: str) -> None:
    rows, named = REFUSED[fault]
    attempt = dataset(tmp_path, ITEM_EMBEDDINGS).attempt("f", dim=4)
    with pytest.raises(ContractError, match=f"item_embeddings.*{named}"):
        attempt.write_part(0, [rows])
    assert attempt.done(0) is None
    assert list(Path(tmp_path, attempt.folder).rglob("*")) == []


@pytest.mark.parametrize(
    ("nums", "scores", "fault"),
    [
        ([1, 2], [1.0], "differ in length"),
        ([1, -1], [1.0, 0.5], "negative"),
        ([1, 2], [0.5, 1.0], "rise"),
        ([1, 2, 1], [3.0, 2.0, 1.0], "twice"),
        ([1, None], [1.0, 0.5], "nulls in item_nums"),
        ([1, 2], [1.0, None], "nulls in scores"),
        ([1, 2], [1.0, float("nan")], "finite"),
        ([1, 2], [float("inf"), 1.0], "finite"),
    ],
)
def test_broken_candidate_lists_are_refused(
    tmp_path: Path, nums: list[int | None], scores: list[float | None], fault: str
) -> None:
    sound = {"item_nums": [4, 3], "scores": [1.0, 1.0]}
    rows = pa.table(
        {
            "user_id": ["a", "b"],
            "source": ["personal"] * 2,
            "item_nums": pa.array([sound["item_nums"], nums], pa.list_(pa.int64())),
            "scores": pa.array([sound["scores"], scores], pa.list_(pa.float32())),
        }
    )
    with pytest.raises(ContractError, match=f"candidates.*{fault}"):
        dataset(tmp_path, CANDIDATES).attempt("f").write_part(0, [rows])


def test_batches_of_different_types_are_refused_in_words(tmp_path: Path) -> None:
    odd = pa.table({"k": ["z"], "n": ["three"]})
    with pytest.raises(ContractError, match="pairs: rows came in batches of different columns or types"):
        dataset(tmp_path).attempt("f").write_part(0, [pairs(range(2)), odd])


def test_a_vector_table_needs_its_dimension(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"item_embeddings.*dimension"):
        dataset(tmp_path, ITEM_EMBEDDINGS).attempt("f").write_part(0, [])


@pytest.fixture
def object_store() -> Iterator[str]:
    name = f"bucket{uuid.uuid4().hex}"
    yield f"memory://{name}/root"
    with contextlib.suppress(FileNotFoundError):
        fsspec.filesystem("memory").rm(f"/{name}", recursive=True)


def test_an_object_store_holds_commits_too(object_store: str) -> None:
    store = Store(object_store)
    assert not store.is_local
    assert store.get("none.json") is None
    assert store.children("none") == []
    with pytest.raises(NotCommitted, match="memory://"):
        dataset(object_store).require("s")
    found = committed(object_store)
    assert found.read().to_pydict() == pairs(range(18)).to_pydict()
    assert [len(batch) for entry in found.parts for batch in found.batches(entry)] == [9, 9]
    assert committed_dates(store, PAIRS) == [DS]
    assert found.paths()[0].startswith(f"{object_store}/pairs/ds={DS}/one/part-")
    assert damage(found) == []
    assert found.dataset.attempt("one").done(1) == found.parts[1]
    again = committed(object_store, "two", shift=5)
    assert [entry.sha256 for entry in found.parts] != [entry.sha256 for entry in again.parts]
    assert dataset(object_store).require("s").manifest.fingerprint == "two"
    store.put(found.name_of(found.parts[0]), b"PAR1")
    assert [fault.split(" has changed")[0] for fault in damage(found)] == [found.path(found.parts[0])]
    store.drop(f"pairs/ds={DS}")
    assert dataset(object_store).committed() is None


def test_bytes_are_the_same_on_every_kind_of_root(tmp_path: Path, object_store: str) -> None:
    assert committed(tmp_path).parts == committed(object_store).parts


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(_flipped(path.read_bytes())), "has changed"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "has changed"),
        (lambda path: path.write_bytes(b""), "has changed"),
        (Path.unlink, "cannot be read"),
    ],
)
@pytest.mark.parametrize("part", [0, 1])
def test_damage_is_found(tmp_path: Path, part: int, spoil: Callable[[Path], object], said: str) -> None:
    found = committed(tmp_path)
    path = Path(found.path(found.parts[part]))
    spoil(path)
    assert [str(path) in fault and said in fault for fault in damage(found)] == [True]


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no parquet at all" * 40])
def test_reading_a_damaged_part_says_what_to_do(tmp_path: Path, data: bytes) -> None:
    found = committed(tmp_path)
    Path(found.path(found.parts[0])).write_bytes(data)
    for read in (found.read, lambda: list(found.batches(found.parts[0]))):
        with pytest.raises(StorageError, match=r"part-00000\.parquet is damaged .* run `nightjar verify`"):
            read()


def test_a_flipped_byte_is_never_a_traceback(tmp_path: Path) -> None:
    """Each byte of a part turned over in turn: the rows come, or a sentence."""
    found = committed(tmp_path)
    path = Path(found.path(found.parts[0]))
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        for read in (lambda: found.read_part(found.parts[0]), lambda: list(found.batches(found.parts[0]))):
            with contextlib.suppress(StorageError):
                read()


@pytest.mark.parametrize(
    "root", ["nosuch://x/y", "hdfs://no-such-host.invalid:1/x", "~no_such_user/x", "s3://"]
)
def test_a_root_that_cannot_be_reached_is_one_sentence(root: str) -> None:
    with pytest.raises(StorageError) as refused:
        Store(root).get("x")
    assert "\n" not in str(refused.value)


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own, or a skip where this process may not mount one."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_sentence_and_the_old_commit_stays(tmp_path: Path) -> None:
    with mounted(tmp_path, "size=256k"):
        found = committed(tmp_path)
        attempt = found.dataset.attempt("two")
        noise = np.random.default_rng(0).integers(0, 1 << 60, 100_000)
        rows = pa.table({"k": [f"k{n:07d}" for n in range(100_000)], "n": noise})
        with pytest.raises(StorageError, match="the disk is full; free some space"):
            attempt.write_part(0, [rows])
        artefact = tmp_path.parent / "artefact"
        artefact.write_bytes(bytes(1 << 20))
        for write in (
            lambda: attempt.put_artefact(artefact, "shard.faiss"),
            lambda: found.dataset.store.put("LATEST.json", bytes(1 << 20)),
        ):
            with pytest.raises(StorageError, match="the disk is full; free some space"):
                write()
        assert [path for path in tmp_path.rglob("*") if ".tmp-" in path.name] == []
        assert damage(dataset(tmp_path).require("s")) == []
        assert attempt.write_part(0, [pairs(range(9))]).rows == 9  # there is room again for a small one


def test_a_read_only_root_is_one_sentence(tmp_path: Path) -> None:
    with mounted(tmp_path, "size=1m"):
        found = committed(tmp_path)
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        store, attempt = found.dataset.store, found.dataset.attempt("one")
        for write in (
            lambda: attempt.write_part(0, [pairs(range(2))]),
            lambda: found.dataset.attempt("two").write_part(0, [pairs(range(2))]),
            lambda: commit(attempt, list(found.parts)),
            lambda: store.put("x", b""),
            lambda: store.scratch("new"),
            lambda: store.drop(found.dataset.folder),
        ):
            with pytest.raises(StorageError, match="read-only"):
                write()
        assert found.read().num_rows == 18


def test_a_folder_of_somebody_else_is_one_sentence() -> None:
    with unprivileged() as folder:
        found = committed(folder / "mine")
        locked = folder / "locked"
        locked.mkdir(mode=0o500)
        with pytest.raises(StorageError, match="permission denied; check the owner and mode"):
            committed(locked)
        Path(found.path(found.parts[0])).chmod(0)
        with pytest.raises(StorageError, match="permission denied"):
            found.read()


@contextlib.contextmanager
def unprivileged() -> Iterator[Path]:
    """A folder of the user that the block runs as; root drops its rights for the while."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        nobody = 65534
        if os.getuid() == 0:
            os.chown(name, nobody, nobody)
            os.seteuid(nobody)
        try:
            yield Path(name)
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
