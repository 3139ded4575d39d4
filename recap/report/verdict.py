"""What a summary says, in plain sentences: the same words in the terminal and in the report, whichever way it went."""

from __future__ import annotations

from typing import Any

from recap.report.paired import SIGNIFICANT, direction, missing, pair_of, prompted_negative, without_experience
from recap.report.words import (
    NBSP,
    ablation_name,
    enumerated,
    evaluated,
    labelled_name,
    labels_of,
    lead_text,
    p_text,
    percent,
    points,
    policy_name,
    sentence_case,
    signed,
    stage_name,
)


def alarm(summary: dict[str, Any]) -> str | None:
    """What has to come first: a gate stopped the run, or the policy got worse and which one to keep."""
    gate = summary["gate"][-1] if summary["gate"] else None
    if gate and not gate["passed"] and gate["action"] == "stop":
        failed = sum(not check["passed"] for check in gate["checks"])
        return (
            f"The value gate stopped {labels_of(gate['iteration'])} before a policy was trained: {failed} of "
            f"{len(gate['checks'])} checks of the value function failed."
        )
    if (worse := summary["worse"]) is None:
        return None
    counts = "" if worse["fixed"] is None else f": {_counts(worse)}"
    return (
        f"The policy {'got' if worse['sure'] else 'may have got'} worse: {policy_name(worse['iteration'])} is "
        f"{points(worse['points'] / 100)} below {policy_name(worse['than'])}{counts}"
        f"{'' if worse['sure'] else ', within chance'}. "
        f"Keep {policy_name(summary['best']['iteration'])}: {summary['best']['checkpoint']} (the link “best”)."
    )


def verdict(summary: dict[str, Any]) -> list[str]:
    """Two or three sentences: what happened, whether experience made the difference, whether the indicator is read."""
    policies = evaluated(summary)
    if not policies:
        return ["No policy has been evaluated yet."]
    if len(policies) == 1:
        only, name = policies[0]["eval"], policy_name(policies[0]["iteration"])
        counts = f"{only['successes']} of {only['episodes']}"
        return [f"Only {name} was evaluated: {percent(only['success_rate'])}, {counts}."]
    sentences = [_change(summary, policies[0], policies[-1]), _experience(summary, policies[-1])]
    further = (ladder_verdict(summary), _reads_indicator(summary, policies[-1]))
    return [*sentences, *(sentence for sentence in further if sentence)]


def _counts(pair: dict[str, Any]) -> str:
    return f"{pair['fixed']} fixed, {pair['broke']} broke, {p_text(pair['mcnemar_p'])}"


def _change(summary: dict[str, Any], first: dict[str, Any], last: dict[str, Any]) -> str:
    pair = pair_of(summary, first["iteration"], last["iteration"])
    change = {1: "Success rose", -1: "Success fell", 0: "Success did not change measurably"}[direction(pair)]
    before, after = (f"{percent(p['eval']['success_rate'])} ({policy_name(p['iteration'])})" for p in (first, last))
    states = f"; of {last['eval']['episodes']} initial states, {_counts(pair)}" if pair else ""
    return f"{change}: {before} → {after}{states}."


def _experience(summary: dict[str, Any], last: dict[str, Any]) -> str:
    ablation = without_experience(summary, last["iteration"])
    if ablation is None:
        return "Whether experience helped is open: no ablation was trained on the demonstrations alone."
    pair, recap = ablation["comparison"], policy_name(last["iteration"])
    rival = f"“{ablation_name(ablation['name'])}” ({percent(ablation['eval']['success_rate'])})"
    lead, chance, tested = points(pair["lead"]), p_text(pair["mcnemar_p"]), missing(ablation)
    if direction(pair) > 0:
        return f"{sentence_case(tested)} helped: {recap} beats {rival} by {lead} ({chance})."
    if direction(pair) < 0:
        return f"{sentence_case(tested)} hurt: {recap} is {lead} below {rival} ({chance})."
    level = round(100 * pair["lead"]) == 0
    where = "level with" if level else f"{lead} {'above' if pair['lead'] > 0 else 'below'}"
    return f"No evidence that {tested} helped: {recap} is {where} {rival}, within chance ({chance})."


