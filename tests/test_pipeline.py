"""The run directory as an interface: what a run leaves, what running again does, and commands by hand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from tiny_run import ROOT, RUN, STAGES, TINY, read, results, run, snapshot, summary, tiny

from recap.storage.manifest import own_files

BY_HAND = {  # every stage of the loop but demonstrations, values and gate, which train.py and advantage.py see to
    "sft": ("train", "policy=pi0", "stage=sft"),
    "sft/eval": ("eval", f"checkpoint={RUN}/sft/checkpoints/last"),
    "value": ("train", "policy=value", "stage=sft"),
    "iter_01/rollout": ("eval", f"checkpoint={RUN}/sft/checkpoints/last", "record=true"),
    "iter_01/value": ("train", "policy=value", "data=moka+rollouts", "stage=finetune"),
    "iter_01/advantage": ("advantage", "data=moka+rollouts"),
    "iter_01/policy": ("train", "policy=pi0", "data=moka+rollouts", "stage=finetune"),
    "iter_01/eval": ("eval", f"checkpoint={RUN}/iter_01/policy/checkpoints/last", "episodes=4", "record=false"),
}


# ---------------------------------------------------------------------------------------------------- what a run leaves
def test_every_stage_explains_itself(finished_run: Path) -> None:
    for stage in STAGES:
        folder = finished_run / RUN / stage
        config, manifest = yaml.safe_load((folder / "config.yaml").read_text()), read(folder / "manifest.json")
        assert config["seed"] == manifest["seed"] == 0
        assert manifest["stage"] == stage
        assert manifest["outputs"], stage
        assert manifest["wall_seconds"] > 0
        assert manifest["versions"]["torch"] == version("torch")
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|None", str(manifest["git_commit"]))
        for entry in manifest["inputs"].values():
            assert (folder / entry["path"] / "manifest.json").is_file(), "paths are relative to the stage"
        assert (folder / "log.txt").read_text().strip()
    inputs = {stage: set(read(finished_run / RUN / stage / "manifest.json")["inputs"]) for stage in STAGES}
    assert inputs["demonstrations"] == set()
    assert inputs["sft"] == inputs["value"] == {"demonstrations"}
    assert inputs["iter_01/value"] == {"pretrained", "demonstrations", "rollouts_01"}
    assert inputs["iter_01/policy"] == {"pretrained", "demonstrations", "rollouts_01", "labels", "gate"}


def test_the_layout_is_the_documented_one(finished_run: Path) -> None:
    run_dir = finished_run / RUN
    assert {path.name for path in run_dir.iterdir()} == {
        *("config.yaml", "summary.json", "report.html", ".report", "best"),
        *("demonstrations", "sft", "value", "iter_01"),
    }
    for training, steps in {"sft": 6, "value": 4, "iter_01/value": 4, "iter_01/policy": 4}.items():
        checkpoints = run_dir / training / "checkpoints"
        assert (checkpoints / "last").readlink() == Path(f"{steps:07d}"), "relative, so that a run can be moved"
        assert (checkpoints / "last" / "model.safetensors").is_file()
        records = (run_dir / training / "metrics.jsonl").read_text().splitlines()
        assert len(records) == steps
    for recording, count in {"demonstrations": 3, "iter_01/rollout": 4}.items():
        assert read(run_dir / recording / "dataset/meta/info.json")["total_episodes"] == count
        assert not (run_dir / recording / "episodes").exists()
    for evaluation in ("sft/eval", "iter_01/eval"):
        result = read(run_dir / evaluation / "result.json")
        assert [episode["index"] for episode in result["episodes"]] == [0, 1, 2, 3]
    both = [read(run_dir / evaluation / "result.json") for evaluation in ("sft/eval", "iter_01/eval")]
    states = [[episode["initial_state"] for episode in result["episodes"]] for result in both]
    assert states[0] == states[1], "the same held-out initial states before and after"
    labels = run_dir / "iter_01/advantage"
    assert (labels / "thresholds.json").is_file()
    for name in ("demonstrations", "rollouts_01"):
        assert {path.name for path in (labels / name).iterdir()} == {"advantages.parquet", "advantages.json"}
    assert not [path for path in run_dir.rglob("*") if path.name.endswith(".tmp")]
    told = read(run_dir / "summary.json")
    assert set(told["wall_seconds"]) == set(STAGES)
    assert [policy["eval"]["episodes"] for policy in told["policies"]] == [4, 4]
    assert "<html" in (run_dir / "report.html").read_text()


@pytest.mark.parametrize("entry", ["train", "eval", "advantage", "loop"])
def test_the_demo_composes_for_every_entrypoint(entry: str, tmp_path: Path) -> None:
    shown = run(entry, "experiment=demo", "--cfg", "job", cwd=tmp_path)
    assert shown.code == 0
    assert yaml.safe_load(shown.out)["data"]["demonstrator"]["episodes"] == 200


# ---------------------------------------------------------------------------------------------------- again
def test_running_again_does_nothing_and_at_once(work: Path) -> None:
    before, began = snapshot(work), time.monotonic()
    command = [sys.executable, str(ROOT / "loop.py"), *TINY, "+iterations=1"]
    again = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 0, again.stderr
    assert snapshot(work) == before
    assert again.stdout.count("  kept") == len(STAGES)
    assert "iteration 1" in again.stdout, "the table is shown again"
    assert time.monotonic() - began < 15, "no torch for finished stages"


def test_another_configuration_is_told_and_changes_nothing(work: Path) -> None:
    before = snapshot(work)
    seen = tiny("loop", "+iterations=1", "value.finetune.learning_rate=0.5", "rollout.episodes=5", cwd=work)
    assert seen.code == 1
    assert re.search(r"value\.finetune\.learning_rate: \S+ -> 0\.5\n", seen.err)
    assert "rollout.episodes: 4 -> 5" in seen.err
    assert "name=<another>" in seen.err
    assert snapshot(work) == before


def test_more_workers_and_another_launcher_are_the_same_run(work: Path) -> None:
    before = snapshot(work)
    assert tiny("loop", "+iterations=1", "workers.num_workers=1", "launcher=local", "device=cpu", cwd=work).code == 0
    assert snapshot(work) == before


def test_a_lost_report_is_written_again(work: Path) -> None:
    before = (work / RUN / "summary.json").read_bytes()
    (work / RUN / "report.html").unlink()
    (work / RUN / "summary.json").write_text("{")
    assert tiny("loop", "+iterations=1", cwd=work).code == 0
    assert (work / RUN / "summary.json").read_bytes() == before
    assert (work / RUN / "report.html").is_file()


def test_more_iterations_continue(work: Path) -> None:
    before = snapshot(work / RUN)
    seen = tiny("loop", "iterations=2", cwd=work)
    assert seen.code == 0, seen.err
    after = snapshot(work / RUN)
    assert {name for name, state in before.items() if after[name] != state} == {"summary.json", "report.html"}
    told = read(work / RUN / "summary.json")
    assert [policy["iteration"] for policy in told["policies"]] == [0, 1, 2]
    assert [policy["data"]["rollouts"] for policy in told["policies"]] == [0, 4, 8], "data is appended"
    assert set(read(work / RUN / "iter_02/policy/manifest.json")["inputs"]) == {
        *("pretrained", "demonstrations", "rollouts_01", "rollouts_02", "labels", "gate"),
    }
    first, second = (read(work / RUN / f"iter_0{k}/rollout/dataset/meta/recap.json")["episodes"] for k in (1, 2))
    assert not {e["initial_state"] for e in first} & {e["initial_state"] for e in second}
    settled = snapshot(work)
    assert tiny("loop", "+iterations=2", cwd=work).code == 0
    assert snapshot(work) == settled


def test_a_moved_run_is_still_finished(work: Path) -> None:
    (work / RUN).rename(work / "elsewhere")
    before = snapshot(work)
    assert tiny("loop", "+iterations=1", "output=elsewhere", cwd=work).code == 0
    assert snapshot(work) == before


# ---------------------------------------------------------------------------------------------------- by hand
def test_after_the_loop_every_command_finds_its_stage(work: Path) -> None:
    before = snapshot(work)
    for stage, (entry, *overrides) in BY_HAND.items():
        seen = tiny(entry, *overrides, cwd=work)
        assert seen.code == 0, seen.err
        assert f"── {stage}  kept" in seen.out
    assert snapshot(work) == before


def test_stages_by_hand_make_what_the_loop_makes(finished_run: Path, work: Path) -> None:
    made = [stage for stage in BY_HAND if stage not in ("sft", "sft/eval")]
    shutil.rmtree(work / RUN / "iter_01")
    shutil.rmtree(work / RUN / "value")
    for stage in made:
        entry, *overrides = BY_HAND[stage]
        seen = tiny(entry, *overrides, cwd=work)
        assert seen.code == 0, f"{stage}: {seen.err}"
        assert f"── {stage}  done" in seen.out
    assert results(work / RUN) == results(finished_run / RUN)
    of_stages = {name: seen for name, seen in snapshot(work).items() if Path(name).parent != RUN}
    assert tiny("loop", "+iterations=1", cwd=work).code == 0
    assert of_stages.items() <= snapshot(work).items(), "the loop finds all of them"
    assert summary(work / RUN) == summary(finished_run / RUN)


def test_training_by_hand_claims_the_run(work: Path) -> None:
    before = snapshot(work)
    other = ["rollout.beta=1.5", "policy.indicator_dropout=0.5"]
    seen = tiny("train", "policy=pi0", "stage=finetune", "iteration=2", *other, cwd=work)
    assert seen.code == 1
    assert "rollout.beta: 1.0 -> 1.5" in seen.err
    assert snapshot(work) == before


def test_other_values_by_hand_go_elsewhere(work: Path) -> None:
    before = snapshot(work)
    checkpoint = f"checkpoint={RUN}/iter_01/policy/checkpoints/last"
    refused = tiny("eval", checkpoint, "eval.prompt=negative", cwd=work)
    assert refused.code == 1
    assert "eval.prompt: positive -> negative" in refused.err
    seen = tiny("eval", checkpoint, "eval.prompt=negative", "episodes=1", "result=other/negative", cwd=work)
    assert seen.code == 0, seen.err
    result = read(work / "other/negative/result.json")
    assert (result["prompt"], result["n"]) == ("negative", 1)
    swept = tiny("eval", checkpoint, "eval.beta=1.5,2", "-m", cwd=work)
    assert swept.code == 0, swept.err
    assert [read(work / RUN / f"eval.beta={beta}/result.json")["beta"] for beta in ("1.5", "2")] == [1.5, 2.0]
    same_place = tiny("eval", f"checkpoint={RUN}/sft", "episodes=1", "result=other/negative", cwd=work)
    assert same_place.code == 1
    assert "result=<another directory>" in same_place.err
    pickier = ["advantage.positive_fraction=0.1", "result=other/pickier", f"checkpoint={RUN}/value/checkpoints/last"]
    seen = tiny("advantage", "data=moka+rollouts", *pickier, cwd=work)
    assert seen.code == 0, seen.err
    assert read(work / "other/pickier/thresholds.json")["wanted_positive"] == 0.1
    assert (work / "other/pickier_values/manifest.json").is_file(), "another value function was asked"
    relabelled = ["advantage.n_step=3", "result=other/n3"]
    seen = tiny("advantage", "data=moka+rollouts", *relabelled, cwd=work)
    assert seen.code == 0, seen.err
    assert "iter_01/value_inference  kept" in seen.out, "new labels need no network"
    assert read(work / "other/n3/thresholds.json")["n_step"] == 3
    assert before.items() <= snapshot(work).items()


def test_a_checkpoint_from_elsewhere(work: Path) -> None:
    shutil.copytree(work / RUN / "sft/checkpoints/last", work / "downloaded")
    seen = run("eval", *TINY, "name=fresh", "checkpoint=downloaded", "episodes=1", cwd=work)
    assert seen.code == 0, seen.err
    result = work / "outputs/fresh/eval/downloaded"
    assert read(result / "result.json")["n"] == 1
    assert len(read(result / "manifest.json")["inputs"]["policy"]["sha256"]) == 64
    weights = work / "downloaded/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    seen = run("eval", *TINY, "name=fresh", "checkpoint=downloaded", "episodes=1", cwd=work)
    assert seen.code == 1, "another checkpoint has another result"
    assert f"{result.relative_to(work)} was made from another {work}/downloaded than there is now" in seen.err


# ---------------------------------------------------------------------------------------------------- inputs
def test_a_stage_made_again_alike_leaves_the_rest(work: Path) -> None:
    shutil.rmtree(work / RUN / "iter_01/rollout")
    seen = tiny("loop", "+iterations=1", cwd=work)
    assert seen.code == 0, seen.err
    assert (seen.out.count("  kept"), seen.out.count("  done")) == (len(STAGES) - 1, 1)


def test_a_stage_made_from_other_inputs_is_refused(work: Path) -> None:
    path = work / RUN / "value/manifest.json"
    manifest = read(path)
    manifest["outputs"]["normalizers.json"]["sha256"] = sha256(b"{}").hexdigest()
    manifest["outputs"]["normalizers.json"]["bytes"] = 2
    (work / RUN / "value/normalizers.json").write_bytes(b"{}")
    path.write_text(json.dumps(manifest))  # as if the value function had been trained anew, to something else
    before = snapshot(work)
    seen = tiny("loop", "+iterations=1", cwd=work)
    assert seen.code == 1
    assert f"{RUN}/iter_01/value was made from another value" in seen.err
    assert snapshot(work) == before


@pytest.mark.parametrize("name", ["thresholds.json", "rollouts_01/advantages.parquet"])
def test_epsilon_goes_by_file(work: Path, name: str) -> None:
    shutil.rmtree(work / RUN / "iter_01/policy")
    (work / RUN / "iter_01/advantage" / name).unlink()
    before = snapshot(work)
    seen = tiny("train", "policy=pi0", "data=moka+rollouts", "stage=finetune", cwd=work)
    assert seen.code == 1
    assert f"iter_01/advantage/{name} is missing" in seen.err
    assert "`python advantage.py iteration=1`" in seen.err
    assert snapshot(work) == before
    shutil.rmtree(work / RUN / "iter_01/advantage")
    before = snapshot(work)
    seen = tiny("train", "policy=pi0", "data=moka+rollouts", "stage=finetune", cwd=work)
    assert "iter_01/policy needs iter_01/advantage" in seen.err
    assert "`python advantage.py iteration=1`" in seen.err
    assert snapshot(work) == before


def test_a_stage_inside_that_is_in_the_queue_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    (tmp_path / "eval/job").mkdir(parents=True)
    (tmp_path / "eval/job/jobs.jsonl").write_text("{}")
    assert own_files(tmp_path) == [tmp_path / "result.json"]
