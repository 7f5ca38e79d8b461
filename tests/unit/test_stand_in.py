"""What an item without a vector of its own gets: always the same, of length 1, near nobody."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from nightjar.stages.encoding.parts import stand_in


@pytest.mark.parametrize("dim", [1, 8, 384, 1024])
def test_stand_ins_say_nothing(dim: int) -> None:
    hashes = [hashlib.sha256(bytes([n])).hexdigest() for n in range(200)]
    X = np.array([stand_in(text_hash, dim) for text_hash in hashes])
    assert X.dtype == np.float32
    assert np.abs(np.linalg.norm(X, axis=1) - 1).max() < 1e-6
    assert np.array_equal(X[7], stand_in(hashes[7], dim))
    cosines = (X @ X.T)[~np.eye(len(X), dtype=bool)]
    assert abs(cosines.mean()) < 0.1
    # Independent directions have cosines of variance 1/dim, also the extreme ones of 40,000.
    assert cosines.std() == pytest.approx(dim**-0.5, rel=0.1)
    assert np.abs(cosines).max() < min(1.01, 6 * dim**-0.5)


def test_a_stand_in_is_the_same_in_every_release() -> None:
    """It stays in tables for years: other bytes would be another vector for the same text."""
    expected = [0.006727328523993492, 0.33874157071113586, -0.5243733525276184, 0.7811795473098755]
    assert stand_in("0" * 64, 4).tolist() == pytest.approx(expected, abs=1e-7)
