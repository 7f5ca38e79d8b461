"""How many threads the libraries of an actor use: as many as it has cores, whatever the environment says.

Ray sets OMP_NUM_THREADS to an actor's num_cpus only where nobody set it before; a value from the cluster's
shell, or OPENBLAS_NUM_THREADS beside it, would give every actor the threads of the whole machine.
"""

from __future__ import annotations

import threadpoolctl
import torch

from nightjar.config import Resources


def threads_of(resources: Resources) -> int:
    """The threads of one actor: its num_cpus, rounded down, at least 1."""
    return max(1, int(resources.num_cpus))


def use_threads(count: int) -> None:
    """Limits FAISS, torch, OpenMP and BLAS (OpenBLAS, MKL, BLIS) of this process, as far as loaded."""
    threadpoolctl.threadpool_limits(count)
    torch.set_num_threads(count)  # its MKL is linked into it, where threadpoolctl cannot see it
