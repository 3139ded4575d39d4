"""What the summary says: whether success rose and experience helped, and which step from imitation to RECAP did it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from report_run import ALONE, finish, make_run, outcomes, printed

from recap.report import build_summary, write_html
from recap.report.verdict import verdict

TAKEN_OVER = {"corrections": "random", "as_many_demonstrations": "start"}  # when by an operator


def rate(won: int) -> list[bool]:
    return outcomes("1" * won + "0" * (40 - won))


def run(root: Path, recap: int, **ablations: int) -> Path:
    """Successes of 40 after one iteration; SFT has 10. Some ablations have rollouts of their own."""
    run_dir = make_run(root, [rate(10), rate(recap)], {name: rate(won) for name, won in ablations.items()}, videos=0)
    (run_dir / "iter_01/rollout/config.yaml").write_text("iteration: 1\n")
    for name in TAKEN_OVER.keys() & ablations:
        stage = run_dir / f"ablations/{name}/iter_01/rollout"
        finish(stage, 1.0)
        (stage / "config.yaml").write_text(f"corrections: {{share: 0.5, when: {TAKEN_OVER[name]}, noise: 0.05}}\n")
    return run_dir


def mcnemar_p(changed: int) -> float:
    """Of so many initial states that all changed in one direction."""
    return min(1.0, 2 / 2**changed)


def test_each_rung_is_compared_with_the_one_before(tmp_path: Path) -> None:
    summary = build_summary(run(tmp_path / "run", 34, continued_sft=11, no_experience=14, labels_on_demonstrations=16))
    rungs = summary["ladder"]
    assert [rung["name"] for rung in rungs] == [0, *ALONE, 1]
    assert [(rung["successes"], rung["episodes"]) for rung in rungs] == [(won, 40) for won in (10, 11, 14, 16, 34)]
    assert [rung["success_rate"] for rung in rungs] == [10 / 40, 11 / 40, 14 / 40, 16 / 40, 34 / 40]
    assert [rung["comparison"] and rung["comparison"]["fixed"] for rung in rungs] == [None, 1, 3, 2, 18]
    assert [rung["comparison"]["mcnemar_p"] for rung in rungs[1:]] == pytest.approx([*map(mcnemar_p, (1, 3, 2, 18))])
    assert [rung["adds"] for rung in rungs] == [
        *("", "more training", "labels", "experience through V", "experience as data")
    ]
    assert summary["controls"] == []
    assert any("most of it is experience as data" in sentence for sentence in verdict(summary))


def test_corrections_and_what_they_are_held_against(tmp_path: Path) -> None:
    """RECAP's policy is what the others beside the ladder are held against."""
    ablations = {"no_experience": 12, "corrections": 36, "as_many_demonstrations": 31, "random_labels": 13, "awr": 20}
    summary = build_summary(run(tmp_path / "run", 30, **ablations))
    assert [(rung["name"], rung["adds"]) for rung in summary["ladder"]] == [
        (0, ""),
        ("no_experience", "more training and labels"),
        (1, "experience through V and experience as data"),
        ("corrections", "corrections"),
    ]
    found = [(c["name"], c["than"], c["successes"], c["comparison"]["fixed"]) for c in summary["controls"]]
    assert found == [("as_many_demonstrations", "corrections", 31, 5), ("random_labels", 1, 13, 17), ("awr", 1, 20, 10)]
    assert summary["ladder"][-1]["comparison"]["fixed"] == 6
    changes = next(a["changes"] for a in summary["ablations"] if a["name"] == "corrections")
    assert changes == {"rollout.corrections.share": 0.5, "rollout.corrections.when": "random"}  # noise is the run's
    assert "Corrections against as many more demonstrations: +12 (p" in "".join(verdict(summary))


def test_without_corrections_more_demonstrations_are_a_control_like_others(tmp_path: Path) -> None:
    summary = build_summary(run(tmp_path / "run", 30, no_experience=12, as_many_demonstrations=31))
    assert [(c["than"], c["comparison"]["broke"]) for c in summary["controls"]] == [(1, 1)]


