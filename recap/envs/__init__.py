"""Environments behind one face; `make_env` builds the one that the configuration names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from recap.config import EnvConfig, EnvKind
from recap.errors import RecapError


@dataclass(frozen=True)
class EpisodeSpec:
    """Which episode: everything random in it follows from these."""

    index: int  # position in the plan = episode_index in the data set
    task: str  # the instruction
    initial_state: int  # id of the initial state within the split
    seed: int  # of the policy's or the demonstrator's noise


class Env(Protocol):
    """One environment that serves every task of its configuration, one episode at a time.

    Observations: one uint8 (H, W, 3) array for each of `cameras`, and `observation.state` float32 (state_dim,).
    """

    tasks: tuple[str, ...]
    cameras: tuple[str, ...]
    fps: int
    state_dim: int
    action_dim: int
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]

    def reset(
        self, *, task: str, split: str, initial_state: int, seed: int, render: bool = True
    ) -> dict[str, np.ndarray]: ...

    def step(self, action: np.ndarray, render: bool = True) -> tuple[dict[str, np.ndarray], bool, bool]:
        """One control step with float32 (action_dim,) in [-1, 1] -> (observation, success, done)."""
        ...

    def max_steps(self, task: str) -> int: ...

    def close(self) -> None: ...


def make_env(config: EnvConfig) -> Env:
    """The environment of `config`; raises RecapError when it cannot run here."""
    if config.type is EnvKind.moka:
        from recap.envs.moka.env import MokaEpisodes

        return MokaEpisodes(tuple(config.tasks), config.image_size, config.fps, config.max_steps)
    raise RecapError(f"env={config.type.name}: the LIBERO environment is not part of this version. Choose env=moka.")
