"""The table that ends a run in the terminal."""

from __future__ import annotations

import textwrap
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recap.report.advice import SIGNIFICANT, pair_of
from recap.report.verdict import alarm, verdict
from recap.report.words import (
    ARM_NAMES,
    arm_name,
    evaluated,
    interval,
    number,
    p_number,
    percent,
    policy_name,
    positive_shares,
)

INTERVAL_FROM = 112  # columns of terminal from which a drawn interval has room beside the numbers
INTERVAL_WIDTH = 41


def print_table(summary: dict[str, Any], console: Console | None = None) -> None:
    """Print the policies of a run, its controls and what they mean, to fit the console (80 columns and more)."""
    console = console or Console()
    wide = console.width >= INTERVAL_FROM
    console.print()
    console.print(
        Text.assemble(
            (f" {summary['name']}", "bold"), (f"  seed {summary['seed']}" if summary["seed"] is not None else "", "dim")
        )
    )
    console.print()
    if said := alarm(summary):
        _say(console, said, "bold red")
        console.print()
    console.print(_policies(summary, wide))
    if summary["controls"] and evaluated(summary):
        console.print()
        console.print(_controls(summary, wide))
    console.print()
    for sentence in verdict(summary):
        _say(console, sentence)
    if summary["advice"]:
        console.print("\n What the numbers point at, and what to try:", style="bold", highlight=False)
    for finding in summary["advice"]:
        _say(console, f"· {finding['problem']} ({finding['evidence']})")
        console.print(*(f"     {override}" for override in finding["try"]), sep="\n", style="cyan", highlight=False)
    console.print()


def _say(console: Console, sentence: str, style: str = "") -> None:
    """textwrap keeps "p < 0.001" together at its no-break spaces; rich would not."""
    lines = textwrap.wrap(sentence, min(console.width, 104) - 2, initial_indent=" ", subsequent_indent="   ")
    console.print(Text("\n".join(lines), style))


def _table(first: str, wide: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=True, padding=(0, 1), show_edge=False)
    # Wide, both tables get the same first column, so that their intervals stand on one scale.
    table.add_column(first, vertical="bottom", min_width=max(map(len, ARM_NAMES.values())) if wide else None)
    table.add_column("success\nk/n", justify="right", no_wrap=True)
    table.add_column("\nrate", justify="right", no_wrap=True)
    table.add_column("95 %\nWilson", justify="right", no_wrap=True)
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


def _policies(summary: dict[str, Any], wide: bool) -> Table:
    table = _table("\npolicy", wide)
    for header in ("steps to\nsuccess", "successes\nper hour", "positive\nshare"):
        table.add_column(header, justify="right", no_wrap=True)
    shares = positive_shares(summary)
    for policy in summary["policies"]:
        evaluation, share = policy["eval"], percent(shares.get(policy["iteration"]))
        if evaluation is None:
            table.add_row(policy_name(policy["iteration"]), *["–"] * (6 if wide else 5), share)
            continue
        table.add_row(
            policy_name(policy["iteration"]),
            *_numbers(evaluation, wide, "cyan"),
            number(evaluation["mean_steps_to_success"], 1),
            number(evaluation["successes_per_hour"]),
            share,
        )
    return table


def _controls(summary: dict[str, Any], wide: bool) -> Table:
    last = evaluated(summary)[-1]
    table = _table(f"control\nfor {policy_name(last['iteration'])}", wide)
    table.add_column("\nlead", justify="right", no_wrap=True)
    table.add_column("paired\np", justify="right", no_wrap=True)
    for control in summary["controls"]:
        if (evaluation := control["eval"]) is None:
            continue
        paired = pair_of(summary, control["arm"], last["iteration"])
        lead = 100 * (last["eval"]["success_rate"] - evaluation["success_rate"])
        sure = paired is not None and paired["mcnemar_p"] < SIGNIFICANT
        table.add_row(
            arm_name(control["arm"]),
            *_numbers(evaluation, wide, "yellow"),
            Text(f"{lead:+.0f}", ("green" if lead > 0 else "red") if sure else ""),
            p_number(paired["mcnemar_p"]) if paired else "–",
        )
    return table
