"""What a measurement was taken on: processor, cores, memory, versions, and what its matrix products reach."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "tokenizers",
    "numpy",
    "pyarrow",
    "ray",
    "pyspark",
    "faiss-cpu",
)


def facts() -> dict[str, Any]:
    """Facts for a line of bench/results: nothing that names the machine or its owner."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def cpu_model() -> str:
    """The processor's name as the kernel gives it, with the instruction sets that decide encoding speed."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    known = set(fields.get("flags", "").split())
    sets = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if name in known]
    return " ".join([fields.get("model name", platform.machine()), *sets])


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_seconds(call: Callable[[], object], repeat: int = 5) -> float:
    """Least CPU seconds of a call among ``repeat``: the machine's own limit, not its load."""
    call()
    seconds = []
    for _ in range(repeat):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds)


@functools.cache
def sgemm_gflops(size: int = 1024) -> dict[str, float]:
    """One thread's GFLOP/s on a square fp32 product: ``torch`` (its default) and ``onednn`` (packed).

    ``best`` is the larger: the rate that a share of the machine is counted against.
    """
    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    flops = 2 * size**3 / 1e9
    rates = {"torch": flops / cpu_seconds(lambda: torch.mm(a, b))}
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(b, size)
        linear = torch.ops.mkldnn._linear_pointwise
        rates["onednn"] = flops / cpu_seconds(lambda: linear(a, packed, None, "none", [], ""))
    except (RuntimeError, AttributeError):
        rates["onednn"] = 0.0
    return {**rates, "best": max(rates.values())}


def matmul_tflops(device: str, size: int = 8192) -> float:
    """TFLOP/s of a bf16 product on a GPU: what model FLOP utilisation is counted against."""
    import torch

    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    seconds = []
    for _ in range(12):
        torch.cuda.synchronize()
        start = time.perf_counter()
        a @ a
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e12
