"""`value.backbone=policy`: a value function that starts from what the SFT policy sees and reads with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate import init_empty_weights
from data_helpers import CAMERAS
from demo_keys import demo
from lerobot_helpers import EVERY, POLICIES, SMALL, demo_of, small
from policy_helpers import ACTION, STATE, STATS, chunk_noise, new_pi0, observation, pi0_size, value_size, weights
from test_config import LOOP, complaint, load
from test_lerobot_full_size import full, on_meta
from tiny_run import RUN, read, results, tiny
from toy_policy.config import ToyConfig

from recap.config import plain
from recap.config.checks import between
from recap.pipeline.graph import run_stages
from recap.pipeline.preflight import _memory, _needs
from recap.policies.adapter import features
from recap.policies.checkpoint import Checkpoint
from recap.policies.config import PolicyConfig
from recap.policies.memory import sample_bytes, weight_bytes
from recap.policies.pi0.modeling_pi0 import RecapPI0Config, RecapPI0Policy
from recap.policies.registry import adapter_of
from recap.policies.roles import Role
from recap.policies.value.adapter import ValueAdapter
from recap.policies.value.config import Start, ValueConfig
from recap.policies.value.modeling_value import RecapValueConfig, RecapValuePolicy
from recap.utils import device
from recap.utils.errors import RecapError

ALL = ("pi0", *POLICIES)
SPEC = features(dict.fromkeys(CAMERAS, (256, 256)), 8, 7)
STEM = replace(pi0_size().vision, patch_size=8, stem=4)  # as the small sizes of π0 have it
FULL = {"pi0": 2_923_749_305, "pi05": 2_923_749_305, "smolvla": 303_050_505}  # weights of its value function


def keys_of(policy: str) -> PolicyConfig:
    if policy == "pi0":
        return pi0_size(vision=STEM)
    return replace(demo_of(policy).policy, **{**EVERY, **SMALL[policy]})


def started(policy: str, folder: Path, **changes: Any) -> tuple[Checkpoint, Checkpoint]:
    """A policy, and a value function that starts from its checkpoint in the folder."""
    made = new_pi0(vision=STEM) if policy == "pi0" else small(policy)
    made.save(folder)
    keys = value_size(backbone=Start.policy, **changes).of(keys_of(policy), folder)
    model = adapter_of(keys).build(keys, features(dict.fromkeys(CAMERAS, (24, 24)), STATE, ACTION), "cpu")
    return made, Checkpoint.new(adapter_of(keys), model.eval(), STATS)


def lines(**changes: Any) -> list[str]:
    """What is wrong with the demo when its value function starts from the policy."""
    cfg = demo()
    return [*between(replace(cfg, value=replace(cfg.value, backbone=Start.policy), **changes))]


# ---------------------------------------------------------------------------------------------------- the network
@pytest.mark.parametrize("policy", ALL)
def test_its_weights_are_the_policys(policy: str, tmp_path: Path) -> None:
    """All of what sees and reads; the read-out token, the state's and the head are new."""
    _, value = started(policy, tmp_path, use_state=True)
    theirs, parts = weights(tmp_path), keys_of(policy).backbone(tmp_path).weights  # type: ignore[union-attr]
    new = {"read_out", "head.weight", "head.bias", "state_proj.weight", "state_proj.bias"}
    for name, ours in value.policy.state_dict().items():
        part = next((part for part in parts if name.startswith(f"{part}.")), None)
        assert (part is None) == (name in new), name
        assert part is None or torch.equal(ours, theirs[name.replace(part, parts[part], 1)]), name
    assert {name for name, parameter in value.policy.named_parameters() if not parameter.requires_grad} == set()


@pytest.mark.parametrize("policy", ALL)
def test_it_reads_images_and_instruction_as_the_policy_does(policy: str, tmp_path: Path) -> None:
    """What comes to the last layer, of every patch and every word, is the same in both."""
    made, value = started(policy, tmp_path)
    batch = made.prepare({**observation(3), "noise": chunk_noise(3)})
    last = value.policy.language_model.layers[-1].self_attn.v_proj
    model = made.policy.model
    theirs = model.vlm_with_expert.vlm.model.text_model if policy == "smolvla" else None
    theirs = theirs or model.paligemma_with_expert.paligemma.model.language_model
    with kept(theirs.layers[-1].self_attn.v_proj) as wanted, kept(last) as found, torch.no_grad():
        made.policy.predict_action_chunk(batch)
        value.policy.value(batch)
    images = len(CAMERAS) * (1 if policy == "smolvla" else 9)
    for row, length in enumerate(batch["observation.language.attention_mask"].sum(1)):
        real = slice(images + int(length))
        torch.testing.assert_close(found[0][row, real], wanted[0][row, real], atol=1e-5, rtol=1e-4)


