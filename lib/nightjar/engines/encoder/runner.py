"""Run a model over batches within memory: running out halves the token budget, which grows back."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nightjar.engines.encoder.attention import to_device
from nightjar.engines.encoder.packing import BatchQueue, PackedBatch, TokenRows
from nightjar.errors import StageError

log = logging.getLogger(__name__)

# Batches run in peace before a halved budget is doubled again.
_REGROW_AFTER = 64
_LEAST_BUDGET = 64

Forward = Callable[[PackedBatch], Tensor]


class Runner:
    """Batches of at most ``budget`` tokens through ``forward``, to (n, dim) vectors on ``device``."""

    def __init__(self, forward: Forward, budget: int, device: torch.device, *, padded: bool) -> None:
        """Ready to run; ``padded`` counts padding into the budget."""
        self._forward = forward
        self._full_budget = budget
        self._budget = budget
        self._device = device
        self._padded = padded
        self._in_peace = 0
        self.n_batches = 0
        self.n_out_of_memory = 0

    def __call__(self, rows: TokenRows, dim: int) -> NDArray[np.float32]:
        """Vectors (n, dim) of the rows, in their order; a row without a token gets zeros."""
        return self.start(rows, dim)()

    def start(self, rows: TokenRows, dim: int) -> Callable[[], NDArray[np.float32]]:
        """Begin with the rows; what is returned waits for their vectors.

        They stay on the device until all are there: one copy back, and no waiting between batches. On a GPU
        that copy is still under way when this returns, so the next rows can begin.
        """
        out = torch.zeros((len(rows), dim), device=self._device)
        queue = BatchQueue(rows, padded=self._padded)
        while queue:
            for batch, vectors in self._run(queue.take(self._budget)):
                out[to_device(torch.from_numpy(batch.rows), self._device)] = vectors
        return _copied_back(out)

    def _run(self, batch: PackedBatch) -> list[tuple[PackedBatch, Tensor]]:
        """The batch and its vectors, in as many pieces as memory asks for.

        Raises:
            StageError: one text alone does not fit.
        """
        try:
            vectors = self._forward(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            self._grow()
            return [(batch, vectors)]
        # Out of the except block: its traceback holds the tensors of the failed batch.
        self._shrink(batch)
        return [piece for half in batch.split() for piece in self._run(half)]

    def _shrink(self, batch: PackedBatch) -> None:
        if len(batch.rows) == 1:
            raise StageError(
                f"one text of {batch.n_tokens} tokens does not fit in the memory of {self._device}: "
                "lower max_length or use a larger device"
            )
        self.n_out_of_memory += 1
        self._in_peace = 0
        self._budget = max(_LEAST_BUDGET, min(self._budget, batch.n_tokens) // 2)
        log.warning("out of memory on %d tokens: the token budget is now %d", batch.n_tokens, self._budget)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _grow(self) -> None:
        self.n_batches += 1
        self._in_peace += 1
        if self._in_peace >= _REGROW_AFTER and self._budget < self._full_budget:
            self._in_peace = 0
            self._budget = min(self._full_budget, self._budget * 2)


def _copied_back(out: Tensor) -> Callable[[], NDArray[np.float32]]:
    """Copies a tensor to this side, into pinned memory where it is on a GPU; the result waits for it."""
    if not out.is_cuda:
        at_hand: NDArray[np.float32] = out.numpy()
        return lambda: at_hand
    here = torch.empty(out.shape, dtype=out.dtype, pin_memory=True)
    here.copy_(out, non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def wait() -> NDArray[np.float32]:
        done.synchronize()
        vectors: NDArray[np.float32] = here.numpy()
        return vectors

    return wait


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the GPU or of the process, ran out."""
    text = str(error)
    told = "not enough memory" in text or "can't allocate memory" in text or "CUDA out of memory" in text
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or told


def keep_freed_memory() -> None:
    """Have glibc keep freed blocks of up to 32 MB instead of giving them back to the system.

    A product of 2,048 x 1,536 floats given back and taken again costs 3,000 page faults a time: 5 ms beside
    the 11 ms of the product itself on an EPYC guest. Elsewhere than with glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 512 << 20)
