"""π0 against lerobot's own, and the properties that RECAP needs of both policies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from accelerate import init_empty_weights
from data_helpers import CAMERAS, TASKS
from demo_keys import demo
from lerobot.policies.pi0 import modeling_pi0
from lerobot.policies.pi0.configuration_pi0 import PI0Config as LerobotPI0Config
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from policy_helpers import (
    ACTION,
    CHUNK,
    VISION,
    VLM,
    act,
    chunk_noise,
    new_pi0,
    new_value,
    numbers_of,
    observation,
    pi0_size,
    value_size,
)
from policy_helpers import training_batch as batch_of
from stock_lerobot import shrink

from recap.method.returns import Bins
from recap.policies.actor import ActionChunks
from recap.policies.backbone import trim
from recap.policies.checkpoint import Checkpoint, features
from recap.policies.memory import disk_bytes
from recap.policies.pi0.memory import pi0_weights
from recap.policies.pi0.modeling_pi0 import RecapPI0Config, RecapPI0Policy
from recap.policies.prompt import builtin_tokenizer, prompt
from recap.policies.sizes import GemmaSize, SiglipSize, Trained
from recap.policies.value.modeling_value import RecapValueConfig, RecapValuePolicy, after_text
from recap.utils.errors import RecapError


@pytest.fixture(scope="module")
def pi0() -> Checkpoint:
    return new_pi0()


@pytest.fixture(scope="module")
def value() -> Checkpoint:
    return new_value()


# ---------------------------------------------------------------------------------------------------- as lerobot's π0
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_full_size_has_the_weights_of_lerobots_pi0(repository: Path, dtype: str) -> None:
    numbers = yaml.safe_load((repository / "conf/policy/pi0/full.yaml").read_text())
    spec = features(dict.fromkeys(CAMERAS, (224, 224)), 8, 7)
    ours = RecapPI0Config(
        **spec,
        vision=SiglipSize(**numbers["vision"]),
        vlm=GemmaSize(**numbers["vlm"]),
        expert=GemmaSize(**numbers["expert"]),
        image_resolution=(numbers["image_size"], numbers["image_size"]),
        max_state_dim=numbers["max_state_dim"],
        max_action_dim=numbers["max_action_dim"],
    )
    theirs = LerobotPI0Config(**spec, dtype=dtype)
    ours.device = theirs.device = "meta"
    with torch.device("meta"):
        shapes = [
            {name: tuple(weight.shape) for name, weight in policy.state_dict().items()}
            for policy in (RecapPI0Policy(ours), modeling_pi0.PI0Policy(theirs))
        ]
    assert shapes[0] == shapes[1]
    size = pi0_size(**{key: value for key, value in numbers.items() if not isinstance(value, dict)})
    size.vision, size.vlm, size.expert = ours.vision, ours.vlm, ours.expert
    assert sum(pi0_weights(size).values()) == sum(np.prod(shape) for shape in shapes[0].values())


def test_weights_are_counted_as_they_are() -> None:
    """What recap.policies.pi0.memory computes from the sizes, part by part."""
    policy, size = new_pi0().policy, pi0_size()
    parts = pi0_weights(size, vocabulary=policy.config.vocab_size)
    parameters = list(policy.parameters())
    assert parts["unread"] == sum(p.numel() for p in parameters if not p.requires_grad)
    assert sum(parts.values()) == sum(p.numel() for p in parameters)
    vlm = policy.model.paligemma_with_expert
    assert parts["vision"] == sum(p.numel() for p in vlm.paligemma.model.vision_tower.parameters())
    heads = size.expert.width * policy.config.vocab_size
    own = [p for name, p in policy.named_parameters() if ".paligemma." not in name]
    assert parts["expert"] == sum(p.numel() for p in own) - heads


def test_disk_of_a_run(repository: Path) -> None:
    """Against the weights of full-size networks: three policies, two value functions, and a training under way."""
    numbers = yaml.safe_load((repository / "conf/size/full.yaml").read_text())
    value = numbers["value"]
    sizes = {"vision": SiglipSize(**value["vision"]), "text": GemmaSize(**value["text"])}
    spec = features(dict.fromkeys(CAMERAS, (224, 224)), 8, 7)
    with init_empty_weights():
        critic = RecapValuePolicy(RecapValueConfig(**spec | {"output_features": {}}, **sizes, device="cpu"))
    count = sum(p.numel() for p in critic.parameters())
    size = pi0_size(
        tokenizer="theirs", sft=replace(demo().policy.sft, keep_checkpoints=2), trainable=Trained.lora, lora_rank=4
    )
    kept = replace(demo().value.sft, keep_checkpoints=2)
    of_value = value_size(**sizes, image_size=224, tokenizer="theirs", sft=kept)
    found = disk_bytes([(size, 3), (of_value, 2)])
    assert found == pytest.approx(2 * 4 * count + 3 * 12 * count, rel=0.01)  # adapters are small; moments are 8 bytes
    whole = disk_bytes([(pi0_size(tokenizer="theirs", sft=size.sft, trainable=Trained.all), 3), (of_value, 2)])
    assert whole > found


def lerobots_pi0(ours: RecapPI0Policy, monkeypatch: pytest.MonkeyPatch) -> Any:
    """lerobot's own policy with our small numbers in place of the ones written into its code, and our weights."""
    shrink(numbers_of(ours.config), monkeypatch.setattr)
    names = "input_features output_features chunk_size n_action_steps max_state_dim max_action_dim image_resolution"
    config = LerobotPI0Config(**{name: getattr(ours.config, name) for name in names.split()}, device="cpu")
    config.num_inference_steps = ours.config.num_inference_steps
    policy = modeling_pi0.PI0Policy(config)
    policy.load_state_dict(ours.state_dict(), strict=True)
    return policy.eval()


