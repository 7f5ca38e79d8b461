"""The contestants of `bench.topk`: each answers "the best k items of these users" in its own way."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from faiss.contrib.big_batch_search import big_batch_search
from numpy.typing import NDArray

from nightjar.engines import bulk
from nightjar.engines.shards import Effort
from nightjar.kernels.topk import Filters

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Search = Callable[[F32], Any]
TILE = 8192


@dataclass
class Lane:
    """One contestant: its family, its setting, how it searches, on how many users, and what was measured.

    search returns item numbers (q, k), or None where nothing is selected. seconds are CPU seconds a user, by
    clock: this process' CPU time, or with that of a process it works through.
    """

    family: str
    setting: str
    search: Search
    n_users: int
    seconds: list[float] = field(default_factory=list)
    recall: float = float("nan")
    clock: Callable[[], float] = time.process_time

    @property
    def name(self) -> str:
        return f"{self.family} {self.setting}".strip()


def bare_products(matrix: F32) -> list[Lane]:
    """Every score and nothing else: what a matrix product alone costs, by both libraries installed here."""
    items = torch.from_numpy(matrix)
    room = torch.empty(1024 * TILE)

    def by_torch(queries: F32) -> None:
        users = torch.from_numpy(queries)
        for start in range(0, len(matrix), TILE):
            columns = items[start : start + TILE].T
            torch.mm(users, columns, out=room[: len(users) * columns.shape[1]].view(len(users), -1))

    def by_numpy(queries: F32) -> None:
        out = room.numpy()
        for start in range(0, len(matrix), TILE):
            rows = matrix[start : start + TILE]
            np.matmul(queries, rows.T, out=out[: len(queries) * len(rows)].reshape(len(queries), -1))

    return [Lane("sgemm", "torch", by_torch, 1024), Lane("sgemm", "numpy", by_numpy, 1024)]


def exact_peers(matrix: F32, k: int) -> list[Lane]:
    """faiss Flat, and torch's product and topk."""
    flat = faiss.IndexFlatIP(matrix.shape[1])
    flat.add(matrix)
    return [
        Lane("faiss Flat", "", lambda queries: flat.search(queries, k)[1], 1024),
        Lane("torch mm + topk", "", lambda queries: _torch_topk(matrix, queries, k), 512),
    ]


def _torch_topk(matrix: F32, queries: F32, k: int) -> I64:
    items, found = torch.from_numpy(matrix), []
    for start in range(0, len(queries), 256):
        scores = torch.from_numpy(queries[start : start + 256]) @ items.T
        found.append(scores.topk(k, dim=1).indices)
    return torch.cat(found).numpy()


def ours(matrix: F32, k: int, n_users: int, shares: list[float]) -> tuple[list[Lane], Callable[..., Any]]:
    """The bulk engine, exact and at several probe shares; and its search, for filters."""
    folder = Path(tempfile.mkdtemp(prefix="bench-topk-"))
    facts = bulk.build_shard(matrix, np.arange(len(matrix)), folder / "items")
    shard = bulk.open_shard(folder / "items", facts.sha256)

    def search(queries: F32, filters: Filters | None = None, share: float | None = None) -> I64:
        return bulk.search_shards([shard], queries, k, matrix, filters, Effort(probe_share=share)).item_nums

    lanes = [Lane("nightjar exact", "", search, n_users)]
    for share in shares:
        lanes.append(
            Lane(
                "nightjar lists",
                f"{share}",
                lambda queries, share=share: search(queries, None, share),
                n_users,
            )
        )
    return lanes, search


def approximate_peers(matrix: F32, k: int, n_users: int, n_lists: int) -> Iterator[Lane]:
    """faiss for bulk search, over the settings that matter: number of lists, lists probed, refinement."""
    for count in (n_lists // 2, n_lists, 2 * n_lists, 4 * n_lists):
        yield from _ivf_flat(matrix, k, n_users, count, query_by_query=count == n_lists)
    yield from _fast_scan(matrix, k, n_lists)


def faiss_graph(matrix: F32, k: int, threads: int) -> list[Lane]:
    """faiss HNSW, built with `threads`, searched with one."""
    lanes = []
    index = faiss.IndexHNSWFlat(matrix.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 64
    faiss.omp_set_num_threads(threads)
    index.add(matrix)
    faiss.omp_set_num_threads(1)
    for beam in (256, 512, 1024):

        def search(queries: F32, beam: int = beam) -> I64:
            return index.search(queries, k, params=faiss.SearchParametersHNSW(efSearch=beam))[1]

        lanes.append(Lane("faiss HNSW16", f"ef {beam}", search, 256))
    return lanes


def _trained(factory: str, matrix: F32) -> Any:
    index = faiss.index_factory(matrix.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    index.train(matrix[:: max(1, len(matrix) // 60_000)])
    index.add(matrix)
    return index


def _products(queries: F32, vectors: F32, metric: int) -> F32:  # noqa: ARG001
    """A matrix product instead of faiss.pairwise_distances, which has none for inner products."""
    return queries @ vectors.T


def _ivf_flat(matrix: F32, k: int, n_users: int, n_lists: int, query_by_query: bool) -> Iterator[Lane]:
    index = _trained(f"IVF{n_lists},Flat", matrix)
    for share in (0.02, 0.03, 0.04, 0.06, 0.1, 0.2, 0.4):
        n_probe = max(1, round(share * n_lists))

        def one_by_one(queries: F32, n_probe: int = n_probe) -> I64:
            return index.search(queries, k, params=faiss.SearchParametersIVF(nprobe=n_probe))[1]

        def by_list(queries: F32, n_probe: int = n_probe) -> I64:
            index.nprobe = n_probe
            with redirect_stdout(StringIO()):  # it reports every list
                return big_batch_search(index, queries, k, "pairwise_distances", _products)[1]

        if query_by_query:
            yield Lane(f"faiss IVF{n_lists},Flat", f"nprobe {n_probe}", one_by_one, 256)
        yield Lane(f"faiss IVF{n_lists},Flat big_batch", f"nprobe {n_probe}", by_list, n_users)


def _fast_scan(matrix: F32, k: int, n_lists: int) -> Iterator[Lane]:
    n_codes = matrix.shape[1] // 2
    for factory, probes in (
        (f"PQ{n_codes}x4fs", [0]),
        (f"IVF{n_lists},PQ{n_codes}x4fs", [n_lists // 8, n_lists // 5, n_lists // 3]),
    ):
        base = _trained(factory, matrix)
        refined = faiss.IndexRefineFlat(base, faiss.swig_ptr(matrix))
        for n_probe in probes:
            for factor in (2, 3, 5, 10):

                def search(
                    queries: F32, index: Any = refined, n_probe: int = n_probe, factor: int = factor
                ) -> I64:
                    inner = faiss.SearchParametersIVF(nprobe=n_probe) if n_probe else None
                    parameters = faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=inner)
                    return index.search(queries, k, params=parameters)[1]

                probed = f"nprobe {n_probe} " if n_probe else ""
                yield Lane(f"faiss {factory} + refine", f"{probed}factor {factor}", search, 512)
