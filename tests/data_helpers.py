"""Small real episodes that the tests of data record and read."""

from __future__ import annotations

import numpy as np

from recap.data.recorder import Episode
from recap.envs import EpisodeSpec

CAMERAS = ("observation.images.image", "observation.images.image2")
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
