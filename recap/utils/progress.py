"""One progress bar for long work: a bar in a terminal, one line every ten seconds elsewhere (SLURM logs, CI)."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

EVERY = 10.0  # seconds between lines where there is no terminal


class Progress:
    """`with Progress("sft", total) as bar: bar.advance("loss 0.1")`."""

    def __init__(self, label: str, total: int, start: int = 0, *, quiet: bool = False) -> None:
        self.label, self.total, self.done, self.quiet = label, total, start, quiet
        self._rich: RichProgress | None = None
        self._began = self._printed = time.monotonic()
        self._start = start
        if not quiet and sys.stderr.isatty():
            self._rich = RichProgress(
                TextColumn("{task.description:<28}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._task = self._rich.add_task(label, total=total, completed=start, note="")

    def __enter__(self) -> Progress:
        if self._rich:
            self._rich.start()
        return self

    def advance(self, note: str = "", by: int = 1) -> None:
        self.done += by
        if self._rich:
            self._rich.update(self._task, completed=self.done, note=note)
        elif not self.quiet and (time.monotonic() - self._printed > EVERY or self.done == self.total):
            self._printed = time.monotonic()
            print(
                f"{self.label}: {self.done}/{self.total}  {note}  {self._printed - self._began:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich:
            self._rich.stop()
