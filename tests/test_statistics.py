"""Numbers that never move: bounded where they normalise, saved as lerobot reads them; and losses that teach nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import make_episode
from policy_helpers import ACTION, new_pi0, new_value, observation, settings, training_batch
from safetensors.torch import load_file, save_file
from tiny_run import run

from recap.data.lerobot_writer import Episode, assemble, write_episode
from recap.data.statistics import STILL, adopted, bounded, listed
from recap.policies.checkpoint import Checkpoint
from recap.policies.pi0.adapter import PI0Adapter
from recap.policies.processors import adopt
from recap.training.loop import ABSURD, train
from recap.utils import progress
from recap.utils.errors import RecapError

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"


def test_what_never_moves_is_divided_by_its_own_size() -> None:
    mean, std = np.array([0.04, 2048, -3, 0.1, 5]), np.array([0, 1e-6, 5e-5, 0.02, 300])
    stats, still = bounded("observation.state", {"mean": mean, "std": std, "count": 7})
    assert still.tolist() == [True, True, True, False, False]
    assert stats["std"] == pytest.approx([1, 2048, 3, 0.02, 300])
    assert stats["count"] == 7
    assert np.array_equal(stats["mean"], mean)
    again, now = bounded("observation.state", stats)
    assert np.array_equal(again["std"], stats["std"])
    assert not now.any(), "said once"


def test_an_action_that_never_moves_stays_what_it_was() -> None:
    stats, still = bounded("action", {"mean": np.array([0.1, 0, 0.2]), "std": np.array([0, 2e-5, 2e-4])})
    assert still.tolist() == [True, True, False]
    assert stats["std"] == pytest.approx([1e-4, 1e-4, 2e-4])
    assert not bounded("action", stats)[1].any()


@pytest.mark.parametrize(
    ("mode", "low", "high"), [("MIN_MAX", "min", "max"), ("QUANTILES", "q01", "q99"), ("QUANTILE10", "q10", "q90")]
)
def test_other_normalisations_keep_their_lower_end(mode: str, low: str, high: str) -> None:
    given = {low: np.array([0.5, -1, 4]), high: np.array([0.5, 1, 4.0001]), "std": np.zeros(3)}
    stats, still = bounded("observation.state", given, mode)
    assert still.tolist() == [True, False, True]
    assert stats[low].tolist() == [0.5, -1, 4]
    assert stats[high] == pytest.approx([2.5, 1, 12])
    assert stats["std"].tolist() == [0, 0, 0], "of another mode"
    assert bounded("observation.images.image", {"mean": np.zeros(3), "std": np.zeros(3)}, "IDENTITY")[1].size == 0


@pytest.mark.parametrize("name", ["mean", "std"])
def test_statistics_that_are_no_numbers_are_refused(name: str) -> None:
    stats = {"mean": np.zeros(2), "std": np.ones(2)} | {name: np.array([1, np.nan])}
    with pytest.raises(RecapError, match=rf"the {name} of action.*nan\]: not finite\. Fix"):
        bounded("action", stats)


def test_an_action_that_begins_to_move_takes_the_statistics_of_that_data() -> None:
    stats = {"mean": np.array([0, 1, 2]), "std": np.array([STILL, STILL, 0.5])}
    new, moves = adopted(stats, {"mean": np.array([3, 4, 5]), "std": np.array([0.2, 3e-4, 0.9])})
    assert moves.tolist() == [True, False, False], "3e-4 is what a policy's own noise makes of it"
    assert new["mean"].tolist() == [3, 1, 2]
    assert new["std"] == pytest.approx([0.2, 1e-4, 0.5])


def test_names_of_numbers() -> None:
    which = np.array([True, False, True])
    assert listed(which, ["x", "y", "z"]) == "x, z"
    assert listed(which, {"motors": ["x", "y", "z"]}) == "x, z"
    assert listed(which) == listed(which, ["x"]) == "number 0, number 2"
    assert listed(np.ones(14, bool)).endswith("number 11 and 2 more")


# ---------------------------------------------------------------------------------------------------- checkpoints
@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A checkpoint whose files say that one number of the state and one of the action have no spread."""
    folder = tmp_path / "foreign"
    new_pi0().save(folder)
    for file in folder.glob("*normalizer*.safetensors"):
        state = load_file(file)
        for key in ("observation.state", "action"):
            if f"{key}.std" in state:
                state[f"{key}.std"][2] = 0
        save_file(state, file)
    return folder


