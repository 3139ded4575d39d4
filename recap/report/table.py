"""The table that ends a run in the terminal."""

from __future__ import annotations

import textwrap
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recap.report.choices import shown_stages
from recap.report.paired import direction
from recap.report.verdict import alarm, choice_verdict, verdict
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
    rung_name,
    side_name,
    stage_name,
)

INTERVAL_FROM = 108  # columns of terminal beside the names from which a drawn interval has room beside the numbers
INTERVAL_WIDTH = 41
RUNG_WIDTH = 30  # of what a step adds, where it adds several things: as much as 80 columns have room for


def print_table(summary: dict[str, Any], console: Console | None = None) -> None:
    """Print the policies of a run, its ablations and what they mean, to fit the console (80 columns and more)."""
    console = console or Console()
    names = [_rung(rung).plain for rung in summary["ladder"]] + [_name(summary, c) for c in summary["controls"]]
    longest = max(len(line) for name in ("iteration 9", *names) for line in name.splitlines())
    wide = console.width >= longest + INTERVAL_FROM
    first = longest if wide else None  # the same of all tables, so that their intervals stand on one scale
    seed = "" if summary["seed"] is None else f"  seed {summary['seed']}"
    console.print()
    console.print(Text.assemble((f" {summary['name']}", "bold"), (seed, "dim")))
    console.print()
    if warned := alarm(summary):
        _say(console, warned, style="bold red")
        console.print()
    policies, said = _policies(summary, wide, first), verdict(summary)
    beside = [_controls(summary, wide, first)] if summary["controls"] else []
    blocks: list[Table | list[str]] = [policies, *beside, said]
    if summary["ladder"]:
        blocks = [_ladder(summary, wide, first), said, *beside, policies]
    for choice in summary["choices"]:
        blocks += [_choices(choice, shown_stages(choice, summary)), choice_verdict(choice)]
    for block in filter(None, blocks):
        if isinstance(block, list):
            _say(console, *block)
        else:
            console.print(block)
        console.print()
    if summary["advice"]:
        console.print(" What to try:", style="bold", highlight=False)
    for finding in summary["advice"]:
        _say(console, f"· {finding['problem']} ({finding['evidence']})")
        for override in finding["try"]:
            console.print(f"     {override}", style="cyan", highlight=False)
    if summary["advice"]:
        console.print()


def _say(console: Console, *sentences: str, style: str = "") -> None:
    """textwrap keeps "p < 0.001" together at its no-break spaces; rich would not."""
    for sentence in sentences:
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


def _ladder(summary: dict[str, Any], wide: bool, width: int | None) -> Table:
    table = _table("\nthe ladder", wide, width)
    table.columns[0].vertical = "top"
    table.add_column("step,\npoints", justify="right", no_wrap=True)
    table.add_column("paired\np", justify="right", no_wrap=True)
    for rung in summary["ladder"]:
        table.add_row(_rung(rung), *_numbers(rung, wide, "cyan"), *_pair(rung["comparison"]))
    return table


def _rung(rung: dict[str, Any]) -> Text:
    """What its step adds stands above its name."""
    name = rung_name(rung["name"])
    adds = textwrap.wrap(f"+ {rung['adds']}", RUNG_WIDTH, subsequent_indent="  ") if rung["adds"] else []
    return Text.assemble(("\n".join(adds), "bold"), f"\n  {name}") if adds else Text(name, "bold")


def _pair(pair: dict[str, Any] | None, unknown: str = "") -> tuple[Text | str, str]:
    """Lead and p, coloured by which way it went beyond chance."""
    style = {1: "green", -1: "red", 0: ""}[direction(pair)]
    return (Text(lead_text(pair["lead"]), style), p_number(pair["mcnemar_p"])) if pair else (unknown, unknown)


def _controls(summary: dict[str, Any], wide: bool, width: int | None) -> Table:
    table = _table("\nbeside it" if summary["ladder"] else "\nablation", wide, width)
    table.add_column("RECAP’s\nlead", justify="right", no_wrap=True)
    table.add_column("paired\np", justify="right", no_wrap=True)
    for control in summary["controls"]:
        pair = _pair(control["comparison"], "–")
        table.add_row(_name(summary, control), *_numbers(control, wide, "yellow"), *pair)
    return table


def _name(summary: dict[str, Any], control: dict[str, Any]) -> str:
    """With what it is held against, where that is not the last policy that was evaluated."""
    name, than = ablation_name(control["name"]), control["than"]
    last = max((policy["iteration"] for policy in evaluated(summary)), default=than)
    return name if than == last else f"{name} ({side_name(than)})"


def _choices(choice: dict[str, Any], stages: list[dict[str, Any]]) -> Table:
    """Share of all episodes that took each way, and success of these."""
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=True, padding=(0, 1), show_edge=False)
    table.add_column("\nwhich way", vertical="bottom")
    table.add_column("\nn", justify="right", no_wrap=True)
    for name in choice["names"]:
        table.add_column(f"{name},\nshare", justify="right", no_wrap=True)
        table.add_column("\nsuccess", justify="right", no_wrap=True)
    table.add_column("\nnone", justify="right", no_wrap=True)
    for stage in stages:
        cells: list[Text | str] = []
        for name in choice["names"]:
            taken = stage["taken"][name]
            cells += [Text(percent(taken["share"]), "bold"), percent(taken["success_rate"])]
        none = percent(stage["none"] / stage["episodes"])
        table.add_row(stage_name(stage["node"]), str(stage["episodes"]), *cells, none)
    return table
