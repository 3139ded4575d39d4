"""The training loop: what is in a batch, exact resume, checkpoints, and the same losses on one process and on two."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import EPISODES, make_episode
from policy_helpers import CHUNK, new_pi0, new_value, pi0_size, settings, weights

from recap.data.augment import shift_images
from recap.data.config import EpisodeFilter
from recap.data.frames import Frames, load_frames
from recap.data.lerobot_writer import assemble, write_episode
from recap.data.mixture import Mixture
from recap.data.tensors import tensors
from recap.method.config import SourceKind
from recap.policies.batches import policy_batches
from recap.policies.checkpoint import Checkpoint
from recap.policies.pi0.adapter import PI0Adapter
from recap.policies.value.batches import value_batches
from recap.training.config import OPTIMIZER, IndicatorMode, TrainConfig
from recap.training.loop import train
from recap.training.optim import learning_rate
from recap.utils.errors import RecapError

SEED = 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[Frames]:
    """Demonstrations (33 frames), and rollouts of which two failed (50 frames)."""
    folder = tmp_path_factory.mktemp("data")
    demonstrations = [make_episode(i, n, source="demonstration") for i, n in enumerate((20, 13))]
    for name, episodes in (("demonstration", demonstrations), ("rollout", EPISODES)):
        for episode in episodes:
            write_episode(folder / name / "episodes", episode)
        assemble(folder / name / "episodes", folder / name / "dataset", fps=10, source=name)
    kinds = (SourceKind.demonstration, SourceKind.rollout)
    return [load_frames(folder / kind.name / "dataset", f"{kind.name}s", kind) for kind in kinds]


@pytest.fixture(scope="module")
def batches(data: list[Frames]) -> Callable[[int], dict[str, Any]]:
    return policy_batches(Mixture(data, 0.5), pi0_size(), settings(), SEED, None)


def records(out: Path) -> list[dict[str, float]]:
    """metrics.jsonl without the only number that depends on the clock."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "samples_per_second"} for line in lines]


def steps_kept(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


# ---------------------------------------------------------------------------------------------------- batches
def test_demonstrations_have_their_exact_share(data: list[Frames]) -> None:
    for share, size in ((0.5, 8), (0.25, 32), (0.3, 32), (0.01, 32), (1.0, 8), (0.0, 8)):
        for order in (data, data[::-1]):
            mixture, drawn = Mixture(order, share), 0
            for step in range(20):
                kinds = [order[source].kind for source in mixture.pick(SEED, step, size).source]
                drawn += kinds.count(SourceKind.demonstration)
                assert abs(drawn - share * size * (step + 1)) <= 0.5, "to within half a sample, after every batch"
    assert set(Mixture(data[1:], 0.5).pick(SEED, 0, 8).source) == {0}, "without demonstrations all is experience"


def test_every_frame_is_as_likely_as_the_others_of_its_side(data: list[Frames]) -> None:
    mixture = Mixture(data, 0.5)
    picked = [mixture.pick(SEED, step, 100) for step in range(200)]
    source, frame = (np.concatenate(column) for column in zip(*((p.source, p.frame) for p in picked), strict=True))
    for number, frames in enumerate(data):
        counts = np.bincount(frame[source == number], minlength=len(frames))
        assert len(counts) == len(frames)
        expected = 10_000 / len(frames)
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_outcomes_success_leaves_failed_rollouts_out(data: list[Frames]) -> None:
    def failed(outcomes: EpisodeFilter) -> int:
        mixture = Mixture(data, 0.5, outcomes)
        picked = [mixture.pick(SEED, step, 32) for step in range(20)]
        frames = np.concatenate([p.frame[p.source == 1] for p in picked])
        return int(np.sum(~data[1].success[data[1].episode_index[frames]]))

    assert failed(EpisodeFilter.success) == 0
    assert failed(EpisodeFilter.all) > 20


def test_batches_hold_the_frames_that_were_picked(data: list[Frames]) -> None:
    batches = policy_batches(Mixture(data, 0.5), pi0_size(), settings(random_shift=0), SEED, None)
    picked, batch = Mixture(data, 0.5).pick(SEED, 3, 8), batches(3)
    for row, (number, frame) in enumerate(zip(picked.source, picked.frame, strict=True)):
        source = data[number]
        episode = source.episode_index[frame]
        end = source.start[episode] + source.length[episode]
        assert batch["task"][row] == source.tasks[source.task_index[frame]]
        assert np.array_equal(batch["observation.state"][row], source.state[frame])
        assert np.array_equal(batch["observation.images.image"][row], source.images("observation.images.image")[frame])
        real = source.action[frame : min(frame + CHUNK, end)]
        assert np.array_equal(batch["action"][row, : len(real)], real)
        assert batch["action_is_pad"][row].tolist() == [frame + i >= end for i in range(CHUNK)]
    assert ((batch["time"] > 0) & (batch["time"] <= 1)).all()
    again = batches(3)
    assert all(np.array_equal(batch[key], again[key]) for key in batch)
    assert not np.array_equal(batch["noise"], batches(4)["noise"])


def test_shifted_images_are_whole_pictures_moved() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 9, 3), np.uint8)
    batch = {"observation.images.image": images, "observation.state": np.ones((40, 8))}
    shift_images(batch, 2, np.random.default_rng(1))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    moves = set()
    for row, found in enumerate(batch["observation.images.image"]):
        candidates = {(y, x): padded[row, y : y + 6, x : x + 9] for y in range(5) for x in range(5)}
        moves |= (own := {move for move, image in candidates.items() if np.array_equal(image, found)})
        assert len(own) == 1
    assert {y for y, _ in moves} == {x for _, x in moves} == set(range(5)), "every distance, in both directions"
    assert (batch["observation.state"] == 1).all()


