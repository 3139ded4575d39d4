"""Checkpoints that our training did not write, or that hold adapters alone: read and run as the README says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from policy_helpers import CAMERAS, act, chunk_noise, new_pi0, new_value, observation, take_for_full_size, weights
from tiny_run import ROOT, Outcome, read, run

from recap.config import EvalJob, typed
from recap.export import export
from recap.pipeline.commands import checkpoint_folder
from recap.pipeline.graph import evaluation, train_policy
from recap.pipeline.starts import start_needs, start_problems
from recap.policies.checkpoint import Checkpoint
from recap.policies.folder import ADAPTER_CONFIG, PREPROCESSOR, WEIGHTS, checkpoint_of
from recap.policies.pi0 import lora as adapters
from recap.policies.pi0.adapter import PI0Adapter
from recap.policies.pi0.config import PI0Config
from recap.policies.sizes import Trained
from recap.rollout.config import Prompt
from recap.rollout.worker import EnvFacts
from recap.stages.simulate import check_robot, warn_of_prompt
from recap.utils.errors import RecapError

SMALL = ["experiment=demo_small", "name=here", "env.max_steps=6", "workers.num_workers=1", "workers.num_envs=2"]
SMALL += ["policy.n_action_steps=3", "policy.num_inference_steps=2", "launcher=inline", "tracking=local"]
IMAGE = (64, 64)  # of the embedded task
ROBOT = EnvFacts(fps=10, cameras=CAMERAS, state_dim=8, action_dim=7)


def evaluate(cwd: Path, checkpoint: str, *options: str) -> Outcome:
    return run("eval", *SMALL, f"checkpoint={checkpoint}", "episodes=2", "eval.videos=0", *options, cwd=cwd)


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """A small policy that is taken for one of lerobot's size, saved as `ours`."""
    checkpoint = new_pi0(seed=1, image=IMAGE)
    take_for_full_size(checkpoint, monkeypatch)
    checkpoint.save(tmp_path / "ours")
    return checkpoint


def actions(checkpoint: Checkpoint) -> torch.Tensor:
    """What it does for one batch of observations in the environment's names."""
    return checkpoint.postprocess(act(checkpoint, observation(2, image=IMAGE), chunk_noise(2)))


def loaded(folder: Path) -> Checkpoint:
    return Checkpoint.load(folder, PI0Adapter(), "cpu")


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# ---------------------------------------------------------------------------------------------------- lerobot's
def test_eval_runs_a_pi0_of_lerobot(ours: Checkpoint, tmp_path: Path) -> None:
    """`eval.py checkpoint=<a folder of lerobot's π0> eval.prompt=none`, where lerobot-train leaves it."""
    plain = tmp_path / "theirs/checkpoints/000100/pretrained_model"
    plain.parent.mkdir(parents=True)
    export(tmp_path / "ours", plain, Prompt.none)
    (tmp_path / "theirs/checkpoints/last").symlink_to("000100")
    assert read(plain / "config.json")["type"] == "pi0"
    done = evaluate(tmp_path, "theirs", "eval.prompt=none")
    assert done.code == 0, done.err
    assert "warning" not in done.err
    result = read(tmp_path / "outputs/here/eval/theirs_last/result.json")
    assert (result["n"], result["prompt"], result["beta"]) == (2, "none", 1.0)
    assert result["checkpoint"] == str(tmp_path / "theirs/checkpoints/last/pretrained_model")

    ours.set_prompt(None)
    expected = actions(ours)
    check_robot(again := loaded(plain), ROBOT)
    assert torch.equal(actions(again), expected), "until told otherwise it says what it said"
    ours.set_prompt(True)
    assert not torch.equal(actions(ours), expected), "the comparison would be empty"


def test_an_exported_policy_says_the_indicator_once(ours: Checkpoint, tmp_path: Path) -> None:
    baked = loaded(export(tmp_path / "ours", tmp_path / "baked"))
    for indicator in (True, False, None):
        ours.set_prompt(indicator)
        if indicator is not True:  # it is told so by its own tokenizer
            baked.set_prompt(indicator)
        assert torch.equal(actions(baked), actions(ours)), indicator


