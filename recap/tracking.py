"""Where numbers go while a stage runs: metrics.jsonl, always, and whatever else `tracking` names."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import TextIO


class Tracker:
    """Appends one JSON object a record to `metrics.jsonl`.

    Args:
        path: the file; created with its folder. None: nothing is written (all processes but the main one).
        resume_step: records of later steps are dropped, because the resumed training writes them again.
    """

    def __init__(self, path: Path | None, resume_step: int = 0) -> None:
        self._file: TextIO | None = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _records(path) if line["step"] <= resume_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(path)
        self._file = path.open("a", buffering=1)

    def log(self, step: int, **metrics: float) -> None:
        if self._file:
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()


def _records(path: Path) -> list[dict[str, float]]:
    """The records of a file that may end in a torn line."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
