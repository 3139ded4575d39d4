"""A real SLURM of two pretended nodes on this machine (tests/mini-slurm), and what tests do to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("mini-slurm")
EXTRA = "PartitionName=short Nodes=ALL Default=NO MaxTime=5 State=UP\n"


@pytest.fixture(scope="session")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Starts the cluster once; the variables that its clients need."""
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("no SLURM here: apt-get install --no-install-recommends slurm-wlm munge")
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "extra.conf").write_text(EXTRA)
    settings = {"MINI_SLURM_NODES": "2", "MINI_SLURM_ACCT": "shim", "MINI_SLURM_EXTRA": str(folder / "extra.conf")}
    run = [str(SCRIPT), "start", str(folder / "c")]
    started = subprocess.run(run, env=os.environ | settings, capture_output=True, text=True, timeout=120, check=False)
    if started.returncode:
        pytest.skip(f"SLURM does not start here: {started.stderr.strip()}")
    path = f"{folder / 'c' / 'bin'}:{os.environ['PATH']}"
    yield {"SLURM_CONF": str(folder / "c/slurm.conf"), "PATH": path}
    subprocess.run([str(SCRIPT), "stop", str(folder / "c")], capture_output=True, timeout=120, check=True)


@pytest.fixture
def slurm(controller: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is on a login node of the cluster. In the end no job is left."""
    from recap.jobs.job import automatic

    for key, value in controller.items():
        monkeypatch.setenv(key, value)
    automatic.cache_clear()
    yield
    sh("scancel", "--user", "root" if os.geteuid() == 0 else os.environ["USER"])
    wait(lambda: not jobs(), 60, "jobs do not end")
    automatic.cache_clear()


def sh(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def jobs(*states: str) -> dict[str, dict[str, str]]:
    """{stage: its job} in the queue, by the names of the jobs; of the states given, or not ended."""
    chosen = ["-t", ",".join(states)] if states else []
    found = {}
    for line in sh("squeue", "-h", "-r", *chosen, "-o", "%F|%T|%j|%r|%E|%l").splitlines():
        job, state, name, reason, after, limit = line.split("|")
        stage = "/".join(name.split(".")[1:-1])
        found[stage] = {"job": job, "state": state, "reason": reason, "after": after, "limit": limit}
    return found


def wait(condition: Callable[[], object], seconds: float, problem: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, problem
        time.sleep(0.1)
