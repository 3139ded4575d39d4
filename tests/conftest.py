"""Shared by all tests: no network, one thread a process, and where the repository is."""

import os
import shutil
from pathlib import Path

import pytest

pytest_plugins = ["cluster", "recorded"]

# Before anything imports torch, transformers or wandb, which read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"  # tests that want it say so
os.environ["SLURM_CONF"] = "/nowhere/slurm.conf"  # no cluster that this machine may belong to; see cluster.py


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository root, where the entrypoints and conf/ are."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with one finished run of one iteration (tests/tiny_run.py). Not to be changed: see `work`."""
    from tiny_run import tiny

    cwd = tmp_path_factory.mktemp("finished")
    done = tiny("loop", "+iterations=1", cwd=cwd)
    assert done.code == 0, done.out + done.err
    return cwd


@pytest.fixture
def work(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of that directory for one test to work in, with the same times of change."""
    return Path(shutil.copytree(finished_run, tmp_path / "work", symlinks=True))
