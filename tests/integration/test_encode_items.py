"""encode_items on real actors with a stand-in for the model: once a text, and whatever the texts do to it."""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from nightjar.config import RayConfig
from nightjar.engines import actors
from nightjar.errors import ContractError, PartFailed
from nightjar.matrix import mapped_matrix
from nightjar.pipeline import ENCODE_ITEMS
from nightjar.progress import Report
from nightjar.stage import Night, StageResult, run_stage
from nightjar.stages import encode_items as encode_items_module
from nightjar.stages.encode_items import encode_items
from nightjar.stages.encoding.parts import stand_in
from nightjar.store import Committed, damage
from nightjar.tables import EMBEDDINGS_QUARANTINE, ITEM_EMBEDDINGS, ITEM_TEXT, vectors
from tests import world
from tests.integration.encoder_stand_in import DIM, StandIn, vector_of

Parts = Sequence[Sequence[str]]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    actors.connect(RayConfig(num_cpus=2, object_store_bytes=80_000_000))
    yield
    ray.shutdown()


@dataclass(frozen=True)
class Bench:
    """A root with its nights, and the stand-in that notes what is encoded there."""

    folder: Path
    load: StandIn

    @classmethod
    def at(cls, folder: Path, **load: Any) -> Bench:
        (folder / "notes").mkdir(parents=True)
        return cls(folder, StandIn(folder / "notes", **load))

    def night(self, day: int = 0, **params: Any) -> Night:
        resources = {"actors": 2, "max_attempts": 2}
        night = world.night(self.folder / "root", encode_items={"resources": resources, **params})
        return replace(night, ds=night.ds + timedelta(days=day))

    def run(self, parts: Parts, night: Night | None = None) -> StageResult:
        night = night or self.night()
        rows = iter(range(10**6))
        tables = [
            pa.Table.from_pylist([row(next(rows), text) for text in part], ITEM_TEXT.schema) for part in parts
        ]
        world.commit(night.store, ITEM_TEXT, night.ds, tables)
        return run_stage(ENCODE_ITEMS, functools.partial(encode_items, load=self.load), night)

    def embeddings(self, night: Night | None = None) -> Committed:
        return (night or self.night()).dataset(ITEM_EMBEDDINGS).require("encode_items")

    def quarantine(self, night: Night | None = None) -> list[tuple[str, str, str]]:
        """(item_id, text, reason) of every row."""
        rows = (
            (night or self.night()).dataset(EMBEDDINGS_QUARANTINE).require("encode_items").read().to_pylist()
        )
        payloads = [json.loads(row["payload"]) for row in rows]
        return [(p["item_id"], p["text"], row["reason"]) for p, row in zip(payloads, rows, strict=True)]

    def forget(self) -> None:
        for path in self.load.notes.iterdir():
            path.unlink()


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def row(number: int, text: str) -> dict[str, Any]:
    return {"item_id": f"i{number:06d}", "item_num": number, "text": text, "text_hash": sha(text)}


def check(bench: Bench, parts: Parts, night: Night | None = None, bad: Sequence[str] = ()) -> None:
    """Every row has the vector of its own text, or the stand-in where the text is bad, in its place."""
    rows = bench.embeddings(night).read()
    texts = [text for part in parts for text in part]
    assert rows["item_id"].to_pylist() == [f"i{number:06d}" for number in range(len(texts))]
    assert rows["text_hash"].to_pylist() == [sha(text) for text in texts]
    expected = [stand_in(sha(text), DIM) if text in bad else vector_of(text) for text in texts]
    assert np.array_equal(vectors(rows["embedding"]), np.array(expected, np.float32))


def balance(metrics: Any) -> None:
    kinds = ("resumed", "encoded", "reused", "repeated", "quarantined")
    assert sum(metrics[kind] for kind in kinds) == metrics["items"]
    assert all(metrics[kind] >= 0 for kind in kinds)


REPEATS: Parts = (
    ["red mug", "blue mug", "red mug", "lamp"],
    ["lamp", "tin sign", "red mug"],
    ["paper chain", "paper chain"],
    [],
    ["blue mug", "heart", "lamp", "tin sign"],
)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_text_is_encoded_once_in_a_night_and_not_again_tomorrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    monkeypatch.setattr(encode_items_module, "CPU_DEPTH", depth)
    bench = Bench.at(tmp_path)
    metrics = bench.run(REPEATS).metrics
    distinct = {text for part in REPEATS for text in part}
    assert bench.load.encoded() == Counter(distinct)
    check(bench, REPEATS)
    balance(metrics)
    assert (metrics["encoded"], metrics["repeated"]) == (len(distinct), 13 - len(distinct))
    assert metrics["tokens"] == sum(len(text.split()) for text in distinct)
    assert 0 < metrics["tokens_per_second"] <= metrics["tokens"] / 0.003
    n_calls = 3  # the shared texts, and two parts with a text of their own
    assert metrics["share_of_peak"] == pytest.approx(
        100 * metrics["tokens"] / (1e6 * 0.003 * n_calls), abs=1e-3
    )
    left = [path.name for path in (tmp_path / "root/item_embeddings").rglob("repeated-*")]
    assert not left

    bench.forget()
    tomorrow, parts = bench.night(1), (["a new one"], *REPEATS, ["a new one", "tin sign"])
    metrics = bench.run(parts, tomorrow).metrics
    assert bench.load.encoded() == Counter(["a new one"])
    check(bench, parts, tomorrow)
    balance(metrics)
    assert (metrics["encoded"], metrics["reused"], metrics["repeated"]) == (1, 14, 1)


