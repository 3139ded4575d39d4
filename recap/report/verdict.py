"""What a summary says, in plain sentences: the same words in the terminal and in the report, whichever way it went."""

from __future__ import annotations

from typing import Any

from recap.report.paired import direction, pair_of, prompted_negative, without_experience
from recap.report.words import ablation_name, evaluated, labels_of, lead_text, p_text, percent, points, policy_name


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
    further = (_ladder(summary), _reads_indicator(summary, policies[-1]))
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
    lead, chance = points(pair["lead"]), p_text(pair["mcnemar_p"])
    if direction(pair) > 0:
        return f"Experience helped: {recap} beats {rival} by {lead} ({chance})."
    if direction(pair) < 0:
        return f"Experience hurt: {recap} is {lead} below {rival} ({chance})."
    level = round(100 * pair["lead"]) == 0
    where = "level with" if level else f"{lead} {'above' if pair['lead'] > 0 else 'below'}"
    return f"No evidence that experience helped: {recap} is {where} {rival}, within chance ({chance})."


def _ladder(summary: dict[str, Any]) -> str | None:
    """Which step between the baselines and RECAP did the work."""
    steps = [rung for rung in summary["ladder"] if rung["comparison"]]
    if not steps:
        return None
    shown = ", ".join(
        f"{rung['adds']} {lead_text(rung['comparison']['lead'])} ({p_text(rung['comparison']['mcnemar_p'])})"
        for rung in steps
    )
    best = max(steps, key=lambda rung: rung["comparison"]["lead"])
    did = f"most of it is {best['adds']}" if direction(best["comparison"]) > 0 else "no step is beyond chance"
    beside = steps[-1].get("beside")
    lead = beside and f"{lead_text(beside['comparison']['lead'])} ({p_text(beside['comparison']['mcnemar_p'])})"
    instead = f" Corrections against as many more demonstrations: {lead} points." if lead else ""
    return f"Step by step, in points: {shown}; {did}.{instead}"


def _reads_indicator(summary: dict[str, Any], last: dict[str, Any]) -> str | None:
    ablation = prompted_negative(summary, last["iteration"])
    if ablation is None:
        return None
    reads = "reads the indicator" if direction(ablation["comparison"]) > 0 else "does not visibly read the indicator"
    return (
        f"The policy {reads}: prompted “Advantage: negative” it succeeds in "
        f"{percent(ablation['eval']['success_rate'])} ({p_text(ablation['comparison']['mcnemar_p'])})."
    )
