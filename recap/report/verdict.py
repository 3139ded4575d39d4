"""What a summary says, in plain sentences: the same words in the terminal and in the report, whichever way it went."""

from __future__ import annotations

from typing import Any

SIGNIFICANT = 0.05
NBSP = "\u00a0"  # keeps a number and its sign on one line
ARM_NAMES = {
    "labels_on_demonstrations": "same labels, demonstrations only",
    "continued_sft": "SFT continued, same steps",
    "all_data": "all data, no indicator",
    "filtered_bc": "filtered BC",
    "awr": "AWR",
    "conditioned_pretraining": "RECAP, conditioned pre-training",
    "guided": "RECAP, guidance β = 1.5",
    "strongly_guided": "RECAP, guidance β = 2.5",
    "negative_prompt": "last policy, prompted negative",
    "all_outcomes": "RECAP with failed rollouts",
    "positive_only": "RECAP, only positive is named",
    "forced_demonstrations": "RECAP, demonstrations forced positive",
    "no_dropout": "RECAP without dropout",
    "pickier": "RECAP, 10 % positive",
    "generous": "RECAP, 50 % positive",
    "longer_look_ahead": "RECAP, N = 20",
    "whole_episode": "RECAP, N = whole episode",
}
# Every word of these fits a narrow column, where the chart breaks them.
ARM_SHORT = {
    "labels_on_demonstrations": "labels on demos",
    "continued_sft": "SFT longer",
    "all_data": "all data",
    "filtered_bc": "filtered BC",
    "awr": "AWR",
    "conditioned_pretraining": "conditioned pre-training",
    "guided": "β = 1.5",
    "strongly_guided": "β = 2.5",
    "negative_prompt": "negative prompt",
}
# The arm that answers "did experience help?": the first of these that was run.
EXPERIENCE_ARMS = ("labels_on_demonstrations", "continued_sft")


def arm_name(arm: str) -> str:
    return ARM_NAMES.get(arm, arm.replace("_", " "))


def policy_name(iteration: int) -> str:
    return "SFT" if iteration == 0 else f"iteration {iteration}"


def side_name(side: int | str) -> str:
    """A side of a comparison: an iteration, or a control arm."""
    return policy_name(side) if isinstance(side, int) else arm_name(side)


def sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}{NBSP}%"


def p_text(p: float) -> str:
    """p = 0.012, with two significant digits, and never rounded to 0."""
    number = "< 0.0001" if p < 1e-4 else f"= {p:.2g}" if p < 0.995 else "= 1"
    return f"p {number}".replace(" ", NBSP)


def p_number(p: float) -> str:
    """The same for a column headed p: 0.012 or < 0.0001."""
    return p_text(p).removeprefix(f"p{NBSP}").removeprefix(f"={NBSP}")


def comparison(summary: dict[str, Any], before: int | str, after: int) -> dict[str, Any] | None:
    found = (c for c in summary["comparisons"] if c["before"] == before and c["after"] == after)
    return next(found, None)


def evaluated(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [policy for policy in summary["policies"] if policy["eval"]]


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


def _points(difference: float) -> str:
    points = round(abs(difference) * 100)
    return f"{points}{NBSP}point{'' if points == 1 else 's'}"


def _change(summary: dict[str, Any], policies: list[dict[str, Any]]) -> str:
    first, last = policies[0], policies[-1]
    before, after = first["eval"], last["eval"]
    paired = comparison(summary, first["iteration"], last["iteration"])
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
    best = max(policies, key=lambda policy: policy["eval"]["success_rate"])
    if best["eval"]["success_rate"] > after["success_rate"] and best is not first:
        text += f". {sentence_case(policy_name(best['iteration']))} had reached {percent(best['eval']['success_rate'])}"
    return text + "."


def _experience(summary: dict[str, Any], last: dict[str, Any]) -> str:
    controls = {control["arm"]: control["eval"] for control in summary["controls"] if control["eval"]}
    arm = next((arm for arm in EXPERIENCE_ARMS if arm in controls), None)
    if arm is None:
        return (
            "No control was trained on the demonstrations alone, so nothing says that experience made the difference."
        )
    control, paired = controls[arm], comparison(summary, arm, last["iteration"])
    lead = last["eval"]["success_rate"] - control["success_rate"]
    chance = p_text(paired["mcnemar_p"]) if paired else "not paired"
    name = f"the control “{arm_name(arm)}” ({percent(control['success_rate'])})"
    if paired and paired["mcnemar_p"] < SIGNIFICANT and lead > 0:
        return f"Experience helped: {policy_name(last['iteration'])} beats {name} by {_points(lead)} ({chance})."
    if paired and paired["mcnemar_p"] < SIGNIFICANT and lead < 0:
        return f"Experience did harm: {policy_name(last['iteration'])} is {_points(lead)} worse than {name} ({chance})."
    where = "level with" if round(abs(lead) * 100) == 0 else f"{_points(lead)} {'above' if lead > 0 else 'below'}"
    return (
        f"It is not shown that experience helped: {policy_name(last['iteration'])} is {where} {name}, which is within "
        f"chance ({chance})."
    )


def _reads_indicator(summary: dict[str, Any], last: dict[str, Any]) -> str | None:
    paired = comparison(summary, "negative_prompt", last["iteration"])
    control = next((c["eval"] for c in summary["controls"] if c["arm"] == "negative_prompt"), None)
    if paired is None or control is None:
        return None
    prompted = f"prompted “Advantage: negative” the same policy succeeds in {percent(control['success_rate'])}"
    if paired["mcnemar_p"] < SIGNIFICANT and paired["fixed"] > paired["broke"]:
        return f"The policy reads the indicator: {prompted} ({p_text(paired['mcnemar_p'])})."
    return f"The policy does not visibly read the indicator: {prompted} ({p_text(paired['mcnemar_p'])})."