@pytest.mark.parametrize(
    ("recap", "ablations", "says"),
    [
        (17, {"continued_sft": 11, "no_experience": 14, "labels_on_demonstrations": 16}, "no step is beyond chance"),
        (36, {"continued_sft": 10, "labels_on_demonstrations": 35}, "most of it is labels and experience through V."),
        (36, {"continued_sft": 10, "no_experience": 35}, "most of it is labels."),
        (20, {"labels_on_demonstrations": 35}, "labels and experience through V; experience as data cost success."),
        (2, {"labels_on_demonstrations": 12}, "no step up is beyond chance; experience as data cost success."),
        (34, {"no_experience": 18, "labels_on_demonstrations": 26}, "the largest step is more training and labels."),
        (20, {"random_labels": 35}, None),
    ],
)
def test_what_did_the_work(tmp_path: Path, recap: int, ablations: dict[str, int], says: str | None) -> None:
    summary = build_summary(run(tmp_path / "run", recap, **ablations))
    shown = [sentence for sentence in verdict(summary) if sentence.startswith("Step by step")]
    assert bool(shown) == bool(summary["ladder"]) == (says is not None)
    assert says is None or says in shown[0]


@pytest.mark.parametrize(
    ("negative", "says"),
    [
        (12, "reads the indicator: prompted"),
        (29, "does not visibly read the indicator: prompted"),
        (40, "reads the indicator, and does worse where it is told “positive”: prompted"),
    ],
)
def test_whether_the_policy_reads_the_indicator(tmp_path: Path, negative: int, says: str) -> None:
    summary = build_summary(run(tmp_path / "run", 30, negative_prompt=negative))
    assert any(f"The policy {says}" in sentence for sentence in verdict(summary))


@pytest.mark.parametrize("width", [80, 160])
def test_the_ladder_is_the_first_result(tmp_path: Path, width: int) -> None:
    run_dir = run(tmp_path / "run", 34, continued_sft=11, no_experience=14, labels_on_demonstrations=16, filtered_bc=12)
    summary = build_summary(run_dir)
    text = printed(summary, width)
    assert re.search(r"\+ experience through V +16/40 +40 % +26–55 % .*\+5 +0\.5", text)
    assert re.search(r"filtered BC +12/40 .*\+55 +< 0\.0001", text)
    places = [text.index(words) for words in ("+ more training", "Step by step", "beside it", "steps to")]
    assert places == sorted(places)
    page = write_html(run_dir, summary).read_text()
    assert page.index("+ experience through V") < page.index("Step by step") < page.index("<h2>")
    assert page.index("Filtered BC") < page.index("<h2>")


def test_experience_is_measured_against_labels_without_any(tmp_path: Path) -> None:
    """The labels of the other ablation without rollouts come from a value function that saw them."""
    summary = build_summary(run(tmp_path / "run", 34, no_experience=14, labels_on_demonstrations=34))
    assert verdict(summary)[1].startswith("Experience helped: iteration 1 beats “no experience")
    summary = build_summary(run(tmp_path / "plain", 34, continued_sft=14))
    assert verdict(summary)[1].startswith("Labels and experience helped: iteration 1 beats “SFT continued")


# ---------------------------------------------------------------------------------------------------- sentences
STEADY = outcomes("1" * 10 + "0" * 30)


@pytest.mark.parametrize(
    ("last", "alone", "said"),
    [
        (
            outcomes("1" * 30 + "0" * 10),
            outcomes("1" * 12 + "0" * 28),
            ("Success rose: 25", "Experience as data helped"),
        ),
        (
            outcomes("1" * 30 + "0" * 10),
            outcomes("1" * 29 + "0" * 11),
            ("Success rose", "No evidence that experience as data helped"),
        ),
        (outcomes("1" * 20 + "0" * 20), outcomes("1" * 40), ("Success rose", "Experience as data hurt")),
        (outcomes("0" * 40), STEADY, ("Success fell", "Experience as data hurt")),
        (
            outcomes("1" * 11 + "0" * 29),
            STEADY,
            ("did not change measurably", "No evidence that experience as data helped"),
        ),
    ],
)
def test_verdict_is_honest(tmp_path: Path, last: list[bool], alone: list[bool], said: tuple[str, str]) -> None:
    """Beside any ablation that read no rollouts, whatever its name."""
    run = make_run(tmp_path / "demo", [STEADY, last], {"labels_on_demonstrations": alone}, rollouts=2, videos=0)
    (run / "ablations/labels_on_demonstrations").rename(run / "ablations/mine")
    *sentences, steps = verdict(build_summary(run))
    assert len(sentences) == 2
    assert all(words in sentence for words, sentence in zip(said, sentences, strict=True))
    assert steps.startswith("Step by step")
    assert "“mine”" in sentences[1]
