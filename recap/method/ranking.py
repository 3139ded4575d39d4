"""How well values rank: correlation with the returns, and successes above failures.

A value function over-fits whole episodes: the frames of one are a single draw. So every interval here is over episodes,
not frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from recap.method.returns import Floats, Ints

POINTS = 20  # of every episode that a rank correlation sees, evenly spaced: long episodes count as much as short ones
Z = 1.96  # half of a 95 % interval, in standard errors


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, from this many episodes."""

    value: float
    low: float
    high: float
    episodes: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Episodes:
    """Some episodes [e]: the rows of their frames in time, the mean of V over them, and what they were."""

    rows: list[Ints]
    value: Floats
    success: NDArray[np.bool_]
    task: NDArray[Any]
    source: NDArray[Any]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def length(self) -> Ints:
        return np.array([len(rows) for rows in self.rows], dtype=np.int64)

    def tasks(self) -> list[str]:
        return sorted(set(self.task.tolist()))

    def only(self, which: NDArray[np.bool_]) -> Episodes:
        """Those of the mask bool [e]."""
        rows = [rows for rows, chosen in zip(self.rows, which, strict=True) if chosen]
        return Episodes(rows, self.value[which], self.success[which], self.task[which], self.source[which])


def rank_correlation(value: Floats, returns: Floats, episodes: Episodes) -> Estimate | None:
    """Spearman's correlation of V with the return over the frames of a task; the mean of the tasks, by their episodes.

    value, returns: [n], all frames. The interval is the jackknife over episodes, the ranks staying as they are. None
    where no task has two episodes and returns that differ. A constant V ranks nothing: 0.
    """
    found: list[tuple[float, float, int]] = []
    for task in episodes.tasks():
        points = [_points(rows) for rows in episodes.only(episodes.task == task).rows]
        at = np.concatenate(points)
        if len(points) < 2 or np.ptp(returns[at]) == 0:
            continue
        x, y = stats.rankdata(value[at]), stats.rankdata(returns[at])
        moments = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
        starts = np.cumsum([0, *(len(part) for part in points[:-1])])
        sums = np.add.reduceat(moments, starts, axis=0)  # of each episode: whatever is left out is subtracted
        without = _pearson(sums.sum(axis=0) - sums)
        variance = (len(points) - 1) * float(without.var())
        found.append((float(_pearson(sums.sum(axis=0))), variance, len(points)))
    return _pooled(found, -1.0, sum(count for *_, count in found))


def _points(rows: Ints) -> Ints:
    return rows[np.unique(np.linspace(0, len(rows) - 1, POINTS).round().astype(int))]


def _pearson(sums: Floats) -> Floats:
    """Correlation from (n, Σx, Σy, Σx², Σy², Σxy), [..., 6] -> [...]; 0 where one of the two does not vary."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    scale = np.sqrt(np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0))
    return np.divide(n * xy - x * y, scale, out=np.zeros_like(scale), where=scale > 0)


def outcome_auc(episodes: Episodes) -> Estimate | None:
    """How often the mean V of a success lies above that of a failure of the same task; ties count half, 0.5 is chance.

    Over all such pairs of all tasks. The interval is DeLong's (Biometrics 44, 1988), in which an episode counts once,
    however many pairs it is in. None where no task has two successes and two failures.
    """
    found: list[tuple[float, float, int]] = []
    counted = 0
    for task in episodes.tasks():
        here = episodes.task == task
        won, lost = episodes.value[here & episodes.success], episodes.value[here & ~episodes.success]
        if min(len(won), len(lost)) < 2:
            continue
        above = (won[:, None] > lost) + 0.5 * (won[:, None] == lost)
        variance = above.mean(axis=1).var(ddof=1) / len(won) + above.mean(axis=0).var(ddof=1) / len(lost)
        found.append((float(above.mean()), float(variance), above.size))
        counted += int(here.sum())
    return _pooled(found, 0.0, counted)


def _pooled(found: Sequence[tuple[float, float, int]], lowest: float, episodes: int) -> Estimate | None:
    """The weighted mean of (value, its variance, weight); its interval is cut off at `lowest` and 1."""
    if not found:
        return None
    value, variance, weight = np.array(found).T
    share = weight / weight.sum()
    mean, error = float(share @ value), math.sqrt(float(share**2 @ variance))
    return Estimate(mean, max(lowest, mean - Z * error), min(1.0, mean + Z * error), episodes)


def excess(known: Estimate, unseen: Estimate) -> Estimate:
    """By how much episodes that were trained on are ranked better than those that were not."""
    gap = known.value - unseen.value
    error = math.hypot(known.high - known.low, unseen.high - unseen.low) / 2
    return Estimate(gap, gap - error, gap + error, unseen.episodes)
