"""The run directory: manifests that say a stage is finished, the identity that says with what, and the lock that keeps others out.

A stage directory holds config.yaml (written first), its results, and manifest.json (written last, by rename). The manifest lists every
result with its size and SHA-256, so a damaged or exchanged file is found before it is used.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from recap.config import difference
from recap.errors import RecapError

MANIFEST, CONFIG = "manifest.json", "config.yaml"
PACKAGES = ("torch", "lerobot", "transformers", "accelerate", "mujoco", "numpy")
VERIFIED = (".safetensors", ".parquet", ".json")  # results that later stages read


def finished(stage: Path) -> bool:
    return (stage / MANIFEST).is_file()


def write_text(path: Path, text: str) -> None:
    """By rename: readers see the old file or the new one, never half."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def claim(directory: Path, config: dict[str, Any]) -> None:
    """Makes the directory this configuration's, or checks that it is.

    Raises:
        RecapError: it belongs to another configuration; the message lists what differs.
    """
    path = directory / CONFIG
    if path.is_file():
        try:
            old = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise RecapError(
                f"{path} cannot be read ({error}). Fix: delete {directory}, or choose another name=…"
            ) from error
        changed = difference(old or {}, config)
        if changed:
            shown = "\n  ".join(changed[:12]) + (f"\n  … and {len(changed) - 12} more" if len(changed) > 12 else "")
            raise RecapError(
                f"{directory} holds results of another configuration:\n  {shown}\n"
                f"Fix: name=<another> starts a new run, the old values continue this one, or delete {directory}."
            )
        return
    directory.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def write_manifest(stage: Path, *, node: str, seed: int, inputs: dict[str, Path], began: float) -> None:
    """Marks a stage as finished. `inputs`: node name -> stage directory, each finished itself; `began`: time.time() at the start."""
    outputs = {
        str(path.relative_to(stage)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(stage.rglob("*"))
        if path.suffix in VERIFIED
        and path.is_file()
        and "last" not in path.relative_to(stage).parts
        and not _nested(path, stage)
    }
    manifest = {
        "stage": node,
        "seed": seed,
        "inputs": {
            name: {"path": os.path.relpath(path, stage), "sha256": sha256(path / MANIFEST)}
            for name, path in inputs.items()
        },
        "outputs": outputs,
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "host": socket.gethostname(),
        "started": began,
        "finished": time.time(),
        "wall_seconds": round(time.time() - began, 2),
    }
    write_text(stage / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def _nested(path: Path, stage: Path) -> bool:
    """The file belongs to a stage inside this one (sft/eval)."""
    return any((parent / CONFIG).is_file() for parent in path.parents if stage in parent.parents)


def read_manifest(stage: Path) -> dict[str, Any]:
    try:
        return json.loads((stage / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise RecapError(
            f"{stage / MANIFEST} cannot be read ({error}). Fix: delete {stage} and run the command again."
        ) from error


def verify(stage: Path) -> None:
    """Checks the results of a finished stage against its manifest.

    Raises:
        RecapError: naming the first file that is missing, truncated or changed.
    """
    for name, expected in read_manifest(stage)["outputs"].items():
        path = stage / name
        if not path.is_file():
            problem = "is missing"
        elif path.stat().st_size != expected["bytes"]:
            problem = f"has {path.stat().st_size} bytes instead of {expected['bytes']}"
        elif sha256(path) != expected["sha256"]:
            problem = "was changed (its SHA-256 differs)"
        else:
            continue
        raise RecapError(
            f"{path} {problem} since its stage finished. Fix: restore it, or delete {stage} and run the command again."
        )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def git_commit() -> str | None:
    """Of the code that runs, with `-dirty` if it has uncommitted changes; None outside a git checkout."""
    root = Path(__file__).resolve().parent
    try:
        run = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None if run.returncode == 0 else None


@contextmanager
def lock(directory: Path) -> Iterator[None]:
    """One process at a time works in a run directory. The lock goes with the process, however that ends.

    Raises:
        RecapError: another process holds it, naming which.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RecapError(
                f"{directory} is busy: {file.read().strip() or 'another process'} works in it. Fix: wait for it, stop it, or choose another name=…"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
