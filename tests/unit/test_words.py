"""What users wrote as vectors, held against plain loops, and the order of users who only wrote."""

from __future__ import annotations

import numpy as np
import pytest

from nightjar.kernels.interactions import Histories, histories
from nightjar.kernels.signals import Fading
from nightjar.kernels.words import AGELESS, Spoken, spoken, with_speakers

DAY = 86_400_000_000
D = 5


def history(*rows: tuple[str, int, int]) -> Histories:
    """(user, item, day of its last event) in order."""
    users = np.array([user for user, _, _ in rows], object)
    nums, days = (np.array([row[at] for row in rows], np.int64) for at in (1, 2))
    ones = np.ones(len(rows), np.float32)
    return histories((users, nums, ones, ones, np.ones(len(rows), bool), days * DAY))


def texts(*rows: tuple[str, int, float, int | None]) -> Spoken:
    """(user, text, strength, day or None for ageless) in order of users."""
    users = np.array([row[0] for row in rows], object)
    times = np.array([AGELESS if row[3] is None else row[3] * DAY for row in rows], np.int64)
    return spoken(
        users, np.array([r[1] for r in rows], np.int64), np.array([r[2] for r in rows], np.float32), times
    )


def slow(said: Spoken, mine: Histories, T: np.ndarray, half_life: float | None, floor: float) -> np.ndarray:
    """The same by its definition."""
    out = np.zeros((len(mine), T.shape[1]))
    for row, user in enumerate(mine.user_ids):
        items = mine.times[mine.indptr[row] : mine.indptr[row + 1]].tolist()
        for at, other in enumerate(said.user_ids):
            if other != user:
                continue
            entries = range(said.indptr[at], said.indptr[at + 1])
            aged = [int(said.times[e]) for e in entries if said.times[e] != AGELESS]
            newest = max(items) if items else max(aged, default=0)
            for entry in entries:
                time = int(said.times[entry])
                age = 0.0 if time == AGELESS else (newest - time) / DAY
                fade = 1.0 if half_life is None else floor + (1 - floor) * 2.0 ** (-age / half_life)
                out[row] += float(said.strengths[entry]) * fade * T[said.text_nums[entry]]
    return out


@pytest.mark.parametrize(("half_life", "floor"), [(None, 0.0), (3.0, 0.0), (40.0, 0.0), (3.0, 0.25)])
@pytest.mark.parametrize("seed", range(4))
def test_sums_equal_plain_loops(half_life: float | None, floor: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    T = rng.standard_normal((9, D)).astype(np.float32)
    names = [f"u{n}" for n in range(8)]
    rows = [
        (
            user,
            int(rng.integers(9)),
            float(rng.normal()),
            None if rng.random() < 0.2 else int(rng.integers(30)),
        )
        for user in names
        for _ in range(int(rng.integers(0, 4)))
    ]
    said = texts(*rows)
    items = [
        (user, item, int(rng.integers(30))) for user in names[::2] for item in range(int(rng.integers(1, 3)))
    ]
    mine = history(*items).aligned(np.array([*names, "zz"], object))
    got = said.sums(mine, T, Fading(half_life, floor))
    assert got.shape == (9, D)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, slow(said, mine, T, half_life, floor), rtol=2e-5, atol=1e-5)


def test_a_text_long_after_the_last_item_stays_finite() -> None:
    said = texts(("a", 0, 1.0, 30_000))
    sums = said.sums(history(("a", 1, 0)), np.ones((1, D), np.float32), Fading(0.5))
    assert np.isfinite(sums).all()
    assert sums[0, 0] == pytest.approx(2.0**64, rel=1e-6)


def test_nobody_wrote_anything() -> None:
    said = texts()
    sums = said.sums(history(("a", 1, 0)), np.zeros((0, D), np.float32), Fading(10.0))
    assert np.array_equal(sums, np.zeros((1, D), np.float32))
    assert not said.only_stated(np.array(["a"], object)).any()


def test_who_only_stated_interests() -> None:
    said = texts(("a", 0, 1.0, None), ("b", 0, 1.0, None), ("b", 1, 1.0, 3), ("c", 2, 1.0, 4))
    assert said.only_stated(np.array(["a", "b", "c", "d"], object)).tolist() == [True, False, False, False]


def test_users_who_only_wrote_stand_in_their_places() -> None:
    blocks = [history(("b", 1, 0), ("d", 2, 0)), history(("h", 3, 0))]
    found = list(with_speakers(iter(blocks), np.array(["a", "c", "d", "e", "h", "i", "j"], object)))
    assert [list(block.user_ids) for block in found] == [["a", "b", "c", "d"], ["e", "h"], ["i", "j"]]
    assert [np.diff(block.indptr).tolist() for block in found] == [[0, 1, 0, 1], [0, 1], [0, 0]]
    assert [block.item_nums.tolist() for block in found] == [[1, 2], [3], []]


def test_blocks_without_new_users_are_passed_on_as_they_are() -> None:
    block = history(("b", 1, 0), ("d", 2, 0))
    (found,) = with_speakers(iter([block]), np.array(["b"], object))
    assert found is block
    assert list(with_speakers(iter([]), np.array([], object))) == []


def test_who_only_wrote_and_comes_last_has_an_empty_profile() -> None:
    """Nobody's history has to be of the types of anybody's: it is divided in place."""
    norms = np.full(4, 2.0, np.float32)
    for blocks in ([history(("b", 1, 3))], []):
        *_, last = with_speakers(iter(blocks), np.array(["z"], object))
        assert last.user_ids.tolist() == ["z"]
        for made in (last.profile_of_directions(norms), last.vector_weights(np.zeros(0), norms)):
            assert made.shape == (1, 4)
            assert made.nnz == 0
