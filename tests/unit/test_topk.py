import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.errors import ContractError
from nightjar.kernels.sweep import sweep_topk
from nightjar.kernels.topk import (
    MAX_ITEM_NUM,
    Filters,
    ItemLists,
    fixed_order_dot,
    is_listed,
    item_norms,
    merge_topk,
    rescore,
    rounding_margin,
    select_topk,
    vector_norms,
)
from tests.unit.topk_oracle import World, as_answer, brute_force, lists_of, whole_vectors, worlds

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.integers(1, 40), st.integers(0, 30))
def test_select_is_a_full_sort_by_score_then_item(seed: int, k: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.choice(np.array([-1.5, -0.0, 0.0, 2.0, 1e30, 1e-40], dtype=np.float32), (5, m))
    items = np.array([rng.permutation(m) for _ in range(5)]).reshape(5, m)
    items[rng.random((5, m)) < 0.2] = -1
    expected = [
        sorted(((i, float(s)) for i, s in zip(*row, strict=True) if i >= 0), key=lambda p: (-p[1], p[0]))[:k]
        for row in zip(items, scores, strict=True)
    ]
    assert as_answer(select_topk(scores, items, k)) == expected


def test_the_largest_item_number_survives_the_sort_key_and_a_larger_one_is_refused() -> None:
    one = np.ones((1, 2), dtype=np.float32)
    assert select_topk(one, np.array([[MAX_ITEM_NUM, 7]]), 2).item_nums.tolist() == [[7, MAX_ITEM_NUM]]
    with pytest.raises(ContractError, match="number items densely"):
        select_topk(one, np.array([[MAX_ITEM_NUM + 1, 7]]), 2)


@given(SEEDS, st.integers(1, 6))
def test_merging_any_split_gives_the_bytes_of_no_split(seed: int, n_parts: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.choice(np.linspace(-1, 1, 9, dtype=np.float32), (4, 50))
    items = np.tile(np.arange(50), (4, 1))
    whole = select_topk(scores, items, 10)
    part_of = rng.integers(0, n_parts, 50)
    parts = []
    for part in rng.permutation(n_parts):
        best = select_topk(scores[:, part_of == part], items[:, part_of == part], 10)
        parts.append((best.item_nums, best.scores))
    merged = merge_topk(parts, 10)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(whole, merged, strict=True))


@pytest.mark.parametrize("n_dims", [1, 2, 63, 64, 65, 100, 384, 1000])
def test_a_score_has_the_same_bits_wherever_its_pair_stands(n_dims: int) -> None:
    rng = np.random.default_rng(n_dims)
    queries = rng.standard_normal((7, n_dims)).astype(np.float32)
    matrix = rng.standard_normal((40, n_dims)).astype(np.float32)
    everything = np.tile(np.arange(40), (7, 1))
    scores = rescore(queries, matrix, everything)
    for user in range(7):
        for item in range(40):
            alone = rescore(queries[user : user + 1], matrix, np.array([[-1, item]]))
            assert alone[0, 1].tobytes() == scores[user, item].tobytes() and alone[0, 0] == -np.inf
    assert scores.tobytes() == rescore(queries, np.asfortranarray(matrix), everything).tobytes()
    exact = queries.astype(np.float64) @ matrix.T.astype(np.float64)
    margin = rounding_margin(vector_norms(queries, "q"), vector_norms(matrix, "x").max(), n_dims)
    assert (np.abs(scores - exact) <= margin[:, None] / 2).all()


def test_the_order_of_additions_is_the_documented_one() -> None:
    a = np.random.default_rng(5).standard_normal(200).astype(np.float32)
    lanes = [np.float32(0)] * 64
    for at in range(200):
        lanes[at % 64] = a[at] * a[at] if at < 64 else lanes[at % 64] + a[at] * a[at]
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [low + high for low, high in zip(lanes[:half], lanes[half:], strict=True)]
    assert fixed_order_dot(a, a) == lanes[0]


@given(SEEDS)
def test_is_listed_agrees_with_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [set(rng.integers(0, 30, rng.integers(0, 10)).tolist()) for _ in range(6)]
    candidates = rng.integers(-1, 32, (6, 9))
    expected = [[int(i) in row for i in some] for row, some in zip(rows, candidates, strict=True)]
    assert is_listed(candidates, lists_of(rows)).tolist() == expected


@given(SEEDS)
def test_taking_users_takes_their_lists(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [set(rng.integers(0, 30, rng.integers(0, 10)).tolist()) for _ in range(6)]
    users = rng.integers(0, 6, 4)
    taken = lists_of(rows).take(users).checked(4, "seen")
    assert taken.item_nums.tolist() == [i for user in users for i in sorted(rows[user])]


@given(worlds(), st.integers(1, 30))
def test_the_sweep_is_a_full_sort(world: World, k: int) -> None:
    assert as_answer(sweep_topk(world.queries, world.matrix, k, world.filters)) == world.answer(k)


@pytest.mark.parametrize("tile", [3, 64, 1000])
def test_the_sweep_has_the_same_bytes_for_any_tile_and_block(
    monkeypatch: pytest.MonkeyPatch, tile: int
) -> None:
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal((500, 40)).astype(np.float32)
    matrix[200:300] = matrix[7]
    queries = rng.standard_normal((30, 40)).astype(np.float32)
    seen = Filters(lists_of([set(rng.integers(0, 500, 50).tolist()) for _ in range(30)]))
    expected = sweep_topk(queries, matrix, 20, seen)
    monkeypatch.setattr("nightjar.kernels.sweep.ITEM_TILE", tile)
    monkeypatch.setattr("nightjar.kernels.sweep.USER_BLOCK", 1 + tile // 3)
    again = sweep_topk(queries, matrix, 20, seen)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(expected, again, strict=True))


def test_a_known_floor_changes_nothing_but_the_work() -> None:
    world = World(11, 300, 9, 16, 0.2, 0.9)
    plain = sweep_topk(world.queries, world.matrix, 10, world.filters)
    floored = sweep_topk(world.queries, world.matrix, 10, world.filters, plain.scores[:, -1].copy())
    assert all(a.tobytes() == b.tobytes() for a, b in zip(plain, floored, strict=True))


def test_groups_of_users_may_get_different_items() -> None:
    rng = np.random.default_rng(2)
    matrix, queries = whole_vectors(rng, 60, 5), whole_vectors(rng, 8, 5)
    eligible = rng.random((3, 60)) < 0.4
    group = rng.integers(0, 3, 8)
    found = as_answer(sweep_topk(queries, matrix, 12, Filters(eligible=eligible, group=group)))
    for user in range(8):
        mine = set(np.flatnonzero(eligible[group[user]]).tolist())
        assert found[user] == brute_force(queries[user : user + 1], matrix, 12, [set()], mine)[0]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.nan, "NaN"),
        (np.inf, "infinite"),
        (0, "zero"),
        (1e30, "not of a length"),
        (1e-30, "not of a length"),
    ],
)
def test_a_bad_vector_is_named_by_row_and_reason(value: float, reason: str) -> None:
    vectors = np.ones((6, 4), dtype=np.float32)
    vectors[4] = value
    with pytest.raises(ContractError, match=f"users: row 4 is {reason}"):
        vector_norms(vectors, "users")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, 1e-30])
