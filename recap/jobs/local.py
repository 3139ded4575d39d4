"""Jobs as processes of this machine, one stage at a time; they end with the process that follows them."""

from __future__ import annotations

import fcntl
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from recap.jobs.chain import Chain, Seen, State
from recap.jobs.job import error_of, python, resources
from recap.jobs.slurm import clean_environment
from recap.stages.base import Stage
from recap.storage.manifest import JOB

MINUTES = 7 * 24 * 60
CANCEL_SECONDS = 15.0  # for a cancelled job to end


class OnThisMachine:
    """Starts a stage when its inputs are finished and no other runs, in processes that this one takes with it."""

    tied = True

    def __init__(self) -> None:
        self.stage: tuple[Path, str] | None = None  # run directory and path of the running one
        self.jobs: list[Any] = []
        self.alive: TextIO | None = None
        self.began = 0.0

    def submit(self, chain: Chain) -> None:
        """Only keeps its code: there is no queue."""
        if not all(stage.finished for stage in chain.stages):
            _ = chain.code

    def look(self, chains: Sequence[Chain]) -> bool:
        for chain in chains:
            for stage in chain.stages:
                chain.seen[stage.path] = self._see(chain, stage)
        ready = ((chain, stage) for chain in chains for stage in chain.stages if self._ready(chain, stage))
        if self.stage is None and (found := next(ready, None)):
            chain, stage = found
            self._start(chain, stage)
            chain.seen[stage.path] = self._see(chain, stage)
        return True

    @staticmethod
    def _ready(chain: Chain, stage: Stage) -> bool:
        made = all(chain.seen[path].state is State.finished for path in chain.before(stage))
        return made and chain.seen[stage.path].state is State.missing

    def _see(self, chain: Chain, stage: Stage) -> Seen:
        before = chain.seen.get(stage.path, Seen(State.missing))
        mine = [job.job_id for job in self.jobs] if self.stage == (chain.directory, stage.path) else []
        if mine and not all(job.done() for job in self.jobs):
            elapsed = time.strftime("%M:%S", time.gmtime(time.monotonic() - self.began))
            return Seen(State.running, mine[0], elapsed)
        if mine:
            self._end()
        if stage.finished:
            return Seen(State.finished, mine[0] if mine else before.job)
        if mine:
            errors = [error_of(stage.out, job) for job in mine]
            text, whole = next((e for e in errors if e[0]), ("its job ended without a result (killed?)", False))
            return Seen(State.failed, mine[0], problem=text, told=whole)
        broken = next((p for p in chain.before(stage) if chain.seen[p].state in (State.failed, State.stopped)), None)
        return before if broken is None else Seen(State.stopped, note=f"needs {broken}")

    def _start(self, chain: Chain, stage: Stage) -> None:
        import submitit

        folder = (stage.out / JOB).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        self.alive = (folder / ".alive").open("w")
        fcntl.flock(self.alive, fcntl.LOCK_EX)
        executor: Any = submitit.LocalExecutor(folder=folder, python=python(chain.cfg, chain.code))
        asked = resources(chain.cfg, stage)
        executor.update_parameters(timeout_min=MINUTES, tasks_per_node=asked.nodes * asked.tasks)
        # The keyboard's Ctrl-C reaches this process alone, which then ends the jobs: submitit would show a traceback.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with clean_environment():
                self.jobs = [executor.submit(job) for job in chain.jobs(stage, Path(self.alive.name))]
        finally:
            signal.signal(signal.SIGINT, handler)
        self.stage, self.began = (chain.directory, stage.path), time.monotonic()

    def _end(self) -> None:
        if self.alive is not None:
            self.alive.close()  # and with it the jobs
        self.stage, self.jobs, self.alive = None, [], None

    def close(self) -> None:
        """Ends what runs."""
        jobs = self.jobs
        self._end()
        deadline = time.monotonic() + CANCEL_SECONDS
        while not all(job.done() for job in jobs) and time.monotonic() < deadline:
            time.sleep(0.1)
