"""Ours against the peers on a processor, in turns: the table in docs/performance.md. On two cores, under 20 minutes.

make bench                         everything; with a GPU bench/full_size.py too
make bench ARGS=--quick            little work, nothing written: shows that everything works
make bench ARGS='data rollouts'    only these parts, nothing written
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from measure import timed
from rows.row import Bench, Row

from recap.config import LoopJob, TrainJob, typed

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/performance.md"
BEGIN, END = "<!-- make bench writes from here -->", "<!-- to here -->"
HEAD = ["", "", "ours", "peer", "ratio", "goal", "of the limit"]
SECONDS = 15.0  # of turns of a row
PARTS = ("startup", "networks", "data", "rollouts", "growth")


def parts() -> dict[str, Callable[[Bench], Iterator[Row]]]:
    logging.getLogger("lerobot.utils.import_utils").setLevel(logging.ERROR)  # pages about FFmpeg, where there is none
    os.environ.setdefault("SVT_LOG", "1")
    from rows import data, growth, networks, rollouts, startup

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        demo = typed(compose("loop", ["experiment=demo", "iterations=1"]), LoopJob)
        full = typed(compose("train"), TrainJob)
    return {
        "startup": startup.rows,
        "networks": partial(networks.rows, full=full),
        "data": partial(data.rows, demo=demo),
        "rollouts": partial(rollouts.rows, demo=demo),
        "growth": growth.rows,
    }


def main() -> int:
    """How many parts failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []])
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    began = time.perf_counter()
    facts, flops = machine()
    table, notes, failed = list[list[str]](), list[str](), 0
    for name, rows in parts().items():
        if given.parts and name not in given.parts:
            continue
        print(f"── {name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), given.quick, flops, notes)
            try:
                for row in rows(bench):
                    row.measure(0 if given.quick else SECONDS)
                    table.append(row.cells())
                    print(f"{time.perf_counter() - began:4.0f} s  {' | '.join(row.cells())}", flush=True)
            except Exception as error:  # noqa: BLE001  the other parts are still wanted
                traceback.print_exc()
                failed += 1
                notes.append(f"{name}: failed ({error})")
    minutes = (time.perf_counter() - began) / 60
    lines = [f"| {' | '.join(cells)} |" for cells in (HEAD, ["---"] * len(HEAD), *table)]
    text = "\n".join([f"{facts}; {minutes:.0f} minutes.", "", *lines, "", *(f"- {note}." for note in notes)])
    print(text)
    if not (given.quick or given.parts):
        write(text)
    return failed


def machine() -> tuple[str, float]:
    """What is measured on, in words, and how many operations of matrix products it does in a second."""
    a = torch.randn(1024, 1024)
    seconds, _ = timed(lambda: a @ a, 10)
    flops = 2 * 1024**3 / min(seconds)
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
    cpu = f"{os.cpu_count()} cores of {names[0] if names else platform.processor() or platform.machine()}"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "lerobot", "av"))
    busy = f"load {os.getloadavg()[0]:.1f} at the start"
    return f"**{time.strftime('%Y-%m-%d')}**, {cpu}, {flops / 1e9:.0f} GFLOP/s, {versions}, {busy}", flops


def write(text: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # at an ordinary exit EGL and MuJoCo free their contexts in the wrong order and complain
