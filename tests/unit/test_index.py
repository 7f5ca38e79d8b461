from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightjar.engines.index import Effort, Shard, build_shard, index_recall, open_shard, search_shards
from nightjar.errors import ConfigError, ContractError, StorageError
from nightjar.kernels.sweep import sweep_topk
from nightjar.kernels.topk import F32, I64, Filters, TopK, rescore, select_topk
from tests.unit.topk_oracle import World, as_answer, lists_of, worlds

APPROXIMATE = ["IVF8,Flat", "HNSW8", "IVF8,PQ4x4fs", "SQ8"]


def shards_of(matrix: F32, part_of: I64, folder: Path, factory: str = "Flat") -> list[Shard]:
    shards = []
    for part in range(int(part_of.max()) + 1):
        items = np.flatnonzero(part_of == part)
        path = folder / f"part-{part}.faiss"
        facts = build_shard(matrix[items], items, path, factory)
        shards.append(open_shard(path, facts.sha256))
    return shards


def same_bytes(a: TopK, b: TopK) -> bool:
    return all(x.tobytes() == y.tobytes() and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


def gaussian_world(seed: int = 1, n_items: int = 2000, n_users: int = 70) -> tuple[F32, F32, Filters]:
    """Real-valued vectors with duplicates and near-duplicates where many users' boundary lies; busy users.

    The near-duplicates differ by less than the rounding of a score: BLAS and fixed order disagree on them.
    """
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((n_items, 32)).astype(np.float32)
    matrix[n_items // 2 : n_items // 2 + 300] = matrix[5]
    near = rng.standard_normal((200, 32)).astype(np.float32) * np.float32(1e-7)
    matrix[n_items // 2 + 300 : n_items // 2 + 500] = matrix[5] + near
    queries = (rng.standard_normal((n_users, 32)) + 0.5 * matrix[5]).astype(np.float32)
    seen = [set(rng.choice(n_items, rng.integers(0, 60), replace=False).tolist()) for _ in range(n_users)]
    seen[3] = set(range(n_items))
    seen[4] = set(range(n_items - 7))
    return matrix, queries, Filters(lists_of(seen), eligible=rng.random(n_items) < 0.9)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(worlds(), st.integers(1, 30), st.sampled_from([1, 2, 5]))
def test_flat_shards_give_the_full_sort(tmp_path: Path, world: World, k: int, n_shards: int) -> None:
    part_of = np.append(world.rng.integers(0, n_shards, len(world.matrix) - 1), n_shards - 1)
    shards = shards_of(world.matrix, part_of, tmp_path)
    found = search_shards(shards, world.queries, k, world.matrix, world.filters)
    assert as_answer(found) == world.answer(k)


def test_flat_gives_the_same_bytes_for_any_shards_threads_and_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, queries, filters = gaussian_world()
    expected = sweep_topk(queries, matrix, 50, filters)
    assert expected.n_found[3] == 0 and 0 < expected.n_found[4] <= 7
    rng = np.random.default_rng(0)
    for n_shards in (1, 2, 5):
        shards = shards_of(matrix, rng.integers(0, n_shards, len(matrix)), tmp_path / str(n_shards))
        for threads, block in ((1, 1024), (2, 17)):
            monkeypatch.setattr("nightjar.engines.index.QUERY_BLOCK", block)
            found = search_shards(shards, queries, 50, matrix, filters, Effort(threads=threads))
            assert same_bytes(found, expected), (n_shards, threads, block)


@pytest.mark.parametrize("factory", APPROXIMATE)
def test_approximate_indexes_return_k_real_scores_and_nothing_forbidden(tmp_path: Path, factory: str) -> None:
    matrix, queries, filters = gaussian_world()
    exact = sweep_topk(queries, matrix, 50, filters)
    shards = shards_of(matrix, np.arange(len(matrix)) % 2, tmp_path, factory)
    found = search_shards(shards, queries, 50, matrix, filters, Effort(nprobe=1, ef_search=50))
    assert (found.n_found == exact.n_found).all()
    assert filters.allowed(found.item_nums)[found.item_nums >= 0].all()
    for user, row in enumerate(as_answer(found)):
        items = np.array([[item for item, _ in row]], dtype=np.int64)
        again = select_topk(rescore(queries[user : user + 1], matrix, items), items, max(1, len(row)))
        assert as_answer(again) == [row]
    assert 0.1 < index_recall(found, exact).mean() <= 1


def test_more_probes_find_everything(tmp_path: Path) -> None:
    matrix, queries, filters = gaussian_world()
    exact = sweep_topk(queries, matrix, 50, filters)
    shards = shards_of(matrix, np.arange(len(matrix)) % 2, tmp_path, "IVF8,Flat")
    # 300 tied duplicates can push better-placed tied items out of an over-fetched list, never better scores.
    found = search_shards(shards, queries, 50, matrix, filters, Effort(nprobe=8, k_factor=20))
    assert index_recall(found, exact).min() == 1


def test_searching_list_by_list_finds_what_faiss_finds_query_by_query(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, queries, filters = gaussian_world()
    shards = shards_of(matrix, np.arange(len(matrix)) % 2, tmp_path, "IVF8,Flat")
    both = []
    for threshold in (0, 10**9):
        monkeypatch.setattr("nightjar.engines.index.QUERIES_PER_LIST", threshold)
        both.append(search_shards(shards, queries, 50, matrix, filters, Effort(nprobe=3)))
    # Of near-duplicates at the end of a list either may be taken.
    assert np.allclose(both[0].scores, both[1].scores, rtol=1e-5)


def test_a_user_who_has_seen_five_thousand_items_still_gets_k(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    matrix = rng.standard_normal((6000, 16)).astype(np.float32)
    queries = rng.standard_normal((3, 16)).astype(np.float32)
    best_first = np.argsort(-(queries[0] @ matrix.T))
    filters = Filters(lists_of([set(best_first[:5000].tolist()), set(), set(best_first[:10].tolist())]))
    expected = sweep_topk(queries, matrix, 100, filters)
    assert (expected.n_found == 100).all()
    for factory in ("Flat", "IVF8,Flat", "HNSW8"):
        shards = shards_of(matrix, np.zeros(6000, dtype=np.int64), tmp_path / factory, factory)
        found = search_shards(shards, queries, 100, matrix, filters, Effort(nprobe=1, ef_search=100))
        assert (found.n_found == 100).all()
        assert same_bytes(found, expected) or factory != "Flat"


def test_a_catalogue_of_one_repeated_vector_is_ordered_by_item_number(tmp_path: Path) -> None:
    matrix = np.tile(np.float32([0.3, -0.1, 0.7]), (3000, 1))
    shards = shards_of(matrix, np.arange(3000) % 3, tmp_path)
    found = search_shards(shards, matrix[:2].copy(), 10, matrix)
    assert found.item_nums.tolist() == [list(range(10))] * 2


def test_k_beyond_the_catalogue_and_empty_shards(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    facts = build_shard(matrix[:0], np.empty(0, np.int64), tmp_path / "empty.faiss")
    empty = open_shard(tmp_path / "empty.faiss", facts.sha256)
    shards = [empty, *shards_of(matrix, np.zeros(9, dtype=np.int64), tmp_path)]
    found = search_shards(shards, matrix[:3].copy(), 20, matrix)
    assert found.n_found.tolist() == [9, 9, 9] and found.item_nums.shape == (3, 20)
    assert search_shards([empty], matrix[:3].copy(), 20, matrix).n_found.tolist() == [0, 0, 0]
    assert search_shards(shards, matrix[:0].copy(), 20, matrix).item_nums.shape == (0, 20)


def test_items_in_no_shard_are_never_returned(tmp_path: Path) -> None:
    matrix, queries, _ = gaussian_world()
    items = np.arange(0, 2000, 2)
    facts = build_shard(matrix[items], items, tmp_path / "even.faiss")
    shard = open_shard(tmp_path / "even.faiss", facts.sha256)
    found = search_shards([shard], queries, 30, matrix)
    assert (found.item_nums % 2 == 0).all()
    assert same_bytes(found, sweep_topk(queries, matrix, 30, Filters(eligible=np.arange(2000) % 2 == 0)))


def test_a_shard_file_is_the_same_for_the_same_input(tmp_path: Path) -> None:
    matrix, _, _ = gaussian_world()
    for factory in ("Flat", *APPROXIMATE):
        facts = [
            build_shard(matrix, np.arange(2000), tmp_path / f"{n}.faiss", factory, seed=3) for n in range(2)
        ]
        assert facts[0] == facts[1], factory
        assert facts[0].bytes == (tmp_path / "0.faiss").stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.faiss", "1.faiss"]


def test_a_damaged_or_missing_file_is_refused(tmp_path: Path) -> None:
    matrix = np.ones((5, 3), dtype=np.float32)
    facts = build_shard(matrix, np.arange(5), tmp_path / "a.faiss")
    content = bytearray((tmp_path / "a.faiss").read_bytes())
    content[-3] ^= 1
    (tmp_path / "a.faiss").write_bytes(content)
    with pytest.raises(ContractError, match="as committed"):
        open_shard(tmp_path / "a.faiss", facts.sha256)
    with pytest.raises(StorageError, match="cannot be read"):
        open_shard(tmp_path / "b.faiss", facts.sha256)


def test_what_cannot_be_built_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    good = np.ones((5, 3), dtype=np.float32)
    bad = good.copy()
    bad[2, 1] = np.nan
    with pytest.raises(ContractError, match="row 2 is NaN"):
        build_shard(bad, np.arange(5), tmp_path / "a.faiss")
    for items in (np.array([0, 1, 1, 3, 4]), np.arange(4), np.arange(-1, 4)):
        with pytest.raises(ContractError, match="item numbers"):
            build_shard(good, items, tmp_path / "a.faiss")
    for factory, metric in (("Flatt", "ip"), ("IVF64,Flat", "ip"), ("Flat", "l2")):
        with pytest.raises(ConfigError):
            build_shard(good, np.arange(5), tmp_path / "a.faiss", factory, metric)
    assert list(tmp_path.iterdir()) == []


def test_bad_queries_shapes_and_stale_vectors_are_refused(tmp_path: Path) -> None:
    matrix, queries, _ = gaussian_world()
    shards = shards_of(matrix, np.arange(2000) % 2, tmp_path)
    for value, reason in ((np.nan, "NaN"), (np.inf, "infinite"), (0, "zero")):
        broken = queries.copy()
        broken[9] = value
        with pytest.raises(ContractError, match=f"queries: row 9 is {reason}"):
            search_shards(shards, broken, 5, matrix)
    with pytest.raises(ContractError, match="expected"):
        search_shards(shards, queries[:, :7].copy(), 5, matrix)
    with pytest.raises(ContractError, match="k is 0"):
        search_shards(shards, queries, 0, matrix)
    with pytest.raises(ContractError, match="same item"):
        search_shards([shards[0], shards[0]], queries, 5, matrix)
    with pytest.raises(ContractError, match="other item vectors"):
        search_shards(shards, queries, 5, matrix[::-1].copy())
    with pytest.raises(ContractError, match="does not belong"):
        search_shards(shards, queries, 5, matrix[:100].copy())


def test_recall_counts_ties_and_empty_answers() -> None:
    exact = TopK(np.array([[1, 2], [-1, -1]]), np.float32([[5, 3], [-np.inf, -np.inf]]), np.array([2, 0]))
    other = TopK(np.array([[1, 9], [-1, -1]]), np.float32([[5, 3], [-np.inf, -np.inf]]), np.array([2, 0]))
    worse = TopK(np.array([[1, 9], [-1, -1]]), np.float32([[5, 2], [-np.inf, -np.inf]]), np.array([2, 0]))
    assert index_recall(other, exact).tolist() == [1, 1]
    assert index_recall(worse, exact).tolist() == [0.5, 1]
