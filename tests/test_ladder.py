"""What the summary says: whether success rose and experience helped, and which step from imitation to RECAP did it."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_run import finish, make_run, outcomes

from recap.report import build_summary
from recap.report.verdict import verdict

CONFIG = "policy: {{sft: {{indicator: ignore}}, finetune: {{indicator: {}, labels: {}}}}}\n"
OFF = "rollout: {corrections: {share: 0.0, when: watchdog, noise: 0.05}}\n"
CHANGED = {  # name -> its policy's indicator and labels
    "continued_sft": ("ignore", "iteration"),
    "no_experience": ("use", "pretraining"),
    "labels_on_demonstrations": ("use", "iteration"),
}
TAKEN_OVER = {"corrections": "random", "as_many_demonstrations": "start"}


def rate(won: int) -> list[bool]:
    return outcomes("1" * won + "0" * (40 - won))


def run(root: Path, recap: int, **ablations: int) -> Path:
    """Successes of 40 after one iteration; SFT has 10."""
    run_dir = make_run(root, [rate(10), rate(recap)], {name: rate(won) for name, won in ablations.items()}, videos=0)
    (run_dir / "config.yaml").write_text("name: demo\nseed: 3\n" + OFF + CONFIG.format("use", "iteration"))
    (run_dir / "iter_01/policy/config.yaml").write_text(CONFIG.format("use", "iteration"))
    for name in ablations:
        changed = CONFIG.format(*CHANGED.get(name, ("use", "iteration")))
        (run_dir / f"ablations/{name}/iter_01/policy/config.yaml").write_text(changed)
        if name in TAKEN_OVER:
            stage = run_dir / f"ablations/{name}/iter_01/rollout"
            finish(stage, 1.0)
            (stage / "config.yaml").write_text(f"corrections: {{share: 0.5, when: {TAKEN_OVER[name]}, noise: 0.05}}\n")
            (run_dir / "iter_01/rollout/config.yaml").write_text("iteration: 1\n")
    return run_dir


def test_each_rung_is_compared_with_the_one_before(tmp_path: Path) -> None:
    summary = build_summary(run(tmp_path / "run", 34, continued_sft=11, no_experience=14, labels_on_demonstrations=16))
    rungs = summary["ladder"]
    assert [rung["name"] for rung in rungs] == [*CHANGED, None]
    assert [rung["success_rate"] for rung in rungs] == [11 / 40, 14 / 40, 16 / 40, 34 / 40]
    assert [rung["comparison"] and rung["comparison"]["fixed"] for rung in rungs] == [None, 3, 2, 18]
    assert rungs[-1]["adds"] == "experience as data"
    assert any("most of it is experience as data" in sentence for sentence in verdict(summary))


def test_corrections_are_the_rung_after_recap(tmp_path: Path) -> None:
    """Beside them as many more demonstrations."""
    ablations = {"labels_on_demonstrations": 16, "corrections": 30, "as_many_demonstrations": 24}
    summary = build_summary(run(tmp_path / "run", 17, **ablations))
    changes = next(a["changes"] for a in summary["ablations"] if a["name"] == "corrections")
    assert changes == {"rollout.corrections.share": 0.5, "rollout.corrections.when": "random"}, "noise is the run's"
    rungs = summary["ladder"]
    assert [(rung["name"], rung["adds"]) for rung in rungs[1:]] == [
        (None, "experience as data"),
        ("corrections", "corrections"),
    ]
    assert rungs[-1]["comparison"]["fixed"] == 13
    assert (rungs[-1]["beside"]["name"], rungs[-1]["beside"]["comparison"]["fixed"]) == ("as_many_demonstrations", 6)
    (said,) = [sentence for sentence in verdict(summary) if sentence.startswith("Step by step")]
    assert "most of it is corrections. Corrections against as many more demonstrations: +15" in said


@pytest.mark.parametrize(
    ("recap", "ablations", "says"),
    [
        (17, {"continued_sft": 11, "no_experience": 14, "labels_on_demonstrations": 16}, "no step is beyond chance"),
        (36, {"continued_sft": 10, "labels_on_demonstrations": 35}, "most of it is experience through the value"),
        (36, {"continued_sft": 10, "no_experience": 35}, "most of it is labels"),
        (20, {"labels_on_demonstrations": 35}, None),
    ],
)
def test_what_did_the_work(tmp_path: Path, recap: int, ablations: dict[str, int], says: str | None) -> None:
    summary = build_summary(run(tmp_path / "run", recap, **ablations))
    shown = [sentence for sentence in verdict(summary) if sentence.startswith("Step by step")]
    assert bool(shown) == bool(summary["ladder"]) == (says is not None)
    assert says is None or says in shown[0]


# ---------------------------------------------------------------------------------------------------- sentences
STEADY = outcomes("1" * 10 + "0" * 30)


@pytest.mark.parametrize(
    ("last", "alone", "said"),
    [
        (outcomes("1" * 30 + "0" * 10), outcomes("1" * 12 + "0" * 28), ("Success rose: 25", "Experience helped")),
        (outcomes("1" * 30 + "0" * 10), outcomes("1" * 29 + "0" * 11), ("Success rose", "No evidence that experience")),
        (outcomes("1" * 20 + "0" * 20), outcomes("1" * 40), ("Success rose", "Experience hurt")),
        (outcomes("0" * 40), STEADY, ("Success fell", "Experience hurt")),
        (outcomes("1" * 11 + "0" * 29), STEADY, ("did not change measurably", "No evidence that experience")),
    ],
)
def test_verdict_is_honest(tmp_path: Path, last: list[bool], alone: list[bool], said: tuple[str, str]) -> None:
    """Beside any ablation that read no rollouts, whatever its name."""
    run = make_run(tmp_path / "demo", [STEADY, last], {"labels_on_demonstrations": alone}, rollouts=2, videos=0)
    (run / "ablations/labels_on_demonstrations").rename(run / "ablations/mine")
    sentences = verdict(build_summary(run))
    assert len(sentences) == 2
    assert all(words in sentence for words, sentence in zip(said, sentences, strict=True))
    assert "“mine”" in sentences[1]
