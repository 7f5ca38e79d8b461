"""Contestants of `bench.topk` beyond faiss: implicit, usearch, hnswlib where installed, and Spark's ALS."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from bench.topk_lanes import F32, I64, Lane

GRAPH_DEGREE, GRAPH_EFFORT = 16, 64
BEAMS = (128, 256, 512, 1024)
ALS_USERS = 48


def exact(matrix: F32, k: int) -> Iterator[Lane]:
    """implicit's top-k and usearch's exact search, with one thread."""
    try:
        from implicit.cpu.topk import topk
    except ImportError:
        print("implicit is not installed: left out")
    else:
        yield Lane("implicit", "", lambda queries: topk(matrix, queries, k, num_threads=1)[0], 512)
    try:
        from usearch.index import search
    except ImportError:
        print("usearch is not installed: left out")
    else:

        def by_usearch(queries: F32) -> I64:
            return search(matrix, queries, k, "ip", exact=True, threads=1).keys.astype(np.int64)

        yield Lane("usearch", "exact", by_usearch, 32)


def graphs(matrix: F32, k: int, threads: int) -> Iterator[Lane]:
    """HNSW by hnswlib and usearch, built with `threads`, searched with one."""
    try:
        import hnswlib
    except ImportError:
        print("hnswlib is not installed: left out")
    else:
        graph = hnswlib.Index(space="ip", dim=matrix.shape[1])
        graph.init_index(len(matrix), ef_construction=GRAPH_EFFORT, M=GRAPH_DEGREE)
        graph.add_items(matrix, num_threads=threads)
        for beam in BEAMS:

            def by_hnswlib(queries: F32, beam: int = beam) -> I64:
                graph.set_ef(beam)
                return graph.knn_query(queries, k, num_threads=1)[0].astype(np.int64)

            yield Lane(f"hnswlib M{GRAPH_DEGREE}", f"ef {beam}", by_hnswlib, 256)
    try:
        from usearch.index import Index
    except ImportError:
        return
    index = Index(
        ndim=matrix.shape[1],
        metric="ip",
        dtype="f32",
        connectivity=GRAPH_DEGREE,
        expansion_add=GRAPH_EFFORT,
    )
    index.add(np.arange(len(matrix)), matrix, threads=threads)
    for beam in BEAMS:

        def by_usearch(queries: F32, beam: int = beam) -> I64:
            index.expansion_search = beam
            return index.search(queries, k, threads=1).keys.astype(np.int64)

        yield Lane(f"usearch M{GRAPH_DEGREE}", f"ef {beam}", by_usearch, 256)


def spark_als(matrix: F32, k: int, folder: Path) -> Lane:
    """`ALSModel.recommendForAllUsers` on the same factors, in one JVM thread; seconds are the JVM's."""
    model = _AlsModel.start(matrix, folder)
    return Lane(
        "spark ALS",
        "recommendForAllUsers",
        lambda queries: model.search(queries, k),
        ALS_USERS,
        clock=model.clock,
    )


@dataclass(frozen=True)
class _AlsModel:
    """A Spark session of one core and the items' factors in it, cached."""

    spark: Any
    items: Any
    folder: Path
    clock: Callable[[], float]

    @staticmethod
    def start(matrix: F32, folder: Path) -> _AlsModel:
        from pyspark.sql import SparkSession

        spark = (
            SparkSession.builder.master("local[1]")
            .config("spark.driver.memory", "6g")
            .config("spark.ui.enabled", "false")
            .config("spark.sql.shuffle.partitions", "1")
            .getOrCreate()
        )
        spark.sparkContext.setLogLevel("ERROR")
        pid = spark.sparkContext._jvm.java.lang.ProcessHandle.current().pid()
        process = psutil.Process(pid)

        def clock() -> float:
            times = process.cpu_times()
            return float(times.user + times.system) + time.process_time()

        items = spark.read.parquet(_factors(matrix, folder / "als-items.parquet")).cache()
        items.count()
        return _AlsModel(spark, items, folder, clock)

    def search(self, queries: F32, k: int) -> I64:
        """Item numbers (q, k); users are read from a file as Spark would."""
        users = self.spark.read.parquet(_factors(queries, self.folder / "als-users.parquet"))
        jvm = self.spark.sparkContext._jvm
        kind = jvm.org.apache.spark.ml.recommendation.ALSModel
        model = kind("bench", queries.shape[1], users._jdf, self.items._jdf)
        model.setUserCol("user")
        model.setItemCol("item")
        rows = model.recommendForAllUsers(k).collectAsList()
        found = np.full((len(queries), k), -1, np.int64)
        for row in rows:
            best = row.getSeq(1)
            found[row.getInt(0)] = [best.apply(at).getInt(0) for at in range(best.length())]
        return found


def _factors(vectors: F32, path: Path) -> str:
    """Vectors as the table of ids and features that an ALS model holds."""
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    offsets = pa.array(np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1])
    features = pa.ListArray.from_arrays(offsets, flat)
    pq.write_table(pa.table({"id": np.arange(len(vectors), dtype=np.int32), "features": features}), path)
    return str(path)