def test_an_item_may_be_zero_but_nothing_worse(value: float) -> None:
    items = np.ones((6, 4), dtype=np.float32)
    items[2] = 0
    assert item_norms(items, "items")[[1, 2]] == pytest.approx([2, 0], rel=1e-3)
    items[4] = value
    with pytest.raises(ContractError, match="items: row 4 is"):
        item_norms(items, "items")


def test_tiny_and_huge_vectors_within_range_pass() -> None:
    vectors = np.array([[2e-18, 0], [9e17, 0], [1, 1]], dtype=np.float32)
    norms = vector_norms(vectors, "items")
    assert (norms >= np.linalg.norm(vectors.astype(np.float64), axis=1)).all()


def test_wrong_shapes_and_types_are_refused() -> None:
    with pytest.raises(ContractError, match=r"expected \(n, 5\)"):
        vector_norms(np.ones((3, 4), dtype=np.float32), "users", 5)
    with pytest.raises(ContractError, match="float64"):
        vector_norms(np.ones((3, 4)), "users")


@pytest.mark.parametrize(
    "lists",
    [
        ItemLists(np.array([0, 2, 3]), np.array([5, 4, 9])),
        ItemLists(np.array([0, 2, 3]), np.array([4, 4, 9])),
        ItemLists(np.array([0, 2]), np.array([4, 9])),
        ItemLists(np.array([0, 3, 2]), np.array([4, 9])),
        ItemLists(np.array([0, 1, 2]), np.array([-1, 9])),
    ],
)
def test_unsorted_or_misshapen_lists_are_refused(lists: ItemLists) -> None:
    with pytest.raises(ContractError, match="seen lists"):
        lists.checked(2, "seen")


def test_a_new_user_may_start_below_the_last_item_of_the_one_before() -> None:
    assert ItemLists(np.array([0, 2, 2, 4]), np.array([8, 9, 0, 1])).checked(3, "seen")
