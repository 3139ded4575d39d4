"""What stages read and record: the inputs of a stage, its data sets, and the plan of its episodes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from recap.config import Config
from recap.data.frames import Frames, load_frames
from recap.data.interventions import Attempts, attempts
from recap.data.lerobot_writer import assemble
from recap.data.sources import load_source
from recap.envs import EpisodeSpec, instructions, make_env
from recap.method.config import AdvantageConfig, Normalization, Prefix, SourceKind
from recap.method.returns import normalize, normalizers, returns, rewards
from recap.stages.base import DEMONSTRATIONS, Inputs
from recap.utils.errors import RecapError

NORMALIZERS = "normalizers.json"  # of a value function: steps by task

STATES_PER_SEED = 10_000_000  # runs with different seeds never share an initial state


def plan(
    cfg: Config, episodes: int, first_state: int, stream: int, only: Sequence[str] | None = None, tries: int = 1
) -> list[EpisodeSpec]:
    """Episodes over the tasks in turn. Seeds depend on the run's seed, the stream and the position alone.

    only: those of env.tasks; None: all. tries: episodes from each initial state, each with a seed of its own.
    """
    seeds = np.random.SeedSequence([cfg.seed, stream]).generate_state(episodes, np.uint32)
    tasks = list(instructions(cfg.env))
    if only is not None:
        tasks = [task for name, task in zip(cfg.env.tasks, tasks, strict=True) if name in only]
    start = cfg.seed * STATES_PER_SEED + first_state
    each = len(tasks) * tries
    return [EpisodeSpec(i, tasks[i % len(tasks)], start + i // each, int(seed)) for i, seed in enumerate(seeds)]


def published(out: Path) -> bool:
    """Whether the stage's data set is there, whole; episode files that it was made of are removed."""
    there = (out / "dataset").is_dir()
    if there:
        shutil.rmtree(out / "episodes", ignore_errors=True)
    return there


def publish(cfg: Config, out: Path, source: SourceKind, checkpoint: str | None) -> None:
    """Turns the finished episode files into the stage's data set."""
    env = make_env(cfg.env)
    assemble(
        out / "episodes",
        out / "dataset",
        fps=env.fps,
        source=source.name,
        checkpoint=checkpoint,
        env={"type": cfg.env.type, "tasks": list(env.tasks), "max_steps": cfg.env.max_steps},
        robot_type=cfg.env.type,
        state_names=env.state_names,
        action_names=env.action_names,
    )
    env.close()
    published(out)


def sources(cfg: Config, inputs: Inputs) -> list[Frames]:
    """The data sets a stage reads: recorded demonstrations, the sources of the configuration, rollouts by iteration."""
    found = (
        [load_frames(path / "dataset", DEMONSTRATIONS, SourceKind.demonstration)]
        if (path := inputs.get(DEMONSTRATIONS))
        else []
    )
    found += [load_source(cfg.data, name) for name in cfg.data.sources]
    for role, stage in inputs.items():
        if role.startswith("rollouts_"):
            found.append(load_frames(stage / "dataset", role, SourceKind.rollout))
    return found


def episodes_of(frames: Frames) -> tuple[list[str], list[int], list[bool]]:
    """Task, length and success of every episode."""
    return [frames.tasks[t] for t in frames.task], [int(n) for n in frames.length], [bool(s) for s in frames.success]


def pooled_episodes(data: list[Frames]) -> tuple[list[str], list[int], list[bool]]:
    """`episodes_of` several data sets, one after the other."""
    tasks, lengths, success = zip(*map(episodes_of, data), strict=True)
    return list(chain(*tasks)), list(chain(*lengths)), list(chain(*success))


def attempts_of(frames: Frames, settings: AdvantageConfig) -> Attempts:
    """What has a return: the episodes, or where the prefix of a correction counts as failed their parts."""
    return attempts(frames, cut=settings.correction_prefix is Prefix.failure)


def task_normalizers(cfg: Config, data: list[Frames]) -> dict[str, float]:
    """Steps by which returns are divided, per task."""
    tasks, lengths = list[str](), list[int]()
    for frames in data:
        parts = attempts_of(frames, cfg.advantage)
        tasks += [frames.tasks[task] for task in frames.task[parts.episode]]
        lengths += parts.length.tolist()
    constant = cfg.advantage.normalizer if cfg.advantage.normalization is Normalization.constant else None
    return normalizers(tasks, lengths, constant)


def read_normalizers(folder: Path) -> dict[str, float]:
    """Those that a value function was trained with. Raises RecapError if they are missing or damaged."""
    path = folder / NORMALIZERS
    try:
        return {str(task): float(steps) for task, steps in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise RecapError(
            f"{path} cannot be read ({error}). Fix: name the stage that trained the value function, or train it again."
        ) from error


def read_values(folder: Path, frames: Frames) -> np.ndarray:
    """What the stage wrote of a data set: float64 [members, N]. Raises RecapError if it is of other data."""
    path = folder / f"{frames.name}.npy"
    try:
        found: np.ndarray = np.load(path)
    except (OSError, ValueError) as error:
        raise RecapError(
            f"the values in {path} cannot be read ({error}). Fix: delete {folder}, run it again."
        ) from error
    if found.ndim != 2 or found.shape[1] != len(frames) or not np.isfinite(found).all():
        raise RecapError(
            f"the values in {path} have shape {list(found.shape)} for {len(frames)} frames, or hold NaN. "
            f"Fix: delete {folder}, run it again."
        )
    return found


def normalized_returns(frames: Frames, norm: dict[str, float], settings: AdvantageConfig) -> np.ndarray:
    """R_t of every frame, in [-1, 0]: float64 [N]."""
    parts = attempts_of(frames, settings)
    steps = [
        normalize(returns(rewards(int(length), bool(won), settings.c_fail)), norm[frames.tasks[task]])
        for task, length, won in zip(frames.task[parts.episode], parts.length, parts.success, strict=True)
    ]
    return np.concatenate(steps)
