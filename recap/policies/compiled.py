"""Networks as compiled functions and as CUDA graphs, and what of a training's activations is kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VOLTA = (7, 0)  # the oldest GPUs that Triton knows
ROOM = 0.97  # of the memory that is free: allocators leave gaps
RESERVE = 2e9  # bytes for what libraries take when they are first used
GAIN = 0.85  # of the activations between least and most, what a share of 1 keeps below "everything"; measured
RECOMPILE_LIMIT = 64  # shapes of a function: training and acting, batches and prompts of several lengths
WARM_UP = 3  # calls before a graph is recorded: they compile, choose kernels and fill caches
GRAPHS = 16  # of one function, for as many shapes


def compiles(wanted: bool | str, device: str) -> bool:
    """Whether networks are compiled; `auto`: on a GPU that Triton knows, where there is a C compiler."""
    if wanted != "auto":
        return bool(wanted)
    compiler = any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))
    return device.startswith("cuda") and compiler and torch.cuda.get_device_capability() >= VOLTA


def share_kept(wanted: float | str, free: float, moments: float, least: float, most: float) -> float:
    """The share of its activations that a training keeps; the rest is computed again in the backward pass.

    Args:
        wanted: that share, or auto: what fits.
        free: memory of the device in bytes. moments: what the optimiser will take of it. The gradients need no memory
            of their own: they come as the activations go.
        least, most: what the activations take where all is computed again, and where nothing is.
    """
    if wanted != "auto":
        return float(wanted)
    room = ROOM * free - RESERVE - moments
    if room >= most:
        return 1.0
    return min(0.9, max(0.0, (room - least) / (GAIN * (most - least))))


def free_bytes(device: str) -> float:
    """Memory of a GPU that nothing holds; without end for any other device."""
    if not device.startswith("cuda"):
        return float("inf")
    return float(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())


def keep(share: float) -> None:
    """Of what is compiled from now on for training."""
    torch._functorch.config.activation_memory_budget = share  # noqa: SLF001 (how its settings are set)


def compile_for_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is compiled for each of the shapes it meets; the next stage and the next run find it compiled."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "recap/compiled"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT  # noqa: SLF001 (how its settings are set)
    return torch.compile(function, dynamic=False)


class Graphs:
    """A function of tensors [B, …] as one CUDA graph for each of the shapes that it meets.

    It must not look at what its tensors hold, and computes the same from the same. What it returns is the caller's.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.recorded: dict[Any, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}
        self.pool: Any = None

    def __call__(self, tensors: list[Tensor], *constants: Any) -> Tensor:
        """function(tensors, *constants)."""
        key = (*((tuple(tensor.shape), tensor.dtype) for tensor in tensors), *constants)
        if key not in self.recorded:
            if len(self.recorded) == GRAPHS:
                self.recorded.clear()
            self.recorded[key] = self.record(tensors, constants)
        graph, places, result = self.recorded[key]
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor)
        graph.replay()
        return result.clone()

    def record(
        self, tensors: list[Tensor], constants: tuple[Any, ...]
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        places = [tensor.clone() for tensor in tensors]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self.function(places, *constants)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            result = self.function(places, *constants)
        return graph, places, result
