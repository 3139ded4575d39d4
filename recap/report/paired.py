"""The one comparison of two evaluations: McNemar's exact test on the initial states that both met."""

from __future__ import annotations

from typing import Any

from recap.method.success import Episodes, compare

SIGNIFICANT = 0.05

Summary = dict[str, Any]
Pair = dict[str, Any]


def paired(before: Episodes, after: Episodes) -> Pair:
    """{"lead", "fixed", "broke", "mcnemar_p"}; lead: how far the rate of `after` is above that of `before`, in [-1, 1].

    Raises RecapError where the two did not meet the same initial states with the same seeds.
    """
    counts = compare(before, after)
    return {"lead": (counts["fixed"] - counts["broke"]) / len(before), **counts}


def direction(pair: Pair | None) -> int:
    """1 where `after` is better by the test, -1 where it is worse, 0 within chance or without a pair."""
    if pair is None or pair["mcnemar_p"] >= SIGNIFICANT:
        return 0
    return 1 if pair["fixed"] > pair["broke"] else -1


def pair_of(summary: Summary, before: int | str, after: int) -> Pair | None:
    """The comparison of two iterations, or of an ablation with an iteration, if the summary has it."""
    return next((c for c in summary["comparisons"] if (c["before"], c["after"]) == (before, after)), None)


# ---------------------------------------------------------------------------------------------------- ablations
def ablations_of(summary: Summary, iteration: int) -> list[dict[str, Any]]:
    """The ablations of an iteration that can be compared with RECAP's policy of it."""
    return [a for a in summary["ablations"] if a["iteration"] == iteration and a["comparison"]]


def without_experience(summary: Summary, iteration: int) -> dict[str, Any] | None:
    """The ablation that answers "did experience help?": trained without rollouts, and otherwise nearest to RECAP."""
    alone = [ablation for ablation in ablations_of(summary, iteration) if _demonstrations_alone(ablation)]
    return min(alone, key=lambda ablation: len(ablation["changes"]), default=None)


def _demonstrations_alone(ablation: dict[str, Any]) -> bool:
    return ablation["without_rollouts"] or ablation["changes"].get("policy.finetune.demo_fraction") == 1.0


def continued_sft(summary: Summary, iteration: int) -> dict[str, Any] | None:
    """The ablation that went on with plain SFT: on the demonstrations alone, with the indicator as SFT had it."""
    as_sft = summary["settings"].get("policy.sft.indicator")
    alone = (ablation for ablation in ablations_of(summary, iteration) if _demonstrations_alone(ablation))
    return next((a for a in alone if as_sft and a["changes"].get("policy.finetune.indicator") == as_sft), None)


def labelled_without_experience(summary: Summary, iteration: int) -> dict[str, Any] | None:
    """The ablation whose labels come from the value function of the demonstrations, trained on these alone."""
    alone = (ablation for ablation in ablations_of(summary, iteration) if _demonstrations_alone(ablation))
    return next((a for a in alone if a["changes"].get("policy.finetune.labels") == "pretraining"), None)


def rungs(summary: Summary, iteration: int) -> list[tuple[dict[str, Any], str]]:
    """From plain imitation to RECAP one step at a time, as far as ablations show it: (ablation, what its step adds).

    RECAP itself, the rung after these, is left out; its step adds experience as data.
    """
    found = [
        (continued_sft(summary, iteration), "more training"),
        (labelled_without_experience(summary, iteration), "labels"),
        (without_experience(summary, iteration), "experience through the value function"),
    ]
    before, labels, values = (ablation["name"] if ablation else None for ablation, _ in found)
    apart = values not in (before, labels)  # it answers for the nearest there is
    return [(a, adds) for a, adds in found if a is not None and (apart or adds != found[2][1])]


def with_operator(summary: Summary, iteration: int, *, from_start: bool) -> dict[str, Any] | None:
    """The ablation in whose rollouts an operator took over, or demonstrated instead from the start."""
    found = (a for a in ablations_of(summary, iteration) if a["changes"].get("rollout.corrections.share"))
    return next((a for a in found if (a["changes"].get("rollout.corrections.when") == "start") == from_start), None)


def prompted_negative(summary: Summary, iteration: int) -> dict[str, Any] | None:
    """The ablation that is RECAP's own policy, prompted "Advantage: negative"."""
    found = ablations_of(summary, iteration)
    return next((a for a in found if not a["trained"] and a["eval"]["prompt"] == "negative"), None)
