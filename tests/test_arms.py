"""Control arms, several value functions, and the other ways to run the method: each as a run of the loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from demo_keys import demo
from tiny_run import RUN, read, results, tiny

from recap.data.frames import load_frames
from recap.data.labels import read_labels, read_thresholds
from recap.method.config import SourceKind
from recap.policies.value.config import Aggregation
from recap.policies.value.splits import held_out, left_out

ARMS = ["filtered_bc", "awr", "guided", "negative_prompt", "labels_on_demonstrations", "forced_demonstrations"]


def manifests(run_dir: Path) -> set[str]:
    return {path.parent.relative_to(run_dir).as_posix() for path in run_dir.rglob("manifest.json")}


# ---------------------------------------------------------------------------------------------------- arms
def test_arms_join_a_finished_run(finished_run: Path, work: Path) -> None:
    """Other arms later, on the same data; each differs from RECAP in what it says and in nothing else."""
    before = results(work / RUN)
    seen = tiny("loop", "+iterations=1", f"controls=[{','.join(ARMS)}]", cwd=work)
    assert seen.code == 0, seen.err
    after = results(work / RUN)
    assert before.items() <= after.items(), "nothing is made again"
    head = work / RUN / "iter_01/controls"
    assert {path.name for path in head.iterdir()} == set(ARMS)
    for arm in ARMS:
        trained = arm not in ("guided", "negative_prompt")
        assert (head / arm / "policy").is_dir() == trained
        assert (head / arm / "advantage").is_dir() == (arm == "forced_demonstrations")
    prompts = {arm: read(head / arm / "eval/result.json") for arm in ARMS}
    assert {arm: result["prompt"] for arm, result in prompts.items()} == {
        "filtered_bc": "none",
        "awr": "none",
        "guided": "positive",
        "negative_prompt": "negative",
        "labels_on_demonstrations": "positive",
        "forced_demonstrations": "positive",
    }
    assert (prompts["guided"]["beta"], prompts["negative_prompt"]["beta"]) == (1.5, 1.0)
    inputs = {arm: set(read(head / arm / "policy/manifest.json")["inputs"]) for arm in ("filtered_bc", "awr")}
    assert inputs["filtered_bc"] == {"pretrained", "demonstrations", "rollouts_01"}
    assert inputs["awr"] == inputs["filtered_bc"] | {"labels", "gate"}
    forced = read_labels(head / "forced_demonstrations/advantage/demonstrations")
    assert forced["indicator"].all()
    told = read(work / RUN / "summary.json")
    assert {control["arm"] for control in told["controls"]} == set(ARMS)
    checkpoint = f"checkpoint={RUN}/iter_01/controls/awr/policy/checkpoints/last"
    by_hand = tiny("eval", checkpoint, cwd=work)
    assert "── iter_01/controls/awr/eval  kept" in by_hand.out, by_hand.err


def test_an_arm_of_ones_own(work: Path) -> None:
    seen = tiny("loop", "+iterations=1", "+arms.mine.positive_fraction=0.1", "controls=[mine]", cwd=work)
    assert seen.code == 0, seen.err
    assert read_thresholds(work / RUN / "iter_01/controls/mine/advantage").wanted_positive == 0.1
    refused = tiny("loop", "+iterations=1", "controls=[filtered_bcc]", cwd=work)
    assert refused.code == 2
    assert "controls=[filtered_bcc]: there is no such arm. Nearest: filtered_bc" in refused.err
    empty = tiny("loop", "+iterations=1", "+arms.same.trains=true", "controls=[same]", cwd=work)
    assert "arms.same={}: differs from RECAP in nothing" in empty.err
    both = tiny("loop", "+iterations=1", "+arms.x={trains: false, episode_filter: all}", "controls=[x]", cwd=work)
    assert "arms.x.episode_filter: trains=false" in both.err
    weighed = tiny("loop", "+iterations=1", "+arms.x.awr_temperature=0.1", "controls=[x]", cwd=work)
    assert "weighs frames instead of naming them" in weighed.err


# ---------------------------------------------------------------------------------------------------- the method
def test_pre_training_reads_labels_where_it_is_conditioned(tmp_path: Path) -> None:
    """The paper's order: value function, labels of the demonstrations, SFT; and several members, restarts, the best."""
    method = [
        "policy.sft.indicator=use",
        "value.ensemble_size=2",
        "value.aggregation=out_of_fold",
        "rollout.policy=best",
    ]
    method += ["policy.finetune.restart=last", "value.finetune.restart=last", "advantage.sft.positive_fraction=0.4"]
    seen = tiny("loop", "+iterations=2", *method, cwd=tmp_path)
    assert seen.code == 0, seen.err
    run_dir = tmp_path / RUN
    inputs = {stage: set(read(run_dir / stage / "manifest.json")["inputs"]) for stage in manifests(run_dir)}
    assert inputs["sft"] == {"demonstrations", "labels"}
    assert inputs["value_inference"] == {"value", "value_1", "demonstrations"}
    assert inputs["iter_02/value_inference"] == {"value", "value_1", "demonstrations", "rollouts_01", "rollouts_02"}
    starts = {
        stage: read(run_dir / stage / "manifest.json")["inputs"]["pretrained"]["path"]
        for stage in ("iter_02/policy", "iter_02/value_1", "iter_01/value_1")
    }
    assert starts == {
        "iter_02/policy": "../../iter_01/policy",
        "iter_02/value_1": "../../iter_01/value_1",
        "iter_01/value_1": "../../value_1",
    }
    before, after = read_thresholds(run_dir / "advantage"), read_thresholds(run_dir / "iter_02/advantage")
    assert (before.n_step, before.wanted_positive, after.n_step) == (5, 0.4, 5)
    assert read_labels(run_dir / "iter_02/advantage/rollouts_02")["held_out"].all(), "out of fold: all are unseen"
    collected = (run_dir / "iter_02/rollout/log.txt").read_text()
    rates = [read(run_dir / stage / "result.json")["success_rate"] for stage in ("sft/eval", "iter_01/eval")]
    best = "iter_01/policy" if rates[1] >= rates[0] else "sft"
    assert f"collected by {best}/checkpoints/last" in collected.replace("0000004", "last").replace("0000006", "last")


