"""Ablations, several value functions, and the other ways to run the method: each as a run of the loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from demo_keys import demo
from tiny_run import RUN, read, results, tiny

from recap.data.frames import load_frames
from recap.data.labels import Labels, read_labels, read_thresholds
from recap.method.config import SourceKind
from recap.policies.value.config import Aggregation
from recap.policies.value.splits import held_out, left_out

NAMES = ["filtered_bc", "awr", "guided", "negative_prompt", "labels_on_demonstrations", "forced_demonstrations"]


def manifests(run_dir: Path) -> set[str]:
    return {path.parent.relative_to(run_dir).as_posix() for path in run_dir.rglob("manifest.json")}


def labels_of(run_dir: Path) -> list[Labels]:
    return [read_labels(path.parent) for path in sorted(run_dir.glob("iter_01/advantage/*/advantages.parquet"))]


# ---------------------------------------------------------------------------------------------------- ablations
def test_ablations_join_a_finished_run(finished_run: Path, work: Path) -> None:
    """Ablations added later, on the same data; each has the stages that its overrides change, and no others."""
    before = results(work / RUN)
    seen = tiny("loop", "+iterations=1", f"ablation=[{','.join(NAMES)}]", cwd=work)
    assert seen.code == 0, seen.err
    after = results(work / RUN)
    assert before.items() <= after.items(), "nothing is made again"
    head = work / RUN / "ablations"
    evaluated, trained = {"iter_01/eval"}, {"iter_01/policy", "iter_01/eval"}
    assert {name: manifests(head / name) for name in NAMES} == {
        "filtered_bc": trained,
        "awr": trained,
        "guided": evaluated,
        "negative_prompt": evaluated,
        "labels_on_demonstrations": trained,
        "forced_demonstrations": trained | {"iter_01/advantage"},
    }
    prompts = {name: read(head / name / "iter_01/eval/result.json") for name in NAMES}
    assert {name: result["prompt"] for name, result in prompts.items()} == {
        "filtered_bc": "none",
        "awr": "none",
        "guided": "positive",
        "negative_prompt": "negative",
        "labels_on_demonstrations": "positive",
        "forced_demonstrations": "positive",
    }
    assert (prompts["guided"]["beta"], prompts["negative_prompt"]["beta"]) == (1.5, 1.0)
    inputs = {name: set(read(head / name / "iter_01/policy/manifest.json")["inputs"]) for name in NAMES[:2] + NAMES[4:]}
    assert inputs["filtered_bc"] == {"pretrained", "demonstrations", "rollouts_01"}
    assert inputs["awr"] == inputs["filtered_bc"] | {"labels", "gate"}
    assert inputs["labels_on_demonstrations"] == {"pretrained", "demonstrations", "labels", "gate"}
    assert inputs["forced_demonstrations"] == inputs["filtered_bc"] | {"labels"}, "the gate judges the run's labels"
    forced = read_labels(head / "forced_demonstrations/iter_01/advantage/demonstrations")
    assert forced["indicator"].all()
    summary = read(work / RUN / "summary.json")
    assert {ablation["name"] for ablation in summary["ablations"]} == set(NAMES)
    checkpoint = f"checkpoint={RUN}/ablations/awr/iter_01/policy/checkpoints/last"
    by_hand = tiny("eval", checkpoint, "ablation=awr", cwd=work)
    assert "── ablations/awr/iter_01/eval  kept" in by_hand.out, by_hand.err
    unknown = tiny("eval", checkpoint, cwd=work)
    assert "is of ablation awr. Fix: ablation=[awr]" in unknown.err


def test_any_key_can_be_ablated(finished_run: Path, work: Path) -> None:
    """In one line: of the labels, of the value function, of how experience is collected, of the pre-training."""
    before = results(work / RUN)
    mine = [
        "+ablations.pick={advantage.positive_fraction:0.1}",
        "+ablations.value.value.finetune.steps=3",
        "+ablations.noisy={rollout.episodes: 2}",
        "ablation=conditioned_pretraining",
    ]
    seen = tiny("loop", "+iterations=1", *mine, cwd=work)
    assert seen.code == 0, seen.err
    assert before.items() <= results(work / RUN).items(), "nothing is made again"
    head, labelled = work / RUN / "ablations", {f"iter_01/{stage}" for stage in ("advantage", "policy", "eval")}
    judged = labelled | {"iter_01/value", "iter_01/value_inference"}
    assert {path.name: manifests(path) for path in head.iterdir()} == {
        "pick": labelled,
        "value": judged,
        "noisy": judged | {"iter_01/rollout"},
        "conditioned_pretraining": {"sft", "iter_01/policy", "iter_01/eval"},
    }
    assert {"value_inference", "advantage"} <= manifests(work / RUN), "of the pre-training: any ablation may read them"
    assert read_thresholds(head / "pick/iter_01/advantage").wanted_positive == 0.1
    assert read(head / "noisy/iter_01/policy/manifest.json")["inputs"]["rollouts_01"]["path"] == "../rollout"


def test_labels_and_values_can_be_made_otherwise(finished_run: Path, work: Path) -> None:
    """Each in its own labels; the further value functions are the run's, for all that read them."""
    before = results(work / RUN)
    names = ["value_bins", "soft_labels", "pessimistic_value", "lower_bound"]
    seen = tiny("loop", "+iterations=1", f"ablation=[{','.join(names)}]", cwd=work)
    assert seen.code == 0, seen.err
    assert before.items() <= results(work / RUN).items(), "nothing is made again"
    head, trained = work / RUN / "ablations", {"iter_01/policy", "iter_01/eval"}
    labelled = {"iter_01/advantage", *trained}
    assert {name: manifests(head / name) for name in names} == {
        "value_bins": labelled,
        "soft_labels": trained,
        "pessimistic_value": {"iter_01/value_inference", *labelled},
        "lower_bound": {"iter_01/value_inference", *labelled},
    }
    assert {"value_1", "value_2", "iter_01/value_1", "iter_01/value_2"} <= manifests(work / RUN)
    values = np.load(head / "lower_bound/iter_01/value_inference/rollouts_01.npy")
    read = {name: read_labels(head / f"{name}/iter_01/advantage/rollouts_01")["value"] for name in names[2:]}
    assert read["pessimistic_value"] == pytest.approx(values.min(0))
    assert read["lower_bound"] == pytest.approx(values.mean(0) - values.std(0))
    shares = [
        np.concatenate([labels["indicator"][labels["value"] < np.median(labels["value"])] for labels in pooled]).mean()
        for pooled in (labels_of(work / RUN), labels_of(head / "value_bins"))
    ]
    assert abs(shares[1] - 0.3) < abs(shares[0] - 0.3), "early frames have their share too"


