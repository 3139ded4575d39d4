"""An episode at another frame rate: which of its frames, or points between them, are seen at each new step.

Time is counted in frames, one control step each, as lerobot counts it for chunks of actions. Where frames were cut out
of an episode (a robot that stood still), `timestamp` has a gap: it locates the pictures and is not waited out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

UNEVEN = 0.1  # share by which the usual distance of timestamps may differ from 1 / fps


@dataclass(frozen=True)
class Recording:
    """The M frames of a data set as they were recorded, for looking labels up by their times.

    episode_index: int64 [M]; timestamp: float32 [M] as stored; frame: which of the frames in use is nearest, int64 [M]:
    without resampling each is itself.
    """

    episode_index: np.ndarray
    timestamp: np.ndarray
    frame: np.ndarray


def positions(length: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Episodes of `length` frames, int64 [E], taken every `ratio` frames (old frames a second over new).

    Returns the position of each new frame in its episode, in old frames, float64 [N], and the new lengths, int64 [E].
    The first frame stays the first; what follows the last new frame is left out.
    """
    counts = np.floor((length - 1) / ratio + 1e-9).astype(np.int64) + 1
    step = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.minimum(step * ratio, np.repeat(length - 1, counts)), counts


def nearest(position: np.ndarray) -> np.ndarray:
    """The closest frame, int64; half-way the later one."""
    return np.floor(position + 0.5 + 1e-9).astype(np.int64)


def back(length: np.ndarray, ratio: float, counts: np.ndarray) -> np.ndarray:
    """Which of all the new frames is nearest to each old one, int64. counts: the new lengths, int64 [E]."""
    position = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    new = np.minimum(nearest(position / ratio), np.repeat(counts - 1, length))
    return new + np.repeat(np.cumsum(counts) - counts, length)


def usual_step(timestamp: np.ndarray, start: np.ndarray) -> float | None:
    """Seconds from a frame to the next: the median within episodes that start at `start`; None of single frames."""
    steps = np.delete(np.diff(timestamp.astype(np.float64), prepend=0), start)
    return float(np.median(steps)) if len(steps) else None


def linear(vectors: np.ndarray, first: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Vectors [*, D] between the frames around `first` + position, float32 [N, D]."""
    low = np.floor(position + 1e-9)
    part = (position - low).clip(0, 1)[:, None]
    row = first + low.astype(np.int64)
    after = np.minimum(row + 1, len(vectors) - 1)  # beyond the last frame the weight is 0
    return ((1 - part) * vectors[row] + part * vectors[after]).astype(np.float32)
