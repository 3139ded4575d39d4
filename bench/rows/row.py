"""A row of bench/cpu.py: the same work by us and by a peer, in turns, so that whatever else runs there hits both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LESS = ("s", "MB", "µs/frame", "%")  # units of which less is better
Figure = Callable[[], float]


@dataclass
class Row:
    """`ours` and `peer` measure once and return a figure in `unit`; limit: what the machine could do, in it too."""

    what: str
    unit: str
    ours: Figure
    peer: Figure | None = None
    whose: str = "lerobot"
    goal: float | None = None  # how many times as good as the peer
    limit: float | None = None
    most: float | None = None  # a goal without a peer
    found: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, seconds: float) -> None:
        """In turns: three at least, and more as long as they fit; one where seconds is 0. One before warms up."""
        figures = {"ours": self.ours} | ({self.whose: self.peer} if self.peer else {})
        for figure in figures.values() if self.unit not in LESS else ():
            figure()
        self.found = {who: [] for who in figures}
        until = time.perf_counter() + seconds
        for turn in range(25 if seconds else 1):
            if turn >= 3 and time.perf_counter() > until:
                break
            for who, figure in figures.items():
                self.found[who].append(figure())

    def ratio(self) -> float | None:
        """How many times as good as the peer, by the medians."""
        if len(self.found) == 1:
            return None
        ours, theirs = (statistics.median(found) for found in self.found.values())
        return theirs / ours if self.unit in LESS else ours / theirs

    def cells(self) -> list[str]:
        shown = [f"{statistics.median(f):.3g} ({min(f):.3g} – {max(f):.3g})" for f in self.found.values()]
        ours, theirs = (*shown, "")[:2]
        ratio, best = self.ratio(), statistics.median(self.found["ours"])
        reached = f"**{ratio:.2f} ×**" if ratio else ""
        goal = f"{self.goal:g} ×" if self.goal else f"{self.most:g} {self.unit}" if self.most else ""
        limit = f"{best / self.limit:.0%} of {self.limit:.3g}" if self.limit else ""
        peer = f"{self.whose}: {theirs}" if theirs else ""
        return [self.what, self.unit, ours, peer, reached, goal, limit]


def rate(work: Callable[[], Any], count: float, clock: Callable[[], float] = time.perf_counter) -> Figure:
    """A figure: `count` of something for each second of `work`."""

    def figure() -> float:
        began = clock()
        work()
        return count / (clock() - began)

    return figure


@dataclass
class Bench:
    """What the rows share. folder: for files; quick: little work, which shows only that everything works."""

    folder: Path
    quick: bool
    flops: float  # of matrix products in float32 on all cores
    notes: list[str] = field(default_factory=list)  # what the page says below the table
