"""What to try when the policy did not get better: what the numbers of a summary point at, each with an override.

Pure functions of summary.json. A finding is {"problem", "evidence", "try"}: a sentence, the numbers behind it, and
overrides of loop.py (`key=value`), the most promising first. `settings` in a summary are the values of these keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from recap.report.words import arm_name, evaluated, labels_of, p_text, percent, policy_name, sentence_case

SIGNIFICANT = 0.05
SHARE_OFF = 0.1  # between the wanted and the achieved share of positive frames
RISE = 0.1  # of the share of time-outs
CROWDED = 0.5  # share of demonstrations in a batch below which rollouts can crowd them out
SMALLEST = 0.02  # difference of two rates that is worth more episodes
LOW_SUCCESS = 0.5  # below it, positive-only conditioning was better in replications

Summary = dict[str, Any]
Finding = dict[str, Any]


def best_policy(summary: Summary) -> dict[str, Any] | None:
    """{"iteration", "checkpoint"} of the policy with the highest success rate, the later one of equals; None: no one
    was evaluated.
    """
    policies = evaluated(summary)
    if not policies:
        return None
    best = max(policies, key=lambda policy: (policy["eval"]["success_rate"], policy["iteration"]))
    return {"iteration": best["iteration"], "checkpoint": best["checkpoint"]}


def got_worse(summary: Summary) -> dict[str, Any] | None:
    """How the last policy is below the best one before it; None where it is not.

    {"iteration", "than", "points", "fixed", "broke", "mcnemar_p", "sure"}: `points` lost of 100; sure: by the paired
    test, and not by the point estimate alone.
    """
    best, policies = best_policy(summary), evaluated(summary)
    if best is None or best["iteration"] == policies[-1]["iteration"]:
        return None
    last = policies[-1]
    before = next(policy for policy in policies if policy["iteration"] == best["iteration"])
    paired = pair_of(summary, before["iteration"], last["iteration"]) or {}
    return {
        "iteration": last["iteration"],
        "than": before["iteration"],
        "points": round(100 * (before["eval"]["success_rate"] - last["eval"]["success_rate"]), 1),
        **{key: paired.get(key) for key in ("fixed", "broke", "mcnemar_p")},
        "sure": bool(paired) and paired["mcnemar_p"] < SIGNIFICANT,
    }


def pair_of(summary: Summary, before: int | str, after: int | str) -> dict[str, Any] | None:
    found = (c for c in summary["comparisons"] if c["before"] == before and c["after"] == after)
    return next(found, None)


def advise(summary: Summary) -> list[Finding]:
    """What the numbers point at, the surest first; [] for a run that got measurably better, or was not compared yet.

    For one that rose within chance only what keeps it from telling; a gate that stopped the run is always told.
    """
    stopped = [gate for gate in summary["gate"][-1:] if not gate["passed"] and gate["action"] == "stop"]
    policies = evaluated(summary)
    if len(policies) < 2:
        return list(_gate(summary)) if stopped else []
    paired = pair_of(summary, policies[0]["iteration"], policies[-1]["iteration"])
    rose = policies[-1]["eval"]["success_rate"] > policies[0]["eval"]["success_rate"]
    harmed = not rose or bool(got_worse(summary)) or bool(_beaten_by(summary, "labels_on_demonstrations"))
    if not harmed and not stopped and (paired is None or paired["mcnemar_p"] < SIGNIFICANT):
        return []
    return [finding for look in (HARMS if harmed else DOUBTS) for finding in look(summary)]


def _finding(problem: str, evidence: str, *overrides: str | None) -> Finding:
    return {"problem": problem, "evidence": evidence, "try": [override for override in overrides if override]}


def _last(summary: Summary) -> dict[str, Any]:
    return evaluated(summary)[-1] if evaluated(summary) else {"iteration": 0, "eval": None}


def _reference(summary: Summary) -> dict[str, Any] | None:
    """The policy that the last one is held against: the one it fell behind, or SFT."""
    policies, worse = evaluated(summary), got_worse(summary)
    if len(policies) < 2:
        return None
    return next(p for p in policies if p["iteration"] == worse["than"]) if worse else policies[0]


def _scaled(summary: Summary, key: str, factor: float) -> str | None:
    """An override that multiplies a setting; None where the setting is not known."""
    value = summary["settings"].get(key)
    if not isinstance(value, int | float) or not value:
        return None
    return f"{key}={round(value * factor)}" if isinstance(value, int) else f"{key}={value * factor:.3g}"


def _hydra(value: Any) -> str:
    """A value as it is typed in an override."""
    if isinstance(value, list):
        return f"[{','.join(map(_hydra, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _control(summary: Summary, arm: str) -> dict[str, Any] | None:
    return next((c for c in summary["controls"] if c["arm"] == arm and c["eval"]), None)


def _beaten_by(summary: Summary, arm: str) -> dict[str, Any] | None:
    """The pair of a control arm that is better than the last policy by the paired test; None where it is not."""
    pair = pair_of(summary, arm, _last(summary)["iteration"])
    return pair if pair and pair["mcnemar_p"] < SIGNIFICANT and pair["broke"] > pair["fixed"] else None


# ---------------------------------------------------------------------------------------------------- the labels
def _gate(summary: Summary) -> Iterator[Finding]:
    """Every check of the last value gate that failed, with the knobs that the gate itself names."""
    for gate in summary["gate"][-1:]:
        for check in gate["checks"]:
            if not check["passed"]:
                name = check["name"].replace("_", " ")
                measured = "" if check["value"] is None else f" {check['value']:.3g}"
                evidence = f"value gate of {labels_of(gate['iteration'])}: {name}{measured}, wanted {check['limit']}"
                yield _finding(sentence_case(f"{check['text']}."), evidence, *knobs(check["knob"]))


def knobs(text: str) -> list[str]:
    """The keys that a check of the gate names, each with its remark: "a.b (more), c.d=1" -> ["a.b (more)", "c.d=1"]."""
    return [knob for knob in re.split(r",\s*(?![^()]*\))", text) if knob]


def _shares(summary: Summary) -> Iterator[Finding]:
    """Labels that are not what was asked for, or the wrong way round. With a gate it is the gate that tells."""
    for entry in [] if summary["gate"] else summary["advantage"][-1:]:
        wanted, shares = entry["wanted_positive"], entry["achieved_positive"]
        achieved, where = shares.get("all"), f"labels of {labels_of(entry['iteration'])}"
        forced = summary["settings"].get("advantage.force_positive")
        if achieved is not None and not forced and abs(achieved - wanted) > SHARE_OFF:
            yield _finding(
                "The positive share is off: too many frames have the same advantage, so the value function hardly "
                "tells states apart.",
                f"{where}: {percent(achieved)} positive, {percent(wanted)} wanted",
                _scaled(summary, "value.finetune.steps", 2),
                _scaled(summary, "advantage.n_step", 2),
            )
        success, failure = shares.get("success"), shares.get("failure")
        if success is not None and failure is not None and failure >= success:
            share = summary["settings"].get("value.finetune.demo_fraction") or 0
            yield _finding(
                "Failures are labelled positive as often as successes: the value function does not see them coming.",
                f"{where}: {percent(failure)} of the frames of failures, {percent(success)} of successes",
                _scaled(summary, "value.finetune.steps", 2),
                f"value.finetune.demo_fraction={share / 2:.2g}" if share > 0.1 else None,
                _scaled(summary, "rollout.episodes", 2),
            )


# ---------------------------------------------------------------------------------------------------- the arms
def _better_arms(summary: Summary) -> Iterator[Finding]:
    """A control arm that did better: what it changed is what to try."""
    last = _last(summary)
    for control in summary["controls"]:
        pair = _beaten_by(summary, control["arm"])
        if pair and control.get("changes"):
            rates = f"{percent(control['eval']['success_rate'])} against {percent(last['eval']['success_rate'])}"
            overrides = [f"{key}={_hydra(value)}" for key, value in control["changes"].items()]
            problem = f"The arm “{arm_name(control['arm'])}” did better on the same data."
            yield _finding(problem, f"{rates}, {p_text(pair['mcnemar_p'])}", *overrides)


def _crowded_out(summary: Summary) -> Iterator[Finding]:
    """More rollouts than demonstrations in every batch, or labels on the demonstrations alone do better."""
    last, share = _last(summary), summary["settings"].get("policy.finetune.demo_fraction")
    data, beaten = last.get("data", {}), _beaten_by(summary, "labels_on_demonstrations")
    crowded = share is not None and share < CROWDED and data.get("rollouts", 0) > (data.get("demonstrations") or 0)
    if not (crowded or beaten):
        return
    counts = f"{data.get('rollouts', 0)} rollouts beside {data.get('demonstrations') or 0} demonstrations"
    batch = "" if share is None else f", which are {percent(share)} of a batch"
    against = f"; the same labels on demonstrations alone do better ({p_text(beaten['mcnemar_p'])})" if beaten else ""
    more = None if share is None else f"policy.finetune.demo_fraction={min(0.9, max(CROWDED, share + 0.2)):.2g}"
    successes = "success" if summary["settings"].get("policy.finetune.episode_filter") == "all" else None
    yield _finding(
        "Rollouts crowd the demonstrations out.",
        counts + batch + against,
        more,
        successes and "policy.finetune.episode_filter=success",
    )


def _more_training(summary: Summary) -> Iterator[Finding]:
    """SFT that goes on for as many steps falls as well: it is the training, not the data."""
    first, control = evaluated(summary)[:1], _control(summary, "continued_sft")
    if not (first and control):
        return
    rates = control["eval"]["success_rate"], first[0]["eval"]["success_rate"]
    if rates[0] < rates[1] - 0.05:
        yield _finding(
            "Training on is harmful by itself: plain SFT for as many steps fell too.",
            f"SFT continued {percent(rates[0])}, SFT {percent(rates[1])}",
            _scaled(summary, "policy.finetune.learning_rate", 0.5),
            _scaled(summary, "policy.finetune.steps", 0.5),
        )


def _indicator_not_read(summary: Summary) -> Iterator[Finding]:
    last, control = _last(summary), _control(summary, "negative_prompt")
    pair = pair_of(summary, "negative_prompt", last["iteration"])
    if control is None or pair is None or (pair["mcnemar_p"] < SIGNIFICANT and pair["fixed"] > pair["broke"]):
        return
    settings = summary["settings"]
    negative, positive = (percent(side["eval"]["success_rate"]) for side in (control, last))
    yield _finding(
        "The policy does not read the indicator: what it is told makes no difference.",
        f"{negative} prompted negative, {positive} positive, {p_text(pair['mcnemar_p'])}",
        "policy.sft.indicator=ignore" if settings.get("policy.sft.indicator") == "on" else None,
        "policy.indicator_dropout=0.1" if (settings.get("policy.indicator_dropout") or 0) > 0.1 else None,
        _scaled(summary, "policy.finetune.steps", 2),
    )


# ---------------------------------------------------------------------------------------------------- how it acts
def _guidance(summary: Summary) -> Iterator[Finding]:
    evaluation = _last(summary)["eval"]
    if evaluation and (evaluation.get("beta") or 1.0) > 1.0:
        yield _finding(
            "Guidance may be too strong: it exaggerates what “positive” changes and makes motion aggressive.",
            f"evaluated with β = {evaluation['beta']:g}",
            "eval.beta=1.0",
        )


def _time_outs(summary: Summary) -> Iterator[Finding]:
    """The policy dawdles: more episodes end because the time is up."""
    last, before = _last(summary)["eval"], _reference(summary)
    if last is None or before is None or last["timeouts"] is None or before["eval"]["timeouts"] is None:
        return
    then, now = (side["timeouts"] / side["episodes"] for side in (before["eval"], last))
    if now - then < RISE:
        return
    outcomes = summary["settings"].get("policy.finetune.episode_filter")
    yield _finding(
        "More episodes run out of time: the policy has learnt to hesitate.",
        f"{percent(then)} of the episodes of {policy_name(before['iteration'])} timed out, {percent(now)} now",
        "policy.finetune.episode_filter=success" if outcomes == "all" else None,
        "advantage.positive_fraction=0.1",
    )


def _forgetting(summary: Summary) -> Iterator[Finding]:
    lost = summary["forgetting"]
    if not lost or lost["mcnemar_p"] >= SIGNIFICANT or lost["broke"] <= lost["fixed"]:
        return
    share = summary["settings"].get("policy.finetune.demo_fraction")
    more = None if share is None or share >= 0.9 else f"policy.finetune.demo_fraction={min(0.9, share + 0.2):.2g}"
    yield _finding(
        "Tasks without rollouts are forgotten.",
        f"on {len(lost['tasks'])} such tasks {lost['broke']} initial states broke and {lost['fixed']} were fixed, "
        f"{p_text(lost['mcnemar_p'])}",
        more,
        "rollout.tasks=null",
    )


# ---------------------------------------------------------------------------------------------------- how sure it is
def _few_successes(summary: Summary) -> Iterator[Finding]:
    last = _last(summary)["eval"]
    if last and last["success_rate"] < LOW_SUCCESS and summary["settings"].get("policy.finetune.indicator") == "use":
        yield _finding(
            "Below half success, naming the negative frames too was found to hurt; naming only the positive ones less.",
            f"{percent(last['success_rate'])} success",
            "policy.finetune.indicator=positive_only",
        )


def _too_few(summary: Summary) -> Iterator[Finding]:
    """The difference is within chance: how many episodes could tell."""
    last, before = _last(summary), _reference(summary)
    if before is None:
        return
    pair = pair_of(summary, before["iteration"], last["iteration"])
    if pair is None or pair["mcnemar_p"] < SIGNIFICANT:
        return
    n, changed, lead = last["eval"]["episodes"], pair["fixed"] + pair["broke"], abs(pair["fixed"] - pair["broke"])
    # McNemar's z is lead / sqrt(changed), and both grow with n; the exact test wants a little more than 1.96.
    needed = math.ceil(n * changed * (2.2 / max(lead, SMALLEST * n)) ** 2) if changed else 0
    if needed > n:
        yield _finding(
            "There are too few episodes to tell: the difference is within chance.",
            f"{pair['fixed']} fixed and {pair['broke']} broke of {n}, {p_text(pair['mcnemar_p'])}",
            f"eval.episodes={math.ceil(needed / 50) * 50}",
        )


DOUBTS: tuple[Callable[[Summary], Iterator[Finding]], ...] = (
    _gate,
    _shares,
    _better_arms,
    _indicator_not_read,
    _too_few,
)
HARMS = (
    *DOUBTS[:-1],
    _crowded_out,
    _guidance,
    _more_training,
    _time_outs,
    _forgetting,
    _few_successes,
    _too_few,
)