@pytest.mark.parametrize(
    "given",
    [
        (["value.aggregation=out_of_fold"], "value.ensemble_size=5"),
        (["policy.sft.restart=last"], "policy.finetune.restart"),
        (["policy.finetune.awr_temperature=0.1"], "policy.finetune.indicator=ignore"),
        (["rollout.tasks=[turn on the stove]"], "is none of env.tasks"),
        (["advantage.threshold=all", "+advantage.positive_fraction_by_task.put=0.1"], "advantage.threshold=per_task"),
        (["value.held_out=1"], "below 1"),
    ],
)
def test_contradictions_are_told(given: tuple[list[str], str], tmp_path: Path) -> None:
    overrides, fix = given
    seen = tiny("loop", "+iterations=1", *overrides, cwd=tmp_path)
    assert (seen.code, fix in seen.err) == (2, True), seen.err


# ---------------------------------------------------------------------------------------------------- held out
def test_held_out_episodes(finished_run: Path) -> None:
    demos = load_frames(finished_run / RUN / "demonstrations/dataset", "demonstrations", SourceKind.demonstration)
    folds = replace(
        demo().value, ensemble_size=3, aggregation=Aggregation.out_of_fold, held_out=0.1, interventions=True
    )
    out = np.stack([held_out(demos, folds, 0, member) for member in range(3)])
    assert (out.sum(0) == 1).all(), "each episode is left out once"
    assert (out.sum(1) == 1).all(), "three episodes, three folds"
    third = replace(demo().value, ensemble_size=1, aggregation=Aggregation.mean, held_out=1 / 3, interventions=True)
    assert held_out(demos, third, 0).sum() == 1
    assert not held_out(
        demos, replace(demo().value, ensemble_size=1, aggregation=Aggregation.mean, held_out=0.0), 0
    ).any()
    assert (left_out(demos, third, 0, 0) == held_out(demos, third, 0)[demos.episode]).all()
