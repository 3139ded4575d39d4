"""The stages of a run as jobs: which are missing, which are under way, and the whole chain in SLURM's queue at once."""

from __future__ import annotations

import getpass
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Protocol

from recap.config import Config
from recap.jobs import slurm
from recap.jobs.job import (
    Run,
    StageJob,
    error_of,
    note_submitted,
    ordered,
    python,
    resources,
    shards,
    submitted,
)
from recap.jobs.slurm import NEVER, Row
from recap.jobs.snapshot import snapshot
from recap.stages.base import Stage
from recap.storage.manifest import JOB, difference, lock
from recap.utils.errors import RecapError

SETTLE_SECONDS = 30.0  # until a job that is gone counts as failed: a network file system may show its results later

ENDINGS = {
    "TIMEOUT": "reached its time limit of {timeout_min} minutes, and had come back {max_requeues} times. "
    "Fix: resources.{kind}.timeout_min=…, or launcher.max_requeues=…",
    "OUT_OF_MEMORY": "took more than its {mem_gb:g} GB. Fix: resources.{kind}.mem_gb=…, or a smaller batch_size",
    "CANCELLED": "was cancelled",
    "NODE_FAIL": "lost its node",
    "COMPLETED": "ended well, but its results cannot be seen from here. Fix: output=<a folder that all nodes share>",
    "VANISHED": "vanished from the cluster's queue",
}


class State(Enum):
    finished = "finished"
    running = "running"
    queued = "queued"
    missing = "missing"  # no job has it
    failed = "failed"
    stopped = "stopped"  # a stage before it failed


@dataclass(frozen=True)
class Seen:
    """A stage as it was seen last. note: why it waits; problem: why it failed, and `told` whether that says it all."""

    state: State
    job: str = ""
    elapsed: str = ""
    note: str = ""
    problem: str = ""
    told: bool = False


@dataclass
class Chain:
    """The stages of one run (`cfg.output`), in order; done: called when all are finished."""

    cfg: Config
    stages: Sequence[Stage]
    run: Run
    done: Callable[[], None]
    seen: dict[str, Seen] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        return Path(self.cfg.output)

    @cached_property
    def code(self) -> Path:
        """What its jobs run: as it is when this is first asked for, at submission."""
        return snapshot(self.directory)

    def before(self, stage: Stage) -> list[str]:
        """Stages of this chain that make its inputs."""
        paths = {other.path for other in self.stages}
        return [path for path in stage.inputs.values() if path in paths]

    def jobs(self, stage: Stage, alive: Path | None = None) -> list[StageJob]:
        """What is written of them can be read by others, so it is without `launcher.setup`, which scripts have run."""
        launcher = replace(self.cfg.launcher, setup=[])
        cfg, stage = replace(self.cfg, launcher=launcher), replace(stage, cfg=replace(stage.cfg, launcher=launcher))
        return [StageJob(self.run, cfg, stage, shard, alive) for shard in shards(self.cfg, stage)]

    def finished(self, stage: Stage) -> bool:
        """Whether it was seen finished, and so need not be looked at again."""
        return stage.path in self.seen and self.seen[stage.path].state is State.finished

    def ended(self) -> bool:
        """Whether nothing of it goes on."""
        return all(seen.state not in (State.running, State.queued, State.missing) for seen in self.seen.values())

    def failures(self) -> dict[str, Seen]:
        return {path: seen for path, seen in self.seen.items() if seen.state is State.failed}


class Executor(Protocol):
    """Where jobs run. `tied`: they end with this process."""

    tied: bool

    def submit(self, chain: Chain) -> None:
        """Submits what is missing, as far as that can be done before anything is finished."""

    def look(self, chains: Sequence[Chain]) -> bool:
        """Updates what is seen of all stages; False if there was no answer."""

    def close(self) -> None: ...


