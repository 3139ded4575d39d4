"""Where the pictures of a camera kept as video are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Clips:
    """Frames in video files: `paths[file[i]]` at `time[i]` seconds holds frame i; file int32 [N], time float64 [N]."""

    paths: list[Path]
    file: np.ndarray
    time: np.ndarray

    def of(self, rows: np.ndarray) -> Clips:
        """Those of some frames."""
        return Clips(self.paths, self.file[rows], self.time[rows])

    def by_file(self) -> Iterator[tuple[Path, np.ndarray]]:
        """Every file that is used, and which frames are in it, ascending in time: int64 [n]."""
        order = np.lexsort((self.time, self.file))
        for frames in np.split(order, np.flatnonzero(np.diff(self.file[order])) + 1):
            yield self.paths[self.file[frames[0]]], frames
