"""Interactions and relations -> how much each source of a score counts, fitted on the newest likes.

Relations are learnt once more from what was known before the window that is held back; the text relation
does not depend on the log and is read. Items nobody liked yet have weights of their own, fitted on liked
items withheld from the log. In one actor, like learn_taste.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

import numpy as np
from scipy import sparse

from nightjar.config import FitBlend, LearnTaste, RelateItems, Resources, WeighEvents
from nightjar.engines import actors
from nightjar.engines.nearest import nearest_items
from nightjar.engines.threads import threads_of, use_threads
from nightjar.kernels import by_segment, fitting, relations, withheld
from nightjar.kernels.likes import Likes, truth_window
from nightjar.matrix import mapped_matrix, mapped_stack
from nightjar.stage import Metrics, Night
from nightjar.stages.blending.recipe import (
    blend_rows,
    choice_of,
    cold_start,
    signal_rows,
    source_names,
    start,
    told,
)
from nightjar.stages.blending.taste_log import counting, learning, read_likes, smoothed, text_space
from nightjar.store import Attempt, Committed, FileEntry
from nightjar.tables import BLEND, INTERACTIONS, ITEM_EMBEDDINGS, ITEM_SIGNALS, NEIGHBOURS, USERS


def fit_blend(night: Night, params: FitBlend, resources: Resources) -> Metrics:
    """Writes the recipe, and what it makes of each item's recent popularity and freshness."""
    work = FitWork(
        night.read(ITEM_EMBEDDINGS),
        night.read(INTERACTIONS),
        night.read(USERS),
        night.read(NEIGHBOURS),
        night.write(BLEND),
        night.write(ITEM_SIGNALS),
        params,
        night.config.weigh_events,
        night.config.relate_items,
        night.config.learn_taste,
        night.config.retrieve.exclude_seen,
        night.end,
        threads_of(resources),
    )
    actors.connect(night.config.ray)
    pool: actors.Pool[Fitted] = actors.Pool(work, resources, 1)
    ((_, fitted),) = pool.map([0])
    night.wrote(BLEND, [fitted.blend])
    night.wrote(ITEM_SIGNALS, [fitted.signals])
    return fitted.metrics


@dataclass(frozen=True)
class Fitted:
    """What the actor reports."""

    blend: FileEntry
    signals: FileEntry
    metrics: Metrics


@dataclass(frozen=True)
class FitWork:
    """What travels to the actor; the whole log is its one part."""

    embeddings: Committed
    interactions: Committed
    users: Committed
    neighbours: Committed
    blend: Attempt
    signals: Attempt
    params: FitBlend
    weighing: WeighEvents
    relating: RelateItems
    taste: LearnTaste
    exclude_seen: bool
    end: datetime
    threads: int

    def __call__(self) -> FitWork.Part:
        return self.Part(self)

    def how(self) -> fitting.Fit:
        """What the kernel is told of the section."""
        params = self.params
        return fitting.Fit(
            users=params.users,
            doubt=params.doubt,
            pool_depth=params.pool_depth,
            exclude_seen=self.exclude_seen,
            seed=params.seed,
            threads=self.threads,
            segments=params.segments,
            segment_users=params.segment_users,
            history_cap=self.weighing.history_cap,
        )

    def how_learnt(self) -> relations.Learning:
        """How relations are learnt: as learn_taste does it, with co-occurrence as relate_items counts it."""
        together, user_likes = counting(self.relating), self.relating.user_likes
        return replace(learning(self.taste), together=together, user_likes=user_likes)

    @dataclass(frozen=True)
    class Part:
        work: FitWork

        def __call__(self, part: int) -> Fitted:
            del part
            work = self.work
            use_threads(1)  # of BLAS, whose sums may depend on it; threads work on whole relations and blocks
            V = text_space(mapped_matrix(work.embeddings), work.taste)
            likes = read_likes(work.interactions, len(V), work.end, work.users, work.taste.most_likes)
            stack = mapped_stack(work.neighbours)
            names = source_names(stack.names)
            chosen, cold = start(work.params, names), cold_start(work.params, names)
            metrics: Metrics = {"users": 0, "window_days": 0.0, "cold_users": 0}
            if work.params.fit:
                chosen, metrics = self._fit(likes, V, stack, chosen)
                cold, metrics["cold_users"] = self._fit_cold(likes, V, stack, chosen, cold)
            choice = choice_of(cold, chosen, names)
            blend = work.blend.write_part(0, [blend_rows(choice)])
            return Fitted(
                blend,
                work.signals.write_part(0, [signal_rows(likes, chosen)]),
                metrics | told(choice),
            )

        def _fit(
            self, likes: Likes, V: np.ndarray, stack: relations.Stack, chosen: fitting.Chosen
        ) -> tuple[fitting.Chosen, Metrics]:
            work, params, how = self.work, self.work.params, self.work.how()
            window = truth_window(likes, params.users, params.max_share)
            held = fitting.hold_back(likes, window, how)
            metrics: Metrics = {"users": len(held.users), "window_days": round(window, 3)}
            if len(held.users) < params.min_users:
                return chosen, metrics
            text = stack.matrices()["text"]
            bent, _ = smoothed(V, held.known.matrix(), work.taste.smooth_weight)
            how_learnt, nearest = work.how_learnt(), partial(nearest_items, threads=work.threads)
            learnt = relations.from_behaviour(held.known, V, bent, text, how_learnt, nearest, work.threads)
            found = {"text": text, **learnt}
            # What only one of the two logs has, and words, have no weight to fit and keep the one they have.
            nothing = sparse.csr_matrix(text.shape, dtype=np.float32)
            ordered = {name: found.get(name, nothing) for name in stack.names}
            return fitting.fit(held, self._with_segments(ordered, held.known), bent, chosen, how), metrics

        def _fit_cold(
            self,
            likes: Likes,
            V: np.ndarray,
            stack: relations.Stack,
            chosen: fitting.Chosen,
            begun: tuple[float, ...],
        ) -> tuple[tuple[float, ...], int]:
            """The weights for items nobody liked, and the users they were fitted on: too few leave them."""
            work, how = self.work, self.work.how()
            held = withheld.withhold(likes, work.params.cold_share, how)
            if len(held.users) < work.params.min_users:
                return begun, len(held.users)
            bent, _ = smoothed(V, held.known.matrix(), work.taste.smooth_weight)
            how_learnt, nearest = work.how_learnt(), partial(nearest_items, threads=work.threads)
            found = withheld.without(stack.matrices(), held, V, bent, how_learnt, nearest)
            ordered = self._with_segments(found, held.known)
            return withheld.fit(held, ordered, bent, begun, chosen, how), len(held.users)

        def _with_segments(
            self, found: dict[str, sparse.csr_matrix], known: Likes
        ) -> dict[str, sparse.csr_matrix]:
            weighing = self.work.weighing
            half_life, most = weighing.popularity_half_life_days, weighing.popularity_items
            return found | {by_segment.NAME: by_segment.popularity(known, half_life, most)}