@pytest.mark.parametrize("cameras", [CAMERAS, CAMERAS[:1]], ids=["both cameras", "one camera"])
def test_same_losses_and_actions_as_lerobots_pi0(cameras: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    image = (20, 28)  # resized and padded to 24 x 24
    checkpoint = new_pi0(image=image)
    ours, theirs = checkpoint.policy, lerobots_pi0(checkpoint.policy, monkeypatch)
    batch = batch_of(6, samples=1, image=image)
    batch = {key: value for key, value in batch.items() if key not in CAMERAS or key in cameras}
    batch.pop("action_is_pad")
    batch = checkpoint.prepare({**batch, "indicator": [True, False, None] * 2})
    lengths = batch[OBS_LANGUAGE_ATTENTION_MASK].sum(1)
    assert len(set(lengths.tolist())) > 3, "the prompts are padded to different lengths"
    assert lengths.max() < batch[OBS_LANGUAGE_TOKENS].shape[1], "and some padding is common to all"

    with torch.no_grad():
        mine, _ = ours.forward(batch, reduction="none")
        inputs = (
            *theirs._preprocess_images(batch),
            batch[OBS_LANGUAGE_TOKENS],
            batch[OBS_LANGUAGE_ATTENTION_MASK],
            theirs.prepare_state(batch),
        )
        losses = theirs.model.forward(*inputs, theirs.prepare_action(batch), batch["noise"][:, 0], batch["time"][:, 0])
        torch.testing.assert_close(mine, losses[..., :ACTION].mean((1, 2)), atol=1e-5, rtol=0)
        noise = batch["noise"][:, 0]
        expected = theirs.model.sample_actions(*inputs, noise=noise)[..., :ACTION]
    actions = ours.predict_action_chunk({**batch, "noise": noise})
    torch.testing.assert_close(actions, expected, atol=1e-5, rtol=0)
    assert (actions[0] - actions[1]).abs().max() > 1e-2, "the comparison would be empty"


def test_gradient_reaches_every_parameter_that_is_read() -> None:
    for stem in (0, 4):
        checkpoint = new_pi0(vision=SiglipSize(**{**vars(VISION), "stem": stem}))
        loss, _ = checkpoint.policy.forward(checkpoint.prepare(batch_of(4)))
        loss.backward()
        named = dict(checkpoint.policy.named_parameters())
        without = {name for name, p in named.items() if p.grad is None or not p.grad.abs().sum() > 0}
        vlm, layer = "model.paligemma_with_expert.paligemma", f"model.language_model.layers.{VLM.depth - 1}"
        unread = {  # of the last prefix layer only keys and values are used; no text is ever written
            *(f"{vlm}.{layer}.{part}.weight" for part in ("self_attn.q_proj", "self_attn.o_proj")),
            *(f"{vlm}.{layer}.mlp.{part}.weight" for part in ("gate_proj", "up_proj", "down_proj")),
            f"{vlm}.{layer}.post_attention_layernorm.weight",
            f"{vlm}.model.language_model.norm.weight",
            f"{vlm}.lm_head.weight",
            "model.paligemma_with_expert.gemma_expert.lm_head.weight",
        }
        assert without == unread


def test_frames_past_the_end_do_not_count_in_the_loss(pi0: Checkpoint) -> None:
    batch = batch_of(4)
    plain, _ = pi0.policy.forward(pi0.prepare(batch))
    each, _ = pi0.policy.forward(pi0.prepare(batch), reduction="none")
    batch["action"][batch["action_is_pad"]] += 5.0
    noise = batch["noise"]
    # also the input x_t of padded frames depends on their action; keep it, so that only the target differs
    time = batch["time"][:, :, None, None]
    moved = torch.zeros(4, 1, CHUNK, ACTION + 2)
    moved[..., :ACTION] = (batch["action_is_pad"][..., None] * 5.0 / torch.linspace(0.3, 0.6, ACTION))[:, None]
    batch["noise"] = noise - (1 - time) / time * moved
    again, _ = pi0.policy.forward(pi0.prepare(batch), reduction="none")
    torch.testing.assert_close(again, each, atol=1e-4, rtol=1e-4)
    counts = (~batch["action_is_pad"]).sum(1)
    torch.testing.assert_close(plain, (each * counts).sum() / counts.sum())


# ---------------------------------------------------------------------------------------------------- the indicator
def test_the_indicator_is_text_in_the_prompt(pi0: Checkpoint) -> None:
    tokenizer = builtin_tokenizer()

    def read(batch: dict[str, Any]) -> list[str]:
        rows = zip(batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK], strict=True)
        return [tokenizer.decode(tokens[mask]) for tokens, mask in rows]

    batch = {**observation(3), "task": [TASKS[0]] * 3}
    pot = "put the moka pot on the stove\n"
    texts = [f"{pot}Advantage: positive\n", f"{pot}Advantage: negative\n", pot]
    assert read(pi0.prepare({**batch, "indicator": [True, False, None]})) == texts
    for indicator, text in zip((True, False, None), texts, strict=True):
        pi0.set_prompt(indicator)
        assert read(pi0.prepare(batch)) == [text] * 3
    pi0.set_prompt(True)
    assert prompt(pot, None) == pot, "a line end is not doubled"
    with pytest.raises(RecapError, match="no `task`"):
        pi0.prepare({key: value for key, value in batch.items() if key != "task"})