@contextmanager
def kept(module: Any) -> Iterator[list[torch.Tensor]]:
    """What a part of a network computes meanwhile."""
    found: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda _, inputs, output: found.append(output))
    yield found
    hook.remove()


@pytest.mark.parametrize("policy", ALL)
def test_it_learns_and_is_read_back(policy: str, tmp_path: Path) -> None:
    """Strictly; it needs nothing of the policy any more, and says the same whatever else is in the batch."""
    _, value = started(policy, tmp_path / "policy", use_state=True)
    batch = value.prepare(observation(4))
    learned = []
    for memory in (1.0, 0.0):
        value.policy.train().run_with(compiled=False, memory=memory)
        value.policy.zero_grad()
        value.policy.forward({**batch, "return_bin": torch.tensor([0, 5, 20, 7])})[0].backward()
        learned.append({name: parameter.grad for name, parameter in value.policy.named_parameters()})
    assert all(gradient is not None for gradient in learned[0].values()), "nothing is left unused"
    assert all(torch.equal(gradient, learned[1][name]) for name, gradient in learned[0].items())
    value.policy.eval()
    value.save(tmp_path / "value")
    (tmp_path / "policy").rename(tmp_path / "gone")
    again = Checkpoint.load(tmp_path / "value", ValueAdapter(), "cpu")
    with torch.no_grad():
        ours = value.policy.value(batch)
        assert torch.equal(again.policy.value(again.prepare(observation(4))), ours)
        alone = {name: one[1:2] if isinstance(one, torch.Tensor) else one for name, one in observation(4).items()}
        alone["task"] = alone["task"][1:2]
        torch.testing.assert_close(again.policy.value(again.prepare(alone)), ours[1:2], atol=1e-5, rtol=0)
    (tmp_path / "value/model.safetensors").write_bytes((tmp_path / "gone/model.safetensors").read_bytes())
    with pytest.raises(RecapError, match="missing read_out"):
        Checkpoint.load(tmp_path / "value", ValueAdapter(), "cpu")


@pytest.mark.parametrize("policy", ALL)
def test_full_size(policy: str, tmp_path: Path) -> None:
    """Without its memory: names and shapes of the parts are the policy's, and as many weights as are computed with."""
    keys: Any = load("loop", "iterations=1").policy
    if policy == "pi0":
        with init_empty_weights():
            theirs: Any = RecapPI0Policy(RecapPI0Config(**SPEC, vision=keys.vision, vlm=keys.vlm, expert=keys.expert))
    else:
        adapter, keys, config = full(policy, tmp_path / "vlm")
        theirs = on_meta(adapter, config)
    keys = replace(keys, tokenizer="nobody/has-it")
    size = replace(load("loop", "iterations=1").value, backbone=Start.policy).of(keys, tmp_path)
    parts = {name: one for name, one in vars(size.built()).items() if name != "weights"}
    with init_empty_weights():
        value = RecapValuePolicy(RecapValueConfig(**SPEC, **parts))
    shapes = {name: one.shape for name, one in theirs.state_dict().items()}
    for part, prefix in size.built().weights.items():
        own = {name: one.shape for name, one in value.get_submodule(part).state_dict().items()}
        assert own == {
            name.removeprefix(f"{prefix}."): s for name, s in shapes.items() if name.startswith(f"{prefix}.")
        }
    counted = sum(parameter.numel() for parameter in value.parameters())
    assert (counted, size.weights()[1]) == (FULL[policy], 0)
    assert size.weights()[0] == pytest.approx(counted, rel=1e-3)
    assert size.of(keys).weights() == size.weights(), "known before there is a checkpoint"
    assert size.activations(32, 2)[0] < size.activations(32, 2)[1]
    assert sum(weight_bytes(*size.weights(), size.sft.optimizer).values()) == pytest.approx(16 * counted, rel=1e-3)


