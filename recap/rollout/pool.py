"""The pool of simulation processes, as the main process sees it.

Each process has a socket instead of multiprocessing's means: it does not import the user's main module (and with it
torch) again, has environment variables of its own, and leaves when the socket closes, so that none survives its parent.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Self

from recap.envs import EpisodeSpec
from recap.envs.config import EnvConfig
from recap.envs.rendering import choose_gl
from recap.rollout.worker import EnvFacts, Failure, Job, describe
from recap.utils.errors import RecapError

# One thread a process, for the processes fill the cores. LP_NUM_THREADS=0: Mesa draws in the calling thread.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
SINGLE_THREAD = {**dict.fromkeys(_THREADS, "1"), "LP_NUM_THREADS": "0"}
STALL_SECONDS = 600.0  # a request is a chunk of steps in each slot, or one demonstration: longer silence is a hang
CLOSE_SECONDS = 5.0  # for a process to finish what it writes, before it is killed
# Signals to a whole job are for its main process: it decides, and the sockets close.
PROGRAM = """import signal
for number in signal.SIGTERM, signal.SIGUSR2:
    signal.signal(number, signal.SIG_IGN)
from recap.rollout.worker import main
main({})"""
RESUME = "Finished episodes are kept: run again to go on."


@dataclass
class Worker:
    """One simulation process; `busy` = {slot: episode} that it holds, for error messages."""

    process: subprocess.Popen[bytes]
    connection: Connection
    busy: dict[int, EpisodeSpec] = field(default_factory=dict)

    def held(self) -> str:
        return ", ".join(describe(spec) for spec in self.busy.values()) or "no episode"


class Pool:
    """`processes` simulation processes that together hold `slots` environments; even slots live in the even processes.

    A context manager. The processes start while the caller loads its policy; the first roll waits for them. An error in
    a roll closes the pool, since its environments are in an unknown state.
    Raises RecapError: a count below one, an environment that cannot be built, a process that fails, dies or hangs.
    """

    def __init__(self, env_config: EnvConfig, processes: int, slots: int) -> None:
        for key, value in (("workers.num_workers", processes), ("workers.num_envs", slots)):
            if value < 1:
                raise RecapError(f"{key}={value}: at least 1 is needed")
        self.env_config = env_config
        self.slots = slots
        self.processes = min(processes, slots)
        self.workers: list[Worker] = []
        self._facts: EnvFacts | None = None

    def __enter__(self) -> Self:
        choose_gl()  # once here instead of once in each process
        try:
            for number in range(self.processes):
                self.workers.append(_start(number))
                self.send(self.workers[-1], self.env_config)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(patience=CLOSE_SECONDS if kind is None else 0)

    @property
    def facts(self) -> EnvFacts:
        """What the environment says of itself; waits for the processes to start."""
        if self._facts is None:
            *_, self._facts = self.replies(self.workers)
        return self._facts

    def worker(self, slot: int) -> Worker:
        if not self.workers:
            raise RecapError("the pool of simulation processes is closed (not entered, or an earlier roll failed)")
        return self.workers[self._home(slot)]

    def _home(self, slot: int) -> int:
        """The process of a slot."""
        homes = range(slot % 2 % self.processes, self.processes, 2)
        return homes[slot // 2 % len(homes)]

    def begin(self, job: Job) -> None:
        """Tells every process what the coming episodes have in common."""
        self.worker(0)  # raises where the pool is closed
        _ = self.facts  # they have started
        for worker in self.workers:
            worker.busy.clear()
            self.send(worker, ("begin", job))
        list(self.replies(self.workers))

    def halves(self) -> list[list[int]]:
        """The even slots and the odd ones, however many processes there are."""
        return [half for half in (list(range(0, self.slots, 2)), list(range(1, self.slots, 2))) if half]

    def scatter(self, method: str, by_slot: Mapping[int, Any]) -> list[Worker]:
        """Calls `method` in each process that holds some of the slots, with its part; who will reply."""
        parts: dict[int, dict[int, Any]] = {}
        for slot, value in by_slot.items():
            parts.setdefault(self._home(slot), {})[slot] = value
        workers = [self.workers[number] for number in parts]
        for worker, part in zip(workers, parts.values(), strict=True):
            self.send(worker, (method, part))
        return workers

    def send(self, worker: Worker, message: object) -> None:
        try:
            worker.connection.send(message)
        except OSError:
            raise self._died(worker) from None

    def replies(self, workers: Sequence[Worker]) -> Iterator[Any]:
        """One reply of each of `workers`, as they come."""
        waiting = list(workers)
        while waiting:
            worker, reply = self.first_reply(waiting)
            waiting.remove(worker)
            yield reply

    def first_reply(self, workers: Sequence[Worker]) -> tuple[Worker, Any]:
        """The first of `workers` to answer, and its answer."""
        ready = wait([worker.connection for worker in workers], timeout=STALL_SECONDS)
        if not ready:
            held = "; ".join(worker.held() for worker in workers)
            raise RecapError(f"a simulation process gave no answer for {STALL_SECONDS:.0f} s, at {held}. {RESUME}")
        worker = next(worker for worker in workers if worker.connection is ready[0])
        try:
            reply = worker.connection.recv()
        except (EOFError, OSError):
            raise self._died(worker) from None
        if isinstance(reply, Failure):
            error = RecapError(reply.message)
            error.add_note(f"in the simulation process:\n{reply.trace}")
            raise error
        return worker, reply

    def close(self, *, patience: float = 0) -> None:
        """Ends the processes: closed sockets make them leave; after `patience` seconds they are killed."""
        workers, self.workers = self.workers, []
        for worker in workers:
            worker.connection.close()
        deadline = time.monotonic() + patience
        for worker in workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()

    @staticmethod
    def _died(worker: Worker) -> RecapError:
        try:
            code = worker.process.wait(CLOSE_SECONDS)
            how = f"ended with exit code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        except subprocess.TimeoutExpired:
            how = "closed its connection"
        hint = " (out of memory? then lower workers.num_envs)" if "SIGKILL" in how else ""
        return RecapError(f"a simulation process {how}{hint}, at {worker.held()}. {RESUME}")


def egl_device(number: int) -> dict[str, str]:
    """Which GPU draws for a process: they take turns, unless the user says so or GPUs are not named by number."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    if "MUJOCO_EGL_DEVICE_ID" in os.environ or visible == "" or not gpus or not all(gpu.isdigit() for gpu in gpus):
        return {}
    return {"MUJOCO_EGL_DEVICE_ID": gpus[number % len(gpus)]}


def _start(number: int) -> Worker:
    ours, theirs = socket.socketpair()
    package_root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=os.environ | SINGLE_THREAD | egl_device(number) | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the main process, which then closes the sockets
        )
        return Worker(process, Connection(ours.detach()))
