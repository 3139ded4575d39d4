"""metrics.jsonl, the durable record of a training; TensorBoard shows the same if wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

from recap.utils.files import write_text

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"


class Tracker:
    """Appends one JSON object a record.

    path: the file, created with its folder; None: nothing is written (all processes but the main one). resume_step:
    records of later steps are dropped, because the resumed training writes them again. tensorboard: writes event files
    beside it too.
    """

    def __init__(self, path: Path | None, resume_step: int = 0, *, tensorboard: bool = False) -> None:
        self._file: TextIO | None = None
        self._board: Any = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in records(path) if line["step"] <= resume_step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", buffering=1, encoding="utf-8")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(path.parent / TENSORBOARD), purge_step=resume_step + 1)

    def log(self, step: int, **metrics: float) -> None:
        if self._file:
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        if self._board:
            for key, value in metrics.items():
                self._board.add_scalar(f"train/{key}", value, step)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()
        if self._board:
            self._board.close()


def records(path: Path) -> list[dict[str, float]]:
    """The records of a file that may end in a torn line."""
    found = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found