# ---------------------------------------------------------------------------------------------------- in a run
def test_it_joins_a_run_as_an_ablation(finished_run: Path, work: Path) -> None:
    """Folds of it too: each starts from the run's own SFT policy, whose stage it reads."""
    before = results(work / RUN)
    folds = "+ablations.folds={value.backbone: policy, value.ensemble_size: 2, value.aggregation: out_of_fold}"
    seen = tiny("loop", "+iterations=1", folds, cwd=work)
    assert seen.code == 0, seen.err
    assert before.items() <= results(work / RUN).items(), "nothing is made again"
    head = work / RUN / "ablations/folds"
    made = {path.parent.relative_to(head).as_posix() for path in head.rglob("manifest.json")}
    assert made == {"value", "value_1"} | {
        f"iter_01/{stage}" for stage in ("value", "value_1", "value_inference", "advantage", "policy", "eval")
    }
    assert read(head / "value/manifest.json")["inputs"]["backbone"]["path"] == "../../../sft"
    assert set(read(head / "iter_01/value/manifest.json")["inputs"]) == {"pretrained", "demonstrations", "rollouts_01"}
    assert read(head / "iter_01/value/checkpoints/last/config.json")["language"] == "paligemma"
    values = np.load(head / "iter_01/value_inference/rollouts_01.npy")
    assert values.shape[0] == 2
    assert (values[0] != values[1]).any()
    identity = yaml.safe_load((head / "value/config.yaml").read_text())["value"]
    assert identity["backbone"] == "policy"
    assert not {"vision", "text", "tokenizer"} & set(identity), "another number of what is not read is no other stage"


def test_what_it_takes_is_known_before_the_first_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a policy of which the expert alone learns: of the GPU's memory, of a batch's and of the disk."""
    monkeypatch.setattr(device, "device_name", lambda wanted: "cpu")
    both = ("iterations=1", "policy.trainable=expert")
    own, theirs = load("loop", *both), load("loop", *both, "value.backbone=policy")
    with pytest.raises(RecapError, match=r"π0 of size=full trains in about 12 GB"):
        _memory(own)
    with pytest.raises(RecapError, match=r"value function of size=full trains in about 47 GB .*value\.backbone=own"):
        _memory(theirs)
    disk, batch = [
        [measure(cfg.network(Role.value)) for cfg in (own, theirs)]
        for measure in (ValueConfig.saved_bytes, partial(sample_bytes, shapes=[(256, 256, 3)], on_device=False))
    ]
    assert disk[0] < disk[1]
    assert batch[0] < batch[1]
    needs = [{need.key for need in _needs(cfg, run_stages(cfg, 1)[0])} for cfg in (own, theirs)]
    assert needs[0] - needs[1] == {"value.pretrained_vision", "value.pretrained_text", "value.tokenizer"}


def test_a_run_of_before_is_the_same() -> None:
    assert "backbone" not in plain(demo().value)
    assert demo().network(Role.value) is demo().value
    assert load("loop", "experiment=demo", "iterations=1", "ablation=[value_backbone]").ablations == {
        "value_backbone": {"value.backbone": "policy"}
    }


# ---------------------------------------------------------------------------------------------------- refusals
def test_what_cannot_be_is_told() -> None:
    started_ = (*LOOP, "value.backbone=policy")
    for given, wanted in (
        (("value.backbone=polcy",), ["value.backbone=polcy", "own, policy", "policy"]),
        (("value.pretrained=here",), ["value.pretrained=here", "Fix: value.pretrained=null, or value.backbone=own"]),
        (("policy.sft.indicator=use",), ["policy.sft.indicator=use", "Fix: value.backbone=own"]),
        (
            ("policy.pretrained=here", "policy.trainable=lora"),
            ["holds adapters alone", "Fix: value.backbone=own, or policy.trainable=expert"],
        ),
        (("ablation=[conditioned_pretraining]",), ["ablations.conditioned_pretraining.value.backbone=policy"]),
    ):
        said = complaint(*started_, *given)
        assert all(word in said for word in wanted), said
    cfg = demo()
    toy = partial(ToyConfig, type="toy_policy", sft=cfg.policy.sft, finetune=cfg.policy.finetune)
    said = "\n".join(lines(policy=toy(indicator_dropout=0.3)))
    assert "policy.type=toy_policy has no vision-language model" in said
    assert "Fix: value.backbone=own, or one of policy=pi0, pi05, smolvla" in said
    assert lines() == []