def test_indicator_changes_the_actions(pi0: Checkpoint) -> None:
    batch, noise = observation(3), chunk_noise(3)
    results = [act(pi0, {**batch, "indicator": [given] * 3}, noise) for given in (True, False, None)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (results[a] - results[b]).abs().max() > 1e-4


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    task = f"put the moka pot on the stove, {'very ' * 4}gently"
    length = len(builtin_tokenizer()(prompt(task, indicator=True))["input_ids"])
    fits = new_pi0(tokenizer_max_length=length)
    assert fits.prepare({**observation(1), "task": [task]})[OBS_LANGUAGE_ATTENTION_MASK].all()
    tight = new_pi0(tokenizer_max_length=length - 1)
    with pytest.raises(RecapError, match=rf"tokenizer_max_length={length - 1}.*has {length} tokens"):
        tight.prepare({**observation(2), "task": [TASKS[0], task]})


# ---------------------------------------------------------------------------------------------------- guidance
def test_guidance(pi0: Checkpoint) -> None:
    batch, noise = observation(3), chunk_noise(3)
    passes: list[int] = []
    hooks = [
        pi0.policy.model.action_out_proj.register_forward_hook(lambda m, args, out: passes.append(len(out))),
        pi0.policy.model.paligemma_with_expert.paligemma.model.vision_tower.register_forward_hook(
            lambda m, args, out: passes.append(-len(out.last_hidden_state))
        ),
    ]

    def guided(beta: float, indicator: bool | None) -> torch.Tensor:
        passes.clear()
        pi0.set_prompt(indicator, beta)
        return act(pi0, batch, noise)

    try:
        steps = pi0.policy.config.num_inference_steps
        plain = guided(1.0, indicator=True)
        assert passes == [-6, *[3] * steps], "β = 1 costs nothing"
        unconditional = guided(1.0, indicator=None)
        zero = guided(0.0, indicator=True)
        assert passes == [-6, *[6] * steps], "the images once, and one batched pass for each Euler step"
        torch.testing.assert_close(zero, unconditional, atol=1e-5, rtol=0)
        assert (plain - unconditional).abs().max() > 1e-3
        assert torch.equal(guided(3.0, indicator=None), unconditional), "no indicator, no guidance"

        pi0.policy.config.num_inference_steps = 1  # then the actions are linear in v: a(β) = a_0 + β (a_1 − a_0)
        a_0, a_1, a_2 = guided(1.0, indicator=None), guided(1.0, indicator=False), guided(2.5, indicator=False)
        torch.testing.assert_close(a_2, a_0 + 2.5 * (a_1 - a_0), atol=1e-5, rtol=0)
    finally:
        pi0.policy.config.num_inference_steps = steps
        pi0.set_prompt(True)
        for hook in hooks:
            hook.remove()


# ---------------------------------------------------------------------------------------------------- acting
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_actions_do_not_depend_on_place_or_neighbours(pi0: Checkpoint, beta: float) -> None:
    rng = np.random.default_rng(0)

    def rows(indices: list[int]) -> dict[str, Any]:
        return {
            **{key: images[key][indices] for key in CAMERAS},
            "observation.state": state[indices],
            "task": [TASKS[i % 2] for i in indices],
        }

    images = {key: rng.integers(0, 256, (9, 24, 24, 3), np.uint8) for key in CAMERAS}
    state = rng.normal(size=(9, 8)).astype(np.float32)
    chunks = ActionChunks(pi0, indicator=True, beta=beta)
    key = (2**40 + 7, 3)
    first = chunks(rows([4, 0, 1, 2, 3]), [key, (1, 0), (1, 1), (1, 2), (1, 3)])
    moved = chunks(rows([8, 7, 6, 4, 5]), [(2, 0), (2, 1), (2, 2), key, (2, 4)])
    assert np.array_equal(first[0], moved[3])
    assert not np.array_equal(first[0], chunks(rows([4, 0, 1, 2, 3]), [(key[0], 4), *[(1, i) for i in range(4)]])[0])
    assert first.shape == (5, CHUNK, ACTION)
    pi0.set_prompt(True)


def test_actions_come_in_the_units_of_the_data(pi0: Checkpoint) -> None:
    normalised = torch.zeros(1, CHUNK, ACTION)
    assert pi0.postprocess(normalised)[0, 0].numpy() == pytest.approx(np.linspace(-0.2, 0.2, ACTION), abs=1e-6)
    with pytest.raises(RecapError, match=r"camera observation\.images\.image2, which the environment does not have"):
        ActionChunks(pi0, indicator=True)({CAMERAS[0]: np.zeros((1, 24, 24, 3), np.uint8)}, [(0, 0)])


# ---------------------------------------------------------------------------------------------------- value function
def test_value_is_the_expectation_over_the_bin_centres(value: Checkpoint) -> None:
    batch, bins = value.prepare(observation(4)), Bins(21)
    with torch.no_grad():
        v, probabilities = value.policy.value(batch), value.policy.logits(batch).softmax(-1)
    assert v.numpy() == pytest.approx(probabilities.double().numpy() @ bins.centers, abs=1e-6)
    loss, _ = value.policy.forward({**batch, "return_bin": torch.tensor([0, 5, 20, 7])})
    assert loss.item() == pytest.approx(-probabilities[range(4), [0, 5, 20, 7]].log().mean().item(), rel=1e-5)

    certain = new_value()
    certain.policy.head.weight.data.zero_()
    for index in (0, 7, 20):
        certain.policy.head.bias.data.zero_()[index] = 100.0
        assert certain.policy.value(batch).tolist() == pytest.approx([bins.centers[index]] * 4, abs=1e-6)


def test_value_reads_images_and_instruction(value: Checkpoint) -> None:
    batch = observation(1)

    def v(**changes: Any) -> float:
        return value.policy.value(value.prepare({**batch, **changes})).item()

    assert abs(v() - v(task=[TASKS[1]])) > 1e-5
    for camera in CAMERAS:
        assert abs(v() - v(**{camera: batch[camera].flip(-1)})) > 1e-5
    assert v() == v(**{"observation.state": batch["observation.state"] + 1}), "use_state is off"
    seeing = new_value(use_state=True)
    moved = {**batch, "observation.state": batch["observation.state"] + 1}
    first, second = (seeing.policy.value(seeing.prepare(b)).item() for b in (batch, moved))
    assert first != second


def test_value_ignores_padding(value: Checkpoint) -> None:
    batch = value.prepare(observation(2))
    tokens, mask = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
    assert mask.sum(1).unique().numel() == 2, "one row is padded beside its neighbour"
    v = value.policy.value(batch)
    longer = {OBS_LANGUAGE_TOKENS: F.pad(tokens, (0, 9), value=77), OBS_LANGUAGE_ATTENTION_MASK: F.pad(mask, (0, 9))}
    assert torch.equal(value.policy.value({**batch, **longer}), v)
    other = torch.where(mask, tokens, torch.full_like(tokens, 55))
    assert torch.equal(value.policy.value({**batch, OBS_LANGUAGE_TOKENS: other}), v)
    short = int(mask.sum(1).argmin())
    alone = value.policy.value(value.prepare({key: data[short : short + 1] for key, data in observation(2).items()}))
    torch.testing.assert_close(alone[0], v[short], atol=1e-5, rtol=0)


def test_value_is_read_from_a_real_token(value: Checkpoint) -> None:
    seen: list[dict[str, Any]] = []
    hook = value.policy.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    batch = value.prepare(observation(2))
    value.policy.value(batch)
    hook.remove()
    hidden, lengths = seen[0]["inputs_embeds"], batch[OBS_LANGUAGE_ATTENTION_MASK].sum(1)
    assert len(set(lengths.tolist())) == 2
    patches = hidden.shape[1] - int(lengths.max()) - 1
    for row, length in zip(hidden, lengths.tolist(), strict=True):
        assert torch.equal(row[patches + length], value.policy.read_out), "it stands right after the last real token"


def test_what_stands_behind_a_text_comes_before_its_padding() -> None:
    text, behind = torch.arange(1, 9).view(2, 4, 1), torch.tensor([[[50], [51]], [[60], [61]]])
    moved, ends = after_text(text, torch.tensor([4, 1]), behind)
    assert moved[:, :, 0].tolist() == [[1, 2, 3, 4, 50, 51], [5, 60, 61, 6, 7, 8]]
    assert ends.tolist() == [6, 3]


def test_prompts_have_few_lengths(pi0: Checkpoint) -> None:
    """Each would be compiled for."""
    for task in ("a", "put both moka pots on the stove"):
        batch = pi0.prepare({**observation(1), "task": [task]})
        length = int(batch[OBS_LANGUAGE_ATTENTION_MASK].sum())
        assert batch[OBS_LANGUAGE_TOKENS].shape == (1, -(-length // 8) * 8)


def test_every_parameter_of_the_value_function_learns() -> None:
    checkpoint = new_value(use_state=True)
    batch = checkpoint.prepare({**observation(4), "return_bin": torch.tensor([0, 5, 20, 7])})
    checkpoint.policy.forward(batch)[0].backward()
    without = [n for n, p in checkpoint.policy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_trim_drops_only_common_padding() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    tokens = torch.arange(8).view(2, 4)
    assert [x.tolist() for x in trim(tokens, mask)] == [tokens[:, :3].tolist(), mask[:, :3].tolist()]
