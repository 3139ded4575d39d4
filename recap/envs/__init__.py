"""Environments behind one interface; `make_env` builds the one that the configuration names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from recap.envs import registry
from recap.envs.config import EnvConfig


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
    An environment with several ways to succeed has `choice`: which one the episode took, None before it took any; and
    may have `choice_frame`: the frame at which it set out on that way.
    One whose time-out depends on the task has `max_steps(task)`, in control steps.
    """

    tasks: tuple[str, ...]
    cameras: tuple[str, ...]
    fps: int
    state_dim: int
    action_dim: int
    action_range: tuple[np.ndarray | float, np.ndarray | float]
    state_names: tuple[str, ...] | None
    action_names: tuple[str, ...] | None

    def reset(self, *, task: str, split: str, initial_state: int, seed: int) -> dict[str, np.ndarray]: ...

    def step(self, action: np.ndarray, render: bool = True) -> tuple[dict[str, np.ndarray], bool, bool]:
        """One control step with float32 (action_dim,) in `action_range` -> (observation, success, done)."""
        ...

    def close(self) -> None: ...


def make_env(config: EnvConfig) -> Env:
    """The environment of `config`; raises RecapError when it cannot run here."""
    env: Env = registry.module(config.type).make(config)
    return env


def instructions(config: EnvConfig) -> tuple[str, ...]:
    """The tasks of `config` in words: `env.tasks` may have numbers and names of a suite. Raises as `make_env` does."""
    if listed := getattr(registry.module(config.type), "instructions", None):
        return tuple(listed(config))
    env = make_env(config)
    env.close()
    return env.tasks
