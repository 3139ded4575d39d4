"""What a summary says, in plain sentences: the same words in the terminal and in the report, whichever way it went."""

from __future__ import annotations

from typing import Any

from recap.report.advice import SIGNIFICANT, pair_of
from recap.report.words import arm_name, evaluated, labels_of, p_text, percent, points, policy_name

# The arm that answers "did experience help?": the first of these that was run.
EXPERIENCE_ARMS = ("labels_on_demonstrations", "continued_sft")


def alarm(summary: dict[str, Any]) -> str | None:
    """What has to be said first: a gate stopped the run, or the policy got worse and which one to keep."""
    gate = summary["gate"][-1] if summary["gate"] else None
    if gate and not gate["passed"] and gate["action"] == "stop":
        failed = sum(not check["passed"] for check in gate["checks"])
        return (
            f"The value gate stopped {labels_of(gate['iteration'])} before a policy was trained: {failed} of "
            f"{len(gate['checks'])} checks of the value function failed."
        )
    if (worse := summary["worse"]) is None:
        return None
    counts = "" if worse["fixed"] is None else f": {worse['fixed']} fixed, {worse['broke']} broke"
    chance = "" if worse["mcnemar_p"] is None else f", {p_text(worse['mcnemar_p'])}"
    return (
        f"The policy {'got' if worse['sure'] else 'may have got'} worse: {policy_name(worse['iteration'])} is "
        f"{points(worse['points'] / 100)} below {policy_name(worse['than'])}{counts}{chance}"
        f"{'' if worse['sure'] else ', which is within chance'}. "
        f"Keep {policy_name(summary['best']['iteration'])}: {summary['best']['checkpoint']}, where “best” leads to."
    )


def verdict(summary: dict[str, Any]) -> list[str]:
    """Two or three sentences: what happened, whether experience beat its control, whether the indicator is read."""
    policies = evaluated(summary)
    if not policies:
        return ["No policy was evaluated yet, so there is nothing to compare."]
    if len(policies) == 1:
        only = policies[0]["eval"]
        name = policy_name(policies[0]["iteration"])
        return [f"Only {name} was evaluated ({_rate(only)}), so there is nothing to compare it with."]
    sentences = [_change(summary, policies), _experience(summary, policies[-1])]
    if reads := _reads_indicator(summary, policies[-1]):
        sentences.append(reads)
    return sentences


def _rate(evaluation: dict[str, Any]) -> str:
    return f"{percent(evaluation['success_rate'])}, {evaluation['successes']} of {evaluation['episodes']}"


def _change(summary: dict[str, Any], policies: list[dict[str, Any]]) -> str:
    first, last = policies[0], policies[-1]
    before, after = first["eval"], last["eval"]
    paired = pair_of(summary, first["iteration"], last["iteration"])
    significant = paired is not None and paired["mcnemar_p"] < SIGNIFICANT
    up = after["successes"] / after["episodes"] - before["successes"] / before["episodes"]
    rates = [f"{percent(side['eval']['success_rate'])} ({policy_name(side['iteration'])})" for side in (first, last)]
    if significant:
        text = f"Success {'rose' if up > 0 else 'fell'} from {rates[0]} to {rates[1]}"
    else:
        text = f"Success did not change measurably: {rates[0]}, then {rates[1]}"
    if paired:
        counts = f"{paired['fixed']} were fixed and {paired['broke']} broke"
        text += f"; on the same {after['episodes']} initial states {counts} ({p_text(paired['mcnemar_p'])})"
    return text + "."


def _experience(summary: dict[str, Any], last: dict[str, Any]) -> str:
    controls = {control["arm"]: control["eval"] for control in summary["controls"] if control["eval"]}
    arm = next((arm for arm in EXPERIENCE_ARMS if arm in controls), None)
    if arm is None:
        return (
            "No control was trained on the demonstrations alone, so nothing says that experience made the difference."
        )
    control, paired = controls[arm], pair_of(summary, arm, last["iteration"])
    lead = last["eval"]["success_rate"] - control["success_rate"]
    chance = p_text(paired["mcnemar_p"]) if paired else "not paired"
    name = f"the control “{arm_name(arm)}” ({percent(control['success_rate'])})"
    if paired and paired["mcnemar_p"] < SIGNIFICANT and lead > 0:
        return f"Experience helped: {policy_name(last['iteration'])} beats {name} by {points(lead)} ({chance})."
    if paired and paired["mcnemar_p"] < SIGNIFICANT and lead < 0:
        return f"Experience did harm: {policy_name(last['iteration'])} is {points(lead)} worse than {name} ({chance})."
    where = "level with" if round(abs(lead) * 100) == 0 else f"{points(lead)} {'above' if lead > 0 else 'below'}"
    return (
        f"It is not shown that experience helped: {policy_name(last['iteration'])} is {where} {name}, which is within "
        f"chance ({chance})."
    )


def _reads_indicator(summary: dict[str, Any], last: dict[str, Any]) -> str | None:
    paired = pair_of(summary, "negative_prompt", last["iteration"])
    control = next((c["eval"] for c in summary["controls"] if c["arm"] == "negative_prompt"), None)
    if paired is None or control is None:
        return None
    prompted = f"prompted “Advantage: negative” the same policy succeeds in {percent(control['success_rate'])}"
    if paired["mcnemar_p"] < SIGNIFICANT and paired["fixed"] > paired["broke"]:
        return f"The policy reads the indicator: {prompted} ({p_text(paired['mcnemar_p'])})."
    return f"The policy does not visibly read the indicator: {prompted} ({p_text(paired['mcnemar_p'])})."
