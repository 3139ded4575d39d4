"""Several runs side by side: rates with intervals, paired tests on the same initial states, configurations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from recap.method.success import compare
from recap.report.html import figures
from recap.report.html.page import Page, breakable, card, row, section, table
from recap.report.summary import build_summary, read_evaluation
from recap.report.words import evaluated, interval, number, p_number, percent, policy_name
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
        return read_evaluation(self.folder, policy["eval"]["outcomes"].rpartition("/")[0])["episodes"]


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
    (of 1) and "paired" ({"fixed", "broke", "mcnemar_p"}, None where the initial states are others).
    """
    first = runs[0].ends()
    rows = []
    for run in runs:
        for policy in run.ends():
            beside = first[0] if policy["iteration"] == 0 else first[-1] if first else None
            rows.append(
                {
                    "run": run.name,
                    "policy": policy_name(policy["iteration"]),
                    "eval": policy["eval"],
                    "lead": None,
                    "paired": None,
                }
            )
            if run is not runs[0] and beside is not None:
                rows[-1]["lead"] = policy["eval"]["success_rate"] - beside["eval"]["success_rate"]
                rows[-1]["paired"] = _paired(runs[0].episodes(beside), run.episodes(policy))
    return rows


def _paired(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, Any] | None:
    try:
        return compare(before, after)
    except RecapError:
        return None  # other initial states or seeds


def config_table(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """(key, its value in every run) for the keys that are not the same in all; "–" where a run has no such key."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    found = [(key, [run.config.get(key, "–") for run in runs]) for key in keys if key != "output"]
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
            _lead(entry["lead"]),
            f"{paired['fixed']}, {paired['broke']}" if paired else "",
            p_number(paired["mcnemar_p"]) if paired else "",
        )
    console.print()
    console.print(shown)
    differences = Table(box=box.SIMPLE_HEAD, header_style="dim", show_edge=False)
    for name in ("key", *(run.name for run in runs)):
        differences.add_column(name, overflow="fold")
    for key, values in config_table(runs):
        differences.add_row(key, *map(str, values))
    console.print()
    console.print(differences if differences.row_count else " The configurations are the same.")
    console.print()


def _lead(lead: float | None) -> str:
    return "" if lead is None else f"{100 * lead:+.0f}".replace("-", "−")


# ---------------------------------------------------------------------------------------------------- page
def write_comparison(runs: Sequence[Run], path: Path) -> Path:
    """The same as a page, with a chart. Raises RecapError when it cannot be written."""
    page = Page()
    named = {run.name: run.summary for run in runs if evaluated(run.summary)}
    chart = page.figure(
        "runs", figures.success_curve(dict(list(named.items())[:CHARTED])) if named else None, "Success by iteration"
    )
    differences = config_table(runs)
    keys = [
        row([f"<code>{breakable(key)}</code>", *(breakable(str(value)) for value in values)])
        for key, values in differences
    ]
    first = escape(runs[0].name)
    names = escape(", ".join(run.name for run in runs))
    title = f"{len(runs)} runs beside each other"
    sections = [
        f'<header>\n<p class="eyebrow">RECAP</p>\n<h1>{title}</h1>\n<div class="lead"><p>{names}</p></div></header>',
        section(
            "Success rate",
            f"95 % Wilson intervals. Lead, fixed, broke and McNemar’s exact p are against {first}, SFT against SFT and "
            "the last policy against the last; pairs are given where both met the same initial states and seeds."
            + (f" The chart shows the first {CHARTED} runs." if len(named) > CHARTED else ""),
            card(chart),
            card(_rates(runs)),
        ),
        section(
            "Differences of configuration",
            "Keys that are not the same in all runs." if keys else "The configurations are the same.",
            card(table(["key", *(escape(run.name) for run in runs)], keys, "keys")) if keys else "",
        ),
    ]
    page.write(path, f"{len(runs)} RECAP runs", sections)
    return path


def _rates(runs: Sequence[Run]) -> str:
    rows = []
    for entry in rows_of(runs):
        evaluation, paired = entry["eval"], entry["paired"]
        rows.append(
            row(
                [
                    f'{escape(entry["run"])} <span class="sub">{escape(entry["policy"])}</span>',
                    f"{evaluation['successes']}/{evaluation['episodes']}",
                    f'<td class="strong whole">{percent(evaluation["success_rate"])}</td>',
                    f'<td class="whole">{interval(evaluation["ci95"])}</td>',
                    f'<td class="wide">{number(evaluation["mean_steps_to_success"], 1)}</td>',
                    f'<td class="wide">{number(evaluation["successes_per_hour"])}</td>',
                    _lead(entry["lead"]),
                    f'<td class="wide">{paired["fixed"] if paired else ""}</td>',
                    f'<td class="wide">{paired["broke"] if paired else ""}</td>',
                    f'<td class="whole">{p_number(paired["mcnemar_p"]) if paired else ""}</td>',
                ]
            )
        )
    wide = [f'<th class="wide">{name}</th>' for name in ("steps", "per hour", "fixed", "broke")]
    return table(["run", "success", "rate", "95 % Wilson", *wide[:2], "lead", *wide[2:], "p"], rows, beside=5)
