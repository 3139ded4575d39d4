"""How time and memory grow: labels over frames (a rollout over episodes: rollouts.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rows.row import Bench, Row

ROOT = Path(__file__).resolve().parents[2]


def rows(bench: Bench) -> Iterator[Row]:
    for frames in (1_000, 10_000) if bench.quick else (1_000, 10_000, 100_000, 1_000_000):
        found = labelled(frames)
        what = f"labels of {frames:,} frames"
        yield Row(what, "µs/frame", partial(float, found["seconds"] / found["frames"] * 1e6))
        yield Row(what, "MB", partial(float, found["MB"]), most=2000)


def labelled(frames: int) -> dict[str, float]:
    command = [sys.executable, str(ROOT / "bench/relabel.py"), str(frames)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
