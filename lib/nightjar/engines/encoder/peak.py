"""What the device at hand reaches on a bare matrix product: what a share of its peak is counted against."""

from __future__ import annotations

import time

import torch

ROUNDS = 6
"""Products timed; the fastest counts. On one core all of them take a tenth of a second."""
GPU_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def measured_peak(device: torch.device, precision: str) -> float:
    """Operations a second of a square product: float32 on a CPU, of the precision that is run on a GPU."""
    on_gpu = device.type == "cuda"
    size = 8192 if on_gpu else 1024
    dtype = GPU_DTYPES.get(precision, torch.float32) if on_gpu else torch.float32
    a = torch.ones(size, size, device=device, dtype=dtype)
    b = torch.ones(size, size, device=device, dtype=dtype)
    return float(2 * size**3 / min(_seconds(a, b) for _ in range(ROUNDS)))


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    torch.mm(a, b)
    if a.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started
