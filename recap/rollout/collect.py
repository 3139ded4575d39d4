"""Vectorised rollouts: every slot plays an episode of the plan, and one batched policy call a round serves them all.

All that is random in an episode follows from its EpisodeSpec and its own chunk counter. So results depend neither on
the number of slots and processes, nor on which episodes share a batch, nor on an interruption, as far as the policy
computes each row alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from recap.envs import EpisodeSpec
from recap.envs.config import DemonstratorConfig
from recap.rollout.pool import RESUME, Pool, Worker
from recap.rollout.worker import DEMONSTRATION_ATTEMPTS, EpisodeResult, Job, Observation, attempt_seed, describe
from recap.utils.errors import RecapError
from recap.utils.ranks import WHOLE, Share

__all__ = ["ActFn", "EpisodeResult", "Pool", "already", "demonstrate", "journals", "read_journal", "roll"]

LINE_SECONDS = 10.0  # between progress lines when there is no terminal


class ActFn(Protocol):
    """The policy. S = slots of the pool, always: the batch shape is constant, idle rows are zeros with some task.

    observation: {camera: uint8 [S, H, W, 3], "observation.state": float32 [S, D], "task": S strings}.
    noise_keys: S pairs (episode seed, chunk number), of which alone each row's randomness must be made.
    Returns actions float32 [S, chunk, A] in [-1, 1].
    """

    def __call__(self, observation: dict[str, Any], noise_keys: list[tuple[int, int]]) -> np.ndarray: ...


def roll(
    pool: Pool,
    plan: Sequence[EpisodeSpec],
    split: str,
    act: ActFn,
    n_action_steps: int,
    *,
    record: Path | None = None,
    journal: Path | None = None,
    videos: Path | None = None,
    video_episodes: int = 0,
    max_steps: int | None = None,
    on_done: Callable[[EpisodeResult], None] | None = None,
    progress: str | None = "rollout",
    share: Share = WHOLE,
) -> list[EpisodeResult]:
    """Plays every episode of `plan` that is not finished yet; returns the results of the whole plan in its order.

    split: whose initial states, "demonstration", "collection" or "evaluation".
    n_action_steps: how many actions of a chunk are executed before the next call.
    record: folder where the process that simulates writes each episode as it ends, time-outs too.
    journal: instead of that a .jsonl file of results, one durable line an episode. Episodes found in either are not
    played again, so the same call finishes an interrupted one.
    videos: folder for mp4 files of the first `video_episodes` of the plan, when they are played.
    max_steps: an earlier time-out than the environment's. on_done: gets each new result.
    progress: label of the progress bar, None for silence.
    share: of the plan; the other episodes are played by other processes into the same folder or beside the journal,
    and are returned if they are finished already.

    Raises RecapError: an empty plan, files of another plan, actions that are not finite or of the wrong shape, an
    environment that fails, a process that dies.
    """
    if record is not None and journal is not None:
        raise ValueError("record holds the results already: give record or journal, not both")
    results = already(plan, record, journal)
    mine = {spec.index for spec in share.of(plan)}
    todo = [spec for spec in share.of(plan) if spec.index not in results]
    done = [result for result in results.values() if result.index in mine]
    film = frozenset(spec.index for spec in plan[:video_episodes]) if videos is not None else frozenset()
    job = Job(split, record, videos, film, max_steps)
    own = journal_of(journal, share)
    with _closing_on_error(pool), _Journal(own) as lines, _Progress(progress, len(mine), done) as bar:
        for finished in _rounds(pool, job, todo, act, n_action_steps):
            lines.append(finished)
            for result in finished:
                results[result.index] = result
                bar.add(result)
                if on_done is not None:
                    on_done(result)
    return [results[spec.index] for spec in plan if spec.index in results]


def demonstrate(
    pool: Pool,
    plan: Sequence[EpisodeSpec],
    demonstrator: DemonstratorConfig,
    split: str = "demonstration",
    *,
    record: Path,
    keep_failures: bool = False,
    on_done: Callable[[EpisodeResult], None] | None = None,
    progress: str | None = "demonstrations",
) -> list[EpisodeResult]:
    """The scripted demonstrator plays the plan, one episode at a time in each process; resumes as `roll` does.

    Unless `keep_failures`, a failed attempt is thrown away and repeated with the next seed of the same index
    (`attempt_seed`): a plan of n yields n successes. The seed in a result and in its recording is that of the attempt
    kept. Its time-out is `demonstrator.max_steps`. Raises RecapError as `roll` does.
    """
    results = already(plan, record, None, attempts=DEMONSTRATION_ATTEMPTS)
    todo = deque(spec for spec in plan if spec.index not in results)
    busy: list[Worker] = []
    with _closing_on_error(pool), _Progress(progress, len(plan), results.values()) as bar:
        if todo:
            pool.begin(Job(split, record))
        idle = list(pool.workers)
        while todo or busy:
            while todo and idle:
                worker, spec = idle.pop(), todo.popleft()
                worker.busy = {0: spec}
                pool.send(worker, ("demonstrate", spec, demonstrator, keep_failures))
                busy.append(worker)
            worker, result = pool.first_reply(busy)
            worker.busy = {}
            busy.remove(worker)
            idle.append(worker)
            results[result.index] = result
            bar.add(result)
            if on_done is not None:
                on_done(result)
    return [results[spec.index] for spec in plan]


# ------------------------------------------------------------------------------------------- one round after the other
def _rounds(
    pool: Pool, job: Job, todo: Sequence[EpisodeSpec], act: ActFn, n_action_steps: int
) -> Iterator[list[EpisodeResult]]:
    """Yields the episodes that ended in each round: refill, one policy call, n_action_steps in every slot."""
    queue = deque(todo)
    playing: dict[int, EpisodeSpec] = {}
    chunks = [0] * pool.slots
    observations: dict[int, Observation] = {}
    if queue:
        pool.begin(job)
    while queue or playing:
        # Only after the whole round has come back, and in slot order: which slot plays what must not depend on timing.
        free = [slot for slot in range(pool.slots) if slot not in playing]
        starts = {slot: queue.popleft() for slot in free[: len(queue)]}
        for slot, spec in starts.items():
            playing[slot] = pool.worker(slot).busy[slot] = spec
            chunks[slot] = 0
        for reply in pool.scatter("start", starts):
            observations |= reply

        actions = act(_batch(observations, playing, pool.slots, todo[0].task), _noise_keys(playing, chunks))
        actions = _checked(actions, playing, chunks, pool, n_action_steps)

        finished: dict[int, EpisodeResult] = {}
        for ended, going_on in pool.scatter("act", {slot: actions[slot, :n_action_steps] for slot in playing}):
            finished |= ended
            observations |= going_on
        for slot in finished:
            del playing[slot], observations[slot], pool.worker(slot).busy[slot]
        for slot in playing:
            chunks[slot] += 1
        yield [finished[slot] for slot in sorted(finished)]


def _batch(
    observations: dict[int, Observation], playing: dict[int, EpisodeSpec], slots: int, task: str
) -> dict[str, Any]:
    some = next(iter(observations.values()))
    batch: dict[str, Any] = {key: np.zeros((slots, *value.shape), value.dtype) for key, value in some.items()}
    for slot, observation in observations.items():
        for key, value in observation.items():
            batch[key][slot] = value
    batch["task"] = [playing[slot].task if slot in playing else task for slot in range(slots)]
    return batch


def _noise_keys(playing: dict[int, EpisodeSpec], chunks: list[int]) -> list[tuple[int, int]]:
    return [(playing[slot].seed, chunk) if slot in playing else (0, 0) for slot, chunk in enumerate(chunks)]


def _checked(
    actions: np.ndarray, playing: dict[int, EpisodeSpec], chunks: list[int], pool: Pool, n_action_steps: int
) -> np.ndarray:
    actions = np.asarray(actions, dtype=np.float32)
    if actions.ndim != 3 or len(actions) != pool.slots:
        raise RecapError(f"the policy returned actions of shape {actions.shape}, not [{pool.slots} slots, chunk, dim]")
    if actions.shape[2] != pool.facts.action_dim:
        raise RecapError(
            f"the policy's actions have dimension {actions.shape[2]}, the environment takes {pool.facts.action_dim}: "
            "use a checkpoint that was trained on data of this environment, or choose its environment with env=…"
        )
    if not 1 <= n_action_steps <= actions.shape[1]:
        raise RecapError(
            f"n_action_steps={n_action_steps} does not fit the policy's chunks of {actions.shape[1]} actions: "
            f"choose 1 to {actions.shape[1]}"
        )
    for slot, spec in playing.items():
        if not np.isfinite(actions[slot]).all():
            raise RecapError(
                f"the policy returned NaN or infinite actions in {describe(spec)}, chunk {chunks[slot]}: "
                "its checkpoint or its normalisation statistics are broken"
            )
    return actions


@contextlib.contextmanager
def _closing_on_error(pool: Pool) -> Iterator[None]:
    try:
        yield
    except BaseException:
        pool.close()
        raise


# ----------------------------------------------------------------------------------------------- what is already done
def already(
    plan: Sequence[EpisodeSpec], record: Path | None, journal: Path | None, attempts: int = 1
) -> dict[int, EpisodeResult]:
    """Finished episodes of the plan by index, whoever played them: recorded in a folder, or told in journals.

    Raises RecapError: an empty or doubled plan, files of another plan.
    """
    specs = {spec.index: spec for spec in plan}
    if not specs:
        raise RecapError("episodes=0: there is nothing to roll out; ask for at least one episode")
    if len(specs) < len(plan):
        raise RecapError("the plan holds an episode index twice; every index must be its own")
    done: dict[int, EpisodeResult] = {}
    found = [(record, _recorded(record)), *((path, read_journal(path)) for path in journals(journal))]
    for path, results in found:
        for result in results:
            spec = specs.get(result.index)
            if spec is None:
                raise RecapError(
                    f"{path} holds episode {result.index}, which is not in this plan of {len(plan)} episodes: "
                    "use another folder, or delete it"
                )
            seeds = (attempt_seed(spec.seed, attempt) for attempt in range(attempts))
            if (result.task, result.initial_state) != (spec.task, spec.initial_state) or result.seed not in seeds:
                raise RecapError(
                    f"{path} holds {describe(result)}, but this plan has {describe(spec)}: "
                    "use another folder, or delete it"
                )
            done[result.index] = result
    return done


def journal_of(journal: Path | None, share: Share) -> Path | None:
    """Where a share writes: each its own file, since two processes must not append to one."""
    return journal if journal is None or share.whole else journal.with_suffix(f".{share}{journal.suffix}")


def journals(journal: Path | None) -> list[Path]:
    """The journal, and those of shares beside it."""
    return [] if journal is None else [journal, *sorted(journal.parent.glob(f"{journal.stem}.*of*{journal.suffix}"))]


def _recorded(folder: Path | None) -> list[EpisodeResult]:
    if folder is None:
        return []
    from recap.data.lerobot_writer import finished

    keys = ("task", "initial_state", "seed", "success", "steps", "choice")
    recorded = {index: {"choice": None} | facts for index, facts in finished(folder).items()}
    return [EpisodeResult(index, *(facts[key] for key in keys)) for index, facts in recorded.items()]


def read_journal(path: Path | None) -> list[EpisodeResult]:
    """The results in a journal; [] if there is none. Raises RecapError when a line cannot be read.

    A torn last line (killed while writing) is left out, and its episode played again.
    """
    if path is None or not path.exists():
        return []
    results = []
    *lines, _torn = path.read_bytes().split(b"\n")  # a whole line ends with a newline
    for number, line in enumerate(lines, start=1):
        try:
            results.append(EpisodeResult(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise RecapError(
                f"{path}, line {number} cannot be read ({error}): delete that line, and its episode is played again"
            ) from None
    return results


class _Journal:
    """Appends results so that they survive a kill: one write and one fsync a round."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def __enter__(self) -> Self:
        if self.path is not None:
            with self._disk():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = self.path.open("ab+", buffering=0)
                self.file.seek(0)
                self.file.truncate(self.file.read().rfind(b"\n") + 1)  # cuts a torn last line off
        return self

    def append(self, results: Sequence[EpisodeResult]) -> None:
        if self.path is not None and results:
            with self._disk():
                self.file.write("".join(json.dumps(asdict(result)) + "\n" for result in results).encode())
                os.fsync(self.file.fileno())

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RecapError(f"{self.path} cannot be written ({error.strerror}): {RESUME}") from error

    def __exit__(self, *_: object) -> None:
        if self.path is not None:
            self.file.close()


