"""One progress bar for long work: a bar in a terminal, one line every ten seconds elsewhere (SLURM logs, CI)."""

from __future__ import annotations

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

EVERY = 10.0  # seconds between lines where there is no terminal


class Progress:
    """`with Progress("sft", total) as bar: bar.advance("loss 0.1")`."""

    def __init__(self, label: str, total: int, start: int = 0, *, quiet: bool = False) -> None:
        self.label, self.total, self.start, self.done, self.quiet = label, total, start, start, quiet
        self.began = self._printed = time.monotonic()
        self._bar = RichProgress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(label, total=total, completed=start, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def advance(self, note: str = "", by: int = 1) -> None:
        self.done += by
        self._bar.update(self._task, completed=self.done, note=note)
        now = time.monotonic()
        if self._bar.disable and not self.quiet and (now - self._printed > EVERY or self.done == self.total):
            self._printed = now
            line = f"{self.label}: {self.done}/{self.total}  {note}  {now - self.began:.0f} s"
            print(line, file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
