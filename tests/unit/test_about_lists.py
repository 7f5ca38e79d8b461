"""What lists are like, for some users: names in order, categories split, and baselines against slow loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa

from nightjar.kernels.beyond import Catalogue
from nightjar.kernels.interactions import Histories
from nightjar.kernels.topk import ItemLists
from nightjar.progress import QUIET
from nightjar.stage import Night
from nightjar.stages.evaluation.about_lists import Shelf, about, category_sets, names_of_about
from nightjar.stages.evaluation.single_methods import SingleInputs, SingleMethods, methods_of
from nightjar.tables import ITEM_EMBEDDINGS, NEIGHBOURS, vector_column
from tests import world

N_ITEMS = 12


def users() -> Histories:
    """One with three items, one of them disliked, one with one item, one without any."""
    ids = np.array(["a", "b", "c"], object)
    items = np.array([1, 4, 7, 2], np.int64)
    weights = np.array([1.0, -1.0, 2.0, 1.0], np.float32)
    inside, times = np.ones(4, bool), np.zeros(4, np.int64)
    return Histories(ids, np.array([0, 3, 4, 4]), items, weights, weights, inside, times)


def test_names_are_those_of_the_values_and_what_has_none_is_nan() -> None:
    n_users = np.arange(N_ITEMS)
    catalogue = Catalogue(np.ones(N_ITEMS, bool), n_users, 20)
    text = np.eye(N_ITEMS)
    categories = category_sets(pa.chunked_array([["x"] * 6 + ["y"] * 6]), None)
    shelf = Shelf(catalogue, categories, text)
    lists = np.array([[1, 8], [0, -1], [-1, -1]])
    found = about(lists, None, shelf, users(), [2])
    assert list(found) == names_of_about([2])
    assert found["ARP@2"].tolist()[:2] == [4.5, 0.0]
    assert found["ILD@2"][0] == 1.0
    assert found["ILD@2(categories)"][0] == 1.0
    for name in ("ILD@2", "RBO@2", "Calibration@2"):
        assert math.isnan(found[name][2]), name
    # a's taste is 1 of x to 2 of y; the dislike does not count.
    p, q = np.array([1 / 3, 2 / 3]), np.array([0.5, 0.5])
    mixed = 0.99 * q + 0.01 * p
    assert np.isclose(found["Calibration@2"][0], np.sum(p * np.log(p / mixed)))
    again = about(lists, lists, shelf, users(), [2])
    assert again["Jaccard@2"][0] == again["RBO@2"][0] == 1.0


def test_categories_are_split_where_asked_and_missing_ones_are_none() -> None:
    column = pa.chunked_array([["Drama, Comedy", None], ["Comedy", "", "Drama, Drama"]])
    indptr, codes = category_sets(column, ", ")
    sets = [set(codes[indptr[i] : indptr[i + 1]].tolist()) for i in range(5)]
    assert [len(one) for one in sets] == [2, 0, 1, 0, 1]
    assert sets[2] < sets[0]
    assert sets[4] < sets[0]
    whole, _ = category_sets(column, None)
    assert np.diff(whole).tolist() == [1, 0, 1, 0, 1]


def singles(folder: Path) -> tuple[SingleMethods, np.ndarray, np.ndarray]:
    """Methods over a planted relation and embeddings, both returned dense; item 3 sold out, 11 cold."""
    night = Night(world.config(folder), world.DS, QUIET)
    rng = np.random.default_rng(5)
    S = np.where(rng.random((N_ITEMS, N_ITEMS)) < 0.4, rng.random((N_ITEMS, N_ITEMS)), 0).astype(np.float32)
    S[:, 11] = 0.5
    np.fill_diagonal(S, 0)
    parts = []
    for name in ("co_occurrence", "text"):
        nums = [np.flatnonzero(row).astype(np.int32) for row in S]
        scores = [row[row != 0] for row in S]
        columns = {
            "relation": [name] * N_ITEMS,
            "item_num": np.arange(N_ITEMS),
            "item_nums": nums,
            "scores": scores,
        }
        parts.append(pa.table(columns, schema=NEIGHBOURS.schema))
    world.commit(night.store, NEIGHBOURS, night.ds, parts)
    E = rng.normal(size=(N_ITEMS, 6)).astype(np.float32)
    E /= np.linalg.norm(E, axis=1, keepdims=True)
    rows = {"item_id": [f"i{n:02d}" for n in range(N_ITEMS)], "text_hash": ["h"] * N_ITEMS}
    table = pa.table({**rows, "embedding": vector_column(E)}, schema=ITEM_EMBEDDINGS.arrow_schema(6))
    world.commit(night.store, ITEM_EMBEDDINGS, night.ds, [table], dim=6)
    available, cold = np.arange(N_ITEMS) != 3, np.arange(N_ITEMS) == 11
    neighbours = night.dataset(NEIGHBOURS).require("learn_taste")
    embeddings = night.dataset(ITEM_EMBEDDINGS).require("encode_items")
    popular = np.array([5, 1, 0])
    inputs = SingleInputs(neighbours, embeddings, popular, available, cold, 0)
    assert methods_of(("popular", "ease", "item_knn"), neighbours) == ("popular", "item_knn")
    return SingleMethods(inputs), S, E


def slow_list(scores: np.ndarray, usable: np.ndarray, seen: list[int], k: int) -> list[int]:
    ranked = sorted((-score, item) for item, score in enumerate(scores) if score > 0)
    best = [item for _, item in ranked if usable[item] and item not in seen][:k]
    order = [5, 1, 0, *(i for i in range(N_ITEMS) if i != 3)]
    for item in order:
        if len(best) < k and item not in best and item not in seen:
            best.append(item)
    return best


def test_single_methods_equal_slow_loops(tmp_path: Path) -> None:
    methods, S, E = singles(tmp_path)
    mine, k = users(), 6
    seen = [[1, 4, 7], [2], []]
    liked = [[1, 7], [2], []]
    barred = ItemLists(mine.indptr, mine.item_nums)
    usable = np.arange(N_ITEMS) != 3
    warm = usable & (np.arange(N_ITEMS) != 11)
    found = {name: methods.lists(name, mine, barred, k) for name in ("popular", "item_knn", "text_mean")}
    for user in range(3):
        none = np.zeros(N_ITEMS)
        scores = S[liked[user]].sum(axis=0) if liked[user] else none
        cosines = E @ E[liked[user]].mean(axis=0) if liked[user] else none
        assert found["popular"][user].tolist() == slow_list(none, usable, seen[user], k)
        assert found["item_knn"][user].tolist() == slow_list(scores, warm, seen[user], k)
        assert found["text_mean"][user].tolist() == slow_list(cosines, usable, seen[user], k)


def test_random_lists_differ_by_user_and_not_by_run(tmp_path: Path) -> None:
    methods, _, _ = singles(tmp_path)
    mine = users()
    barred = ItemLists(mine.indptr, mine.item_nums)
    first, again = (methods.lists("random", mine, barred, 6) for _ in range(2))
    assert first.tolist() == again.tolist()
    assert first[0].tolist() != first[2].tolist()
    for user, seen in enumerate(({1, 4, 7}, {2}, set())):
        shown = first[user][first[user] >= 0].tolist()
        assert len(set(shown)) == len(shown)
        assert not set(shown) & (seen | {3})
