"""What encoding did and what it cost: the figures of the manifest and of the progress line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nightjar.stage import Metrics


@dataclass
class Bill:
    """What this run did and what it cost; sums over tasks."""

    resumed_parts: int
    resumed: int
    hourly_price: float | None = None
    reissued: int = 0
    n_quarantined: int = 0
    totals: Counter[Any] = field(default_factory=Counter)

    def add(self, kind: str, counts: Mapping[str, float]) -> None:
        """Adds what a task counted; only a part's rows are rows of the result."""
        self.totals.update({name: n for name, n in counts.items() if name != "rows" or kind == "part"})

    @property
    def share_of_peak(self) -> float:
        """Operations done of those that bare matrix products would have done in the time of encoding."""
        return self.totals["flops"] / max(self.totals["peak_flops"], 1.0)

    @property
    def tokens_per_second(self) -> float:
        """Tokens for each second that an actor was at work."""
        return self.totals["tokens"] / max(self.totals["seconds"], 1e-9)

    @property
    def cost_per_million(self) -> float | None:
        """What a million encoded items cost; None without a price or before anything is encoded."""
        encoded = int(self.totals["encoded"])
        if self.hourly_price is None or not encoded:
            return None
        return float(self.totals["seconds"] / 3600 * self.hourly_price * 1e6 / encoded)

    def so_far(self, seconds: float) -> str:
        """For the progress line, after so many seconds of the clock."""
        cost = self.cost_per_million
        return ", ".join(
            [
                f"{self.totals['tokens'] / max(seconds, 1e-9):,.0f} tokens/s",
                f"{self.share_of_peak:.0%} of the matrix product's rate",
                *([f"{cost:,.2f} a million items"] if cost is not None else []),
            ]
        )

    @property
    def sentence(self) -> str:
        """For a person, after the last part."""
        sums, cost = self.totals, self.cost_per_million
        return (
            f"{sums['encoded']:,.0f} texts encoded, {sums['reused']:,.0f} rows reused, "
            f"{self.n_quarantined:,} quarantined; {sums['tokens']:,.0f} tokens, "
            f"{self.tokens_per_second:,.0f} a second of an actor, "
            f"{self.share_of_peak:.0%} of its matrix product's rate"
            + (f"; a million items cost {cost:,.2f}" if cost is not None else "")
        )

    @property
    def metrics(self) -> Metrics:
        """The figures of a manifest."""
        sums, seconds = self.totals, max(self.totals["seconds"], 1e-9)
        encoded, reused = int(sums["encoded"]), int(sums["reused"])
        repeated = int(sums["rows"]) - encoded - reused - self.n_quarantined
        return {
            "resumed_parts": self.resumed_parts,
            "resumed": self.resumed,
            "encoded": encoded,
            "reused": reused,
            "repeated": repeated,
            "quarantined": self.n_quarantined,
            "reissued": self.reissued,
            "tokens": int(sums["tokens"]),
            "actor_seconds": round(sums["seconds"], 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "texts_per_second": round(encoded / seconds, 1),
            "share_of_peak": round(self.share_of_peak, 4),
            "cost_per_million_items": self.cost_per_million,
        }
