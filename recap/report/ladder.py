"""The ladder from imitation to RECAP: what each step of the method adds, as far as a run's ablations show it."""

from __future__ import annotations

from typing import Any, NamedTuple

from recap.report.paired import Summary, continued_sft, labelled_alone, with_operator
from recap.report.words import enumerated, evaluated


class Rung(NamedTuple):
    """side: an iteration or an ablation's name, as in a comparison; adds: what its step adds, "" for the lowest."""

    side: int | str
    adds: str
    evaluation: dict[str, Any]


def rungs(summary: Summary) -> list[Rung]:
    """From SFT to the last policy, and to the one with corrections; [] where no ablation stands between or above.

    A rung that was not run is left out, and the step from the next lower one then adds what both would.
    """
    ran = evaluated(summary)
    if not ran:
        return []
    iteration = ran[-1]["iteration"]
    steps = (
        ("imitation", ran[0] if ran[0]["iteration"] == 0 else None),
        ("more training", continued_sft(summary, iteration)),
        ("labels", labelled_alone(summary, iteration, "pretraining")),
        ("experience through V", labelled_alone(summary, iteration, "iteration")),
        ("experience as data", ran[-1]),
        ("corrections", with_operator(summary, iteration, from_start=False)),
    )
    found: list[Rung] = []
    added: list[str] = []
    for adds, rung in steps:
        added.append(adds)
        if rung is not None:
            side = rung.get("name", rung["iteration"])
            found.append(Rung(side, enumerated(added) if found else "", rung["eval"]))
            added = []
    return found if len(found) > 2 else []


def controls(summary: Summary, ladder: list[Rung]) -> list[tuple[dict[str, Any], int | str]]:
    """The ablations beside the ladder, each with the rung that it is held against: RECAP's own policy as a rule.

    As many more demonstrations are held against the corrections that they stand in for, if those were run.
    """
    sides = [rung.side for rung in ladder]
    beside = [ablation for ablation in summary["ablations"] if ablation["name"] not in sides]
    instead, top = None, sides[-1] if sides else 0
    if isinstance(top, str):
        instead = with_operator(summary, evaluated(summary)[-1]["iteration"], from_start=True)
    return [(ablation, top if ablation is instead else ablation["iteration"]) for ablation in beside]
