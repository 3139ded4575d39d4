"""Where a stage runs: in this process, or as a job of submitit (SLURM will be one more executor for the same job)."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from recap.config import Config, LauncherKind
from recap.errors import RecapError
from recap.graph import Node
from recap.rundir import finished

Run = Callable[[Config, Node], None]
MINUTES = 7 * 24 * 60
CANCEL_SECONDS = 15.0  # for a cancelled job to end


class StageJob:
    """A stage as a callable that can be pickled, resubmitted and resumed: it looks at the disk for where it was.

    alive: a file that the submitting process keeps locked; the job ends with it. None: the job lives on by itself.
    """

    def __init__(self, run: Run, cfg: Config, node: Node, alive: Path | None = None) -> None:
        self.run, self.cfg, self.node, self.alive = run, cfg, node, alive

    def __call__(self) -> str | None:
        """None, or what the user should be told; other exceptions travel as tracebacks."""
        if self.alive is not None:
            threading.Thread(target=_end_with, args=(self.alive,), daemon=True).start()
        try:
            self.run(self.cfg, self.node)
        except RecapError as error:
            return str(error)
        return None


def launch(cfg: Config, node: Node, run: Run) -> None:
    """Runs one stage to its end.

    Raises:
        RecapError: the stage's own, or the job ended without a result; the message names its log.
    """
    if cfg.launcher.kind is LauncherKind.inline or finished(Path(cfg.output) / node.path):
        run(cfg, node)
        return
    import submitit

    folder = Path(cfg.output) / node.path / "job"
    folder.mkdir(parents=True, exist_ok=True)
    executor: Any = submitit.LocalExecutor(folder=folder, python=_python())
    executor.update_parameters(timeout_min=MINUTES)
    with _locked(folder / ".alive") as alive:
        job = _submit(executor, StageJob(run, cfg, node, Path(alive.name).absolute()))
        print(f"   log: {job.paths.stderr}", flush=True)
        try:
            problem = job.result()
        except submitit.core.utils.FailedJobError as error:
            raise RecapError(f"{node.path} failed:\n{error}\nLog: {job.paths.stderr}") from error
        except submitit.core.utils.UncompletedJobError as error:
            raise RecapError(
                f"{node.path}: its job ended without a result (killed?). Log: {job.paths.stderr}. "
                "The same command again resumes it."
            ) from error
        except KeyboardInterrupt:
            alive.close()  # and with it the job
            _wait(job)
            raise
    if problem is not None:
        raise RecapError(f"{problem}\nLog: {job.paths.stderr}")


def _submit(executor: Any, job: StageJob) -> Any:
    """The keyboard's Ctrl-C reaches this process alone, which then ends the job: submitit would show a traceback."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what a new process inherits
    try:
        return executor.submit(job)
    finally:
        signal.signal(signal.SIGINT, handler)


def _wait(job: Any) -> None:
    deadline = time.monotonic() + CANCEL_SECONDS
    while not job.done() and time.monotonic() < deadline:
        time.sleep(0.1)


def _python() -> str:
    """How a job starts Python: it finds this package, and the devices that submitit's local executor would hide."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]))
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = ["-u", "CUDA_VISIBLE_DEVICES"] if devices is None else [f"CUDA_VISIBLE_DEVICES={devices}"]
    return shlex.join(["env", *visible, f"PYTHONPATH={path}", sys.executable])


@contextmanager
def _locked(path: Path) -> Iterator[TextIO]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _end_with(alive: Path) -> None:
    """Waits until the submitting process has gone or lets go of the file, however that comes, and ends this one."""
    with alive.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os._exit(1)
