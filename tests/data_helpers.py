"""Small real episodes that the tests of data record and read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recap.data.config import SourceConfig
from recap.data.frames import Frames, load_frames
from recap.data.lerobot_writer import Episode, assemble, write_episode
from recap.envs import EpisodeSpec
from recap.method.config import SourceKind

CAMERAS = ("observation.images.image", "observation.images.image2")
KEY = "data.sources.mine"  # of the configuration that names the sets which `take` reads
LENGTHS = (12, 5, 9, 1)  # of the episodes of `small_set`
TASKS = ("put the moka pot on the stove", "push the button")


def make_episode(index: int, steps: int, *, success: bool = True, source: str = "rollout", size: int = 24) -> Episode:
    rng = np.random.default_rng(index)
    smooth = np.linspace(0, 200, size).astype(np.uint8)[None, None, :, None]  # so that the images are not pure noise
    images = {key: smooth + rng.integers(0, 50, (steps, size, size, 3), np.uint8) for key in CAMERAS}
    state = rng.normal(size=(steps, 8)).astype(np.float32)
    action = rng.uniform(-1, 1, (steps, 7)).astype(np.float32)
    spec = EpisodeSpec(index=index, task=TASKS[index % 2], initial_state=100 + index, seed=2**40 + index)
    return Episode(spec, "collection", source, success, images, state, action)


EPISODES = [
    make_episode(0, 12),
    make_episode(1, 1, success=False),
    make_episode(2, 30),
    make_episode(3, 7, success=False),
]


def small_set(folder: Path) -> Path:
    """A data set of 27 frames of 4 x 4 pixels; the tasks take turns."""
    for e, length in enumerate(LENGTHS):
        episode = make_episode(e, length)
        small = {key: images[:, ::6, ::6].copy() for key, images in episode.images.items()}
        write_episode(folder / "episodes", Episode(**{**vars(episode), "images": small}))
    return assemble(folder / "episodes", folder / "set", fps=10, source="rollout")


def take(root: Path, **options: Any) -> Frames:
    return load(root, "mine", SourceKind.demonstration, **{"all_succeed": True, **options})


def load(root: Path, name: str, kind: SourceKind, **options: Any) -> Frames:
    """With some values of `data` and of the source; without any, as the run reads its own data sets."""
    resampling = {key: options.pop(key) for key in ("action_freq", "vectors") if key in options}
    return load_frames(root, name, kind, SourceConfig(**options) if options else None, **resampling)


def edit(root: Path, folder: str, change: Callable[[pa.Table], pa.Table]) -> None:
    for path in sorted((root / folder).glob("*/*.parquet")):
        table = change(pq.read_table(path, partitioning=None))
        pq.write_table(table, path) if len(table) else path.unlink()
