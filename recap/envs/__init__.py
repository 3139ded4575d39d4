"""Environments behind one face; `make_env` builds the one that the configuration names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from recap.envs.config import EnvConfig, EnvKind


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
    `action_range`: (lowest, highest), numbers or float32 (action_dim,); actions are clipped to it.
    `choice`: which way of several the current episode has taken, None where the task has one way or none is taken yet.
    """

    tasks: tuple[str, ...]
    cameras: tuple[str, ...]
    fps: int
    state_dim: int
    action_dim: int
    action_range: tuple[np.ndarray | float, np.ndarray | float]
    state_names: tuple[str, ...] | None
    action_names: tuple[str, ...] | None

    @property
    def choice(self) -> str | None: ...

    def reset(
        self, *, task: str, split: str, initial_state: int, seed: int, render: bool = True
    ) -> dict[str, np.ndarray]: ...

    def step(self, action: np.ndarray, render: bool = True) -> tuple[dict[str, np.ndarray], bool, bool]:
        """One control step with float32 (action_dim,) in `action_range` -> (observation, success, done)."""
        ...

    def max_steps(self, task: str) -> int: ...

    def close(self) -> None: ...


def make_env(config: EnvConfig) -> Env:
    """The environment of `config`; raises RecapError when it cannot run here."""
    if config.type is EnvKind.moka:
        from recap.envs.moka.env import MokaEpisodes

        return MokaEpisodes(tuple(config.tasks), config.image_size, config.fps, config.max_steps, config.moka)
    if config.type is EnvKind.libero:
        from recap.envs.libero import LiberoEpisodes

        return LiberoEpisodes(config)
    from recap.envs.lerobot import LerobotEpisodes

    return LerobotEpisodes(config)


def instructions(config: EnvConfig) -> tuple[str, ...]:
    """The tasks of `config` in words: `env.tasks` may have numbers and names of a suite. Raises as `make_env` does."""
    if config.type is EnvKind.moka:
        return tuple(config.tasks)
    if config.type is EnvKind.libero:
        from recap.envs.libero import tasks_of

        return tuple(tasks_of(config))
    env = make_env(config)
    env.close()
    return env.tasks