class OnSlurm:
    """Jobs in SLURM's queue. They live on when this process ends, and are found again by their names."""

    tied = False

    def __init__(self) -> None:
        self.gone: dict[str, float] = {}  # job name -> when it was first seen to be in no queue

    # ------------------------------------------------------------------------------------------------ submission
    def submit(self, chain: Chain) -> None:
        """What is missing, each job behind those of its inputs; queued and running jobs are adopted.

        Raises:
            RecapError: another process is just doing that; SLURM refuses or does not answer.
        """
        for stage in chain.stages:
            if not stage.finished:
                _check_owner(stage.out)
        with lock(chain.directory):
            queue = slurm.queue()
            if queue is None:
                raise RecapError(
                    "SLURM does not answer (squeue). What is submitted goes on. Fix: the same command again."
                )
            found: dict[str, str] = {}  # stage -> its job
            new: set[str] = set()
            for stage in chain.stages:
                if stage.finished:
                    continue
                before = [path for path in chain.before(stage) if path in found]
                rows = queue.get(job_name(chain, stage), [])
                job = _adoptable(chain, stage, rows) if not new.intersection(before) else None
                slurm.cancel(sorted({row.job for row in rows if row.active and row.job != job}))
                if job is None:
                    new.add(stage.path)
                    job = self._submit(chain, stage, [found[path] for path in before])
                found[stage.path] = job
            kept = len(found) - len(new)
            adopted = f", {kept} already in the queue" if kept else ""
            print(f"{chain.directory}: {len(new)} jobs submitted{adopted}", flush=True)
            _tell_old_orders(chain, {path: job for path, job in found.items() if path not in new})

    @staticmethod
    def _submit(chain: Chain, stage: Stage, after: list[str]) -> str:
        folder, jobs = (stage.out / JOB).absolute(), chain.jobs(stage)
        folder.mkdir(parents=True, exist_ok=True)
        with slurm.clean_environment():
            job = slurm.submit(
                chain.cfg.launcher,
                resources(chain.cfg, stage),
                jobs,
                folder=folder,
                name=job_name(chain, stage),
                after=after,
                python=python(chain.cfg, chain.code),
            )
        slurm.release(job)
        note_submitted(
            stage.out, job, len(jobs), chain.code, ordered(chain.cfg, stage)
        )  # without it nobody adopts the job
        return job

    # ------------------------------------------------------------------------------------------------ watching
    def look(self, chains: Sequence[Chain]) -> bool:
        queue = slurm.queue()
        if queue is None:
            return False
        for chain in chains:
            for stage in chain.stages:
                if chain.finished(stage):
                    continue
                chain.seen[stage.path] = self._see(chain, stage, queue.get(job_name(chain, stage), []))
        return True

    def _see(self, chain: Chain, stage: Stage, rows: list[Row]) -> Seen:
        job = _newest(rows) or next(reversed(submitted(stage.out)), "")
        rows = [row for row in rows if row.job == job]
        elapsed = max((row.elapsed for row in rows), key=lambda text: (len(text), text), default="")
        if stage.finished:
            return Seen(State.finished, job)
        active = [row for row in rows if row.active]
        broken = next((p for p in chain.before(stage) if chain.seen[p].state in (State.failed, State.stopped)), None)
        if broken is not None:
            slurm.cancel([job] if active else [])
            return Seen(State.stopped, job, note=f"needs {broken}")
        if active:
            self.gone.pop(job, None)
            if all(row.waiting for row in active):
                reason = active[0].reason
                return Seen(State.queued, job, note="" if reason in ("None", "Dependency") else reason)
            running = sum(not row.waiting for row in active)
            return Seen(State.running, job, elapsed, f"{running} of {len(rows)} shards" if len(rows) > 1 else "")
        if not job:
            return Seen(State.missing)
        return self._judge(chain, stage, job, {row.state for row in rows} - {"COMPLETED"}, elapsed)

    def _judge(self, chain: Chain, stage: Stage, job: str, states: set[str], elapsed: str) -> Seen:
        """What became of a job that is over, though its stage is not finished."""
        text, told = error_of(stage.out, job)
        since = self.gone.setdefault(job, time.monotonic())
        if not states and not text and time.monotonic() - since < SETTLE_SECONDS:
            return Seen(State.running, job, elapsed, "ending")
        state = min(states) if states else slurm.ending(job)
        if not text:
            asked = resources(chain.cfg, stage)
            words = ENDINGS.get(state, f"ended without a report ({state.lower()}: killed?)")
            numbers = {**vars(asked), "kind": stage.kind, "max_requeues": chain.cfg.launcher.max_requeues}
            text = f"job {job} {words.format(**numbers)}"
        return Seen(State.failed, job, elapsed, problem=text, told=told)

    def close(self) -> None:
        """Nothing: the jobs go on."""


def _tell_old_orders(chain: Chain, kept: dict[str, str]) -> None:
    """Says which of the jobs that go on were submitted with something else than is asked now. kept: stage -> job."""
    changed: list[str] = []
    for stage in chain.stages:
        known = submitted(stage.out).get(kept.get(stage.path, ""), {}).get("ordered")
        if known is not None and (now := difference(known, ordered(chain.cfg, stage))):
            shown = "; ".join(line.replace(" -> ", ", now ") for line in now)
            changed.append(f"  {stage.path} (job {kept[stage.path]}): {shown}")
    if changed:
        lines = [*changed[:12], *([f"  … and {len(changed) - 12} more"] if len(changed) > 12 else [])]
        print(
            f"{chain.directory}: jobs keep what they were submitted with:\n" + "\n".join(lines) + "\n"
            "To apply what is asked now: the same command with action=cancel, then again without.",
            flush=True,
        )


def _check_owner(stage: Path) -> None:
    """Raises RecapError for a stage whose job is somebody else's, which cannot be seen among one's own."""
    last = next(reversed(submitted(stage).values()), {})
    if last.get("user", getpass.getuser()) != getpass.getuser():
        raise RecapError(
            f"{stage} was submitted by {last['user']} (job {last['job']}). "
            f"Fix: name=<another>, or delete {stage} if that job is gone."
        )


def cancel(chain: Chain) -> list[str]:
    """Ends the run's jobs in SLURM's queue; their ids."""
    queue = slurm.queue()
    if queue is None:
        raise RecapError("SLURM does not answer (squeue). Fix: the same command again.")
    names = {job_name(chain, stage) for stage in chain.stages}
    jobs = sorted({row.job for name in names for row in queue.get(name, []) if row.active})
    slurm.cancel(jobs)
    return jobs


def job_name(chain: Chain, stage: Stage) -> str:
    """Says what the job is, and no other stage of any run of this user has it."""
    place = hashlib.sha256(str(stage.out.resolve()).encode()).hexdigest()[:10]
    return f"{chain.cfg.name}.{stage.path.strip('/').replace('/', '.')}.{place}"


def _newest(rows: Sequence[Row]) -> str:
    """The one that is active, or else the last."""
    return max(rows, key=lambda row: (row.active, int(row.job)), default=Row("", "", "", "", "")).job


def _adoptable(chain: Chain, stage: Stage, rows: Sequence[Row]) -> str | None:
    """A job that will do the stage: submitted to the end, no task of it lost, and not hopeless."""
    job = _newest([row for row in rows if row.active])
    rows = [row for row in rows if row.job == job]
    known = submitted(stage.out).get(job)
    if known is None or len(rows) != known["shards"]:
        return None
    good = all((row.active and row.reason != NEVER) or row.state == "COMPLETED" for row in rows)
    return job if good else None
