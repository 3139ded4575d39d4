"""A stage's work split among processes: array tasks of SLURM, and the processes that one job or command starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Part `index` of `count`. What is done does not depend on the split: every item is its own."""

    index: int = 0
    count: int = 1

    @property
    def whole(self) -> bool:
        return self.count == 1

    def of[T](self, items: Sequence[T]) -> Sequence[T]:
        """Its items, in order: every `count`-th."""
        return items[self.index :: self.count]

    def among(self, index: int, count: int) -> Share:
        """Its own part `index` of `count`."""
        return Share(self.index * count + index, self.count * count)

    def __str__(self) -> str:
        return f"{self.index}of{self.count}"


WHOLE = Share()


def process() -> Share:
    """This process among those that `accelerate launch`, torchrun or SLURM started together."""
    return Share(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