@pytest.mark.parametrize(
    ("overrides", "code", "says"),
    [
        (["ablation=filtered_bcc"], 2, "ablation=filtered_bcc: no such choice"),
        (
            ["+ablations.x.advantage.nstep=3"],
            2,
            "ablations.x.advantage.nstep=3: no such key. Nearest: advantage.n_step",
        ),
        (["+ablations.x.advantage.look_ahead=3"], 2, "ablations.x.advantage.look_ahead=3: renamed to advantage.n_step"),
        (["+ablations.x.seed=-1"], 2, "ablations.x.seed=-1: must be at least 0"),
        (["+ablations.x.policy.finetune.awr_temperature=0.1"], 2, "weighs frames instead of naming them"),
        (["+ablations.a-b.seed=1"], 2, "letters, digits and _ only"),
        (["+ablations.same.advantage.n_step=5"], 1, "ablations.same: changes nothing"),
        (["+ablations.same={}"], 1, "ablations.same: changes nothing"),
        (["controls=[awr]"], 2, "controls=[awr]: renamed to ablation"),
    ],
)
def test_ablations_that_cannot_be(overrides: list[str], code: int, says: str, tmp_path: Path) -> None:
    seen = tiny("loop", "+iterations=1", *overrides, cwd=tmp_path)
    assert (seen.code, says in seen.err) == (code, True), seen.err
    assert not (tmp_path / RUN).exists(), "nothing was started"


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
        (["advantage.within=initial_state"], "Fix: rollout.tries=4"),
        (["advantage.value_bins=1"], "at least 2"),
        (["rollout.tries=5"], "at most rollout.episodes=4"),
        (["value.aggregation=lower_bound"], "value.ensemble_size=3"),
        (
            ["policy.finetune.indicator=always_positive", "policy.finetune.indicator_temperature=0.1"],
            "policy.finetune.indicator=use",
        ),
    ],
)
def test_contradictions_are_told(given: tuple[list[str], str], tmp_path: Path) -> None:
    overrides, fix = given
    seen = tiny("loop", "+iterations=1", *overrides, cwd=tmp_path)
    assert (seen.code, fix in seen.err) == (2, True), seen.err


def test_several_tries_from_one_state_are_compared_with_each_other(finished_run: Path, tmp_path: Path) -> None:
    """They begin alike and go on by their own noise; a share of each state's frames is positive."""
    method = ["rollout.tries=2", "advantage.within=initial_state", "advantage.positive_fraction=0.4"]
    seen = tiny("loop", "+iterations=1", *method, cwd=tmp_path)
    assert seen.code == 0, seen.err
    stage = tmp_path / RUN / "iter_01"
    rollouts = load_frames(stage / "rollout/dataset", "rollouts_01", SourceKind.rollout)
    assert (rollouts.initial_state - rollouts.initial_state[0]).tolist() == [0, 0, 1, 1]
    once = load_frames(finished_run / RUN / "iter_01/rollout/dataset", "rollouts_01", SourceKind.rollout)
    assert once.seed.tolist() == rollouts.seed.tolist(), "episodes keep their noise, whatever states they begin in"
    assert len(set(rollouts.seed.tolist())) == 4
    first = rollouts.start
    assert (rollouts.state[first[0]] == rollouts.state[first[1]]).all()
    assert (rollouts.action[first[0]] != rollouts.action[first[1]]).any(), "each has its own noise"
    positive = read_labels(stage / "advantage/rollouts_01").lookup(rollouts.episode_index, rollouts.frame_index)
    for state in (0, 2):
        rows = np.isin(rollouts.episode, (state, state + 1))
        assert positive["indicator"][rows].mean() == pytest.approx(0.4, abs=1 / rows.sum())
    judged = {check["name"]: check for check in read(stage / "gate/gate.json")["checks"]}
    assert judged["positive_share"]["passed"], judged["positive_share"]["text"]


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
