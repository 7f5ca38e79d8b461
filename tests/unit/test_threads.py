"""Threads follow an actor's cores, even where the environment asks for all of the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from nightjar.config import Resources
from nightjar.engines.threads import threads_of

PROBE = """
import json, re, sys
import faiss, numpy, torch, scipy.linalg
from threadpoolctl import threadpool_info
from nightjar.engines.threads import use_threads

def found():
    pools = {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}
    inside = re.findall(r"mkl_get_max_threads\\(\\) : (\\d+)", torch.__config__.parallel_info())
    torch_threads = [torch.get_num_threads(), *map(int, inside)]
    return [sorted(pools.values()), torch_threads, faiss.omp_get_max_threads()]

before = found()
use_threads(int(sys.argv[1]))
print(json.dumps([before, found()]))
"""


@pytest.mark.parametrize("count", [1, 2])
def test_every_library_is_limited_against_the_environment(count: int) -> None:
    wide = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "3")
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(count)],
        env={**os.environ, **wide},
        capture_output=True,
        text=True,
        check=True,
    )
    (before, torch_before, faiss_before), (after, torch_after, faiss_after) = json.loads(done.stdout)
    # Some take no more threads than there are cores.
    assert max(*before, *torch_before, faiss_before) > 1
    assert set(after) == set(torch_after) == {faiss_after} == {count}


def test_an_actor_with_less_than_a_core_has_one_thread() -> None:
    assert [threads_of(Resources(num_cpus=cores)) for cores in (0, 0.5, 1, 2.9, 4)] == [1, 1, 1, 2, 4]
