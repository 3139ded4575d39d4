"""Weights to start from: strict, never rounded where they learn, and only as much trained as was asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from policy_helpers import (
    VISION,
    VLM,
    act,
    chunk_noise,
    new_pi0,
    new_value,
    observation,
    pi0_size,
    training_batch,
    weights,
)
from safetensors.torch import save_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, SiglipConfig, SiglipModel

from recap.policies.checkpoint import Checkpoint
from recap.policies.pi0 import lora as adapters
from recap.policies.pi0.adapter import PI0Adapter
from recap.policies.pi0.modeling_pi0 import RecapPI0Policy
from recap.policies.sizes import GemmaSize, Precision, SiglipSize, Trained
from recap.policies.value.adapter import ValueAdapter
from recap.policies.weights import EMBEDDINGS, HEAD
from recap.training.config import Optimizer, TrainConfig
from recap.training.distributed import OPTIMIZER
from recap.training.loop import train
from recap.utils.errors import RecapError

VLM_LAYERS = "model.paligemma_with_expert.paligemma.model.language_model.layers"
EXPERT_LAYERS = "model.paligemma_with_expert.gemma_expert.model.layers"
TOWER = "model.paligemma_with_expert.paligemma.model.vision_tower"
PROJECTIONS = ("model.state_proj", "model.action_")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained π0 on disk."""
    folder = tmp_path_factory.mktemp("base")
    new_pi0(seed=3).save(folder)
    return folder


def started(base: Path, precision: Precision = Precision.float32, **changes: Any) -> Checkpoint:
    return new_pi0(seed=9, precision=precision, pretrained=str(base), **changes)


def settings(**changes: Any) -> TrainConfig:
    values = {"steps": 4, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 1, "min_lr_ratio": 0.1}
    values |= {"weight_decay": 0.01, "grad_clip": 1.0, "save_every": 2, "keep_checkpoints": 2, "log_every": 1}
    return TrainConfig(**{**values, "random_shift": 0, "demo_fraction": 1.0, **changes})


def batches(step: int) -> dict[str, Any]:
    batch = training_batch(8, seed=step)
    return {
        key: value.numpy() if isinstance(value, torch.Tensor) and value.ndim < 4 else value
        for key, value in batch.items()
    }


class Killed(BaseException):
    """Stands for the end of the process."""


def until_3(step: int) -> dict[str, Any]:
    if step == 3:
        raise Killed
    return batches(step)


# ---------------------------------------------------------------------------------------------------- what learns
def is_learned(name: str, trainable: Trained) -> bool:
    """By the words of conf/base.yaml."""
    last = f"{VLM_LAYERS}.{VLM.depth - 1}."
    read = not name.startswith(last) or re.search(r"\.(k_proj|v_proj|input_layernorm)\.", name)
    read = bool(read) and "lm_head" not in name and "language_model.norm" not in name
    if trainable is Trained.lora:
        return ".lora_" in name and read
    if trainable is Trained.expert:
        return read and name.startswith((EXPERT_LAYERS, "model.paligemma_with_expert.gemma_expert", *PROJECTIONS))
    return read and not (trainable is Trained.frozen_vision and name.startswith(TOWER))


@pytest.mark.parametrize("trainable", Trained)
def test_what_learns_is_float32_and_the_rest_stays(trainable: Trained, base: Path, tmp_path: Path) -> None:
    checkpoint = started(base, Precision.bfloat16, trainable=trainable)
    parameters = dict(checkpoint.policy.named_parameters())
    assert {name for name, p in parameters.items() if p.requires_grad} == {
        n for n in parameters if is_learned(n, trainable)
    }
    for name, parameter in parameters.items():
        exact = parameter.requires_grad or parameter.ndim < 2 or name.startswith(PROJECTIONS) or ".lora_" in name
        assert parameter.dtype == (torch.float32 if exact else torch.bfloat16), name
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    train(checkpoint, batches, settings(), tmp_path, label="sft")
    for name, parameter in parameters.items():
        assert torch.equal(parameter, before[name]) != is_learned(name, trainable), name


@pytest.mark.parametrize("precision", Precision)
def test_weights_are_those_of_the_file(precision: Precision, base: Path) -> None:
    file, checkpoint = weights(base), started(base, precision)
    learned = {name: p for name, p in checkpoint.policy.named_parameters() if p.requires_grad}
    assert len(learned) > 40
    assert all(torch.equal(parameter, file[name]) for name, parameter in learned.items())
    noise, batch = chunk_noise(3), observation(3)
    exact = act(Checkpoint.load(base, PI0Adapter(), "cpu"), batch, noise)
    found = act(checkpoint, batch, noise)
    if precision is Precision.float32:
        assert torch.equal(found, exact)
    else:
        assert 0 < (found - exact).abs().max() < 0.1, "computed in bfloat16"


