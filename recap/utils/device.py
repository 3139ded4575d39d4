"""Which device computes, and whether its memory is enough. Imports torch alone, and only when asked."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from recap.utils.environment import number
from recap.utils.errors import RecapError

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of glibc's mallopt


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


def device_name(device: Device) -> str:
    """`auto` takes the accelerator that is there; of processes started together, each takes its own.

    Where a processor computes, its memory is kept for that (`keep_freed_memory`).
    Raises RecapError for a device that this machine lacks.
    """
    import torch

    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(number("LOCAL_RANK", 0) % torch.cuda.device_count())
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device is Device.auto:
        device = next(Device(name) for name, there in available.items() if there)
    if device is Device.cpu:
        keep_freed_memory()
    if not available[device.value]:
        there = ", ".join(name for name, ok in available.items() if ok)
        raise RecapError(f"device={device.value}: there is none on this machine. Choices here: {there}, auto.")
    return device.value


def keep_freed_memory() -> None:
    """Half a gigabyte of freed blocks stays with the process, where the C library is glibc.

    Otherwise the activations of a step go back to the system and the next step pays for every page again: a fifth of
    the time of a small network on a processor.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(MMAP_THRESHOLD, 32 << 20)  # what is larger is given back; the most that older versions take
        libc.mallopt(TRIM_THRESHOLD, 512 << 20)


def memory(name: str) -> float:
    """Bytes of memory of a GPU; 0 for any other device."""
    import torch

    return float(torch.cuda.get_device_properties(0).total_memory) if name == "cuda" else 0.0


@contextmanager
def threads_beside(processes: int) -> Iterator[None]:
    """Leaves cores to simulators, half of which act at a time: a thread that waits for a core holds up all of torch."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - processes // 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
