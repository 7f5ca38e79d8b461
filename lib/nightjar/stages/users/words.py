"""What users wrote, bucket by bucket, beside the matrix of its vectors: for Spark tasks that sum them.

Used wherever a user becomes a vector (aggregate_users, rank), so that both see the same words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from nightjar.kernels.interactions import Histories
from nightjar.kernels.signals import Fading
from nightjar.kernels.words import AGELESS, F32, Spoken, spoken
from nightjar.matrix import mapped_matrix
from nightjar.stages.users.buckets import strings
from nightjar.store import Committed
from nightjar.tables import WEIGHT_ONE

COLUMNS = ["user_id", "text_num", "strength", "last_event_time"]


@dataclass(frozen=True)
class UserWords:
    """The texts of all users and their vectors, as commits that travel to tasks."""

    texts: Committed
    vectors: Committed

    @classmethod
    def of(cls, texts: Committed, vectors: Committed) -> UserWords | None:
        """None where nobody wrote anything that counts."""
        return cls(texts, vectors) if texts.manifest.rows and vectors.manifest.rows else None

    def bucket(self, bucket: int) -> BucketWords:
        """What the users of one bucket wrote."""
        rows = self.texts.read_part(self.texts.parts[bucket], COLUMNS)
        times = pc.fill_null(rows["last_event_time"].cast("int64"), AGELESS).to_numpy()
        strengths = (rows["strength"].to_numpy() / WEIGHT_ONE).astype(np.float32)
        said = spoken(strings(rows["user_id"]), rows["text_num"].to_numpy(), strengths, times)
        return BucketWords(said, mapped_matrix(self.vectors))


@dataclass(frozen=True)
class BucketWords:
    """One bucket's texts, and the (n_texts, d) vectors of all texts."""

    said: Spoken
    vectors: F32

    def sums(self, mine: Histories, fading: Fading) -> F32:
        """What is added to each user's sum over items, (q, d) float32: see Spoken.sums."""
        return self.said.sums(mine, self.vectors, fading)
