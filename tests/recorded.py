"""A small recorded data set, and copies of it to spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from data_helpers import EPISODES

from recap.data.lerobot_writer import assemble, write_episode


@pytest.fixture(scope="session")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four episodes of data_helpers. Not to be changed: see `copy`."""
    folder = tmp_path_factory.mktemp("recorded")
    for episode in EPISODES:
        write_episode(folder / "episodes", episode)
    return assemble(folder / "episodes", folder / "dataset", fps=10, source="rollout")


@pytest.fixture
def copy(data_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data_set, tmp_path / "copy"))
