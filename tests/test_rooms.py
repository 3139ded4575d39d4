"""The house keeps its floors: a room imports what lies below it, and each library has its rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the ground up. `config` alone may ask any part for its keys (<part>/config.py).
ROOMS = ["utils", "method", "envs", "data", "storage", "tracking", "training", "policies", "rollout", "report"]
ROOMS += ["config", "stages", "jobs", "pipeline", "cli"]
COMMANDS = {"dashboard", "export", "study"}  # python -m recap.<command>: above all rooms

# Library -> the rooms and commands that may know it.
KNOWN_BY = {
    "hydra": {"cli"},
    "omegaconf": {"cli", "config"},
    "submitit": {"jobs"},
    "wandb": {"tracking"},
    "trackio": {"tracking"},
    "plotly": {"report"},
    "mujoco": {"envs"},
    "accelerate": {"training", "policies"},
}
NO_FILES = {"json", "os", "pathlib", "pyarrow", "shutil", "subprocess", "tempfile", "torch", "yaml"}


@cache
def imports() -> tuple[tuple[str, str], ...]:
    """(module of ours, what it imports anywhere in it) of everything in recap/."""
    return tuple(
        (".".join(path.relative_to(ROOT).with_suffix("").parts), name)
        for path in sorted((ROOT / "recap").rglob("*.py"))
        for name in imported(path)
    )


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the room"
            assert node.module
            yield from (f"recap.{alias.name}" for alias in node.names) if node.module == "recap" else [node.module]


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_folder_is_a_room() -> None:
    folders = {path.name for path in (ROOT / "recap").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(ROOMS)
    files = {path.stem for path in (ROOT / "recap").glob("*.py")} - {"__init__"}
    assert files == COMMANDS


def test_rooms_import_what_lies_below_them() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, name in imports()
        if name.startswith("recap.")
        and room(module) in ROOMS
        and room(module) != room(name)
        and not (room(module) == "config" and name.endswith(".config"))
        and (room(name) not in ROOMS or ROOMS.index(room(name)) > ROOMS.index(room(module)))
    ]
    assert not wrong


@pytest.mark.parametrize("library", KNOWN_BY)
def test_libraries_have_their_rooms(library: str) -> None:
    wrong = [module for module, name in imports() if name.split(".")[0] == library and module.count(".") > 1]
    assert {room(module) for module in wrong} <= KNOWN_BY[library], wrong


def test_the_method_is_arrays_in_arrays_out() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, name in imports()
        if room(module) == "method" and name.split(".")[0] in NO_FILES
    ]
    assert not wrong


def test_training_knows_no_policy_no_cluster_and_no_wandb() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, name in imports()
        if room(module) == "training"
        and (name.startswith(("recap.policies", "recap.jobs")) or name in ("recap.tracking", "recap.tracking.wandb"))
    ]
    assert not wrong


@pytest.mark.parametrize("folder", ["bench", "scripts"])
def test_programs_beside_the_package_do_without_the_tests(folder: str) -> None:
    for path in (ROOT / folder).glob("*.py"):
        assert "tests/" not in path.read_text(encoding="utf-8"), path
