import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightjar.engines import bulk
from nightjar.engines.bulk import compiled, dense, products, search
from nightjar.engines.bulk.codes import Rotation, encode, fit_rotation, margins
from nightjar.engines.bulk.search import _score
from nightjar.engines.shards import Effort
from nightjar.errors import ConfigError, ContractError, StorageError
from nightjar.kernels.sweep import sweep_topk
from nightjar.kernels.topk import F32, I64, Filters, TopK, index_recall, rescore, vector_norms
from tests.unit.test_index import gaussian_world, same_bytes
from tests.unit.topk_oracle import World, as_answer, brute_force, lists_of, whole_vectors, worlds

TILES = pytest.param("tiles", marks=pytest.mark.skipif(not products.has_tiles(), reason="no AMX here"))
INT8 = pytest.param("int8", marks=pytest.mark.skipif(not products.has_int8(), reason="no VNNI here"))


@pytest.fixture(params=[TILES, INT8, "fp32"])
def by_int8(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """All ways to propose: int8 by tiles and by vectors where the machine has them, fp32 everywhere."""
    monkeypatch.setattr(products, "has_tiles", lambda: request.param == "tiles")
    monkeypatch.setattr(products, "has_int8", lambda: request.param != "fp32")
    return bool(request.param != "fp32")


def shards_of(matrix: F32, part_of: I64, folder: Path) -> list[bulk.BulkShard]:
    shards = []
    for part in range(int(part_of.max()) + 1):
        items = np.flatnonzero(part_of == part)
        path = folder / f"part-{part}.bulk"
        shards.append(bulk.open_shard(path, bulk.build_shard(matrix[items], items, path).sha256))
    return shards


def clustered_world(n_items: int = 9000, n_users: int = 80) -> tuple[F32, F32, Filters]:
    """Enough items for lists, in clusters with a common direction, of lengths that differ a hundredfold."""
    rng = np.random.default_rng(6)
    centres = rng.standard_normal((30, 100)) + 0.5
    matrix = centres[rng.integers(0, 30, n_items)] + 0.4 * rng.standard_normal((n_items, 100))
    matrix *= 10 ** rng.uniform(-1, 1, (n_items, 1)) ** 3
    matrix[4000:4200] = matrix[3]
    queries = centres[rng.integers(0, 30, n_users)] + 0.3 * rng.standard_normal((n_users, 100))
    seen = [set(rng.choice(n_items, rng.integers(0, 900), replace=False).tolist()) for _ in range(n_users)]
    seen[1] = set(range(n_items - 20))
    deny = [set(rng.choice(n_items, 5, replace=False).tolist()) for _ in range(n_users)]
    filters = Filters(lists_of(seen), lists_of(deny), rng.random(n_items) < 0.8)
    return matrix.astype(np.float32), queries.astype(np.float32), filters


def slow_world(n_items: int = 9000, n_users: int = 80) -> tuple[F32, F32, Filters]:
    """Energy that falls off so slowly that a sweep stops before the end of the codes."""
    rng = np.random.default_rng(7)
    amplitude = (1 + np.arange(384)) ** -0.45
    centres = rng.standard_normal((3000, 384))
    matrix = (
        centres[rng.integers(0, 3000, n_items)] + 0.75 * rng.standard_normal((n_items, 384))
    ) * amplitude
    queries = (
        centres[rng.integers(0, 3000, n_users)] + 0.3 * rng.standard_normal((n_users, 384))
    ) * amplitude
    seen = [set(rng.choice(n_items, 400, replace=False).tolist()) for _ in range(n_users)]
    seen[1] = set(range(n_items - 20))
    return matrix.astype(np.float32), queries.astype(np.float32), Filters(lists_of(seen))


@pytest.mark.usefixtures("by_int8")
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(worlds(), st.integers(1, 30), st.sampled_from([1, 2, 5]))
def test_the_threshold_join_is_a_full_sort(tmp_path: Path, world: World, k: int, n_shards: int) -> None:
    part_of = np.append(world.rng.integers(0, n_shards, len(world.matrix) - 1), n_shards - 1)
    shards = shards_of(world.matrix, part_of, tmp_path)
    found = bulk.search_shards(shards, world.queries, k, world.matrix, world.filters)
    assert as_answer(found) == world.answer(k)


@pytest.mark.usefixtures("by_int8")
def test_the_same_bytes_for_any_shards_threads_and_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for make in (clustered_world, gaussian_world, slow_world):
        matrix, queries, filters = make()
        expected = sweep_topk(queries, matrix, 50, filters)
        assert expected.n_found.min() < 50
        rng = np.random.default_rng(0)
        for n_shards in (1, 2, 5):
            part_of = rng.integers(0, n_shards, len(matrix))
            shards = shards_of(matrix, part_of, tmp_path / f"{make.__name__}{n_shards}")
            facts = shards[0].rotation
            assert n_shards > 1 or (facts.n_swept < facts.n_head) == (make is slow_world)
            for threads, users, rows, columns in ((2, 8192, 512, 1024), (1, 33, 7, 64)):
                # With threads 1 the floor comes from lists and vectors are copied together, with 2 neither.
                monkeypatch.setattr("nightjar.engines.bulk.search.USERS_PER_LIST", 0 if threads == 1 else 99)
                monkeypatch.setattr("nightjar.engines.bulk.search.MANY_USERS", 1 if threads == 1 else 99999)
                monkeypatch.setattr("nightjar.engines.bulk.search.USER_BLOCK", users)
                monkeypatch.setattr("nightjar.engines.bulk.search.ROWS", rows)
                monkeypatch.setattr("nightjar.engines.bulk.search.COLUMNS", columns)
                found = bulk.search_shards(shards, queries, 50, matrix, filters, Effort(threads=threads))
                assert same_bytes(found, expected), (n_shards, threads, users)


@pytest.mark.usefixtures("by_int8")
def test_lists_are_used_and_their_floor_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nightjar.engines.bulk.search.USERS_PER_LIST", 0)
    floors: list[F32] = []
    sweep = search._sweep

    def watched(task: search.Task, block: search._Block, floor: F32) -> TopK:
        floors.append(floor)
        return sweep(task, block, floor)

    monkeypatch.setattr(search, "_sweep", watched)
    matrix, queries, _ = clustered_world()
    [shard] = shards_of(matrix, np.zeros(len(matrix), np.int64), tmp_path)
    assert len(shard.centroids) > 100 and shard.list_starts[-1] == len(matrix)
    expected = sweep_topk(queries, matrix, 10, Filters())
    assert same_bytes(bulk.search_shards([shard], queries, 10, matrix), expected)
    [floor] = floors
    assert (floor <= expected.scores[:, -1]).all() and (floor > 0.5 * expected.scores[:, -1]).mean() > 0.9


def test_the_upper_bound_holds_and_is_tight() -> None:
    matrix, queries, _ = clustered_world(2000)
    scores = queries.astype(np.float64) @ matrix.T.astype(np.float64)
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(matrix, axis=1)
    rotation = fit_rotation(matrix, 0)
    items, users = encode(matrix, rotation, precise=True), encode(queries, rotation, precise=False)
    dots = users.codes.astype(np.int64) @ items.codes.T.astype(np.int64)
    bound = dots * np.outer(users.scale, items.scale.astype(np.float64)) + np.outer(
        users.common, items.common
    )
    bound += np.outer(users.head, items.error) + np.outer(users.error, items.coded)
    bound += np.outer(users.tail, items.tail)
    slack = (
        bound + margins(vector_norms(queries, "q"), rotation)[:, None] * vector_norms(matrix, "x") - scores
    )
    assert slack.min() >= 0
    assert np.median(slack / lengths) < 0.1


@pytest.mark.usefixtures("by_int8")
def test_a_direction_outside_the_head_still_decides(tmp_path: Path) -> None:
    """Too rare to be coded, but all that users care for: only the bound's tail term finds its items."""
    rng = np.random.default_rng(8)
    matrix = rng.standard_normal((6000, 100)).astype(np.float32)
    matrix[:, 70:] *= 0.01
    matrix[4050:4060, 99] = np.linspace(0.5, 1, 10)
    queries = rng.standard_normal((5, 100)).astype(np.float32)
    queries[:, 99] += 300
    [shard] = shards_of(matrix, np.zeros(6000, np.int64), tmp_path)
    assert shard.rotation.n_head == 64
    found = bulk.search_shards([shard], queries, 10, matrix)
    assert sorted(found.item_nums[0]) == list(range(4050, 4060))
    assert same_bytes(found, sweep_topk(queries, matrix, 10, Filters()))


@pytest.mark.usefixtures("by_int8")
@pytest.mark.parametrize("whose", ["items", "users"])
def test_what_a_coarse_code_loses_still_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """One coordinate sets the scale, the others are lost in rounding and decide: an error term finds them.

    Without the random mixing of the head every code of the coarse side is the same, and the estimates are 0.
    """
    plain = Rotation(np.eye(60, dtype=np.float32), 0.0, 64, 64)
    monkeypatch.setattr("nightjar.engines.bulk.shard.fit_rotation", lambda *_: plain)
    rng = np.random.default_rng(9)
    matrix = rng.choice(np.float32([-1, 1]), (4000, 60))
    queries = rng.choice(np.float32([-1, 1]), (40, 60))
    coarse, other = (matrix, queries) if whose == "items" else (queries, matrix)
    coarse[:, 2:] *= np.float32(0.49)
    coarse[:, 1] = 127
    other[:, :2] = 0
    shards = shards_of(matrix, np.arange(4000) % 2, tmp_path)
    found = bulk.search_shards(shards, queries, 10, matrix)
    assert same_bytes(found, sweep_topk(queries, matrix, 10, Filters()))


@pytest.mark.usefixtures("by_int8")
def test_scores_that_differ_by_less_than_their_rounding_are_ordered_exactly(tmp_path: Path) -> None:
    """A thousand copies apart by 1e-7: products and the definition round them differently."""
    rng = np.random.default_rng(10)
    one = rng.standard_normal(200)
    matrix = (one + 1e-7 * rng.standard_normal((1000, 200))).astype(np.float32)
    queries = (one + rng.standard_normal((20, 200))).astype(np.float32)
    shards = shards_of(matrix, np.arange(1000) % 2, tmp_path)
    found = bulk.search_shards(shards, queries, 20, matrix)
    assert same_bytes(found, sweep_topk(queries, matrix, 20, Filters()))
    oracle = rescore(queries, matrix, np.tile(np.arange(1000), (20, 1)))
    best = np.lexsort((np.tile(np.arange(1000), (20, 1)), -oracle), axis=1)[:, :20]
    assert np.array_equal(found.item_nums, best)


@pytest.mark.parametrize("n_dims", [1, 2, 5, 63, 64, 65, 100, 384, 1000])
def test_compiled_scores_have_the_bits_of_the_definition(n_dims: int) -> None:
    rng = np.random.default_rng(n_dims)
    queries = rng.standard_normal((9, n_dims)).astype(np.float32)
    matrix = rng.standard_normal((50, n_dims)).astype(np.float32)
    items = rng.integers(-1, 50, (9, 30))
    expected = rescore(queries, matrix, items)
    order = rng.permutation(9)
    assert _score(queries, matrix, items, order).tobytes() == expected.tobytes()
    assert _score(queries, np.asfortranarray(matrix), items, order).tobytes() == expected.tobytes()


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 60))
def test_best_first_selects(seed: int, n: int, k: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 9, n).astype(np.float32)
    k, items = min(k, n), np.arange(n)
    ordered = np.sort(scores)[::-1]
    mixed, moved = scores.copy(), items.copy()
    assert compiled.best_first(mixed, moved, n, k) == ordered[k - 1]
    assert np.array_equal(np.sort(mixed[:k])[::-1], ordered[:k])
    assert np.array_equal(scores[moved], mixed) and sorted(moved) == sorted(items)


