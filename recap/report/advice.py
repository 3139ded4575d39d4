"""What to try when the policy did not get better: what the numbers of a summary point at, each with an override.

Pure functions of summary.json. A finding is {"problem", "evidence", "try"}: a sentence, the numbers behind it, and
overrides of loop.py (`key=value`), the most promising first. `settings` in a summary are the values of these keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from recap.report.paired import (
    ablations_of,
    continued_sft,
    direction,
    pair_of,
    prompted_negative,
    without_experience,
)
from recap.report.words import ablation_name, evaluated, labels_of, p_text, percent, plain, policy_name, sentence_case

SHARE_OFF = 0.1  # between the wanted and the achieved share of positive frames
RISE = 0.1  # of the share of time-outs
DROP = 0.05  # of success, from training on alone
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
    pair = pair_of(summary, before["iteration"], last["iteration"])
    return {
        "iteration": last["iteration"],
        "than": before["iteration"],
        "points": round(100 * (before["eval"]["success_rate"] - last["eval"]["success_rate"]), 1),
        **{key: pair and pair[key] for key in ("fixed", "broke", "mcnemar_p")},
        "sure": direction(pair) != 0,
    }


def advise(summary: Summary) -> list[Finding]:
    """What the numbers point at, the surest first; [] for a run that got measurably better, or was not compared yet.

    For one that rose within chance only what hides the difference; a gate that stopped the run is always named.
    """
    stopped = [gate for gate in summary["gate"][-1:] if not gate["passed"] and gate["action"] == "stop"]
    policies = evaluated(summary)
    if len(policies) < 2:
        return list(_gate(summary)) if stopped else []
    pair = pair_of(summary, policies[0]["iteration"], policies[-1]["iteration"])
    rose = policies[-1]["eval"]["success_rate"] > policies[0]["eval"]["success_rate"]
    harmed = not rose or bool(got_worse(summary)) or bool(_beaten_without_experience(summary))
    if not harmed and not stopped and (pair is None or direction(pair)):
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
    value = _setting(summary, key)
    if not isinstance(value, int | float) or not value:
        return None
    return f"{key}={round(value * factor)}" if isinstance(value, int) else f"{key}={value * factor:.3g}"


def _setting(summary: Summary, key: str) -> Any:
    """The run's value of a key; None where the summary does not have it."""
    return summary["settings"].get(key)


def _more_demonstrations(summary: Summary, least: float = 0.0) -> str | None:
    """An override for a larger share of demonstrations in a batch; None where the share is not known or large."""
    share = _setting(summary, "policy.finetune.demo_fraction")
    if share is None or share >= 0.9:
        return None
    return f"policy.finetune.demo_fraction={min(0.9, max(least, share + 0.2)):.2g}"


def _successes_alone(summary: Summary) -> str | None:
    takes_all = _setting(summary, "policy.finetune.episode_filter") == "all"
    return "policy.finetune.episode_filter=success" if takes_all else None


def _beaten_without_experience(summary: Summary) -> dict[str, Any] | None:
    """The comparison with the ablation that saw no rollouts, where that one beats RECAP; None where it does not."""
    alone = without_experience(summary, _last(summary)["iteration"])
    return alone["comparison"] if alone and direction(alone["comparison"]) < 0 else None


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
    """Labels that are not as asked for, or the wrong way round. A run with a gate hears it from the gate."""
    for entry in [] if summary["gate"] else summary["advantage"][-1:]:
        wanted, shares = entry["wanted_positive"], entry["achieved_positive"]
        achieved, where = shares.get("all"), f"labels of {labels_of(entry['iteration'])}"
        forced = _setting(summary, "advantage.force_positive")
        if achieved is not None and not forced and abs(achieved - wanted) > SHARE_OFF:
            yield _finding(
                "The share of positive labels is off: many frames have the same advantage, so the value function "
                "barely tells states apart.",
                f"{where}: {percent(achieved)} positive, {percent(wanted)} wanted",
                _scaled(summary, "value.finetune.steps", 2),
                _scaled(summary, "advantage.n_step", 2),
            )
        success, failure = shares.get("success"), shares.get("failure")
        if success is not None and failure is not None and failure >= success:
            share = _setting(summary, "value.finetune.demo_fraction") or 0
            yield _finding(
                "Failures are labelled positive as often as successes: the value function does not see them coming.",
                f"{where}: {percent(failure)} of frames in failures, {percent(success)} in successes",
                _scaled(summary, "value.finetune.steps", 2),
                f"value.finetune.demo_fraction={share / 2:.2g}" if share > 0.1 else None,
                _scaled(summary, "rollout.episodes", 2),
            )


# ---------------------------------------------------------------------------------------------------- the ablations
def _better_ablations(summary: Summary) -> Iterator[Finding]:
    """An ablation that did better on the same data: what it changed is what to try."""
    last = _last(summary)
    for ablation in ablations_of(summary, last["iteration"]):
        pair = ablation["comparison"]
        if direction(pair) < 0 and ablation["changes"] and not ablation["without_rollouts"]:
            yield _finding(
                f"The ablation “{ablation_name(ablation['name'])}” beats RECAP on the same initial states.",
                f"{percent(ablation['eval']['success_rate'])} against {percent(last['eval']['success_rate'])}, "
                f"{p_text(pair['mcnemar_p'])}",
                *(f"{key}={plain(value)}" for key, value in ablation["changes"].items()),
            )


