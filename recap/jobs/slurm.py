"""Everything that is asked of a SLURM cluster, which may not answer, and whose jobs may vanish."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recap.config import Config
from recap.jobs.config import LauncherConfig, Resources
from recap.utils.errors import RecapError
from recap.utils.files import write_text

ANSWER_SECONDS = 2.0  # for a cluster to count as one
PATIENCE_SECONDS = 60.0  # for a busy controller
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "RESIZING"}
RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"}
HELD = {"REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
NO_ANSWER = "no answer"
NEVER = "DependencyNeverSatisfied"
ON_ONE_MACHINE = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs", "ramfs", "overlay"}
CRASHES = "[ $code -gt 128 ] && [ $code -lt 160 ] && [ $code -ne 130 ] && [ $code -ne 143 ]"  # ended by a signal


@dataclass(frozen=True)
class Row:
    """A job, or a task of an array, as squeue shows it."""

    job: str  # the array's, for a task
    state: str
    name: str
    reason: str
    elapsed: str

    @property
    def waiting(self) -> bool:
        return self.state in WAITING | HELD

    @property
    def active(self) -> bool:
        return self.state in WAITING | RUNNING | HELD


def _run(command: Sequence[str], seconds: float = PATIENCE_SECONDS) -> subprocess.CompletedProcess[str]:
    """A command of SLURM's; failed with NO_ANSWER as its error where it cannot run or does not return."""
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return subprocess.CompletedProcess(command, 1, "", NO_ANSWER)


@contextmanager
def clean_environment() -> Iterator[None]:
    """Without the variables of the job or the processes that this one may be part of; with the way to the cluster.

    Outside of a job, a user's own variables for sbatch (SBATCH_ACCOUNT) stay.
    """
    from submitit.helpers import clean_env

    in_job = "SLURM_JOB_ID" in os.environ
    kept = {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or (k.startswith("SBATCH_") and not in_job)}
    with clean_env(extra_names=("WANDB_SERVICE",)):
        os.environ.update(kept)
        yield


# ---------------------------------------------------------------------------------------------------- the cluster
def answers() -> tuple[bool, str]:
    """Whether there is a cluster, and how that is known."""
    if shutil.which("sbatch") is None:
        return False, "there is no sbatch here"
    found = _run(["sinfo", "-h", "-o", "%R"], ANSWER_SECONDS)
    if found.returncode or not found.stdout.strip():
        return False, f"there is an sbatch here, but no SLURM controller answered within {ANSWER_SECONDS:g} s"
    return True, f"a SLURM controller answers, with partitions {', '.join(sorted(set(found.stdout.split())))}"


def queue() -> dict[str, list[Row]] | None:
    """This user's jobs by name, those lately ended included, tasks of arrays one by one. None: no answer."""
    found = _run(["squeue", "-h", "-r", "-t", "all", "--me", "-o", "%F|%T|%j|%r|%M"])
    if found.returncode:
        return None
    jobs: dict[str, list[Row]] = {}
    for line in found.stdout.splitlines():
        if len(fields := line.split("|")) == 5:
            job, state, name, reason, elapsed = fields
            jobs.setdefault(name, []).append(Row(job, state, name, reason, elapsed))
    return jobs


def cancel(jobs: Sequence[str]) -> None:
    if jobs:
        _run(["scancel", *jobs])


def ending(job: str) -> str:
    """How a job ended that squeue has forgotten; VANISHED if nobody knows."""
    found = _run(["sacct", "-n", "-X", "-P", "-j", job, "-o", "State"])
    states = [line.split()[0] for line in found.stdout.splitlines() if line and not found.returncode]
    return next((state for state in states if state != "COMPLETED"), states[0] if states else "VANISHED")