def test_a_policy_acts_as_it_was_trained(base: Path, tmp_path: Path) -> None:
    """Loaded to act, its weights are kept in bfloat16, which is what its products are computed in."""
    trained = started(base, Precision.bfloat16)
    trained.save(tmp_path)
    acting = Checkpoint.load(tmp_path, PI0Adapter(), "cpu")
    types = {parameter.dtype for name, parameter in acting.policy.named_parameters() if name.startswith(EXPERT_LAYERS)}
    assert types == {torch.bfloat16, torch.float32}
    found = act(acting, observation(3), chunk_noise(3))
    torch.testing.assert_close(found, act(trained, observation(3), chunk_noise(3)), atol=0.03, rtol=0)


def gradients(policy: torch.nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    policy.train()
    policy.forward(batch)[0].backward()
    return {name: parameter.grad for name, parameter in policy.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("policy", ["pi0", "value"])
def test_gradient_checkpointing_changes_no_gradient(policy: str) -> None:
    made: Callable[[], Checkpoint] = {"pi0": new_pi0, "value": new_value}[policy]
    found = []
    for checkpointing in (False, True):
        checkpoint = made()
        checkpoint.policy.run_with(compiled=False, memory=0.0 if checkpointing else 1.0)
        extra = {"return_bin": torch.tensor([0, 5, 20, 7])} if policy == "value" else {}
        found.append(gradients(checkpoint.policy, checkpoint.prepare({**training_batch(4), **extra})))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    layers = [m for m in checkpoint.policy.modules() if getattr(m, "gradient_checkpointing", False)]
    assert len(layers) >= VISION.depth + VLM.depth, "they were checkpointed"


@pytest.mark.parametrize("trainable", [Trained.frozen_vision, Trained.expert, Trained.lora])
def test_frozen_parts_keep_no_activations(trainable: Trained, base: Path) -> None:
    policy = started(base, trainable=trainable).policy
    assert isinstance(policy, RecapPI0Policy)
    policy.run_with(compiled=False, memory=0.0)
    images, tokens, mask, _ = policy.train()._inputs(new_pi0().prepare(training_batch(2)))
    tower = policy.model.paligemma_with_expert.paligemma.model.vision_tower
    assert not tower(images.flatten(0, 1)).last_hidden_state.requires_grad
    (keys, _), *_ = policy.model.encode_prefix(images, tokens, mask)[0]
    assert keys.requires_grad is (trainable is not Trained.expert)


# ---------------------------------------------------------------------------------------------------- adapters
def test_adapters_are_saved_alone_resumed_and_merged(base: Path, tmp_path: Path) -> None:
    def adapted() -> Checkpoint:
        torch.manual_seed(1)
        return started(base, trainable=Trained.lora, lora_rank=2)

    noise = chunk_noise(3)
    assert torch.equal(act(adapted(), observation(3), noise), act(started(base), observation(3), noise)), (
        "new: no change"
    )
    last = train(adapted(), batches, settings(), tmp_path / "whole", label="sft")
    assert not (last / "model.safetensors").exists()
    with pytest.raises(Killed):
        train(adapted(), until_3, settings(), tmp_path / "killed", label="sft")
    resumed = train(
        started(base, trainable=Trained.lora, lora_rank=2), batches, settings(), tmp_path / "killed", label="sft"
    )
    assert (resumed / adapters.ADAPTERS).read_bytes() == (last / adapters.ADAPTERS).read_bytes()

    acting = Checkpoint.load(last, PI0Adapter(), "cpu")
    actions = act(acting, observation(3), noise)
    assert (actions - act(started(base), observation(3), noise)).abs().max() > 1e-3
    merged = new_pi0(seed=5)
    merged.policy.load_state_dict(adapters.merged(acting.policy), strict=True)
    torch.testing.assert_close(act(merged, observation(3), noise), actions, atol=1e-4, rtol=0)
    again = Checkpoint.load(last, PI0Adapter(), "cpu", keys=pi0_size(trainable=Trained.lora, lora_rank=2))
    assert sum(p.requires_grad for p in again.policy.parameters()) > 20
    with pytest.raises(RecapError, match=r"holds adapters, but trainable=all\. Fix: policy\.trainable=lora"):
        Checkpoint.load(last, PI0Adapter(), "cpu", keys=pi0_size(trainable=Trained.all))


def tensors_in(node: Any) -> list[torch.Tensor]:
    if isinstance(node, dict):
        return [tensor for value in node.values() for tensor in tensors_in(value)]
    return [node] if isinstance(node, torch.Tensor) else []


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_moments_in_8_bits_resume(tmp_path: Path) -> None:
    wide = GemmaSize(**{**vars(VLM), "width": 64, "mlp_dim": 128})  # matrices below 4096 numbers keep 32 bits
    config = settings(optimizer=Optimizer.adamw8bit)
    last = train(new_pi0(vlm=wide), batches, config, tmp_path / "whole", label="sft")
    with pytest.raises(Killed):
        train(new_pi0(vlm=wide), until_3, config, tmp_path / "killed", label="sft")
    state = torch.load(tmp_path / "killed/checkpoints/last" / OPTIMIZER, weights_only=True)["state"]
    assert any(value.dtype == torch.uint8 for moments in state.values() for value in tensors_in(moments))
    resumed = weights(train(new_pi0(seed=9, vlm=wide), batches, config, tmp_path / "killed", label="sft"))
    assert all(torch.equal(resumed[name], value) for name, value in weights(last).items())


# ---------------------------------------------------------------------------------------------------- other names
def test_names_that_checkpoints_of_pi0_have_had(base: Path, tmp_path: Path) -> None:
    """openpi's: without `model.`, with `time_mlp`, and with the tied embeddings under the head's name only."""
    state = {name.removeprefix("model."): value for name, value in weights(base).items()}
    state = {re.sub("^action_time_mlp", "time_mlp", name): value for name, value in state.items()}
    tied = state[HEAD.removeprefix("model.")] = state.pop(EMBEDDINGS.removeprefix("model."))
    (tmp_path / "config.json").write_text((base / "config.json").read_text())
    save_file(state, tmp_path / "model.safetensors")
    found, expected = started(tmp_path).policy.state_dict(), weights(base)
    expected[HEAD] = tied
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_wrong_weights_are_listed(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RecapError) as caught:
        started(base, vlm=GemmaSize(**{**vars(VLM), "mlp_dim": 56}))
    assert re.search(
        r"model\.safetensors: the weights do not fit this policy:\n  .*mlp.*shape \(48, 32\), expected \(56, 32\)",
        str(caught.value),
    )
    with pytest.raises(RecapError, match=r"policy\.pretrained=nobody/nothing: not on this machine\. Fix: hf download"):
        started(Path("nobody/nothing"))


# ---------------------------------------------------------------------------------------------------- value function
@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small SigLIP and a small Gemma 3, saved by transformers as they are on the hub; one layer more than is used."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(2)
    vision = {"hidden_size": VISION.width, "intermediate_size": VISION.mlp_dim, "num_hidden_layers": VISION.depth + 1}
    vision |= {"num_attention_heads": VISION.num_heads, "patch_size": VISION.patch_size, "image_size": 24}
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 50,
    }
    SiglipModel(SiglipConfig(vision_config=vision, text_config=text)).save_pretrained(folder / "siglip")
    size = {"hidden_size": VLM.width, "intermediate_size": VLM.mlp_dim, "num_hidden_layers": VLM.depth + 1}
    size |= {"num_attention_heads": VLM.num_heads, "num_key_value_heads": 1, "head_dim": VLM.head_dim}
    vocabulary = new_value().policy.config.vocab_size
    Gemma3ForCausalLM(Gemma3TextConfig(**size, vocab_size=vocabulary)).save_pretrained(folder / "gemma")
    return folder / "siglip", folder / "gemma"


def test_value_function_starts_from_its_parts(parts: tuple[Path, Path], tmp_path: Path) -> None:
    siglip, gemma = (weights(part) for part in parts)
    names = {"pretrained_vision": str(parts[0]), "pretrained_text": str(parts[1]), "freeze_vision": True}
    checkpoint = new_value(**names)
    own = checkpoint.policy.state_dict()
    tower, language = "vision_tower.vision_model.", "language_model."
    for name, value in own.items():
        if name.startswith(tower):
            assert torch.equal(value, siglip[f"vision_model.{name.removeprefix(tower)}"]), name
        elif name.startswith(language):
            assert torch.equal(value, gemma[f"model.{name.removeprefix(language)}"]), name
    assert {n.split(".")[0] for n, p in checkpoint.policy.named_parameters() if not p.requires_grad} == {"vision_tower"}
    checkpoint.save(tmp_path)
    again = Checkpoint.load(tmp_path, ValueAdapter(), "cpu")
    batch = checkpoint.prepare(observation(3))
    assert torch.equal(again.policy.value(batch), checkpoint.policy.value(batch))
    with pytest.raises(RecapError, match=r"siglip/model\.safetensors: the weights do not fit.*\n.*shape"):
        new_value(**names, vision=SiglipSize(**{**vars(VISION), "mlp_dim": 56}))
    with pytest.raises(RecapError, match=r"gemma/model\.safetensors: the weights do not fit.*\n.*missing layers\.3"):
        new_value(**names, text=GemmaSize(**{**vars(VLM), "depth": VLM.depth + 2}))


def test_value_function_in_bfloat16_has_a_float32_head() -> None:
    exact, checkpoint = new_value(), new_value(precision=Precision.bfloat16)
    batch = checkpoint.prepare(observation(4))
    logits = checkpoint.policy.logits(batch)
    assert (logits.dtype, checkpoint.policy.value(batch).dtype) == (torch.float32, torch.float32)
    assert 0 < (checkpoint.policy.value(batch) - exact.policy.value(batch)).abs().max() < 0.05
