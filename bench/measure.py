"""What a bench measures with: a table that is written row by row, and the clock and profile of a device."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GB = 1e9
SCALE = 1  # turns of a measurement, of those wanted


class Table:
    """What was measured, on the screen and in FOLDER after each row."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.until = folder, time.perf_counter() + seconds
        self.facts: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.began = time.perf_counter()

    def say(self, text: str) -> None:
        print(f"{time.perf_counter() - self.began:4.0f} s  {text}", flush=True)

    def add(self, what: str, seconds: list[float], gb: float, flop: float = 0.0, count: int = 1) -> None:
        """flop: useful arithmetic of one turn. count: samples in it."""
        median = statistics.median(seconds)
        limit = flop / self.facts["FLOP/s"] if "FLOP/s" in self.facts else 0.0
        row = {"what": what, "ms": median * 1e3, "fastest": min(seconds) * 1e3, "slowest": max(seconds) * 1e3}
        row |= {"samples/s": count / median, "share of the limit": limit / median, "GB": gb}
        self.rows.append(row)
        self.say(" ".join(f"{key} {value:.3g}," if key != "what" else f"{value}:" for key, value in row.items()))
        self.write()

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        found = json.dumps({"facts": self.facts, "rows": self.rows}, indent=2)
        (self.folder / "full_size.json").write_text(found + "\n")
        lines = ["| | ms | from – to | samples/s | of the limit | GB |", "|---|---|---|---|---|---|"]
        for row in self.rows:
            share = f"{row['share of the limit']:.0%}" if row["share of the limit"] else ""
            between = f"{row['fastest']:.1f} – {row['slowest']:.1f}"
            cells = (row["what"], f"{row['ms']:.1f}", between, f"{row['samples/s']:.1f}", share, f"{row['GB']:.1f}")
            lines.append(f"| {' | '.join(cells)} |")
        facts = ", ".join(f"{key} {value}" for key, value in self.facts.items())
        (self.folder / "full_size.md").write_text(f"{facts}\n\n" + "\n".join(lines) + "\n")

    @property
    def over(self) -> bool:
        return time.perf_counter() > self.until


def timed(work: Callable[[], object], turns: int = 6, together: int = 1) -> tuple[list[float], float]:
    """Seconds of a call, for each turn of `together` calls, and the most memory that tensors took, in GB.

    The device is not waited for within a turn, as in a training.
    """
    wait = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
    began = time.perf_counter()
    work()
    wait()
    print(f"        first {time.perf_counter() - began:.2f} s", flush=True)
    work()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(max(2, turns * SCALE)):
        wait()
        began = time.perf_counter()
        for _ in range(together):
            work()
        wait()
        seconds.append((time.perf_counter() - began) / together)
    return seconds, torch.cuda.max_memory_allocated() / GB if DEVICE == "cuda" else 0.0


def profiled(work: Callable[[], object], file: Path) -> None:
    """What takes the device's time in one turn, by kernel."""
    if DEVICE != "cuda":
        return
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        work()
        torch.cuda.synchronize()
    kernels = [one for one in found.key_averages() if one.device_type == torch.autograd.DeviceType.CUDA]
    kernels.sort(key=lambda one: -one.self_device_time_total)
    total = sum(one.self_device_time_total for one in kernels)
    lines = [f"{total / 1e3:.2f} ms in {sum(one.count for one in kernels)} kernels"]
    for one in kernels[:70]:
        spent = one.self_device_time_total
        lines.append(
            f"{spent / 1e3:9.3f} ms {spent / total:6.1%} {one.count:5d} x {spent / one.count:9.1f} us  {one.key[:150]}"
        )
    file.write_text("\n".join(lines) + "\n")
    print("\n".join(lines[:16]), flush=True)