def test_indicators_of_a_batch(data: list[Frames]) -> None:
    mixture, labels = Mixture(data, 0.5), [{"indicator": np.arange(len(frames)) % 3 == 0} for frames in data]

    def indicators(mode: IndicatorMode, dropout: float, step: int) -> list[bool | None]:
        size = pi0_size(indicator_dropout=dropout)
        return policy_batches(mixture, size, settings(indicator=mode), SEED, labels)(step)["indicator"]

    for step in range(5):
        picked = mixture.pick(SEED, step, 8)
        own = [bool(labels[s]["indicator"][f]) for s, f in zip(picked.source, picked.frame, strict=True)]
        assert indicators(IndicatorMode.use, 0.0, step) == own
        assert indicators(IndicatorMode.always_positive, 0.0, step) == [True] * 8
        assert indicators(IndicatorMode.positive_only, 0.0, step) == [True if positive else None for positive in own]
        assert indicators(IndicatorMode.ignore, 0.3, step) == [None] * 8
    given = [x for step in range(100) for x in indicators(IndicatorMode.always_positive, 0.3, step)]
    assert set(given) == {True, None}
    assert given.count(None) / len(given) == pytest.approx(0.3, abs=0.065)  # 4 standard deviations of 800 draws


def test_awr_weighs_the_frames_of_a_batch(data: list[Frames]) -> None:
    mixture = Mixture(data, 0.5)
    labels = [{"advantage": np.linspace(-0.2, 0.1, len(frames))} for frames in data]
    config = settings(indicator=IndicatorMode.ignore, awr_temperature=0.1)
    batch = policy_batches(mixture, pi0_size(), config, SEED, labels)(3)
    picked = mixture.pick(SEED, 3, config.batch_size)
    chosen = np.array([labels[s]["advantage"][f] for s, f in zip(picked.source, picked.frame, strict=True)])
    assert batch["weight"] / batch["weight"][0] == pytest.approx(np.exp((chosen - chosen[0]) / 0.1), rel=1e-5)
    plain = policy_batches(mixture, pi0_size(), replace(config, awr_temperature=None), SEED, labels)(3)
    policy = new_pi0()
    ones, doubled = ({**batch, "weight": np.full(config.batch_size, x, np.float32)} for x in (1, 2))
    losses = [float(policy.policy(policy.prepare(tensors(b)))[0].detach()) for b in (plain, ones, doubled)]
    assert losses[1:] == pytest.approx([losses[0], 2 * losses[0]])


def test_sure_labels_weigh_more_where_the_sample_shows_them(data: list[Frames]) -> None:
    labels = [{"advantage": np.linspace(-0.2, 0.2, len(one)), "epsilon": np.zeros(len(one))} for one in data]
    labels = [one | {"indicator": one["advantage"] > 0} for one in labels]
    config, mixture = settings(indicator=IndicatorMode.use, indicator_temperature=0.05), Mixture(data, 0.5)
    batch = policy_batches(mixture, replace(pi0_size(), indicator_dropout=0.5), config, SEED, labels)(3)
    sure, picked = [np.tanh(np.abs(one["advantage"]) / 0.1) for one in labels], mixture.pick(SEED, 3, 8)
    drawn = zip(batch["indicator"], picked.source, picked.frame, strict=True)
    expected = [1 if shown is None else sure[s][f] / np.concatenate(sure).mean() for shown, s, f in drawn]
    assert (0 < batch["indicator"].count(None) < 8, batch["weight"]) == (True, pytest.approx(expected, rel=1e-5))


def test_value_batches_bring_the_bin_of_their_frame(data: list[Frames]) -> None:
    bins = [np.arange(len(frames)) + 100 * number for number, frames in enumerate(data)]
    mixture = Mixture(data, 0.5)
    picked = mixture.pick(SEED, 2, 8)
    batch = value_batches(mixture, settings(), SEED, bins)(2)
    assert batch["return_bin"].tolist() == [f + 100 * s for s, f in zip(picked.source, picked.frame, strict=True)]
    assert "action" not in batch


