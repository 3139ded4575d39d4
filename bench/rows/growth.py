"""How time and memory grow: labels over frames, a plan over iterations (a rollout over episodes: rollouts.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rows.row import Bench, Row
from rows.startup import cpu_seconds

ROOT = Path(__file__).resolve().parents[2]
PEAK = """import atexit, pathlib, runpy, sys
_, peak, *sys.argv = sys.argv
status = pathlib.Path("/proc/self/status")
atexit.register(lambda: pathlib.Path(peak).write_text(status.read_text().partition("VmHWM:")[2].split()[0]))
runpy.run_path(sys.argv[0], run_name="__main__")"""


def rows(bench: Bench) -> Iterator[Row]:
    for frames in (1_000, 10_000) if bench.quick else (1_000, 10_000, 100_000, 1_000_000):
        found = labelled(frames)
        what = f"labels of {frames:,} frames"
        yield Row(what, "µs/frame", partial(float, found["seconds"] / found["frames"] * 1e6))
        yield Row(what, "MB", partial(float, found["MB"]), most=2000)
    for iterations in (1, 10) if bench.quick else (1, 10, 100):
        run = bench.folder / f"run_{iterations}"
        peak = bench.folder / "peak"
        plan = ["loop.py", "experiment=demo", f"iterations={iterations}", f"output={run}", "action=status"]
        seconds = cpu_seconds(["-c", PEAK, str(peak), *plan])
        what = f"a run of {iterations} iterations planned (`action=status`)"
        yield Row(what, "s", partial(float, seconds))
        yield Row(what, "MB", partial(float, int(peak.read_text()) * 1024 / 1e6))


def labelled(frames: int) -> dict[str, float]:
    command = [sys.executable, str(ROOT / "bench/relabel.py"), str(frames)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
