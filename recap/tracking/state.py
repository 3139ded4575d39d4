"""What a directory knows of its W&B run: which one it is, and what of it was sent."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from recap.rundir import write_text

STATE = ".wandb.json"


def run_id(directory: Path) -> str:
    """The id of the directory's W&B run: the same for each process that works in it, and after each restart.

    A directory that is deleted and made anew, or copied, has another one: its numbers are others.
    """
    path = directory / STATE
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(json.dumps({"token": uuid.uuid4().hex}) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        if "token" not in read_state(directory):  # it was killed at writing
            write_text(path, json.dumps({"token": uuid.uuid4().hex}) + "\n")
    token = read_state(directory)["token"]
    return hashlib.sha256(f"{token} {directory.resolve()}".encode()).hexdigest()[:16]


def read_state(directory: Path) -> dict[str, Any]:
    """{} where nothing was ever sent."""
    try:
        state = json.loads((directory / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def is_sent(directory: Path, record: str) -> bool:
    """Whether all was sent; record: the file that holds it when it is complete, such as manifest.json."""
    sent = read_state(directory).get("sent")
    return sent is not None and sent["digest"] == digest(directory / record)


def note_sent(directory: Path, record: str, run: str, mode: str) -> None:
    state = read_state(directory)
    state["sent"] = {"digest": digest(directory / record), "run": run, "mode": mode}
    write_text(directory / STATE, json.dumps(state) + "\n")


def known_run(directory: Path) -> str | None:
    """The W&B run that a finished directory was sent as."""
    return (read_state(directory).get("sent") or {}).get("run")


def digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
