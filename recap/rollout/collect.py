"""Vectorised rollouts: every slot plays an episode of the plan, and a batched policy call serves half of them.

All that is random in an episode follows from its EpisodeSpec and its own chunk counter. So results depend neither on
the number of slots and processes, nor on which episodes share a batch, nor on an interruption, as far as the policy
computes each row alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from recap.envs import EpisodeSpec
from recap.envs.config import DemonstratorConfig
from recap.rollout.config import CorrectionsConfig
from recap.rollout.operator import ValueWatch
from recap.rollout.pool import RESUME, Pool, Worker
from recap.rollout.rounds import ActFn, rounds
from recap.rollout.worker import DEMONSTRATION_ATTEMPTS, EpisodeResult, Job, attempt_seed, describe
from recap.utils.errors import RecapError
from recap.utils.progress import Progress
from recap.utils.ranks import WHOLE, Share

__all__ = ["ActFn", "EpisodeResult", "Pool", "already", "demonstrate", "journals", "read_journal", "roll"]


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
    corrections: CorrectionsConfig | None = None,
    watch: ValueWatch | None = None,
    on_done: Callable[[EpisodeResult], None] | None = None,
    progress: str | None = "rollout",
    share: Share = WHOLE,
) -> list[EpisodeResult]:
    """Plays every episode of `plan` that is not finished yet; returns the results of the whole plan in its order.

    split: whose initial states, "demonstration", "collection" or "evaluation".
    n_action_steps: how many actions of a chunk are executed before the next call.
    record: folder to which each simulation process writes its episodes, time-outs too; or
    journal: a .jsonl file of results, one durable line an episode. Episodes found in either are not played again.
    videos: folder for mp4 files of the first `video_episodes` of the plan, when they are played.
    max_steps: an earlier time-out than the environment's. corrections: by an operator, in some episodes; watch: who
    calls him, where he does not see for himself.
    progress: label of the bar, None for silence.
    share: of the plan; other processes play the rest into the same folder or beside the journal, and what they have
    finished is returned too.

    Raises RecapError: an empty plan, files of another plan, actions that are not finite or of the wrong shape, an
    environment that fails, a process that dies.
    """
    if record is not None and journal is not None:
        raise ValueError("record holds the results already: give record or journal, not both")
    results = already(plan, record, journal)
    mine = share.of(plan)
    todo = [spec for spec in mine if spec.index not in results]
    done = [results[spec.index] for spec in mine if spec.index in results]
    film = frozenset(spec.index for spec in plan[:video_episodes]) if videos is not None else frozenset()
    job = Job(split, record, videos, film, max_steps, corrections)
    with _closing_on_error(pool), _Journal(journal, share) as lines, _Bar(progress, len(mine), done) as bar:
        for finished in rounds(pool, job, todo, act, n_action_steps, watch):
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
    """The scripted demonstrator plays the plan, one episode at a time in each process; resumes and raises as `roll`.

    Unless `keep_failures`, a failed attempt is repeated with the next seed of the same index (`attempt_seed`): a plan
    of n yields n successes. A result and its recording have the seed of the attempt that was kept.
    """
    results = already(plan, record, None, attempts=DEMONSTRATION_ATTEMPTS)
    todo = deque(spec for spec in plan if spec.index not in results)
    busy: list[Worker] = []
    with _closing_on_error(pool), _Bar(progress, len(plan), results.values()) as bar:
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
    found = [(record, result) for result in _recorded(record)]
    found += [(path, result) for path in journals(journal) for result in read_journal(path)]
    for path, result in found:
        if (spec := specs.get(result.index)) is None:
            wrong = f"episode {result.index}, which is not in this plan of {len(plan)} episodes"
            raise RecapError(f"{path} holds {wrong}: use another folder, or delete it")
        seeds = (attempt_seed(spec.seed, attempt) for attempt in range(attempts))
        if (result.task, result.initial_state) != (spec.task, spec.initial_state) or result.seed not in seeds:
            wrong = f"{describe(result)}, but this plan has {describe(spec)}"
            raise RecapError(f"{path} holds {wrong}: use another folder, or delete it")
        done[result.index] = result
    return done


def journals(journal: Path | None) -> list[Path]:
    """The journal, and those of shares beside it."""
    return [] if journal is None else [journal, *sorted(journal.parent.glob(f"{journal.stem}.*of*{journal.suffix}"))]


def _recorded(folder: Path | None) -> list[EpisodeResult]:
    if folder is None:
        return []
    from recap.data.lerobot_writer import finished

    keys = ("task", "initial_state", "seed", "success", "steps", "choice", "corrected_from")
    further: dict[str, Any] = dict.fromkeys(keys[-2:])
    recorded = {index: further | facts for index, facts in finished(folder).items()}
    return [EpisodeResult(index, *(facts[key] for key in keys)) for index, facts in recorded.items()]


def read_journal(path: Path) -> list[EpisodeResult]:
    """The results in a journal; [] if there is none. Raises RecapError when a line cannot be read.

    A torn last line (killed while writing) is left out, and its episode played again.
    """
    if not path.exists():
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

    def __init__(self, path: Path | None, share: Share) -> None:
        # Each share has its own file: two processes must not append to one.
        self.path = path if path is None or share.whole else path.with_suffix(f".{share}{path.suffix}")

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


class _Bar(Progress):
    """Of episodes: with the share that succeeded without an operator so far, and how fast they go."""

    def __init__(self, label: str | None, total: int, done: Collection[EpisodeResult]) -> None:
        super().__init__(label or "", total, len(done), quiet=label is None)
        self.successes = sum(result.alone for result in done)

    def add(self, result: EpisodeResult) -> None:
        self.successes += result.alone
        done, minutes = self.done + 1, (time.monotonic() - self.began) / 60
        rate = (done - self.start) / max(minutes, 1e-3)
        self.advance(f"success {self.successes / done:.0%} · {rate:.0f} episodes/min")
