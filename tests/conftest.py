"""Shared by all tests: no network, one thread a process, and where the repository is."""

import os
from pathlib import Path

import pytest

# Before anything imports torch, transformers or wandb, which read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository root, where the entrypoints and conf/ are."""
    return Path(__file__).resolve().parents[1]
