"""What encoding cost, for a person while it runs and for the manifest after it."""

from __future__ import annotations

import pytest

from nightjar.stages.encoding.bill import Bill

PART = {"rows": 100.0, "encoded": 80.0, "reused": 0.0, "tokens": 8000.0, "seconds": 4.0}
PART |= {"flops": 3e9, "peak_flops": 4e9, "encode_seconds": 2.0}


def test_the_line_while_it_runs() -> None:
    bill = Bill(resumed_parts=0, resumed=0, hourly_price=3.6)
    assert bill.so_far(0) == "0 tokens/s, 0% of the matrix product's rate"
    bill.add("part", PART)
    assert bill.so_far(2) == "4,000 tokens/s, 75% of the matrix product's rate, 50.00 a million items"
    bill.hourly_price = None
    assert bill.so_far(2) == "4,000 tokens/s, 75% of the matrix product's rate"


def test_the_manifest_and_the_last_line() -> None:
    bill = Bill(resumed_parts=1, resumed=50, hourly_price=3.6)
    bill.add("part", PART)
    bill.add("repeated", {**PART, "rows": 80.0})  # rows of repeated texts are no rows of the result
    metrics = bill.metrics
    assert (metrics["encoded"], metrics["repeated"], metrics["tokens"]) == (160, -60, 16000)
    assert (metrics["tokens_per_second"], metrics["texts_per_second"]) == (2000.0, 20.0)
    assert metrics["share_of_peak"] == 0.75
    assert metrics["cost_per_million_items"] == pytest.approx(50.0)
    assert "160 texts encoded" in bill.sentence
    assert bill.sentence.endswith("75% of its matrix product's rate; a million items cost 50.00")