@pytest.mark.parametrize("n_dims", [4, 64, 256, 384, 1024])
def test_the_int8_product_is_exact_where_it_is_used(n_dims: int) -> None:
    if not products.has_int8():
        pytest.skip("no VNNI on this machine")
    rng, torch = np.random.default_rng(1), products.torch
    users = rng.integers(-127, 128, (compiled.USERS, n_dims), dtype=np.int8)
    items = rng.integers(-127, 128, (compiled.GROUP, n_dims), dtype=np.int8)
    users[0], users[1], items[0], items[1] = 127, -127, 127, -127
    expected = users.astype(np.int64) @ items.T.astype(np.int64)
    for n_lanes in (compiled.GROUP, compiled.HALF):
        found, masks = products.products_once(users, items, n_lanes)
        assert np.array_equal(found, expected[:, :n_lanes])
        bits = masks[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)
        assert (
            np.array_equal(bits[:, :n_lanes] == 1, expected[:, :n_lanes] > 0) and not bits[:, n_lanes:].any()
        )
    if products.has_tiles():
        packed = torch.ops.onednn.qlinear_prepack(torch.from_numpy(users), None)
        assert np.array_equal(products._by_tiles(torch.from_numpy(items), packed).numpy(), expected.T)


def test_a_processor_that_numba_was_told_of_has_no_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code would be for that processor, and an instruction that it lacks ends the process."""
    monkeypatch.setattr(products.numba.config, "CPU_NAME", "generic")
    assert not products.has_int8.__wrapped__()


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 300), st.integers(0, 5))
def test_the_lists_that_promise_most_are_chosen(seed: int, n_lists: int, count: int, n_first: int) -> None:
    rng, count = np.random.default_rng(seed), min(count, n_lists)
    n_first, width = min(n_first, count), products.up_to_group(n_lists)
    found = rng.integers(-30, 31, (5, width)).astype(np.float32)
    found[4] = np.nan
    found[3, ::8] = 99  # those asked first promise more than the others
    terms, shares = np.ones((2, width), np.float32), rng.random(5).astype(np.float32)
    terms[1] = rng.random(width)
    room, chosen = (np.empty(width, np.float32), np.empty(width, np.int32)), np.empty((5, count), np.int64)
    compiled.choose_lists(found, terms, shares, n_lists, n_first, room, chosen)
    assert all(len(set(row)) == count and max(row) < n_lists for row in chosen.tolist())
    promised = (found + shares[:, None] * terms[1])[:4, :n_lists]
    best = -np.sort(-promised, axis=1)
    got = np.take_along_axis(promised, chosen[:4], axis=1)
    assert np.array_equal(-np.sort(-got, axis=1), best[:, :count])
    assert np.array_equal(-np.sort(-got[:, :n_first], axis=1), best[:, :n_first])
    assert n_first == 0 or np.array_equal(got[:, 0], best[:, 0])


@pytest.mark.usefixtures("by_int8")
def test_groups_of_users_may_get_different_items(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    matrix, queries = whole_vectors(rng, 90, 9), whole_vectors(rng, 8, 9)
    eligible, group = rng.random((3, 90)) < 0.4, rng.integers(0, 3, 8)
    shards = shards_of(matrix, np.arange(90) % 2, tmp_path)
    found = as_answer(
        bulk.search_shards(shards, queries, 12, matrix, Filters(eligible=eligible, group=group))
    )
    for user in range(8):
        mine = set(np.flatnonzero(eligible[group[user]]).tolist())
        assert found[user] == brute_force(queries[user : user + 1], matrix, 12, [set()], mine)[0]


@pytest.mark.usefixtures("by_int8")
@pytest.mark.parametrize(("make", "least"), [(clustered_world, 0.999), (slow_world, 0.998)])
def test_approximate_search_returns_k_and_finds_more_with_more_lists(
    tmp_path: Path, make: Callable[[], tuple[F32, F32, Filters]], least: float
) -> None:
    matrix, queries, filters = make()
    exact = sweep_topk(queries, matrix, 50, filters)
    shards = shards_of(matrix, np.zeros(len(matrix), np.int64), tmp_path)
    recalls = []
    for share in (0.02, 0.3, 1.0):
        found = bulk.search_shards(shards, queries, 50, matrix, filters, Effort(probe_share=share))
        assert (found.n_found == exact.n_found).all()
        assert filters.allowed(found.item_nums)[found.item_nums >= 0].all()
        as_answer(found)
        recalls.append(index_recall(found, exact).mean())
    assert recalls[0] < recalls[1] < recalls[2] + 1e-9 and recalls[2] > least


@pytest.mark.usefixtures("by_int8")
def test_the_vectors_may_be_a_read_only_map(tmp_path: Path) -> None:
    matrix, queries, filters = clustered_world()
    matrix.tofile(tmp_path / "matrix")
    mapped = np.memmap(tmp_path / "matrix", np.float32, "r", shape=matrix.shape)
    shards = shards_of(matrix, np.zeros(len(matrix), np.int64), tmp_path)
    found = bulk.search_shards(shards, queries, 20, mapped, filters)
    assert same_bytes(found, sweep_topk(queries, matrix, 20, filters))


MEMORY = """
import sys, threading, time
from pathlib import Path
import numpy as np
from nightjar.engines import bulk
from nightjar.engines.shards import Effort

