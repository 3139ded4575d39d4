"""Which launcher runs the stages, and a stage as a job: a callable that can be pickled, started again and resumed."""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import json
import os
import shlex
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

from recap import tracking
from recap.config import Config
from recap.jobs import slurm
from recap.jobs.config import LauncherKind, Resources
from recap.jobs.preemption import heed, restarts
from recap.stages.base import Stage
from recap.storage.manifest import JOB
from recap.utils.errors import RecapError
from recap.utils.files import write_text
from recap.utils.notice import NOTICE
from recap.utils.ranks import WHOLE, Share, process

Run = Callable[[Config, Stage, Share], None]
ERROR, SUBMITTED = "error.txt", "jobs.jsonl"
LETTERS = ("PYTHONUTF8=1", "PYTHONIOENCODING=utf-8")  # whatever locale the node has: what a job writes is read here


# ---------------------------------------------------------------------------------------------------- which launcher
def launcher(cfg: Config) -> LauncherKind:
    return automatic()[0] if cfg.launcher.kind is LauncherKind.auto else cfg.launcher.kind


@cache
def automatic() -> tuple[LauncherKind, str]:
    """What `launcher=auto` stands for, and why."""
    if not process().whole:
        return LauncherKind.inline, "these processes were started together"
    answers, why = slurm.answers()
    return (LauncherKind.slurm if answers else LauncherKind.inline), why


# ---------------------------------------------------------------------------------------------------- the job
class StageJob:
    """A stage, or a shard of it, as submitit starts it: it looks at the disk for where it was.

    alive: a file that the submitting process keeps locked; the job ends with it. None: the job lives on by itself.
    """

    def __init__(self, run: Run, cfg: Config, stage: Stage, shard: Share = WHOLE, alive: Path | None = None) -> None:
        self.run, self.cfg, self.stage, self.shard, self.alive = run, cfg, stage, shard, alive

    def __call__(self) -> None:
        """Raises what the stage raises; the first line of it goes to `error.txt`, which names the job."""
        from submitit.helpers import TorchDistributedEnvironment

        folder = Path(os.environ["SUBMITIT_FOLDER"])
        if self.alive is not None:
            threading.Thread(target=_end_with, args=(self.alive,), daemon=True).start()
        else:
            heed(self.cfg.launcher.max_requeues, self.cfg.launcher.grace_period_s)
        environment = TorchDistributedEnvironment()
        job = environment._job_env.job_id  # noqa: SLF001
        _clear_torn_result(folder, job, environment.rank)
        if environment.world_size > 1:
            environment.export(set_cuda_visible_devices=False, overwrite=True)
        _own_renderer(environment.local_rank)
        again = f", restart {restarts()}" if restarts() else ""
        print(
            f"{self.stage.path} {self.shard}: job {job}, process {environment.rank}{again}", file=sys.stderr, flush=True
        )
        # A training that is told to leave before its first step would never get anywhere; the others lose nothing.
        patient = NOTICE.at_a_good_moment() if self.stage.trains else nullcontext()
        try:
            with patient:
                self.run(self.cfg, self.stage, self.shard)
        except Exception as error:
            text = str(error) if isinstance(error, RecapError) else _last_line(error)
            with suppress(OSError):
                kind = RecapError.__name__ if isinstance(error, RecapError) else "Exception"
                write_text(folder / ERROR, f"{job.partition('_')[0]} {kind}\n{text}\n")
            raise
        finally:
            tracking.close()

    def checkpoint(self) -> Any:
        """For a notice that comes before this object heeds it: nothing has begun."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def error_of(stage: Path, job: str) -> tuple[str, bool]:
    """What a job reported as its error, and whether that says it all; "" if it did not, or an older job did."""
    with suppress(OSError):
        head, _, text = (stage / JOB / ERROR).read_text(encoding="utf-8").partition("\n")
        if head.partition(" ")[0] == job:
            return text.strip(), head.endswith(RecapError.__name__)
    return "", False


def _last_line(error: Exception) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


def _clear_torn_result(folder: Path, job: str, rank: int) -> None:
    """submitit refuses to write its result where a killed attempt left half of one."""
    (folder / f"{job}_{rank}_result.pkl.save_tmp").unlink(missing_ok=True)


def _own_renderer(local_rank: int) -> None:
    """EGL draws on the GPU of this process, out of those that are visible to it."""
    visible = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu.isdigit()]
    if visible:
        os.environ["MUJOCO_EGL_DEVICE_ID"] = visible[local_rank % len(visible)]


def _end_with(alive: Path) -> None:
    """Waits until the submitting process has gone or lets go of the file, however that comes, and ends this one."""
    with alive.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os._exit(1)


# ---------------------------------------------------------------------------------------------------- around the job
def resources(cfg: Config, stage: Stage) -> Resources:
    """What the stage's job asks for."""
    found: Resources = getattr(cfg.resources, stage.asks_as or stage.kind)
    return found


def shards(cfg: Config, stage: Stage) -> list[Share]:
    count = resources(cfg, stage).shards
    return [Share(index, count) for index in range(count)]


def python(cfg: Config, code: Path) -> str:
    """How a job starts Python: with the code of `code` alone, and the devices that submitit would hide from it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices: list[str] = []
    if launcher(cfg) is LauncherKind.local:
        devices = ["-u", "CUDA_VISIBLE_DEVICES"] if visible is None else [f"CUDA_VISIBLE_DEVICES={visible}"]
    path = os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")]))
    own = cfg.launcher.python or shlex.quote(sys.executable)
    return shlex.join(["env", *devices, f"PYTHONPATH={path}", "PYTHONSAFEPATH=1", *LETTERS]) + f" {own}"


def ordered(cfg: Config, stage: Stage) -> dict[str, Any]:
    """What the stage's job is submitted with, by the configuration's keys; of shell lines, maybe secret, the hash."""
    launcher = vars(cfg.launcher)
    setup = hashlib.sha256(json.dumps(cfg.launcher.setup).encode()).hexdigest()[:8]
    kept = {f"launcher.{key}": launcher[key] for key in launcher if key not in ("kind", "setup")}
    numbers = {f"resources.{stage.kind}.{key}": value for key, value in vars(resources(cfg, stage)).items()}
    return {**kept, "launcher.setup (hash)": setup, **numbers}


def note_submitted(stage: Path, job: str, shards: int, code: Path, order: dict[str, Any]) -> None:
    """One line for each job of the stage that is wholly submitted: which, in how many shards, whose, with what."""
    with (stage / JOB / SUBMITTED).open("a+", encoding="utf-8") as file:
        file.seek(0)
        if not (file.read() or "\n").endswith("\n"):  # a line that somebody was killed at
            file.write("\n")
        line = {"job": job, "shards": shards, "user": getpass.getuser(), "code": code.name, "ordered": order}
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def submitted(stage: Path) -> dict[str, dict[str, Any]]:
    """{job: its line} of all submissions of the stage, in order."""
    found: dict[str, dict[str, Any]] = {}
    with suppress(OSError):
        for line in (stage / JOB / SUBMITTED).read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError, TypeError):  # a torn line
                record = json.loads(line)
                found[record["job"]] = record
    return found
