"""The embedded task in the form of lerobot's environments: `pixels`, `agent_pos`, the task's words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs import EnvConfig

from recap.envs.moka.env import MokaEnv

PREFIX = "observation.images."


class Moka(gym.Wrapper):
    def __init__(self, **options: Any) -> None:
        super().__init__(MokaEnv(**options))
        inner = self.env.observation_space.spaces
        pixels = {key.removeprefix(PREFIX): space for key, space in inner.items() if key.startswith(PREFIX)}
        self.observation_space = gym.spaces.Dict(
            {"pixels": gym.spaces.Dict(pixels), "agent_pos": inner["observation.state"]}
        )
        self.task = self.task_description = self.env.task
        self._max_episode_steps = self.env.max_steps(self.env.task)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed)
        return self.seen(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, ended, truncated, info = self.env.step(action)
        return self.seen(observation), reward, ended, truncated, {"is_success": info["success"]}

    @staticmethod
    def seen(observation: dict[str, Any]) -> dict[str, Any]:
        pixels = {key.removeprefix(PREFIX): value for key, value in observation.items() if key.startswith(PREFIX)}
        return {"pixels": pixels, "agent_pos": observation["observation.state"]}


gym.register("bench/Moka-v0", entry_point=Moka)


@EnvConfig.register_subclass("bench_moka")
@dataclass
class MokaConfig(EnvConfig):
    options: dict[str, Any] = field(default_factory=dict)
    fps: int = 10

    @property
    def gym_id(self) -> str:
        return "bench/Moka-v0"

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return self.options

    def __post_init__(self) -> None:
        size = self.options["image_size"]
        self.features = {
            f"{PREFIX}{k}": PolicyFeature(FeatureType.VISUAL, (size, size, 3)) for k in ("image", "image2")
        }
        self.features |= {
            "agent_pos": PolicyFeature(FeatureType.STATE, (8,)),
            "action": PolicyFeature(FeatureType.ACTION, (7,)),
        }
