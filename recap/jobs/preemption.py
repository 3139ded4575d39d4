"""What a SLURM job does with its notice: the signal before its time is up or before it is preempted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from recap import tracking
from recap.utils.environment import number
from recap.utils.notice import NOTICE

SIGNAL = signal.SIGUSR2  # what submitit asks SLURM to send


def heed(requeues: int, seconds: float) -> None:
    """From now on the signal counts. requeues: how often a job may come back; seconds: from notice to end."""
    NOTICE.heed(SIGNAL, seconds, lambda: requeue(requeues))


def requeue(most: int) -> None:
    """Puts the job back into the queue and ends this process. Returns if the job has come back `most` times."""
    if restarts() >= most:
        return
    tracking.preempting()
    job = os.environ["SLURM_JOB_ID"]
    if os.environ.get("SLURM_PROCID", "0") == "0":
        print(f"notice given: job {job} goes back into the queue (restart {restarts() + 1})", file=sys.stderr)
        subprocess.run(["scontrol", "requeue", job], timeout=60, check=False)
    while True:  # SLURM ends all processes of the job together
        time.sleep(1)


def restarts() -> int:
    """How often SLURM has started this job again."""
    return number("SLURM_RESTART_COUNT", 0)