def test_other_names_and_cameras_that_are_not_there(ours: Checkpoint, tmp_path: Path) -> None:
    """A base model's names for the robot's cameras, and a placeholder for a camera that it has not: all of lerobot."""
    folder = export(tmp_path / "ours", tmp_path / "plain", Prompt.none)
    names = {key: f"observation.images.{i}_rgb" for i, key in enumerate(CAMERAS)}

    def rename(config: dict[str, Any]) -> None:
        features = config["input_features"]
        config["input_features"] = {names.get(key, key): feature for key, feature in features.items()}
        config["empty_cameras"] = 1

    edit(folder / "config.json", rename)
    with pytest.raises(RecapError, match=r"was trained with camera observation\.images\.0_rgb, the environment has"):
        check_robot(loaded(folder), ROBOT)
    edit(folder / "policy_preprocessor.json", lambda c: c["steps"][0]["config"].update(rename_map=names))
    renamed = loaded(folder)
    check_robot(renamed, ROBOT)
    ours.set_prompt(None)
    assert torch.equal(actions(renamed), actions(ours))
    assert [*renamed.policy.config.image_features] == [*names.values()]
    assert "observation.images.empty_camera_0" in renamed.policy.config.input_features, "as lerobot has it"


def test_relative_actions_are_made_absolute(ours: Checkpoint, tmp_path: Path) -> None:
    folder = export(tmp_path / "ours", tmp_path / "plain", Prompt.none)
    relative = {"registry_name": "relative_actions_processor", "config": {"enabled": True, "exclude_joints": []}}
    edit(folder / "policy_preprocessor.json", lambda c: c["steps"].insert(-1, relative))
    absolute = {"registry_name": "absolute_actions_processor", "config": {"enabled": True}}
    edit(folder / "policy_postprocessor.json", lambda c: c["steps"].insert(1, absolute))
    ours.set_prompt(None)
    state = observation(2, image=IMAGE)["observation.state"][:, None, :7]
    torch.testing.assert_close(actions(loaded(folder)), actions(ours) + state, atol=1e-6, rtol=0)