def _crowded_out(summary: Summary) -> Iterator[Finding]:
    """More rollouts than demonstrations in every batch, or training without rollouts does better."""
    data, share = _last(summary).get("data", {}), _setting(summary, "policy.finetune.demo_fraction")
    rollouts, demonstrations = data.get("rollouts", 0), data.get("demonstrations") or 0
    beaten = _beaten_without_experience(summary)
    if beaten or (share is not None and share < CROWDED and rollouts > demonstrations):
        batch = "" if share is None else f"; a batch is {percent(share)} demonstrations"
        without = f"; training without rollouts does better ({p_text(beaten['mcnemar_p'])})" if beaten else ""
        yield _finding(
            "Rollouts crowd out the demonstrations.",
            f"{rollouts} rollouts, {demonstrations} demonstrations{batch}{without}",
            _more_demonstrations(summary, CROWDED),
            _successes_alone(summary),
        )


def _more_training(summary: Summary) -> Iterator[Finding]:
    """SFT that goes on for as many steps falls as well: it is the training, not the data."""
    first, longer = evaluated(summary)[:1], continued_sft(summary, _last(summary)["iteration"])
    if not (first and longer):
        return
    rates = longer["eval"]["success_rate"], first[0]["eval"]["success_rate"]
    if rates[0] < rates[1] - DROP:
        yield _finding(
            "More training hurts by itself: plain SFT for as many steps fell too.",
            f"SFT continued {percent(rates[0])}, SFT {percent(rates[1])}",
            _scaled(summary, "policy.finetune.learning_rate", 0.5),
            _scaled(summary, "policy.finetune.steps", 0.5),
        )


def _indicator_ignored(summary: Summary) -> Iterator[Finding]:
    last = _last(summary)
    negative = prompted_negative(summary, last["iteration"])
    if negative is None or direction(negative["comparison"]) != 0:
        return
    rates = (percent(side["eval"]["success_rate"]) for side in (negative, last))
    positive_in_sft = _setting(summary, "policy.sft.indicator") == "always_positive"
    yield _finding(
        "The policy ignores the indicator: prompted negative, it succeeds as often.",
        "{} prompted negative, {} prompted positive, {}".format(*rates, p_text(negative["comparison"]["mcnemar_p"])),
        "policy.sft.indicator=ignore" if positive_in_sft else None,
        "policy.indicator_dropout=0.1" if (_setting(summary, "policy.indicator_dropout") or 0) > 0.1 else None,
        _scaled(summary, "policy.finetune.steps", 2),
    )


# ---------------------------------------------------------------------------------------------------- how it acts
def _guidance(summary: Summary) -> Iterator[Finding]:
    evaluation = _last(summary)["eval"]
    if evaluation and (evaluation.get("beta") or 1.0) > 1.0:
        yield _finding(
            "Guidance may be too strong: it exaggerates what “positive” changes, and motion becomes aggressive.",
            f"evaluated with β = {evaluation['beta']:g}",
            "eval.beta=1.0",
        )


def _time_outs(summary: Summary) -> Iterator[Finding]:
    """The policy dawdles: more episodes end because the time is up."""
    last, before = _last(summary)["eval"], _reference(summary)
    if last is None or before is None or last["timeouts"] is None or before["eval"]["timeouts"] is None:
        return
    then, now = (side["timeouts"] / side["episodes"] for side in (before["eval"], last))
    if now - then >= RISE:
        yield _finding(
            "More episodes run out of time: the policy has learnt to hesitate.",
            f"time-outs: {percent(then)} of episodes with {policy_name(before['iteration'])}, {percent(now)} now",
            _successes_alone(summary),
            "advantage.positive_fraction=0.1",
        )


def _forgetting(summary: Summary) -> Iterator[Finding]:
    lost = summary["forgetting"]
    if lost and direction(lost) < 0:
        count = len(lost["tasks"])
        yield _finding(
            "The policy forgets tasks without rollouts.",
            f"{count} such task{'' if count == 1 else 's'}: {lost['broke']} initial states broke, {lost['fixed']} "
            f"were fixed, {p_text(lost['mcnemar_p'])}",
            _more_demonstrations(summary),
            "rollout.tasks=null",
        )


# ---------------------------------------------------------------------------------------------------- how sure it is
def _few_successes(summary: Summary) -> Iterator[Finding]:
    last = _last(summary)["eval"]
    if last and last["success_rate"] < LOW_SUCCESS and _setting(summary, "policy.finetune.indicator") == "use":
        yield _finding(
            "Below half success, training on “Advantage: negative” was found to hurt; positive_only hurts less.",
            f"{percent(last['success_rate'])} success",
            "policy.finetune.indicator=positive_only",
        )


def _too_few(summary: Summary) -> Iterator[Finding]:
    """The difference is within chance: how many episodes could tell."""
    last, before = _last(summary), _reference(summary)
    if before is None:
        return
    pair = pair_of(summary, before["iteration"], last["iteration"])
    if pair is None or direction(pair):
        return
    n, changed, lead = last["eval"]["episodes"], pair["fixed"] + pair["broke"], abs(pair["fixed"] - pair["broke"])
    # McNemar's z is lead / sqrt(changed), and both grow with n; the exact test wants a little more than 1.96.
    needed = math.ceil(n * changed * (2.2 / max(lead, SMALLEST * n)) ** 2) if changed else 0
    if needed > n:
        yield _finding(
            "Too few episodes to tell: the difference is within chance.",
            f"{pair['fixed']} fixed and {pair['broke']} broke of {n}, {p_text(pair['mcnemar_p'])}",
            f"eval.episodes={math.ceil(needed / 50) * 50}",
        )


Look = Callable[[Summary], Iterator[Finding]]
DOUBTS: tuple[Look, ...] = (_gate, _shares, _better_ablations, _indicator_ignored, _too_few)
CAUSES: tuple[Look, ...] = (_crowded_out, _guidance, _more_training, _time_outs, _forgetting, _few_successes)
HARMS = (*DOUBTS[:-1], *CAUSES, _too_few)