def held() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

folder, n, d = Path(sys.argv[1]), int(sys.argv[2]), 256
small = np.random.default_rng(0).standard_normal((20_000, d)).astype(np.float32)
queries = small[:3000] + small[3000:6000]

def search(matrix, name):
    facts = bulk.build_shard(matrix, np.arange(len(matrix)), folder / name)
    shard = bulk.open_shard(folder / name, facts.sha256)
    for share in (None, 0.1):
        bulk.search_shards([shard], queries, 20, matrix, None, Effort(probe_share=share))

search(small, "warm")
matrix = np.load(folder / "items.npy", mmap_mode="r")
before, most, over = held(), [0], threading.Event()

def watch() -> None:
    while not over.wait(0.005):
        most[0] = max(most[0], held())

thread = threading.Thread(target=watch)
thread.start()
search(matrix, "large")
over.set()
thread.join()
print(most[0] - before, matrix.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_vectors_larger_than_the_memory_used_stream_from_disk(tmp_path: Path) -> None:
    """Building and searching a shard of 164 MB of vectors takes less than a third of that."""
    n = 160_000
    rows = np.lib.format.open_memmap(tmp_path / "items.npy", "w+", np.float32, (n, 256))
    rng = np.random.default_rng(1)
    for start in range(0, n, 20_000):
        rows[start : start + 20_000] = rng.standard_normal((20_000, 256), dtype=np.float32)
    rows.flush()
    command = [sys.executable, "-c", MEMORY, str(tmp_path), str(n)]
    # Large blocks go back to the system when they are freed, so that only what is in use counts: glibc keeps
    # 20 to 50 MB of them, and by the threads' timing at times more.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    used, size = map(int, done.stdout.split())
    assert used < size / 3, (used, size)


def test_edges(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    facts = bulk.build_shard(matrix[:0], np.empty(0, np.int64), tmp_path / "empty")
    empty = bulk.open_shard(tmp_path / "empty", facts.sha256)
    shards = [empty, *shards_of(matrix, np.zeros(9, dtype=np.int64), tmp_path)]
    assert bulk.search_shards(shards, matrix[:3].copy(), 20, matrix).n_found.tolist() == [9, 9, 9]
    assert bulk.search_shards([empty], matrix[:3].copy(), 20, matrix).n_found.tolist() == [0, 0, 0]
    assert bulk.search_shards(shards, matrix[:0].copy(), 20, matrix).item_nums.shape == (0, 20)
    same = np.tile(np.float32([0.3, -0.1, 0.7]), (3000, 1))
    repeated = shards_of(same, np.arange(3000) % 3, tmp_path / "same")
    assert bulk.search_shards(repeated, same[:2].copy(), 5, same).item_nums.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_a_shard_file_is_the_same_for_the_same_input_and_checked(tmp_path: Path) -> None:
    matrix, queries, _ = clustered_world()
    facts = [bulk.build_shard(matrix, np.arange(9000), tmp_path / f"{n}", seed=3) for n in range(2)]
    assert facts[0] == facts[1] and facts[0].bytes == (tmp_path / "0").stat().st_size
    content = bytearray((tmp_path / "0").read_bytes())
    content[-70] ^= 1
    (tmp_path / "0").write_bytes(content)
    with pytest.raises(ContractError, match="as committed"):
        bulk.open_shard(tmp_path / "0", facts[0].sha256)
    with pytest.raises(StorageError, match="cannot be read"):
        bulk.open_shard(tmp_path / "none", facts[0].sha256)
    with pytest.raises(ConfigError, match="'exact'"):
        bulk.build_shard(matrix, np.arange(9000), tmp_path / "x", "Flat")
    shard = bulk.open_shard(tmp_path / "1", facts[1].sha256)
    with pytest.raises(ContractError, match="other item vectors"):
        bulk.search_shards([shard], queries, 5, matrix[::-1])
    with pytest.raises(ContractError, match="same item"):
        bulk.search_shards([shard, shard], queries, 5, matrix)
    with pytest.raises(ContractError, match="does not belong"):
        bulk.search_shards([shard], queries, 5, matrix[:100])
    broken = queries.copy()
    broken[7] = np.nan
    with pytest.raises(ContractError, match="queries: row 7 is NaN"):
        bulk.search_shards([shard], broken, 5, matrix)


def test_a_file_that_is_no_bulk_shard_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"junk\n", b'{"format": "other", "arrays": {}}\n'):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ContractError, match="not a bulk shard"):
            bulk.open_shard(tmp_path / "x", hashlib.sha256(content).hexdigest())