def test_another_model_encodes_everything_again_and_says_so_first(tmp_path: Path) -> None:
    bench, said = Bench.at(tmp_path), io.StringIO()
    bench.run(REPEATS)
    bench.forget()
    night = replace(bench.night(1, precision="bf16"), report=Report(said))
    bench.run(REPEATS, night)
    assert sum(bench.load.encoded().values()) == 6
    lines = said.getvalue().splitlines()
    assert lines[1] == (
        "encode_items: the model is another than on 2025-03-31 (precision fp32 -> bf16); "
        "6 texts are encoded again"
    )
    assert "6 texts encoded" in lines[2]
    # Back to the first model: what it made lies an older night back, so nothing is encoded.
    bench.forget()
    bench.run(REPEATS, replace(bench.night(2), report=Report(said)))
    assert not bench.load.encoded()
    assert "(precision bf16 -> fp32); 0 texts are encoded again" in said.getvalue()


POISON: Parts = (
    ["a", "b", "DIE 1", "c", "d", "e", "f"],
    ["g", "NAN", "h", "g"],
    ["i", "RAISE", "j", "DIE 2", "k", "l", "DIE 2"],
    ["m", "DIE shared", "ZERO shared"],
    ["DIE shared", "n", "o", "ZERO shared", "a"],
)
BAD = {
    "DIE 1": "kills_encoder",
    "DIE 2": "kills_encoder",
    "DIE shared": "kills_encoder",
    "RAISE": "fails_in_encoder",
    "NAN": "bad_vector",
    "ZERO shared": "bad_vector",
}


@pytest.mark.parametrize("depth", [1, 2])
def test_deadly_and_bad_texts_are_quarantined_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    monkeypatch.setattr(encode_items_module, "CPU_DEPTH", depth)
    bench = Bench.at(tmp_path)
    metrics = bench.run(POISON).metrics
    check(bench, POISON, bad=list(BAD))
    rows = [(f"i{n:06d}", text) for n, text in enumerate(text for part in POISON for text in part)]
    expected = [(item_id, text, BAD[text]) for item_id, text in rows if text in BAD]
    assert bench.quarantine() == expected
    balance(metrics)
    assert metrics["quarantine"] == {"bad_vector": 3, "fails_in_encoder": 1, "kills_encoder": 5}
    assert metrics["quarantined"] == 9
    assert bench.load.deaths() < 30

    # The next night finds them bad already: nothing dies, nothing is tried, and they are listed again.
    bench.forget()
    tomorrow, parts = bench.night(1), (*POISON[1:], ["DIE 1", "p"], POISON[0])
    metrics = bench.run(parts, tomorrow).metrics
    assert (bench.load.deaths(), bench.load.encoded()) == (0, Counter(["p"]))
    check(bench, parts, tomorrow, bad=list(BAD))
    assert Counter(reason for *_, reason in bench.quarantine(tomorrow)) == {**metrics["quarantine"]}
    assert metrics["quarantine"]["kills_encoder"] == 6
    balance(metrics)


def test_quarantined_texts_are_tried_again_when_told_to(tmp_path: Path) -> None:
    bench, parts = Bench.at(tmp_path), (["a", "RAISE", "NAN"], ["b", "RAISE"])
    bench.run(parts)
    bench.forget()
    told = bench.night(1, retry_quarantined=True)
    healed = replace(bench, load=replace(bench.load, heals=True))
    healed.load.once("raised")
    metrics = healed.run(parts, told).metrics
    assert bench.load.encoded() == Counter(["RAISE", "NAN"])
    check(bench, parts, told, bad=["NAN"])
    assert [text for _, text, _ in bench.quarantine(told)] == ["NAN"]
    balance(metrics)

    # A stand-in whose quarantine is gone could be anything's: nothing of that night is taken over.
    for ds in (bench.night(), told):
        (tmp_path / f"root/embeddings_quarantine/ds={ds.ds}/MANIFEST.json").unlink()
    bench.forget()
    healed.load.once("raised")
    healed.run(parts, bench.night(2))
    assert bench.load.encoded() == Counter(["a", "b", "RAISE", "NAN"])


def shas(bench: Bench) -> list[str]:
    return [entry.sha256 for entry in bench.embeddings().parts]


