"""Where a stage runs: in this process, or as a job of submitit (SLURM will be one more executor for the same job)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from recap.config import Config, LauncherKind
from recap.errors import RecapError
from recap.graph import Node
from recap.rundir import finished

Run = Callable[[Config, Node], None]
MINUTES = 7 * 24 * 60


class StageJob:
    """A stage as a callable that can be pickled, resubmitted and resumed: it looks at the disk for where it was."""

    def __init__(self, run: Run, cfg: Config, node: Node) -> None:
        self.run, self.cfg, self.node = run, cfg, node

    def __call__(self) -> str | None:
        """None, or what the user should be told; other exceptions travel as tracebacks."""
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
    executor: Any = submitit.LocalExecutor(folder=folder)
    executor.update_parameters(timeout_min=MINUTES)
    job = executor.submit(StageJob(run, cfg, node))
    try:
        problem = job.result()
    except submitit.core.utils.FailedJobError as error:
        raise RecapError(f"{node.path} failed:\n{error}\nLog: {job.paths.stderr}") from error
    except submitit.core.utils.UncompletedJobError as error:
        raise RecapError(
            f"{node.path}: its job ended without a result (killed?). Log: {job.paths.stderr}. The same command again resumes it."
        ) from error
    except KeyboardInterrupt:
        job.cancel()
        raise
    if problem is not None:
        raise RecapError(problem)