def test_data_sets_that_do_not_mix(data: list[Frames], tmp_path: Path) -> None:
    write_episode(tmp_path / "episodes", make_episode(0, 5, success=False))
    failures = load_frames(
        assemble(tmp_path / "episodes", tmp_path / "dataset", fps=20, source="rollout"), "fast", SourceKind.rollout
    )
    with pytest.raises(RecapError, match=r"'demonstrations' and 'fast' do not mix: fps 10 and 20\. Fix"):
        Mixture([*data, failures], 0.5)
    with pytest.raises(RecapError, match="no frame to train on"):
        Mixture([failures], 0.5, EpisodeFilter.success)


def test_learning_rate() -> None:
    config = settings(steps=13, warmup_steps=3)
    rates = [learning_rate(config, step) / 1e-3 for step in range(14)]
    assert rates[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert rates[8] == pytest.approx(0.55)  # half-way down
    assert rates[13] == pytest.approx(0.1)
    assert rates[3:] == sorted(rates[3:], reverse=True)


# ---------------------------------------------------------------------------------------------------- training
@pytest.fixture(scope="module")
def uninterrupted(batches: Callable[[int], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    assert train(new_pi0(), batches, settings(), out, label="sft") == out / "checkpoints/last"
    return out


class Killed(BaseException):
    """Stands for the end of the process."""


def stop_at(batches: Callable[[int], Any], stop: int) -> Callable[[int], Any]:
    def until(step: int) -> Any:
        if step == stop:
            raise Killed
        return batches(step)

    return until


def test_training_learns_and_keeps_what_it_should(uninterrupted: Path) -> None:
    assert steps_kept(uninterrupted) == ["0000010", "last"]
    assert (uninterrupted / "checkpoints/last").readlink() == Path("0000010")
    assert not (uninterrupted / "checkpoints/last" / OPTIMIZER).exists(), "a finished training needs no optimiser state"
    lines = records(uninterrupted)
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 8, 9, 10]
    assert set(lines[0]) == {"step", "loss", "lr", "grad_norm"}
    before = new_pi0().policy.state_dict()
    after = Checkpoint.load(uninterrupted / "checkpoints/last", PI0Adapter(), "cpu").policy.state_dict()
    assert not torch.equal(before["model.state_proj.weight"], after["model.state_proj.weight"])


@pytest.mark.parametrize("stop", [2, 3, 7, 9])
def test_resumed_training_equals_the_uninterrupted_one(
    stop: int, batches: Callable[[int], Any], uninterrupted: Path, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        train(new_pi0(), stop_at(batches, stop), settings(), tmp_path, label="sft")
    saved = [step for step in (3, 6, 9) if step <= stop][-2:]
    if saved:
        assert steps_kept(tmp_path) == [*(f"{step:07d}" for step in saved), "last"]
        assert (tmp_path / "checkpoints/last").readlink() == Path(f"{saved[-1]:07d}")
        assert (tmp_path / "checkpoints/last" / OPTIMIZER).is_file()
    anew = new_pi0(seed=99 if saved else 0)  # all comes from the checkpoint, where there is one
    train(anew, batches, settings(), tmp_path, label="sft")
    assert records(tmp_path) == records(uninterrupted)
    expected, found = weights(uninterrupted / "checkpoints/last"), weights(tmp_path / "checkpoints/last")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert steps_kept(tmp_path) == steps_kept(uninterrupted)


def test_resume_after_a_kill_while_saving(batches: Callable[[int], Any], uninterrupted: Path, tmp_path: Path) -> None:
    """Whatever a kill leaves: half a new checkpoint, one without optimiser state, half-deleted old ones."""
    with pytest.raises(Killed):
        train(new_pi0(), stop_at(batches, 8), settings(), tmp_path, label="sft")
    folder = tmp_path / "checkpoints"
    (folder / ".0000009.tmp").mkdir()
    (folder / ".0000009.tmp/model.safetensors").write_bytes(b"half")
    (folder / ".0000003.old.tmp").mkdir()
    shutil.copytree(folder / "0000006", folder / "0000009")
    (folder / "0000009" / OPTIMIZER).unlink()
    (folder / "last").unlink()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "loss": 1.0, "lr": 1, "grad_norm": 1}\n{"step": 9, "lo')
    train(new_pi0(seed=99), batches, settings(), tmp_path, label="sft")
    assert records(tmp_path) == records(uninterrupted)
    assert steps_kept(tmp_path) == steps_kept(uninterrupted)
    expected, found = weights(uninterrupted / "checkpoints/last"), weights(tmp_path / "checkpoints/last")
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_finished_training_is_not_repeated(uninterrupted: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(uninterrupted, tmp_path / "copy", symlinks=True))
    (out / "checkpoints/last").unlink()  # killed before the link was made, and before the older one was deleted
    shutil.copytree(out / "checkpoints/0000010", out / "checkpoints/0000009")
    checkpoint = new_pi0(seed=99)
    last = train(checkpoint, stop_at(lambda step: {}, 0), settings(), out, label="sft")
    assert steps_kept(out) == ["0000010", "last"]
    assert records(out) == records(uninterrupted)
    saved = weights(last)
    assert all(torch.equal(saved[key], value) for key, value in checkpoint.policy.state_dict().items())


@pytest.mark.parametrize("name", [OPTIMIZER, "model.safetensors"])
def test_damaged_checkpoints_are_named(name: str, batches: Callable[[int], Any], tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(new_pi0(), stop_at(batches, 4), settings(), tmp_path, label="sft")
    file = tmp_path / "checkpoints/0000003" / name
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(RecapError, match=rf"0000003/{name}.*damaged.*Fix"):
        train(new_pi0(), batches, settings(), tmp_path, label="sft")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_no_number_ends_the_training(
    value: float, batches: Callable[[int], Any], tmp_path: Path
) -> None:
    def poisoned(step: int) -> dict[str, Any]:
        batch = batches(step)
        if step == 4:
            batch["action"] = np.full_like(batch["action"], value)
        return batch

    config = settings(log_every=100)
    with pytest.raises(RecapError, match=r"value sft: the loss is (nan|inf) at step 5\. Fix: lower learning_rate"):
        train(new_pi0(), poisoned, config, tmp_path, label="value sft")
    assert steps_kept(tmp_path) == ["0000003", "last"], "what was saved before stays"
    assert [line["step"] for line in records(tmp_path)] == [3]


def test_an_endless_gradient_is_not_saved(batches: Callable[[int], Any], tmp_path: Path) -> None:
    checkpoint = new_pi0()
    handle = checkpoint.policy.model.state_proj.weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(RecapError, match=r"the gradient is (nan|inf) at step 1\."):
        train(checkpoint, batches, settings(save_every=1), tmp_path, label="sft")
    handle.remove()
    assert not (tmp_path / "checkpoints").exists()


def test_the_value_function_learns_to_tell_frames_apart(data: list[Frames], tmp_path: Path) -> None:
    bins = [np.where(frames.task_index == 0, 3, 17) for frames in data]
    known = {field.name for field in fields(TrainConfig)}
    config = TrainConfig(**{k: v for k, v in vars(settings(steps=25)).items() if k in known})
    checkpoint = new_value()
    train(checkpoint, value_batches(Mixture(data, 0.5), config, SEED, bins), config, tmp_path, label="value")
    lines = records(tmp_path)
    assert lines[-1]["loss"] < 0.3 * lines[0]["loss"]


# ---------------------------------------------------------------------------------------------------- processes
@pytest.mark.slow
@pytest.mark.parametrize("policy", ["pi0", "value"])
def test_two_processes_train_as_one(policy: str, data: list[Frames], repository: Path, tmp_path: Path) -> None:
    """The entrypoint under torchrun: one run directory, and the losses of a single process at the same batch size."""
    role = "policy" if policy == "pi0" else "value"
    overrides = [
        f"policy={policy}",
        "stage=sft",
        "data=moka",
        "device=cpu",
        "data.demonstrator=null",
        f"+data.sources.mine.root={data[0].root}",
        f"{role}.sft.steps=6",
        f"{role}.sft.warmup_steps=1",
        f"{role}.sft.batch_size=9",  # the two do not even get the same number of rows
        f"{role}.sft.log_every=1",
        f"{role}.sft.save_every=4",
    ]
    runs = {}
    ways = {"one": (1, "none"), "two": (2, "none"), "fsdp": (2, "fsdp")}
    ways |= {"deepspeed": (2, "deepspeed")} if find_spec("deepspeed") else {}
    for way, (processes, sharding) in ways.items():
        out = tmp_path / way
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if processes == 2 else []
        train_py = [str(repository / "train.py"), *overrides, f"sharding={sharding}", f"output={out}"]
        environment = {**os.environ, "PYTHONPATH": str(repository), "DS_ACCELERATOR": "cpu"}
        done = subprocess.run(
            [sys.executable, *launcher, *train_py],
            capture_output=True,
            text=True,
            timeout=300,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        stage = out / ("sft" if policy == "pi0" else "value")
        assert (stage / "manifest.json").is_file()
        assert done.stdout.count("done in") == 1, done.stdout
        runs[way] = records(stage)
    for way in ways:
        assert [line["step"] for line in runs[way]] == [1, 2, 3, 4, 5, 6]
        for one, other in zip(runs["one"], runs[way], strict=True):
            assert other == pytest.approx(one, rel=2e-4), way
