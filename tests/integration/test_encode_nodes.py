"""A Ray node goes down while encode_items runs: its part in flight is done elsewhere, nothing else again."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray.cluster_utils import Cluster

from nightjar.pipeline import ENCODE_ITEMS
from nightjar.stage import run_stage
from nightjar.stages.encode_items import encode_items
from nightjar.tables import ITEM_EMBEDDINGS, ITEM_TEXT, vectors
from tests import world
from tests.integration.encoder_stand_in import StandIn, vector_of
from tests.integration.test_encode_items import row

N_PARTS, ROWS = 24, 5


@pytest.fixture
def nodes() -> Iterator[tuple[Cluster, Any]]:
    """A head and another node, of one core each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80_000_000})
    other = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    yield cluster, other
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_a_node_that_goes_down_loses_its_part_in_flight_alone(
    tmp_path: Path, nodes: tuple[Cluster, Any]
) -> None:
    cluster, other = nodes
    (tmp_path / "notes").mkdir()
    load = StandIn(tmp_path / "notes", seconds=0.5)
    night = world.night(tmp_path / "root", encode_items={"resources": {"actors": 2, "max_attempts": 3}})
    texts = [[f"text {part} {i}" for i in range(ROWS)] for part in range(N_PARTS)]
    numbers = iter(range(N_PARTS * ROWS))
    tables = [pa.Table.from_pylist([row(next(numbers), t) for t in part], ITEM_TEXT.schema) for part in texts]
    world.commit(night.store, ITEM_TEXT, night.ds, tables)

    def go_down() -> None:
        until = time.monotonic() + 120
        while len(list((tmp_path / "root" / ITEM_EMBEDDINGS.name).rglob("*.done.json"))) < N_PARTS // 4:
            assert time.monotonic() < until
            time.sleep(0.05)
        workers = len(list(load.notes.glob("done-*")))
        cluster.remove_node(other, allow_graceful=False)
        (tmp_path / "workers").write_text(str(workers))

    down = threading.Thread(target=go_down)
    down.start()
    metrics = run_stage(ENCODE_ITEMS, functools.partial(encode_items, load=load), night).metrics
    down.join()
    assert (tmp_path / "workers").read_text() == "2"  # both nodes were at work
    counts = load.encoded()
    assert set(counts) == {text for part in texts for text in part}
    assert sum(n - 1 for n in counts.values()) <= ROWS  # at most the part in flight, once more
    assert (metrics["encoded"], metrics["quarantined"]) == (N_PARTS * ROWS, 0)
    found = night.dataset(ITEM_EMBEDDINGS).require("encode_items").read()
    expected = [vector_of(text) for part in texts for text in part]
    assert (vectors(found["embedding"]) == expected).all()
