"""Several runs side by side: rates with intervals, paired tests on the same initial states, configurations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from recap.report.html import figures
from recap.report.html.page import Page
from recap.report.paired import paired
from recap.report.summary import build_summary
from recap.report.words import evaluated, interval, lead_text, p_number, percent, plain, policy_name
from recap.storage import readers as files
from recap.utils.errors import RecapError

PAGE = "comparison.html"
CHARTED = 6  # runs in the chart; more lines would hide each other


@dataclass(frozen=True)
class Run:
    """name: of the directory, below what all have in common; config: flat."""

    name: str
    folder: Path
    summary: dict[str, Any]
    config: dict[str, Any]

    def ends(self) -> list[dict[str, Any]]:
        """SFT and the last policy, or the only one that was evaluated."""
        policies = evaluated(self.summary)
        return [policies[0], policies[-1]] if len(policies) > 1 else policies

    def episodes(self, policy: dict[str, Any]) -> list[dict[str, Any]]:
        return files.read_evaluation((self.folder / policy["eval"]["outcomes"]).parent)["episodes"]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs, by their directories. Raises RecapError for one that is missing, holds nothing or cannot be read."""
    common = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
    return [
        Run(
            folder.resolve().relative_to(common).as_posix(),
            folder,
            build_summary(folder),
            files.flat(files.read_config(folder)),
        )
        for folder in folders
    ]


def rows_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for SFT and for the last policy of every run: "run", "policy", "eval", and beside the first run's, "lead"
    (of 1) and "paired" (see `recap.report.paired`; None where the initial states are others).
    """
    first, rows = runs[0].ends(), []
    for run in runs:
        for policy in run.ends():
            row = {"run": run.name, "policy": policy_name(policy["iteration"]), "eval": policy["eval"]}
            row |= {"lead": None, "paired": None}
            if run is not runs[0] and first:
                beside = first[0] if policy["iteration"] == 0 else first[-1]
                row["lead"] = policy["eval"]["success_rate"] - beside["eval"]["success_rate"]
                with suppress(RecapError):  # other initial states or seeds
                    row["paired"] = paired(runs[0].episodes(beside), run.episodes(policy))
            rows.append(row)
    return rows


def config_table(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """(key, its value in every run) for the keys that are not the same in all; "–" where a run has no such key."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    found = [(key, [run.config.get(key, files.ABSENT) for run in runs]) for key in keys if key != "output"]
    return [(key, values) for key, values in found if any(value != values[0] for value in values)]


# ---------------------------------------------------------------------------------------------------- terminal
def print_comparison(runs: Sequence[Run], console: Console | None = None) -> None:
    """The rates and what differs in the configuration, to fit the console."""
    console = console or Console()
    shown = Table(box=box.SIMPLE_HEAD, header_style="dim", show_edge=False)
    for name in ("\nrun", "\npolicy"):
        shown.add_column(name, overflow="fold")
    for name in ("success\nk/n", "\nrate", "95 %\nWilson", f"lead over\n{runs[0].name}", "fixed,\nbroke", "paired\np"):
        shown.add_column(name, justify="right")
    for entry in rows_of(runs):
        evaluation, paired = entry["eval"], entry["paired"]
        shown.add_row(
            entry["run"],
            entry["policy"],
            f"{evaluation['successes']}/{evaluation['episodes']}",
            percent(evaluation["success_rate"]),
            interval(evaluation["ci95"]),
            lead_text(entry["lead"]),
            f"{paired['fixed']}, {paired['broke']}" if paired else "",
            p_number(paired["mcnemar_p"]) if paired else "",
        )
    console.print()
    console.print(shown)
    differences = Table(box=box.SIMPLE_HEAD, header_style="dim", show_edge=False)
    for name in ("key", *(run.name for run in runs)):
        differences.add_column(name, overflow="fold")
    for key, values in config_table(runs):
        differences.add_row(key, *map(plain, values))
    console.print()
    console.print(differences if differences.row_count else " The configurations are the same.")
    console.print()


# ---------------------------------------------------------------------------------------------------- page
def write_comparison(runs: Sequence[Run], path: Path) -> Path:
    """The same as a page, with a chart. Raises RecapError when it cannot be written."""
    page = Page()
    charted = [run for run in runs if evaluated(run.summary)]
    if charted:
        page.draw("runs", figures.success_curve({run.name: run.summary for run in charted[:CHARTED]}))
    return page.write(
        path,
        "comparison.html",
        f"{len(runs)} RECAP runs",
        runs=runs,
        rows=rows_of(runs),
        differences=config_table(runs),
        more=f" The chart shows the first {CHARTED} runs." if len(charted) > CHARTED else "",
    )
