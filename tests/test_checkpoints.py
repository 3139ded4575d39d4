"""Checkpoints on disk: lerobot reads what we save, and what is broken is refused by name."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from policy_helpers import VLM, act, chunk_noise, new_pi0, new_value, observation, weights
from safetensors.torch import save_file

from recap.policies.checkpoint import Checkpoint, read_config
from recap.policies.pi0.adapter import PI0Adapter
from recap.policies.pi0.modeling_pi0 import RecapPI0Config, RecapPI0Policy
from recap.policies.value.adapter import ValueAdapter
from recap.policies.value.modeling_value import RecapValuePolicy
from recap.utils.errors import RecapError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    checkpoint = new_pi0(seed=3)
    checkpoint.set_prompt(indicator=False, beta=1.5)
    checkpoint.save(folder)
    return folder


def test_lerobot_reads_what_we_save(saved: Path) -> None:
    original, noise = new_pi0(seed=3), chunk_noise(2)
    original.set_prompt(indicator=False, beta=1.5)
    expected = original.postprocess(act(original, observation(2), noise))
    assert torch.equal(original.postprocess(act(new_pi0(seed=4), observation(2), noise)), expected) is False

    config = PreTrainedConfig.from_pretrained(saved)
    assert (type(config), config.vlm, config.beta) == (RecapPI0Config, VLM, 1.5)
    policy = RecapPI0Policy.from_pretrained(saved)
    pre, post = make_pre_post_processors(config, str(saved))
    theirs = Checkpoint(PI0Adapter(), policy, pre, post)
    assert torch.equal(post(act(theirs, observation(2), noise)), expected)
    ours = Checkpoint.load(saved, PI0Adapter(), "cpu")
    assert torch.equal(ours.postprocess(act(ours, observation(2), noise)), expected)


def test_reading_leaves_nothing_in_the_temporary_folder(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = PreTrainedConfig.from_pretrained(saved)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert read_config(saved, PI0Adapter()) == theirs
    Checkpoint.load(saved, PI0Adapter(), "cpu")
    assert not [*tmp_path.iterdir()]


def test_value_function_roundtrip(tmp_path: Path) -> None:
    original = new_value(use_state=True)
    original.save(tmp_path)
    loaded = Checkpoint.load(tmp_path, ValueAdapter(), "cpu")
    batch = observation(3)
    assert torch.equal(loaded.policy.value(loaded.prepare(batch)), original.policy.value(original.prepare(batch)))
    theirs = RecapValuePolicy.from_pretrained(tmp_path)
    assert torch.equal(theirs.value(loaded.prepare(batch)), loaded.policy.value(loaded.prepare(batch)))


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        state = weights(folder)
        change(state)
        save_file(state, folder / "model.safetensors")

    return damage


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def other_kind(folder: Path) -> None:
    new_value().save(folder)


def half_config(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(file.read_text()[:200])


def no_such_key(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vison": 1}))


BIAS = "model.state_proj.bias"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_weights(lambda state: state.pop(BIAS)), f"missing {BIAS}"),
        (change_weights(lambda state: state.update(extra=torch.ones(1))), "unexpected extra"),
        (change_weights(lambda state: state.update({BIAS: torch.ones(5)})), r"has shape \(5,\), expected \(24,\)"),
        (change_weights(lambda state: state[BIAS].fill_(torch.nan)), f"NaN or infinite values in {BIAS}"),
        (truncate, "truncated or damaged"),
        (other_kind, "is a 'recap_value', not a 'recap_pi0' or lerobot's 'pi0'"),
        (half_config, r"config\.json is damaged"),
        (no_such_key, r"config\.json cannot be read"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json missing"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors missing"),
        (lambda folder: (folder / "policy_preprocessor.json").unlink(), "processors cannot be read"),
        (shutil.rmtree, "there is no such folder"),
    ],
)
def test_bad_checkpoints(saved: Path, tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    damage(folder)
    with pytest.raises(RecapError, match=message) as caught:
        Checkpoint.load(folder, PI0Adapter(), "cpu")
    assert str(folder) in str(caught.value)
    assert "Fix: " in str(caught.value)