def test_a_stopped_night_goes_on_where_it_was_to_the_same_bytes(tmp_path: Path) -> None:
    """Stopped among the parts, and in another run among the texts that several parts share."""
    whole = Bench.at(tmp_path / "whole")
    parts: Parts = (
        ["a", "ZERO", "s1"],
        ["b", "s2", "s1"],
        ["c", "STOP"],
        ["d", "s2", "ZERO"],
        ["e", "s3", "STOP"],
    )
    whole.load.once("stopped")
    whole.run(parts)
    for stop in ("STOP", "s3"):
        bench = Bench.at(tmp_path / stop)
        renamed = [[text.replace("s3", "STOP") if stop == "s3" else text for text in part] for part in parts]
        with pytest.raises(ContractError, match="on purpose"):
            bench.run(renamed)
        before = bench.load.encoded()
        metrics = bench.run(renamed).metrics
        balance(metrics)
        assert metrics["encoded"] <= len({t for part in renamed for t in part}) - len(before) + 2
        if renamed == [list(part) for part in parts]:
            assert shas(bench) == shas(whole)
            assert bench.quarantine() == whole.quarantine()


def test_a_death_that_does_not_come_back_changes_no_byte(tmp_path: Path) -> None:
    calm, shaken = Bench.at(tmp_path / "calm"), Bench.at(tmp_path / "shaken", heals=True)
    parts: Parts = (["a", "b"], ["c", "DIE once", "a"], ["d"], ["e", "c"])
    healed = replace(calm, load=replace(calm.load, heals=True))
    healed.load.once("died")
    healed.run(parts)
    shaken.run(parts)
    assert shaken.load.deaths() == 1
    assert shas(shaken) == shas(healed)
    assert not shaken.quarantine()


def test_an_encoder_that_cannot_live_fails_by_the_parts_name(tmp_path: Path) -> None:
    bench = Bench.at(tmp_path)
    with pytest.raises(PartFailed, match=r"more than 8 texts of part 0 fail one by one"):
        bench.run([[f"RAISE {n}" for n in range(40)]])
    assert bench.night().dataset(ITEM_EMBEDDINGS).committed() is None


def test_the_slowest_part_is_done_by_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "REISSUE_SECONDS", 2.0)
    bench = Bench.at(tmp_path)
    parts: Parts = (["a"], ["SLEEP"], ["c"], ["d"], ["e"])
    assert bench.run(parts).metrics["reissued"] >= 1
    check(bench, parts)
    assert not damage(bench.embeddings())


def test_half_the_bytes(tmp_path: Path) -> None:
    """Tonight's float16 may come from yesterday's float32; the way back would keep the rounding."""
    bench, parts = Bench.at(tmp_path), (["a", "NAN"], ["b", "a"])
    bench.run(parts)
    exact = vectors(bench.embeddings().read()["embedding"])
    bench.forget()
    compact = bench.night(1, storage="float16")
    bench.run(parts, compact)
    assert not bench.load.encoded()
    committed = bench.embeddings(compact)
    rows = committed.read()
    assert rows["embedding"].type == pa.binary(2 * DIM)
    assert np.array_equal(vectors(rows["embedding"]), exact.astype(np.float16).astype(np.float32))
    assert np.array_equal(mapped_matrix(committed), vectors(rows["embedding"]))

    said = io.StringIO()
    bench.folder.joinpath("root/item_embeddings/ds=2025-03-31/MANIFEST.json").unlink()
    bench.run([["a"]], replace(bench.night(2), report=Report(said)))
    assert bench.load.encoded() == Counter(["a"])
    assert "(storage float16 -> float32); 1 texts are encoded again" in said.getvalue()


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_a_part_says_what_made_it(tmp_path: Path, storage: str) -> None:
    bench = Bench.at(tmp_path)
    bench.run(REPEATS, bench.night(storage=storage))
    committed = bench.embeddings()
    for entry in committed.parts:
        metadata = pq.read_schema(committed.path(entry)).metadata
        assert metadata[b"nightjar.model"] == b"stand-in"
        assert (metadata[b"nightjar.dim"], metadata[b"nightjar.norm"]) == (b"12", b"1")
        assert metadata[b"nightjar.dtype"] == storage.encode()


@pytest.mark.parametrize("price", [None, 3.6])
def test_what_a_million_items_cost(tmp_path: Path, price: float | None) -> None:
    bench, said = Bench.at(tmp_path), io.StringIO()
    night = replace(bench.night(hourly_price=price), report=Report(said))
    metrics = bench.run([["a", "b"]], night).metrics
    assert ("a million items cost" in said.getvalue()) == (price is not None)
    assert metrics["texts_per_second"] > 0
    expected = None if price is None else pytest.approx(metrics["actor_seconds"] * 1e-3 * 1e6 / 2, abs=1)
    assert metrics["cost_per_million_items"] == expected