# ---------------------------------------------------------------------------------------------------------- progress
class _Progress:
    """A bar in a terminal; elsewhere a line every ten seconds and one at the end."""

    def __init__(self, label: str | None, total: int, done: Iterable[EpisodeResult]) -> None:
        before = list(done)
        self.label, self.total, self.done, self.resumed = label, total, len(before), len(before)
        self.successes = sum(result.success for result in before)
        self.start = self.last_line = time.monotonic()
        console = Console(stderr=True)
        self.bar: Progress | None = None
        if label is not None and console.is_terminal:
            facts = TextColumn("{task.fields[facts]}")
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), facts, TimeRemainingColumn()
            self.bar = Progress(*columns, console=console, refresh_per_second=4)
            self.row = self.bar.add_task(label, total=total, completed=self.done, facts=self.facts())

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
        return self

    def facts(self) -> str:
        minutes = (time.monotonic() - self.start) / 60
        rate = (self.done - self.resumed) / max(minutes, 1e-3)
        return f"success {self.successes / max(self.done, 1):.0%} · {rate:.0f} episodes/min"

    def add(self, result: EpisodeResult) -> None:
        self.done += 1
        self.successes += result.success
        if self.bar is not None:
            self.bar.update(self.row, completed=self.done, facts=self.facts())
        elif time.monotonic() - self.last_line >= LINE_SECONDS:
            self.print_line()

    def print_line(self) -> None:
        self.last_line = time.monotonic()
        if self.label is not None:
            print(f"{self.label}: {self.done}/{self.total} episodes · {self.facts()}", file=sys.stderr, flush=True)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif kind is None and self.done > self.resumed:
            self.print_line()
