"""The inside of a simulation process: it steps its slots and writes the episodes that end there. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

import numpy as np

from recap.envs import Env, EpisodeSpec, make_env, registry
from recap.envs.config import DemonstratorConfig, EnvConfig, Images
from recap.rollout.config import CorrectionsConfig
from recap.rollout.operator import Operator, stands_by
from recap.utils.errors import RecapError, disk_error

Observation = dict[str, np.ndarray]

DEMONSTRATION_ATTEMPTS = 50
VIDEO_PIXELS = 256  # images are enlarged by a whole factor up to about this height


@dataclass(frozen=True)
class EpisodeResult:
    """How one episode ended. `steps` = control steps executed; success False = a time-out; choice: see `Env`.

    corrected_from: the control step from which on an operator acted instead of the policy; None: it acted alone.
    """

    index: int
    task: str
    initial_state: int
    seed: int
    success: bool
    steps: int
    choice: str | None = None
    corrected_from: int | None = None

    @property
    def alone(self) -> bool:
        """Whether the policy succeeded by itself."""
        return self.success and self.corrected_from is None


@dataclass(frozen=True)
class Job:
    """What all episodes of one roll share.

    record: folder of finished episodes (data.lerobot_writer). videos: folder of mp4 files, of the indices in `film`.
    max_steps: an earlier time-out than the environment's own, in control steps. corrections: None for none.
    """

    split: str
    record: Path | None = None
    videos: Path | None = None
    film: frozenset[int] = frozenset()
    max_steps: int | None = None
    corrections: CorrectionsConfig | None = None


@dataclass(frozen=True)
class EnvFacts:
    """What a policy must fit: `cameras` are observation keys, `fps` is in Hz, the dimensions count numbers."""

    fps: int
    cameras: tuple[str, ...]
    state_dim: int
    action_dim: int


@dataclass(frozen=True)
class Failure:
    """An exception of the process as text, since not every exception can be pickled."""

    message: str
    trace: str


def describe(episode: EpisodeSpec | EpisodeResult) -> str:
    """How messages name an episode."""
    state = f"initial state {episode.initial_state}"
    return f"episode {episode.index} (task {episode.task!r}, {state}, seed {episode.seed})"


def attempt_seed(seed: int, attempt: int) -> int:
    """The seed of the n-th attempt at one demonstration; attempt 0 has the plan's own seed."""
    return seed if attempt == 0 else int(np.random.SeedSequence([seed, attempt]).generate_state(1)[0])


# --------------------------------------------------------------------------------------------- the process
def main(descriptor: int) -> NoReturn:
    """Serves requests ("method", *arguments) on a socket until it closes; an exception is the last answer."""
    with contextlib.suppress(EOFError, ConnectionError):
        _serve(Connection(descriptor))
    os._exit(0)  # at an ordinary exit EGL and MuJoCo free their contexts in the wrong order and complain


def _serve(connection: Connection) -> None:
    simulation = None
    try:
        simulation = Simulation(connection.recv())
        connection.send(simulation.facts())
        while True:
            method, *arguments = connection.recv()
            connection.send(getattr(simulation, method)(*arguments))
    except (EOFError, ConnectionError):
        raise  # the main process has gone or has closed the pool
    except Exception as error:  # noqa: BLE001  whatever it is, the main process reports it
        connection.send(_failure(error, simulation.current if simulation else None))


def _failure(error: Exception, spec: EpisodeSpec | None) -> Failure:
    known = error if isinstance(error, RecapError) else disk_error(error, "its files")
    place = traceback.extract_tb(error.__traceback__)[-1]
    what = known or f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
    where = f"{describe(spec)} failed" if spec else "the environment could not be started"
    return Failure(f"{where}: {what}", traceback.format_exc())


@dataclass
class Slot:
    """One environment and the episode in it; `frames` and `actions` grow only while recording or filming.

    operator: who may take over, and from which control step on he did.
    """

    env: Env
    spec: EpisodeSpec
    observation: Observation
    frames: list[Observation] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    steps: int = 0
    operator: Operator | None = None
    corrected_from: int | None = None