def test_a_policy_that_never_saw_an_indicator_is_not_told_one_unseen(
    ours: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = export(tmp_path / "ours", tmp_path / "plain", Prompt.none)
    warn_of_prompt(loaded(plain), plain, "eval", Prompt.none)
    warn_of_prompt(loaded(tmp_path / "ours"), plain, "eval", Prompt.positive)
    assert capsys.readouterr().err == ""
    warn_of_prompt(loaded(plain), plain, "eval", Prompt.positive)
    assert capsys.readouterr().err == (
        f"warning: {plain} was trained without an indicator, but is prompted 'positive'. "
        "eval.prompt=none gives it the prompts that it knows.\n"
    )


@pytest.mark.parametrize("kind", ["pi05", "pi0_fast", "act", "smolvla", "recap_value"])
def test_what_cannot_act_here_says_what_can(kind: str, tmp_path: Path) -> None:
    new_value().save(tmp_path)
    edit(tmp_path / "config.json", lambda c: c.update(type=kind))
    says = rf"checkpoint={tmp_path}: is a '{kind}', not a 'recap_pi0' or lerobot's 'pi0'\. Fix: name a policy of a run"
    with pytest.raises(RecapError, match=says):
        checkpoint_folder(str(tmp_path), PI0Config)
    with pytest.raises(RecapError, match=rf"is a '{kind}', not a 'recap_pi0' or"):
        loaded(tmp_path)
    with pytest.raises(RecapError, match=rf"policy\.pretrained={tmp_path}: is a '{kind}'"):
        new_pi0(pretrained=str(tmp_path))


def test_a_training_stands_for_its_newest_checkpoint(ours: Checkpoint, tmp_path: Path) -> None:
    """Also as what another starts from."""
    step = tmp_path / "run/sft/checkpoints/0000006"
    shutil.copytree(tmp_path / "ours", step)
    (step.parent / "last").symlink_to(step.name)
    assert checkpoint_of(tmp_path / "run/sft").resolve() == step
    started = new_pi0(seed=5, image=IMAGE, pretrained=str(tmp_path / "run/sft"))
    assert torch.equal(actions(started), actions(ours))


# ---------------------------------------------------------------------------------------------------- adapters
@pytest.fixture
def lora(ours: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """Adapters that change something, on the weights in `ours`, saved as `lora`; started from a relative name."""
    monkeypatch.chdir(tmp_path)
    adapted = new_pi0(image=IMAGE, pretrained="ours", trainable=Trained.lora, lora_rank=2)
    with torch.no_grad():
        for name, parameter in adapted.policy.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    adapted.save(tmp_path / "lora")
    return adapted


def test_eval_runs_adapters(lora: Checkpoint, ours: Checkpoint, tmp_path: Path) -> None:
    assert not (tmp_path / "lora" / WEIGHTS).exists()
    (tmp_path / "elsewhere").mkdir()
    done = evaluate(tmp_path / "elsewhere", "../lora")
    assert done.code == 0, done.err
    assert read(tmp_path / "elsewhere/outputs/here/eval/lora/result.json")["n"] == 2
    again = actions(loaded(tmp_path / "lora"))
    torch.testing.assert_close(again, actions(lora), atol=1e-5, rtol=0)
    assert (again - actions(ours)).abs().max() > 1e-3


def test_adapters_are_exported_and_started_from(lora: Checkpoint, tmp_path: Path) -> None:
    plain = export(tmp_path / "lora", tmp_path / "plain")
    torch.testing.assert_close(actions(loaded(plain)), actions(lora), atol=1e-4, rtol=0)
    assert weights(plain).keys() == adapters.merged(lora.policy).keys()
    started = new_pi0(image=IMAGE, pretrained="lora", trainable=Trained.lora, lora_rank=2)
    torch.testing.assert_close(actions(started), actions(lora), atol=1e-5, rtol=0)
    with pytest.raises(
        RecapError, match=r"policy\.lora_rank=4: the adapters in lora have rank 2\. Fix: policy\.lora_rank=2"
    ):
        new_pi0(image=IMAGE, pretrained="lora", trainable=Trained.lora, lora_rank=4)


def test_before_the_first_stage(lora: Checkpoint, demo: EvalJob) -> None:
    """What preflight is told of checkpoints: what is wrong with them, and what of the hub they need."""
    demo = replace(demo, checkpoint="lora", policy=replace(demo.policy, pretrained="lora", trainable=Trained.lora))
    acts, trains = [evaluation(demo, 0)], [train_policy(demo, 0)]
    both = [*acts, *trains]
    assert [*start_problems(demo, both)] == []
    assert [*start_needs(demo, both)] == []
    demo.policy.trainable = Trained.all
    assert [*start_problems(demo, acts)] == []
    (problem,) = start_problems(demo, trains)
    assert problem == (
        "policy.pretrained=lora: holds adapters, but policy.trainable=all. "
        "Fix: policy.trainable=lora, or start from a checkpoint without."
    )
    edit(Path("lora") / ADAPTER_CONFIG, lambda c: c.update(base_model_name_or_path="lerobot/pi0_base"))
    plain = export(Path("ours"), Path("plain"), Prompt.none)
    (plain / "tokenizer.json").unlink()
    edit(plain / PREPROCESSOR, lambda c: c["steps"][3]["config"].update(tokenizer_name="google/paligemma-3b-pt-224"))
    demo = replace(demo, checkpoint="plain")
    needed = {need.key: (need.name, need.instead) for need in start_needs(demo, both)}
    assert needed == {
        "the base of policy.pretrained": (
            "lerobot/pi0_base",
            f"write the folder that holds them as base_model_name_or_path in lora/{ADAPTER_CONFIG}",
        ),
        "the tokenizer of checkpoint": (
            "google/paligemma-3b-pt-224",
            "copy its tokenizer.json and tokenizer_config.json to plain",
        ),
    }
    demo.policy.pretrained = "nobody/nothing"
    assert [need.name for need in start_needs(demo, trains)] == ["nobody/nothing"]


@pytest.fixture(scope="module")
def demo() -> EvalJob:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return typed(compose("eval", ["experiment=demo_small", "checkpoint=x"]), EvalJob)


def test_weights_below_adapters_that_are_gone(lora: Checkpoint, tmp_path: Path) -> None:
    """The message's advice works: the folder written into the file."""
    shutil.move(tmp_path / "ours", tmp_path / "moved")
    file = Path("lora") / ADAPTER_CONFIG
    says = (
        rf"{file}: it adapts the weights in {tmp_path / 'ours'}, where no model\.safetensors is\. Fix: write the folder"
    )
    with pytest.raises(RecapError, match=says):
        checkpoint_folder("lora", PI0Config)
    edit(file, lambda c: c.update(base_model_name_or_path=str(tmp_path / "moved")))
    torch.testing.assert_close(actions(loaded(tmp_path / "lora")), actions(lora), atol=1e-5, rtol=0)