def ladder_verdict(summary: dict[str, Any]) -> str | None:
    """Which step between imitation and RECAP did the work; None without a ladder."""
    steps = [rung for rung in summary["ladder"] if rung["comparison"]]
    if not steps:
        return None
    leads = {rung["adds"]: rung["comparison"]["lead"] for rung in steps}
    shown = ", ".join(
        f"{adds} {lead_text(lead)} ({p_text(rung['comparison']['mcnemar_p'])})"
        for rung, (adds, lead) in zip(steps, leads.items(), strict=True)
    )
    up, down = ([rung["adds"] for rung in steps if direction(rung["comparison"]) == sign] for sign in (1, -1))
    best = max(up, key=leads.__getitem__, default=None)
    if best is None:
        did = "no step up is beyond chance" if down else "no step is beyond chance"
    else:
        did = f"{'most of it is' if 2 * leads[best] > sum(leads.values()) else 'the largest step is'} {best}"
    lost = f"; {enumerated(down)} cost success" if down else ""
    return f"Step by step, in points: {shown}; {did}{lost}.{_instead_of_corrections(summary)}"


def _instead_of_corrections(summary: dict[str, Any]) -> str:
    """The operator is an expert, so his corrections have to beat as many of his demonstrations."""
    pair = next((control["comparison"] for control in summary["controls"] if isinstance(control["than"], str)), None)
    if pair is None:
        return ""
    return f" Corrections against as many more demonstrations: {lead_text(pair['lead'])} ({p_text(pair['mcnemar_p'])})."


def _reads_indicator(summary: dict[str, Any], last: dict[str, Any]) -> str | None:
    ablation = prompted_negative(summary, last["iteration"])
    if ablation is None:
        return None
    reads = {
        1: "reads the indicator",
        0: "does not visibly read the indicator",
        -1: "reads the indicator, and does worse where it is told “positive”",
    }
    return (
        f"The policy {reads[direction(ablation['comparison'])]}: prompted “Advantage: negative” it succeeds in "
        f"{percent(ablation['eval']['success_rate'])} ({p_text(ablation['comparison']['mcnemar_p'])})."
    )


def choice_verdict(choice: dict[str, Any]) -> list[str]:
    """Whether the policy chooses otherwise than at first, and which way the labels prefer where the ways part.

    Of the labels the first, which no experience reached, and those of the last iteration.
    """
    last = max((moments["iteration"] for moments in choice["moments"]), default=0)
    shown = [_moment(moments) for moments in choice["moments"] if moments["iteration"] in (0, last)]
    return [*shift_verdict(choice), *shown]


def shift_verdict(choice: dict[str, Any]) -> list[str]:
    """[] for one policy."""
    if choice["shift"] is None:
        return []
    shift, stages = choice["shift"], {stage["node"]: stage for stage in choice["stages"]}
    before, after = (stages[shift[end]]["taken"] for end in ("before", "after"))
    ways = ", ".join(
        f"{name} {percent(before[name]['share'])} → {percent(after[name]['share'])} ({p_text(pair['mcnemar_p'])})"
        for name, pair in shift["taken"].items()
    )
    first, last = (stage_name(shift[end]) for end in ("before", "after"))
    changed = "changed" if any(map(direction, shift["taken"].values())) else "did not change measurably"
    return [f"What the policy chooses {changed} from {first} to {last}: {ways} of the episodes."]


def _moment(moments: dict[str, Any]) -> str:
    ways = "; ".join(
        f"{name} {signed(way['advantage'], 3)} [{', '.join(signed(end, 3) for end in way['ci95'])}], "
        f"{percent(way['positive'])} positive (n{NBSP}={NBSP}{way['episodes']})"
        for name, way in moments["taken"].items()
    )
    where = f"Mean advantage where the ways part, {labelled_name(moments)}: {ways}"
    preferred = preference(moments)
    return f"{where}." if preferred is None else f"{where}; the labels prefer {preferred} ({p_text(moments['p'])})."


def preference(moments: dict[str, Any]) -> str | None:
    """The way that the labels prefer by the test, or neither; None where there is but one."""
    if moments["p"] is None:
        return None
    taken = moments["taken"]
    return max(taken, key=lambda name: taken[name]["advantage"]) if moments["p"] < SIGNIFICANT else "neither"
