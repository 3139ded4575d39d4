"""Names and numbers of a summary as they are written, in the terminal and on the page alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from recap.storage.readers import ABLATION, iteration_of

NBSP = "\u00a0"  # keeps a number and its sign on one line
ABLATION_NAMES = {  # in the order in which they are shown; any other ablation follows under its own name
    "continued_sft": "SFT continued, same steps",
    "no_experience": "no experience, demonstrations only",
    "labels_on_demonstrations": "same labels, demonstrations only",
    "corrections": "RECAP + corrections",
    "as_many_demonstrations": "RECAP + as many more demonstrations",
    "random_labels": "RECAP, labels at random",
    "all_data": "all data, no indicator",
    "filtered_bc": "filtered BC",
    "awr": "AWR",
    "conditioned_pretraining": "RECAP, conditioned pre-training",
    "guided": "RECAP, guidance β = 1.5",
    "strongly_guided": "RECAP, guidance β = 2.5",
    "negative_prompt": "last policy, prompted negative",
    "all_outcomes": "RECAP with failed rollouts",
    "successes_only": "RECAP without failed rollouts",
    "positive_only": "RECAP, only positive is named",
    "forced_demonstrations": "RECAP, demonstrations forced positive",
    "no_dropout": "RECAP without dropout",
    "pickier": "RECAP, 10 % positive",
    "generous": "RECAP, 50 % positive",
    "more_demonstrations": "RECAP, half of each batch demonstrations",
    "longer_n_step": "RECAP, N = 20",
    "whole_episode": "RECAP, N = whole episode",
}


def ablation_name(name: str) -> str:
    return ABLATION_NAMES.get(name, name.replace("_", " "))


def policy_name(iteration: int) -> str:
    return "SFT" if iteration == 0 else f"iteration {iteration}"


def labels_of(iteration: int) -> str:
    """Which labels: those of an iteration, or of the demonstrations before SFT."""
    return f"iteration {iteration}" if iteration else "pre-training"


def rung_name(side: int | str) -> str:
    """A rung of the ladder: a side of a comparison, RECAP by its name, in short."""
    return f"RECAP, {policy_name(side)}" if isinstance(side, int) and side else side_name(side)


def labelled_name(moments: dict[str, Any]) -> str:
    """Which episodes, labelled by which iteration."""
    name = stage_name(moments["node"])
    return name if name != "demonstrations" else f"{name}, labelled in {labels_of(moments['iteration'])}"


def side_name(side: int | str) -> str:
    """A side of a comparison: an iteration, or an ablation."""
    return policy_name(side) if isinstance(side, int) else ablation_name(side)


def stage_name(node: str) -> str:
    """Whose episodes a stage recorded or evaluated: SFT, rollouts of iteration 1, an ablation."""
    ablation, iteration = ABLATION.match(node), iteration_of(node)
    recorded = {"demonstrations": "demonstrations", "rollout": f"rollouts of iteration {iteration}"}
    what = recorded.get(node.rpartition("/")[2])
    if ablation:
        return f"{rung_name(ablation['name'])}{f': {what}' if what else ''}"
    return what or policy_name(iteration)


def enumerated(parts: Iterable[str]) -> str:
    """a, b and c."""
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last


def sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}{NBSP}%"


def interval(ci95: list[float]) -> str:
    """A 95 % interval of a rate: 40–89 %."""
    return f"{100 * ci95[0]:.0f}–{100 * ci95[1]:.0f}{NBSP}%"


def points(difference: float) -> str:
    """Percentage points of a difference of two rates, without its sign."""
    rounded = round(abs(difference) * 100)
    return f"{rounded}{NBSP}point{'' if rounded == 1 else 's'}"


def signed(value: float | None, digits: int = 0) -> str:
    """+20 or −5; nothing for None."""
    return "" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def lead_text(lead: float | None) -> str:
    """A difference of two rates in points, as a column has it: +20."""
    rounded = None if lead is None else round(100 * lead)
    return "0" if rounded == 0 else signed(rounded)


def p_text(p: float) -> str:
    """p = 0.012, with two significant digits, and never rounded to 0."""
    number = "< 0.0001" if p < 1e-4 else f"= {p:.2g}" if p < 0.995 else "= 1"
    return f"p {number}".replace(" ", NBSP)


def p_number(p: float) -> str:
    """The same for a column headed p: 0.012 or < 0.0001."""
    return p_text(p).removeprefix(f"p{NBSP}").removeprefix(f"={NBSP}")


def number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def plain(value: Any) -> str:
    """A value of the configuration as it is typed in an override."""
    if isinstance(value, list):
        return f"[{','.join(map(plain, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def positive_shares(summary: dict[str, Any]) -> dict[int, float]:
    """The share of positive frames that the policy of each iteration was trained with; SFT's only if it read labels."""
    reads = summary["settings"].get("policy.sft.indicator") in ("use", "positive_only")
    entries = (entry for entry in summary["advantage"] if entry["iteration"] or reads)
    return {entry["iteration"]: entry["achieved_positive"].get("all") for entry in entries}


def evaluated(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The policies that were evaluated, by iteration; the first is SFT as a rule."""
    return [policy for policy in summary["policies"] if policy["eval"]]
