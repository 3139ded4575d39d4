"""A job's notice: the signal before its time is up or before it is pushed out, and how it leaves and comes back.

Most stages are durable at every moment and leave at once. A training asks `given` after each step, saves, and leaves;
if its next step is too far away, it leaves without.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from recap import tracking
from recap.utils.environment import number

SIGNAL = signal.SIGUSR2  # what submitit asks SLURM to send
PATIENCE = 0.6  # of the notice: so long a good moment is waited for


class Notice:
    """The notice of this process; there is one."""

    def __init__(self) -> None:
        self.requeues: int | None = None  # None: this is no job, and nobody gives notice
        self._seconds = 0.0
        self._given = False
        self._waits = False

    def heed(self, requeues: int, seconds: float) -> None:
        """From now on the signal counts. requeues: how often a job may come back; seconds: from notice to end."""
        self.requeues, self._seconds, self._given = requeues, seconds, False
        signal.signal(SIGNAL, self._arrives)
        signal.signal(signal.SIGALRM, lambda *_: self.leave())

    @contextmanager
    def at_a_good_moment(self) -> Iterator[None]:
        """Within, the notice waits until somebody asks for it, or until it is high time."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def given(self) -> bool:
        return self._given

    def leave(self) -> None:
        """Puts the job back into the queue, once, and ends this process; it starts again where the disk says it was.

        Returns if the job came back often enough: then its end is near.
        """
        self._given = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self.requeues is None or restarts() >= self.requeues:
            return
        tracking.preempting()
        job = os.environ["SLURM_JOB_ID"]
        if os.environ.get("SLURM_PROCID", "0") == "0":
            print(f"notice given: job {job} goes back into the queue (restart {restarts() + 1})", file=sys.stderr)
            subprocess.run(["scontrol", "requeue", job], timeout=60, check=False)
        while True:  # SLURM ends all processes of the job together
            time.sleep(1)

    def _arrives(self, number: int, frame: FrameType | None) -> None:
        self._given = True
        if self._waits:
            signal.setitimer(signal.ITIMER_REAL, PATIENCE * self._seconds)
        else:
            self.leave()


NOTICE = Notice()


def restarts() -> int:
    """How often SLURM has started this job again."""
    return number("SLURM_RESTART_COUNT", 0)
