"""Any environment that lerobot can make, through lerobot's own processors: what a policy sees in `lerobot-eval`."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import gymnasium as gym
import numpy as np

from recap.envs.config import EnvConfig
from recap.utils.errors import RecapError

SPLITS = ("demonstration", "collection", "evaluation")
IMAGES, STATE, ACTION = "observation.image", "observation.state", "action"  # lerobot's keys begin so


class LerobotEpisodes:
    """One environment of lerobot for all tasks of a configuration (see `recap.envs.Env`).

    `env.suite` is lerobot's `task` of the environment, where it has several; `env.tasks` are instructions, names or
    numbers of tasks in it. Initial states follow from (split, task, initial_state) alone: the splits never share one.
    Raises RecapError: the simulator is not installed; unknown suite, task or size.
    """

    state_names: tuple[str, ...] | None = None
    action_names: tuple[str, ...] | None = None
    choice: str | None = None  # its tasks have one way

    def __init__(self, config: EnvConfig) -> None:
        self.config = config
        made = self._lerobot_config()
        self._processor = made.get_env_processors()[0]
        envs = _create(config, made)
        self._numbers = self._chosen(envs)
        self._envs = {task: envs[number] for task, number in self._numbers.items()}
        self.tasks = tuple(self._envs)
        self.fps = made.fps
        shapes = {made.features_map[key]: feature.shape for key, feature in made.features.items()}
        self.cameras = tuple(dict.fromkeys(key for key in shapes if key.startswith(IMAGES)))
        self.state_dim = self._state_dim(shapes)
        space = next(iter(self._envs.values())).action_space
        assert isinstance(space, gym.spaces.Box)
        self.action_dim = space.shape[0]
        self.action_range: tuple[np.ndarray | float, np.ndarray | float] = (space.low, space.high)
        self._check(shapes)
        self._env: gym.Env[Any, Any] = next(iter(self._envs.values()))
        self._steps = 0

    def reset(
        self, *, task: str, split: str, initial_state: int, seed: int, render: bool = True
    ) -> dict[str, np.ndarray]:
        """The first observation. `seed` is the policy's noise, of which no environment knows."""
        if self._envs[task] is not self._env:
            self._leave(self._env)
        self._env, self._steps = self._envs[task], 0
        return self._observe(self._reset(self._env, self._numbers[task], split, initial_state), render)

    def step(self, action: np.ndarray, render: bool = True) -> tuple[dict[str, np.ndarray], bool, bool]:
        raw, _, terminated, truncated, info = self._env.step(np.asarray(action, np.float32))
        self._steps += 1
        success = bool(info.get("is_success", False))
        done = success or terminated or truncated or self._steps >= self.config.max_steps
        return self._observe(raw, render), success, bool(done)

    def max_steps(self, task: str) -> int:
        return self.config.max_steps

    def close(self) -> None:
        for env in self._envs.values():
            env.close()

    # ------------------------------------------------------------------------------------------------ for one simulator
    def _lerobot_config(self) -> Any:
        """lerobot's configuration of this environment."""
        from lerobot.envs.configs import EnvConfig as LerobotConfig

        kind = LerobotConfig.get_choice_class(self.config.type.name)
        config, size = self.config, self.config.image_size
        wanted = {
            "task": config.suite,
            "episode_length": config.max_steps,
            "observation_height": size,
            "observation_width": size,
        }
        known = {field.name for field in fields(kind)}
        return kind(**{key: value for key, value in wanted.items() if key in known and value is not None})

    def _state_dim(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        return shapes[STATE][0]

    def _leave(self, env: gym.Env[Any, Any]) -> None:
        """Another task comes next."""

    def _reset(self, env: gym.Env[Any, Any], number: int, split: str, initial_state: int) -> Any:
        """lerobot's raw observation of an initial state of task `number`."""
        return env.reset(seed=state_seed(split, number, initial_state))[0]

    # ------------------------------------------------------------------------------------------------ inside
    def _chosen(self, envs: list[gym.Env[Any, Any]]) -> dict[str, int]:
        described = [(getattr(e.unwrapped, "task", ""), getattr(e.unwrapped, "task_description", "")) for e in envs]
        if len(envs) == len(self.config.tasks) == 1 and not described[0][1]:
            return {self.config.tasks[0]: 0}  # the environment has one task and no words for it
        return matching(self.config, described)

    def _check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        name, wanted = self.config.type.name, self.config.image_size
        if self.fps != self.config.fps:
            raise RecapError(f"env.fps={self.config.fps}: {name} runs at {self.fps}. Fix: env.fps={self.fps}")
        for key in self.cameras:
            if (found := shapes[key][:2]) != (wanted, wanted):
                raise RecapError(
                    f"env.image_size={wanted}: {name} draws {key} at {found[0]}×{found[1]}. "
                    f"Fix: env.image_size={found[0]}"
                )

    def _observe(self, raw: dict[str, Any], render: bool) -> dict[str, np.ndarray]:
        from lerobot.envs.utils import preprocess_observation

        seen = self._processor(preprocess_observation(_batched(raw)))
        found = {STATE: seen[STATE][0].numpy().astype(np.float32)}
        for camera in self.cameras if render else ():
            pixels = (seen[camera][0] * 255).round().byte()
            found[camera] = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
        return found


def state_seed(split: str, task: int, initial_state: int) -> int:
    """The simulator's seed of one initial state."""
    if split not in SPLITS:
        raise RecapError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}.")
    return int(np.random.SeedSequence([SPLITS.index(split), task, initial_state]).generate_state(1)[0])


def _batched(raw: Any) -> Any:
    """lerobot's processors take batches: every array of a nested observation as a batch of one."""
    if isinstance(raw, Mapping):
        return {key: _batched(value) for key, value in raw.items()}
    return np.asarray(raw)[None].copy()


def _create(config: EnvConfig, made: Any) -> list[gym.Env[Any, Any]]:
    """The environments of a suite, by their number; simulations start at the first reset."""
    from gymnasium.error import Error

    name = config.type.name
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # lerobot and the simulators chat
            vectors = made.create_envs(n_envs=1)
    except ImportError as error:
        raise RecapError(
            f"env.type={name}: the simulator is not installed ({error}). Fix: pip install 'lerobot[{name}]'"
        ) from error
    except (ValueError, KeyError, Error) as error:
        raise RecapError(f"env.suite={config.suite}: {name} says: {error}. Fix: one that lerobot knows") from error
    return [vector.envs[0] for suite in vectors.values() for vector in suite.values()]


def matching(config: EnvConfig, described: Sequence[tuple[str, str]]) -> dict[str, int]:
    """{instruction: number} of `env.tasks`, in their order, among the (name, instruction) that a suite has.

    Raises RecapError for one that is not there, that fits several tasks, or that is there twice.
    """
    result: dict[str, int] = {}
    for task in config.tasks:
        found = [i for i, words in enumerate(described) if task == str(i) or task in words]
        if len(found) != 1:
            listed = "\n  ".join(f"{i}: {instruction or name}" for i, (name, instruction) in enumerate(described[:12]))
            more = f"\n  … up to {len(described) - 1}" if len(described) > 12 else ""
            what = f"tasks {found} have this instruction, name one by its number" if found else "no such task"
            has = config.suite or config.type.name
            raise RecapError(f"env.tasks: {task!r}: {what}. env.suite={has} has\n  {listed}{more}")
        instruction = described[found[0]][1] or task
        if instruction in result:
            raise RecapError(f"env.tasks={config.tasks}: two of them have the instruction {instruction!r}.")
        result[instruction] = found[0]
    return result
