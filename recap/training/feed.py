"""Batches on their way to the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from recap.data.tensors import Batch

Fed = tuple[Batch, float]


def ahead(make: Callable[[int], Fed], numbers: range, device: str) -> Iterator[Fed]:
    """`make` of each number: a batch and its weight. On a GPU the next batch is made and copied while the device computes on the last.

    That takes a stream and a thread of its own: a copy from ordinary memory waits for all that its stream has to do.
    """
    if torch.device(device).type != "cuda":
        yield from map(make, numbers)
        return
    stream, pool = torch.cuda.Stream(), ThreadPoolExecutor(1, thread_name_prefix="ahead")

    def made(number: int) -> tuple[Fed, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            return make(number), stream.record_event()

    try:
        coming = [pool.submit(made, number) for number in numbers[:2]]
        for number in [*numbers[2:], None, None][: len(numbers)]:
            (batch, weight), there = coming.pop(0).result()
            if number is not None:
                coming.append(pool.submit(made, number))
            there.wait()
            for value in batch.values():
                if isinstance(value, torch.Tensor) and value.is_cuda:
                    value.record_stream(torch.cuda.current_stream())
            yield batch, weight
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
