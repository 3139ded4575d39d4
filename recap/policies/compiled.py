"""Networks as compiled functions and as CUDA graphs, and what of a training's activations is kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CACHE = "~/.cache/recap/inductor"  # the next stage, and the next run, finds what is compiled
WARM_UP = 3  # calls before a graph is recorded: they compile, choose kernels and fill caches
GRAPHS = 16  # of one function, for as many shapes


def compile_for_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is compiled for each of the shapes it meets."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(CACHE).expanduser()))
    torch._dynamo.config.recompile_limit = 64  # training and acting, batches and prompts of several lengths
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