class Simulation:
    """The slots of one process; `begin`, `start`, `act` and `demonstrate` are its requests."""

    def __init__(self, env_config: EnvConfig) -> None:
        self.env_config = env_config
        self.slots: dict[int, Slot] = {}
        self.envs: dict[tuple[int, bool], Env] = {}  # by slot, and whether an operator needs time in it too
        self.job = Job("")
        self.current: EpisodeSpec | None = None  # the episode being worked on, for error messages
        self.stage: Env | None = None  # where demonstrations are given
        self.spare: Env | None = make_env(env_config)  # the first slot takes it
        # Starting the renderer takes a second and shows whether it works at all; nothing of this episode stays.
        self.spare.reset(task=self.spare.tasks[0], split="evaluation", initial_state=0, seed=0)

    def facts(self) -> EnvFacts:
        assert self.spare is not None
        return EnvFacts(self.spare.fps, self.spare.cameras, self.spare.state_dim, self.spare.action_dim)

    def begin(self, job: Job) -> None:
        self.job = job

    def start(self, specs: Mapping[int, EpisodeSpec]) -> dict[int, Observation]:
        """Resets slots to new episodes: {slot: first observation}."""
        return {number: self._reset(number, spec).observation for number, spec in specs.items()}

    def act(self, chunks: Mapping[int, np.ndarray | None]) -> tuple[dict[int, EpisodeResult], dict[int, Observation]]:
        """Executes {slot: actions [n, A]}, None: the operator shall finish the episode.

        Returns the slots that ended, and the observations of those that go on.
        """
        ended = {number: self._advance(self.slots[number], actions) for number, actions in chunks.items()}
        results = {number: result for number, result in ended.items() if result is not None}
        return results, {number: self.slots[number].observation for number in ended if number not in results}

    def demonstrate(self, spec: EpisodeSpec, config: DemonstratorConfig, keep_failures: bool) -> EpisodeResult:
        """One whole demonstrated episode, written. Its time-out is the demonstrator's, longer than the policy's."""
        self.current = spec
        scripted = registry.demonstrator(self.env_config.type)
        if self.stage is None:
            self.stage = make_env(replace(self.env_config, max_steps=config.max_steps))
        for attempt in range(DEMONSTRATION_ATTEMPTS):
            spec = replace(spec, seed=attempt_seed(self.current.seed, attempt))
            demonstrator = scripted(config, np.random.default_rng(spec.seed))
            slot = Slot(self.stage, spec, self._first(self.stage, spec))
            demonstrator.reset(self.stage, spec.task)
            done = success = False
            while not done:
                success, done = self._step(slot, demonstrator.act(self.stage), keep=True)
            if success or keep_failures:
                return self._finish(slot, "demonstration", success)
        raise RecapError(
            f"the demonstrator failed {DEMONSTRATION_ATTEMPTS} times in a row: raise data.demonstrator.max_steps="
            f"{config.max_steps}, or lower its noise={config.noise} and miss={config.miss}"
        )

    def _first(self, env: Env, spec: EpisodeSpec) -> Observation:
        return env.reset(task=spec.task, split=self.job.split, initial_state=spec.initial_state, seed=spec.seed)

    def _reset(self, number: int, spec: EpisodeSpec) -> Slot:
        self.current = spec
        watched = stands_by(self.job.corrections, spec.seed)
        env = self._env(number, watched)
        self.slots[number] = slot = Slot(env, spec, self._first(env, spec))
        if watched:
            assert self.job.corrections is not None
            slot.operator = Operator(self.job.corrections, self.env_config.type, spec.seed, self._time(env, spec.task))
        return slot

    def _env(self, number: int, watched: bool) -> Env:
        """Of a slot. An operator has as much time as the policy, after it."""
        if (number, watched) not in self.envs:
            if watched:
                made = make_env(replace(self.env_config, max_steps=2 * self.env_config.max_steps))
            else:
                made, self.spare = self.spare or make_env(self.env_config), None
            self.envs[number, watched] = made
        return self.envs[number, watched]

    def _time(self, env: Env, task: str) -> int:
        """Control steps that the policy has in an environment with time for an operator."""
        own = getattr(env, "max_steps", None)  # where the time-out depends on the task
        return self.env_config.max_steps if own is None else own(task) // 2

    def _advance(self, slot: Slot, actions: np.ndarray | None) -> EpisodeResult | None:
        self.current = slot.spec
        keep = self.job.record is not None or slot.spec.index in self.job.film
        if actions is None:
            assert slot.operator is not None
            return self._correct(slot, slot.operator, keep)
        for i, action in enumerate(actions):
            if slot.operator is not None and slot.operator.takes_over(slot.env, slot.spec.task, slot.steps):
                return self._correct(slot, slot.operator, keep)
            success, done = self._step(slot, action, keep, render=keep or i == len(actions) - 1)
            if done or slot.steps == self.job.max_steps:
                return self._finish(slot, "rollout", success)
        return None

    def _correct(self, slot: Slot, operator: Operator, keep: bool) -> EpisodeResult:
        """The rest of an episode, by the operator."""
        slot.corrected_from, done, success = slot.steps, False, False
        operator.demonstrator.reset(slot.env, slot.spec.task)
        while not done:
            success, done = self._step(slot, operator.demonstrator.act(slot.env), keep)
        return self._finish(slot, "rollout", success)

    def _step(self, slot: Slot, action: np.ndarray, keep: bool, render: bool = True) -> tuple[bool, bool]:
        action = np.clip(action, *slot.env.action_range)  # here, so that what is recorded is what was executed
        if keep:
            slot.frames.append(slot.observation)
            slot.actions.append(action)
        slot.observation, success, done = slot.env.step(action, render=render)
        slot.steps += 1
        return success, done

    def _finish(self, slot: Slot, source: str, success: bool) -> EpisodeResult:
        spec, env, job = slot.spec, slot.env, self.job
        choice: str | None = getattr(env, "choice", None)
        if job.videos is not None and spec.index in job.film:  # first, so that a recorded episode has its video
            path = job.videos / f"episode_{spec.index:06d}_{'success' if success else 'failure'}.mp4"
            write_film(path, [*slot.frames, slot.observation], env.cameras, env.fps)
        if job.record is not None:
            from recap.data.lerobot_writer import Episode, write_episode  # here: evaluation does not need pyarrow

            images = {key: np.stack([frame[key] for frame in slot.frames]) for key in env.cameras}
            state = np.stack([frame["observation.state"] for frame in slot.frames])
            film = env.fps if self.env_config.recorded_images is Images.video else None
            episode = Episode(
                *(spec, job.split, source, success, images, state, np.stack(slot.actions), choice),
                choice_frame=getattr(env, "choice_frame", None),
                corrected_from=slot.corrected_from,
                watched=job.corrections is not None,
            )
            write_episode(job.record, episode, film)
        slot.frames, slot.actions = [], []
        end = success, slot.steps, choice, slot.corrected_from
        return EpisodeResult(spec.index, spec.task, spec.initial_state, spec.seed, *end)


def write_film(path: Path, frames: Sequence[Mapping[str, np.ndarray]], cameras: Sequence[str], fps: int) -> None:
    """Writes an H.264 mp4, the cameras side by side; it appears under its name when it is complete.

    frames[t][camera]: uint8 [H, W, 3], all of one size; small ones are enlarged by a whole factor. fps in Hz.
    """
    from recap.data.video import write_video

    def sheets() -> Iterator[np.ndarray]:
        factor = max(1, VIDEO_PIXELS // frames[0][cameras[0]].shape[0])
        for frame in frames:
            image = np.concatenate([frame[camera] for camera in cameras], axis=1)
            image = image.repeat(factor, axis=0).repeat(factor, axis=1)
            yield image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]  # this pixel format wants even sides

    write_video(path, sheets(), fps, options={"crf": "20", "threads": "1"})