# ---------------------------------------------------------------------------------------------------- submission
def _alike(launcher: LauncherConfig) -> dict[str, tuple[str, Any]]:
    """What all jobs ask for alike, as typed after `launcher.` -> sbatch's option and its value."""
    found: dict[str, tuple[str, Any]] = {}
    for key in ("account", "qos", "constraint"):
        if value := getattr(launcher, key):
            found[f"{key}={value}"] = (key, value)
    for option in launcher.options:
        key, given, value = option.partition("=")
        found[f"options=['{option}']"] = (key, value if given else True)
    return found


def _asked(launcher: LauncherConfig, resources: Resources, without: Sequence[str] = ()) -> dict[str, Any]:
    """Options of sbatch; without: settings of all jobs to leave out."""
    options: dict[str, Any] = {
        "partition": launcher.partition,
        "nodes": resources.nodes,
        "ntasks-per-node": resources.tasks,
        "cpus-per-task": resources.cpus_per_task,
        "gpus-per-node": resources.gpus_per_node or None,
        "mem": f"{round(resources.mem_gb * 1024)}M",
        "time": resources.timeout_min,
    }
    options |= dict(option for setting, option in _alike(launcher).items() if setting not in without)
    return {key: value for key, value in options.items() if value is not None}


def submit(
    launcher: LauncherConfig,
    resources: Resources,
    jobs: Sequence[Any],
    *,
    folder: Path,
    name: str,
    after: Sequence[str],
    python: str,
) -> str:
    """Submits callables as one job, or as the tasks of an array; its id. It is held until `release`.

    after: jobs that must succeed first. Raises RecapError where SLURM refuses.
    """
    import submitit

    executor: Any = submitit.SlurmExecutor(folder=folder, python=python)
    options = {**_asked(launcher, resources), "hold": True, "requeue": True, "kill-on-invalid-dep": "yes"}
    if after:
        options["dependency"] = f"afterok:{':'.join(after)}"
    again = f'[ "${{SLURM_RESTART_COUNT:-0}}" -lt {launcher.max_requeues} ]'
    running = 'scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING'
    executor.update_parameters(
        job_name=name,
        time=resources.timeout_min,
        nodes=resources.nodes,
        ntasks_per_node=resources.tasks,
        signal_delay_s=launcher.grace_period_s,
        setup=_setup(folder, launcher.setup),
        teardown=[
            "code=$?",
            f'if {CRASHES} && {again} && {running}; then scontrol requeue "$SLURM_JOB_ID" && sleep 60; fi',
            "exit $code",
        ],
        srun_args=[f"--cpus-per-task={resources.cpus_per_task}", "--kill-on-bad-exit=1"],
        array_parallelism=len(jobs),
        additional_parameters=options,
    )
    try:
        if len(jobs) == 1:
            return executor.submit(jobs[0]).job_id
        with executor.batch():
            tasks = [executor.submit(job) for job in jobs]
        return tasks[0].job_id.partition("_")[0]
    except submitit.core.utils.FailedJobError as error:
        said = re.findall(r"sbatch: error: (.*)", str(error)) or [str(error).strip().splitlines()[-1]]
        raise RecapError(
            f"SLURM refuses {name}: {said[-1]}. Fix: what it says; what is submitted goes on, and the same command "
            "again submits the rest."
        ) from error


def _setup(folder: Path, lines: Sequence[str]) -> list[str]:
    """Puts them, which may hold secrets, into a file for its owner alone; others can read the script of a job."""
    if not lines:
        return []
    text = "\n".join(lines) + "\n"
    path = folder / f"setup_{hashlib.sha256(text.encode()).hexdigest()[:12]}.sh"
    write_text(path, text, mode=0o600)
    return [f". {shlex.quote(str(path))}"]


def release(job: str) -> None:
    """Lets a job start: everything that it needs is on the disk."""
    done = _run(["scontrol", "release", job])
    if done.returncode:
        raise RecapError(f"SLURM does not release job {job}: {done.stderr.strip()}. Fix: the same command again.")