def stock(folder: Path) -> tuple[Any, Any]:
    """lerobot's own classes, filled from the files."""
    from lerobot.processor import NormalizerProcessorStep, UnnormalizerProcessorStep

    found = []
    for kind, name in ((NormalizerProcessorStep, PREPROCESSOR), (UnnormalizerProcessorStep, POSTPROCESSOR)):
        steps = json.loads((folder / name).read_text())["steps"]
        entry = next(step for step in steps if step.get("registry_name", "").endswith("normalizer_processor"))
        step = kind(**entry["config"])
        step.load_state_dict(load_file(folder / entry["state_file"]))
        found.append(step)
    return found[0], found[1]


def test_a_strangers_statistics_are_bounded_and_saved_so_that_lerobot_agrees(foreign: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(foreign, PI0Adapter(), "cpu")
    assert {key: np.flatnonzero(rows).tolist() for key, rows in checkpoint.still.items()} == {
        "observation.state": [2],
        "action": [2],
    }
    batch = observation(2)
    batch["observation.state"][:, 2] += 0.3  # a robot whose number stands elsewhere
    ours = checkpoint.prepare(batch)["observation.state"]
    assert ours.abs().max() < 10, "was 3e7"
    checkpoint.save(tmp_path / "saved")
    assert not Checkpoint.load(tmp_path / "saved", PI0Adapter(), "cpu").still, "said once"
    before, after = stock(tmp_path / "saved")
    theirs = before._normalize_observation({"observation.state": batch["observation.state"]}, inverse=False)
    torch.testing.assert_close(theirs["observation.state"], ours, rtol=0, atol=0)
    actions = torch.randn(4, ACTION, generator=torch.Generator().manual_seed(0))
    mine = checkpoint.postprocess(actions)
    torch.testing.assert_close(after._normalize_action(actions, inverse=True), mine, rtol=0, atol=0)
    assert (mine[:, 2] - mine[:, 2].mean()).abs().max() < 1e-3, "a constant action stays one"
    torch.testing.assert_close(before._normalize_action(mine, inverse=False), actions, rtol=1e-2, atol=1e-2)


def test_both_processors_adopt_what_moves_now(foreign: Path) -> None:
    checkpoint = Checkpoint.load(foreign, PI0Adapter(), "cpu")
    data = {"mean": np.full(ACTION, 0.7, np.float32), "std": np.full(ACTION, 0.2, np.float32)}
    moves = adopt((checkpoint.preprocess, checkpoint.postprocess), data)
    assert np.flatnonzero(moves).tolist() == [2]
    zero = checkpoint.postprocess(torch.zeros(1, ACTION))[0]
    assert zero[2] == pytest.approx(0.7)
    assert zero[1] != pytest.approx(0.7)
    prepared = checkpoint.prepare({**training_batch(2), "action": torch.full((2, 5, ACTION), 0.9)})
    assert prepared["action"][0, 0, 2] == pytest.approx(1.0, abs=1e-5)


# ---------------------------------------------------------------------------------------------------- training
FOUR = {"steps": 4, "batch_size": 2, "warmup_steps": 1, "save_every": 2, "random_shift": 0}


def batches(**changes: Callable[[np.ndarray], np.ndarray]) -> Callable[[int], dict[str, Any]]:
    """Batches of π0; changes: of `state` or `action`."""

    def batch(step: int) -> dict[str, Any]:
        made = {key: v.numpy() if isinstance(v, torch.Tensor) else v for key, v in training_batch(2, step).items()}
        made["task"] = list(made["task"])
        for name, change in changes.items():
            key = {"state": "observation.state"}.get(name, name)
            made[key] = change(made[key])
        return made

    return batch


def test_an_absurd_loss_ends_the_training_and_is_not_saved(tmp_path: Path) -> None:
    far = batches(action=lambda array: array * 1e4)
    says = r"pi0 sft: the loss is \S+e\+\d+ at step 1, .* Fix: action, number \d, lies \S+e\+\d+ standard deviations"
    with pytest.raises(RecapError, match=says):
        train(new_pi0(), far, settings(**FOUR), tmp_path, label="pi0 sft", key="policy.sft.")
    assert not (tmp_path / "checkpoints").exists()


def test_an_absurd_loss_within_a_log_window_is_found_before_the_checkpoint(tmp_path: Path) -> None:
    late = batches()

    def bad(step: int) -> dict[str, Any]:
        made = late(step)
        return made | {"action": made["action"] * 1e4} if step == 2 else made

    with pytest.raises(RecapError, match=r"at step 3, .* Fix: lower policy\.sft\.learning_rate \(0\.001\)"):
        train(new_pi0(), bad, settings(**FOUR), tmp_path, label="pi0 sft", key="policy.sft.")
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["0000002", "last"]


def test_an_absurd_value_loss(tmp_path: Path) -> None:
    policy = new_value()
    with torch.no_grad():
        policy.policy.head.bias[0] = 10 * ABSURD  # sure of the lowest bin

    def batch(step: int) -> dict[str, Any]:
        made = {key: v.numpy() if isinstance(v, torch.Tensor) else v for key, v in observation(2, step).items()}
        return {**made, "return_bin": np.array([20, 20])}

    says = r"value: the loss is 1e\+04 at step 1, .* Fix: lower value\.sft\.learning_rate"
    with pytest.raises(RecapError, match=says):
        train(policy, batch, settings(**FOUR, learning_rate=1e-9), tmp_path, label="value", key="value.sft.")


def test_a_usual_loss_of_data_ten_standard_deviations_away_goes_on(tmp_path: Path) -> None:
    far = batches(state=lambda x: x + 10.0, action=lambda x: x * 10)
    train(new_pi0(), far, settings(**FOUR), tmp_path, label="sft")
    assert (tmp_path / "checkpoints/last").is_dir()


def test_the_bar_shows_no_loss_before_one_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", -1.0)
    train(new_pi0(), batches(), settings(**FOUR), tmp_path, label="sft")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["sft: 1/4", "sft: 2/4", "sft: 3/4", "sft: 4/4"]
    assert "nan" not in "".join(lines)
    assert ["loss" in line for line in lines] == [False, True, True, True]


# ---------------------------------------------------------------------------------------------------- in a run
def test_a_training_says_which_numbers_never_move_and_what_it_imitates(tmp_path: Path) -> None:
    """A number of the state and one of the action stand still, one episode failed; then LoRA where all move."""
    for name, success in (("still", False), ("moving", True)):
        for index in range(2):
            episode = vars(make_episode(index, 12, success=success or index == 0, source="demonstration"))
            if name == "still":
                episode["state"][:, 3], episode["action"][:, 6] = 0.04, 0.1
            write_episode(tmp_path / name / "e", Episode(**episode))
        names = {"state_names": [f"s{i}" for i in range(8)], "action_names": [f"a{i}" for i in range(7)]}
        assemble(tmp_path / name / "e", tmp_path / name / "data", fps=10, source="demonstration", **names)

    def sft(name: str, *more: str) -> str:
        own = ["data.demonstrator=null", f"+data.sources.mine.root={name}/data", "device=cpu", f"output={name}/run"]
        steps = [f"policy.sft.{key}" for key in ("steps=2", "warmup_steps=1", "batch_size=2", "log_every=1")]
        seen = run("train", "data=moka", "policy=pi0", "stage=sft", *own, *steps, *more, cwd=tmp_path)
        assert seen.code == 0, seen.err
        return seen.out

    said = sft("still", 'env.tasks=["put the moka pot on the stove"]', "policy.tokenizer_max_length=40")
    assert "observation.state never moves in s3: normalised" in said
    assert "action never moves in a6: normalised" in said
    assert "1 failed episodes are imitated as 'positive'. Fix: policy.sft.indicator=use" in said
    pretrained = "policy.pretrained=still/run/sft/checkpoints/last"
    said = sft("moving", pretrained, "policy.trainable=lora", "policy.tokenizer_max_length=40")
    assert "action did not move before in a6, and does here: normalised by this data" in said
    assert "never moves" not in said
    losses = [json.loads(line)["loss"] for line in (tmp_path / "moving/run/sft/metrics.jsonl").read_text().splitlines()]
    assert max(losses) < 20, "was 2e15"
