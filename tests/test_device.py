"""What a processor computes on: pages that stay, and cores that are left to simulators."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from recap.utils.device import threads_beside

FAULTS = """
import ctypes, resource, sys
import numpy as np
from recap.utils.device import keep_freed_memory

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of one size, on any machine

def faults():
    def step():
        held = [np.ones(4 << 17) for _ in range(8)]  # 4 MB each
    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = faults()
keep_freed_memory()
print(plain, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_what_a_step_frees_serves_the_next() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    plain, kept = map(int, done.stdout.split())
    assert plain > 10_000, "each page is fetched again, or this test shows nothing"
    assert kept < 100


@pytest.mark.parametrize(("simulators", "left"), [(1, 4), (2, 3), (6, 1), (20, 1)])
def test_threads_beside_simulators(simulators: int, left: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with threads_beside(simulators):
            assert torch.get_num_threads() == left
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
