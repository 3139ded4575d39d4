"""An episode at another pace: which of its frames, or points between them, are seen at each step of the new one."""

from __future__ import annotations

import numpy as np


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


def linear(vectors: np.ndarray, first: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Vectors [*, D] between the frames around `first` + position, float32 [N, D]."""
    low = np.floor(position + 1e-9)
    part = (position - low).clip(0, 1)[:, None]
    row = first + low.astype(np.int64)
    after = np.minimum(row + 1, len(vectors) - 1)  # beyond the last frame the weight is 0
    return ((1 - part) * vectors[row] + part * vectors[after]).astype(np.float32)
