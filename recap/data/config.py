"""Keys of recorded data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import field
from enum import Enum

from recap.envs.config import DemonstratorConfig
from recap.method.config import SourceKind
from recap.utils.typed import Count, Positive, Whole, part


class Resample(Enum):
    nearest = "nearest"
    linear = "linear"


class EpisodeFilter(Enum):
    all = "all"
    success = "success"  # and every demonstration
    demonstrations = "demonstrations"


class ImageResample(Enum):
    nearest = "nearest"


def reserved(name: str) -> bool:
    """Whether a data set of this name is the run's own."""
    return bool(re.match(r"rollouts_|demonstrations$", name))


@part
class SourceConfig:
    """One LeRobot v3 data set of the mixture: a folder `root`, or `repo_id` on the hub."""

    repo_id: str | None = None
    root: str | None = None
    revision: str | None = None
    episodes: list[Whole] | None = None
    cameras: list[str] | None = None
    weight: Positive = 1.0
    kind: SourceKind = SourceKind.demonstration
    all_succeed: bool = False
    interventions: str | None = None  # the column that is true where an operator acted: see recap.data.interventions
    fps: Count | None = None

    def problems(self, key: str) -> Iterator[str]:
        name = key.rpartition(".")[2]
        if not re.fullmatch(r"[A-Za-z][\w-]*", name) or reserved(name):
            yield (
                f"{key}: names a folder of labels. Fix: letters, digits, _ and - only, not demonstrations or rollouts_…"
            )
        if self.root is None and self.repo_id is None:
            yield f"{key}: names no data set. Fix: {key}.root=<a folder>, or {key}.repo_id=<owner/name on the hub>"
        chosen = self.episodes
        if chosen is not None and (not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen)):
            yield f"{key}.episodes={chosen}: must list episode numbers from 0 on, each once. Fix: null takes all"
        cameras = self.cameras
        if cameras is not None and (not cameras or len(set(cameras)) < len(cameras)):
            yield f"{key}.cameras=[{','.join(cameras)}]: must name cameras, each once. Fix: null takes all"


@part
class DataConfig:
    """Recorded data: named data sets, and what a scripted demonstrator records; plus the run's rollouts."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    action_freq: Count | None = None
    image_resample_strategy: ImageResample = ImageResample.nearest
    vector_resample_strategy: Resample = Resample.nearest
    demonstrator: DemonstratorConfig | None = None
    rollouts: bool = False