@settings(max_examples=30)
@given(worlds(), st.integers(1, 30), st.sampled_from([7, 64, 65_536]))
def test_dense_search_is_a_full_sort(world: World, k: int, tile: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "ITEMS", tile)
        patch.setattr(dense, "USERS", 5)
        found = dense.search_dense(world.queries, k, world.matrix, world.filters, "cpu")
    assert as_answer(found) == world.answer(k)


def test_dense_search_has_the_bytes_of_the_sweep_and_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    for matrix, queries, filters in (gaussian_world(), clustered_world(3000)):
        found = dense.search_dense(queries, 50, matrix, filters, "cpu")
        assert same_bytes(found, sweep_topk(queries, matrix, 50, filters))
    shards = shards_of(matrix, np.arange(len(matrix)) % 2, tmp_path)
    found = bulk.search_shards(shards[:1], queries, 50, matrix, filters, Effort(device="cpu:0"))
    assert same_bytes(found, bulk.search_shards(shards[:1], queries, 50, matrix, filters))
    with pytest.raises(ConfigError, match="device 'nonsense'"):
        dense.search_dense(queries, 5, matrix, device="nonsense")
    with pytest.raises(ContractError, match="row 0 is zero"):
        dense.search_dense(0 * queries, 5, matrix, device="cpu")