# ---------------------------------------------------------------------------------------------------- before
def problems(cfg: Config, stages: Mapping[str, Resources]) -> Iterator[str]:
    """Why SLURM would refuse the jobs of these stages; stages: name under `resources` -> what its job asks for."""
    partitions = _partitions()
    name = cfg.launcher.partition or next((key for key, row in partitions.items() if row.default), None)
    if cfg.launcher.partition is not None and partitions and cfg.launcher.partition not in partitions:
        yield (
            f"launcher.partition={cfg.launcher.partition}: no such partition. Choices: {', '.join(partitions)}. "
            "Fix: name one of them, in conf/site/here.yaml for good."
        )
        return
    limit = partitions[name].minutes if name in partitions else None
    refused: list[str] = []  # settings of all jobs: each mistake is told once
    for stage, resources in stages.items():
        if limit is not None and resources.timeout_min > limit:
            yield (
                f"resources.{stage}.timeout_min={resources.timeout_min}: partition {name} allows {limit}. "
                f"Fix: resources.{stage}.timeout_min={limit} (a longer training goes on in a job after it), "
                "or launcher.partition=…"
            )
            continue
        while (said := _refusal(cfg.launcher, resources, refused)) and (
            culprit := _culprit(cfg.launcher, resources, refused, said)
        ):
            refused.append(culprit)
            yield f"launcher.{culprit}: SLURM refuses it: {said}. Fix: another value, or leave it out."
        if said:
            numbers = ", ".join(f"{key}={value}" for key, value in vars(resources).items() if value is not None)
            yield f"resources.{stage}: SLURM refuses its job: {said} ({numbers}). Fix: ask for what the cluster has."


def _refusal(launcher: LauncherConfig, resources: Resources, without: Sequence[str]) -> str:
    """Why sbatch would refuse a job; "" if it would not."""
    asked = _asked(launcher, resources, without)
    flags = [f"--{key}" if value is True else f"--{key}={value}" for key, value in asked.items()]
    with clean_environment():
        test = _run(["sbatch", "--test-only", *flags, "--wrap=true"])
    if not test.returncode:
        return ""
    lines = [line.strip() for line in test.stderr.splitlines() if line.strip() and not line.startswith("Try ")]
    said = lines[-1] if lines else "without a word"
    return re.sub(r"^(sbatch: )?(error: |fatal: )?(allocation failure: )?", "", said)


def _culprit(launcher: LauncherConfig, resources: Resources, without: Sequence[str], said: str) -> str | None:
    """The setting of all jobs without which this one would be taken, or refused for another reason than `said`."""
    settings = [one for one in _alike(launcher) if one not in without and said != NO_ANSWER]
    return next((one for one in settings if _refusal(launcher, resources, [*without, one]) != said), None)


@dataclass(frozen=True)
class Partition:
    default: bool
    minutes: int | None  # None: no limit
    nodes: int


def _partitions() -> dict[str, Partition]:
    rows = [line.split("|") for line in _run(["sinfo", "-h", "-o", "%P|%l|%D"]).stdout.splitlines()]
    return {
        name.rstrip("*"): Partition(name.endswith("*"), _minutes(limit), int(nodes))
        for name, limit, nodes in (row for row in rows if len(row) == 3)
    }


def _minutes(limit: str) -> int | None:
    """`2-12:30:00` and the like; None for no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if not found:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes


def warnings(run: Path) -> Iterator[str]:
    """What may be wrong but need not be, a line each."""
    if max((row.nodes for row in _partitions().values()), default=0) < 2:
        return
    folder = run.absolute()
    while not folder.exists():
        folder = folder.parent
    kind = _file_system(folder.resolve())
    if kind in ON_ONE_MACHINE:
        yield (
            f"output={run}: lies on a file system of this machine alone ({kind}), and the cluster has several nodes. "
            "Fix: output=<a folder that all nodes share>, unless this one is."
        )


def _file_system(folder: Path) -> str:
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text("utf-8", errors="replace").splitlines()]
    except OSError:
        return "unknown"
    inside = [(len(point), kind) for point, kind in mounts if folder.is_relative_to(point)]
    return max(inside, default=(0, "unknown"))[1]
