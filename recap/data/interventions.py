"""Frames in which an operator acted instead of the policy: how recordings mark them, and where they cut an episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from recap.data.frames import Frames
    from recap.data.lerobot_reader import DataSetFiles

AUTO, NOT = "auto", "not "
COLUMNS = {  # who writes them; `not`: they are true where the policy acted
    "intervention": "lerobot-rollout --strategy.type=dagger, and this run's own rollouts",
    "is_intervention": "HIL-SERL",
    "complementary_info.is_intervention": "Evo-RL, and buffers of HIL-SERL",
    "intervene_flag": "RLinf",
    "is_expert": "PiperX, LeHome",
    "not task_is_policy": "LeHome",
}


def marked_by(files: DataSetFiles, wanted: str | None) -> str | None:
    """The column of a data set that marks them, after `not ` where it marks the policy's; None: none is read.

    wanted: of the configuration, a column, `not ` before one, or auto. Raises RecapError if it is not there, or if
    there are several to choose from.
    """
    known = [mark for mark in COLUMNS if mark.removeprefix(NOT) in files.features]
    if wanted != AUTO:
        if wanted is not None and wanted.removeprefix(NOT) not in files.features:
            fix = f"its features are {list(files.features)}"
            raise files.error(f"it has no column {wanted.removeprefix(NOT)!r} of interventions", fix)
        return wanted
    if len(known) > 1:
        fix = f"choose one: '++data.sources.{files.name}.interventions={known[0]}'"
        raise files.error(f"interventions=auto finds {', '.join(known)}", fix)
    return known[0] if known else None


def corrected(files: DataSetFiles, table: pa.Table, mark: str | None) -> np.ndarray:
    """Where the operator acted, by `marked_by`: bool [N]. Numbers above 0.5 count as true."""
    if mark is None:
        return np.zeros(table.num_rows, bool)
    return (files.numbers(table, mark.removeprefix(NOT)) > 0.5) ^ mark.startswith(NOT)


@dataclass(frozen=True)
class Attempts:
    """Stretches of frames that have an end and an outcome: int64 start, length, episode and bool success, [A] each."""

    start: np.ndarray
    length: np.ndarray
    episode: np.ndarray
    success: np.ndarray

    def of_frames(self) -> np.ndarray:
        """Whether the attempt of each frame succeeded: bool [N]."""
        return np.repeat(self.success, self.length)


def attempts(frames: Frames, *, cut: bool) -> Attempts:
    """The episodes of a data set, `cut` where an operator took over: there what the policy attempted had failed."""
    if not cut:
        return Attempts(frames.start, frames.length, np.arange(len(frames.start)), frames.success)
    taken_over = 1 + np.flatnonzero(frames.corrected[1:] & ~frames.corrected[:-1])
    start = np.union1d(frames.start, taken_over)
    length = np.diff(start, append=len(frames))
    episode = frames.episode[start]
    last = start + length == (frames.start + frames.length)[episode]
    return Attempts(start, length, episode, frames.success[episode] & last)
