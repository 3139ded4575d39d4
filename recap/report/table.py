"""The table that ends a run in the terminal."""

from __future__ import annotations

import textwrap
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recap.report.paired import direction
from recap.report.verdict import alarm, verdict
from recap.report.words import (
    ablation_name,
    evaluated,
    interval,
    lead_text,
    number,
    p_number,
    percent,
    policy_name,
    positive_shares,
)

INTERVAL_FROM = 112  # columns of terminal from which a drawn interval has room beside the numbers
INTERVAL_WIDTH = 41


def print_table(summary: dict[str, Any], console: Console | None = None) -> None:
    """Print the policies of a run, its ablations and what they mean, to fit the console (80 columns and more)."""
    console = console or Console()
    names = [_name(summary, ablation) for ablation in summary["ablations"]]
    wide = console.width >= INTERVAL_FROM
    # Wide, both tables get the same first column, so that their intervals stand on one scale.
    first = max(map(len, names), default=0) if wide else None
    seed = "" if summary["seed"] is None else f"  seed {summary['seed']}"
    console.print()
    console.print(Text.assemble((f" {summary['name']}", "bold"), (seed, "dim")))
    console.print()
    if said := alarm(summary):
        _say(console, said, "bold red")
        console.print()
    console.print(_policies(summary, wide, first))
    if names:
        console.print()
        console.print(_ablations(summary, wide, first))
    console.print()
    for sentence in verdict(summary):
        _say(console, sentence)
    if summary["advice"]:
        console.print("\n What to try:", style="bold", highlight=False)
    for finding in summary["advice"]:
        _say(console, f"· {finding['problem']} ({finding['evidence']})")
        for override in finding["try"]:
            console.print(f"     {override}", style="cyan", highlight=False)
    console.print()


def _say(console: Console, sentence: str, style: str = "") -> None:
    """textwrap keeps "p < 0.001" together at its no-break spaces; rich would not."""
    lines = textwrap.wrap(sentence, min(console.width, 104) - 2, initial_indent=" ", subsequent_indent="   ")
    console.print(Text("\n".join(lines), style))


def _table(first: str, wide: bool, width: int | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=True, padding=(0, 1), show_edge=False)
    table.add_column(first, vertical="bottom", min_width=width)
    for header in ("success\nk/n", "\nrate", "95 %\nWilson"):
        table.add_column(header, justify="right", no_wrap=True)
    if wide:
        scale = f"{'0 %':<19}50{'100 %':>{INTERVAL_WIDTH - 21}}"
        table.add_column(f"\n{scale}", no_wrap=True, width=INTERVAL_WIDTH)
    return table


def _numbers(evaluation: dict[str, Any], wide: bool, style: str) -> list[Text | str]:
    low, high = evaluation["ci95"]
    cells: list[Text | str] = [
        f"{evaluation['successes']}/{evaluation['episodes']}",
        Text(percent(evaluation["success_rate"]), "bold"),
        interval(evaluation["ci95"]),
    ]
    return [*cells, _interval(low, evaluation["success_rate"], high, style)] if wide else cells


def _interval(low: float, rate: float, high: float, style: str) -> Text:
    """The 95 % interval drawn on a scale from 0 to 100 %."""
    left, middle, right = (round(share * (INTERVAL_WIDTH - 1)) for share in (low, rate, high))
    drawn = Text("·" * left, "dim")
    drawn.append("─" * (middle - left), style).append("●", f"bold {style}").append("─" * (right - middle), style)
    return drawn.append("·" * (INTERVAL_WIDTH - 1 - right), "dim")


def _policies(summary: dict[str, Any], wide: bool, width: int | None) -> Table:
    table = _table("\npolicy", wide, width)
    for header in ("steps to\nsuccess", "successes\nper hour", "positive\nshare"):
        table.add_column(header, justify="right", no_wrap=True)
    shares = positive_shares(summary)
    for policy in summary["policies"]:
        evaluation, name = policy["eval"], policy_name(policy["iteration"])
        numbers: list[Text | str] = ["–"] * (6 if wide else 5)
        if evaluation:
            speed = number(evaluation["mean_steps_to_success"], 1), number(evaluation["successes_per_hour"])
            numbers = [*_numbers(evaluation, wide, "cyan"), *speed]
        table.add_row(name, *numbers, percent(shares.get(policy["iteration"])))
    return table


def _ablations(summary: dict[str, Any], wide: bool, width: int | None) -> Table:
    table = _table("\nablation", wide, width)
    table.add_column("RECAP’s\nlead", justify="right", no_wrap=True)
    table.add_column("paired\np", justify="right", no_wrap=True)
    for ablation in summary["ablations"]:
        pair = ablation["comparison"]
        style = {1: "green", -1: "red", 0: ""}[direction(pair)]
        beside = (Text(lead_text(pair["lead"]), style), p_number(pair["mcnemar_p"])) if pair else ("–", "–")
        table.add_row(_name(summary, ablation), *_numbers(ablation["eval"], wide, "yellow"), *beside)
    return table


def _name(summary: dict[str, Any], ablation: dict[str, Any]) -> str:
    """With its iteration, where that is not the last one that was evaluated."""
    name, iteration = ablation_name(ablation["name"]), ablation["iteration"]
    last = max((policy["iteration"] for policy in evaluated(summary)), default=iteration)
    return name if iteration == last else f"{name} ({policy_name(iteration)})"
