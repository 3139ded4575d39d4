"""Batches on their way to the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from recap.data.tensors import Batch

AHEAD = 2  # batches that are on the device beside the one it computes on


def ahead(make: Callable[[int], Batch], numbers: range, device: str) -> Iterator[Batch]:
    """`make` of each number.

    On a GPU the next ones are made and copied while the device computes on the last. That takes a thread and a stream
    of its own: a copy from ordinary memory waits for all that its stream has yet to do.
    """
    if torch.device(device).type != "cuda":
        yield from map(make, numbers)
        return
    stream, pool = torch.cuda.Stream(), ThreadPoolExecutor(1, thread_name_prefix="ahead")

    def made(number: int) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            return make(number), stream.record_event()

    try:
        coming = [pool.submit(made, number) for number in numbers[:AHEAD]]
        for number in numbers:
            batch, there = coming.pop(0).result()
            if number + AHEAD in numbers:
                coming.append(pool.submit(made, number + AHEAD))
            there.wait()
            for value in batch.values():
                if isinstance(value, torch.Tensor) and value.is_cuda:
                    value.record_stream(torch.cuda.current_stream())
            yield batch
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
