"""Batches made before they are asked for: reading and decoding go on while the device computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

THREADS = 8  # decoding runs outside Python's lock
DEPTH = 8  # batches that are made or wait: what memory they take


def prefetch[T](make: Callable[[int], T], count: int) -> Callable[[int], T]:
    """`make` for numbers asked for in order, up to `count`; it must be safe to call from several threads."""
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="prefetch")
    coming: dict[int, Future[T]] = {}

    def get(number: int) -> T:
        for k in range(number, min(number + DEPTH, count)):
            if k not in coming:
                coming[k] = pool.submit(make, k)
        if number + 1 >= count:
            pool.shutdown(wait=False)
        return coming.pop(number).result()

    return get
