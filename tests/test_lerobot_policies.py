"""π0.5 and SmolVLA: lerobot's own classes, with the indicator in their prompts, and what RECAP asks of any policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import CAMERAS, TASKS
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot_helpers import POLICIES, STATS, by_hand, demo_of, numbers_of, small
from policy_helpers import ACTION, CHUNK, STATE, act, chunk_noise, observation
from safetensors.torch import load_file, save_file
from tiny_run import run

from recap.export import main as export
from recap.policies.actor import ActionChunks
from recap.policies.checkpoint import Checkpoint
from recap.policies.folder import held
from recap.policies.lerobot.adapter import LerobotAdapter
from recap.policies.lerobot.keys import UNUSABLE
from recap.policies.lerobot.policy import Steered
from recap.policies.pi05 import adapter as pi05
from recap.policies.processors import indicator_step
from recap.policies.registry import adapter_of
from recap.policies.sizes import Precision
from recap.rollout.config import Prompt
from recap.utils.errors import RecapError

TOKENS, MASK = "observation.language.tokens", "observation.language.attention_mask"
each_policy = pytest.mark.parametrize("policy", POLICIES)


@pytest.fixture(scope="module")
def checkpoints() -> dict[str, Checkpoint]:
    """Not to be changed, but for the prompt."""
    return {policy: small(policy) for policy in POLICIES}


def training(rows: int, seed: int = 0, image: tuple[int, int] = (24, 24)) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    pad = torch.zeros(rows, CHUNK, dtype=torch.bool)
    pad[::4, CHUNK // 2 :] = True
    action = torch.rand(rows, CHUNK, ACTION, generator=generator) - 0.5
    return {**observation(rows, seed, image), "action": action, "action_is_pad": pad}


def read(checkpoint: Checkpoint, batch: dict[str, Any]) -> list[str]:
    """The texts that a policy reads."""
    tokenizer, batch = indicator_step(checkpoint.preprocess).input_tokenizer, checkpoint.prepare(batch)
    return [tokenizer.decode(row[kept]) for row, kept in zip(batch[TOKENS], batch[MASK], strict=True)]


# ---------------------------------------------------------------------------------------------------- as lerobot's own
@each_policy
@pytest.mark.parametrize("told", Prompt)
def test_same_loss_and_actions_as_lerobots_class(
    policy: str, told: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its class, processors and random draws by hand, from an export that says the indicator by itself."""
    ours = small(policy, image=(20, 28))  # resized and padded to 24 x 24
    theirs, before, after = by_hand(ours, told, tmp_path, monkeypatch)
    indicator = {Prompt.positive: True, Prompt.negative: False, Prompt.none: None}[told]
    batch = training(6, image=(20, 28))
    inputs = before(dict(batch))
    torch.manual_seed(5)
    with torch.no_grad():
        loss, _ = theirs.forward(inputs)
        actions = after(theirs.predict_action_chunk(inputs))
    torch.manual_seed(5)
    noise, time = theirs.model.sample_noise((6, CHUNK, ACTION + 2), "cpu"), theirs.model.sample_time(6, "cpu")
    acting = theirs.model.sample_noise(noise.shape, "cpu")

    mine = ours.prepare({**batch, "indicator": [indicator] * 6, "noise": noise, "time": time})
    length = mine[TOKENS].shape[1]
    assert torch.equal(mine[TOKENS], inputs[TOKENS][:, :length])
    assert not inputs[MASK][:, length:].any()
    with torch.no_grad():
        torch.testing.assert_close(ours.policy(mine)[0], loss, atol=1e-5, rtol=0)
    ours.set_prompt(indicator)
    found = ours.postprocess(act(ours, observation(6, image=(20, 28)), acting))
    torch.testing.assert_close(found, actions, atol=1e-5, rtol=0)
    ours.set_prompt(None if indicator is not None else True)
    other = ours.postprocess(act(ours, observation(6, image=(20, 28)), acting))
    assert (other - actions).abs().max() > 1e-3, "the comparison would be empty"


@each_policy
@pytest.mark.parametrize("told", Prompt)
def test_a_checkpoint_of_lerobots_is_read(
    policy: str, told: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its type, with its processors; what its tokenizer says by itself is said, and only once."""
    ours, indicator = small(policy), {Prompt.positive: True, Prompt.negative: False, Prompt.none: None}[told]
    by_hand(ours, told, tmp_path, monkeypatch)
    monkeypatch.setattr(pi05, "STOCK", getattr(ours.policy.config, "sizes", None))
    again = Checkpoint.load((tmp_path / "stock").rename(tmp_path / "moved"), ours.adapter, "cpu")
    assert again.policy.config.type == policy
    noise = chunk_noise(3)
    ours.set_prompt(indicator)
    assert torch.equal(act(again, observation(3), noise), act(ours, observation(3), noise))
    for checkpoint in (again, ours):
        checkpoint.set_prompt(True)
    assert torch.equal(act(again, observation(3), noise), act(ours, observation(3), noise))


def test_a_pi05_with_openpis_names_is_read(tmp_path: Path) -> None:
    ours = small("pi05")
    ours.save(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = {name.removeprefix("model."): value for name, value in load_file(file).items()}
    prefix = "paligemma_with_expert.paligemma."
    weights[f"{prefix}lm_head.weight"] = weights.pop(f"{prefix}model.language_model.embed_tokens.weight")
    assert "time_mlp_in.weight" in weights
    save_file(weights, file)
    again = Checkpoint.load(tmp_path, ours.adapter, "cpu")
    again.set_prompt(True)
    assert torch.equal(act(again, observation(3), chunk_noise(3)), act(ours, observation(3), chunk_noise(3)))
    weights.pop("time_mlp_in.weight")
    save_file(weights, file)
    with pytest.raises(RecapError, match=r"missing model\.time_mlp_in\.weight"):
        Checkpoint.load(tmp_path, ours.adapter, "cpu")


@each_policy
def test_weights_of_samples(policy: str, checkpoints: dict[str, Checkpoint]) -> None:
    """AWR: lerobot's loss of each sample, weighted."""
    ours = checkpoints[policy]
    noise, time = chunk_noise(6), torch.linspace(0.1, 0.9, 6)
    batch = ours.prepare({**training(6), "noise": noise, "time": time})
    weights = torch.tensor([0.0, 0.5, 1.0, 1.0, 1.5, 2.0])
    with torch.no_grad():
        found, _ = ours.policy({**batch, "weight": weights})
        alone = [
            ours.policy({key: x[i : i + 1] if isinstance(x, torch.Tensor) else x for key, x in batch.items()})[0]
            for i in range(6)
        ]
    torch.testing.assert_close(found, (torch.stack(alone) * weights).mean(), atol=1e-5, rtol=0)


@each_policy
def test_every_weight_that_is_trained_is_read(policy: str) -> None:
    """What no loss depends on is frozen, or data parallel training would wait for its gradient for ever."""
    ours = small(policy)
    loss, _ = ours.policy(ours.prepare({**training(4), "noise": chunk_noise(4), "time": torch.full((4,), 0.5)}))
    loss.backward()
    parameters = dict(ours.policy.named_parameters())
    assert not [name for name, p in parameters.items() if p.requires_grad and p.grad is None]
    frozen = [name for name, p in parameters.items() if not p.requires_grad]
    assert any("lm_head" in name for name in frozen)
    assert len(frozen) < len(parameters) / 3


@each_policy
@pytest.mark.parametrize("trainable", ["frozen_vision", "expert"])
def test_parts_that_stay_as_they_are(policy: str, trainable: str, tmp_path: Path) -> None:
    small(policy).save(tmp_path)
    given = f"policy.pretrained={tmp_path}"
    keys = demo_of(policy, f"policy.trainable={trainable}", given).policy
    model = Checkpoint.load(tmp_path, adapter_of(keys), "cpu", keys=keys).policy
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name in learns if ".vision_" in name]
    assert any(".action_in_proj" in name for name in learns)
    assert any(name.endswith("embed_tokens.weight") for name in learns) == (trainable == "frozen_vision")


# ---------------------------------------------------------------------------------------------------- the indicator
def test_where_the_indicator_stands(checkpoints: dict[str, Checkpoint]) -> None:
    """Behind the instruction (and the state), before the actions, the same in training and acting."""
    task = "put the moka pot on the stove"
    batch = {**observation(3), "task": [task] * 3, "observation.state": torch.zeros(3, STATE)}
    state = " ".join(["127"] * STATE)  # 0 lies in the middle of these quantiles' bins, or next to it
    pi05 = [
        text.replace("128", "127") for text in read(checkpoints["pi05"], {**batch, "indicator": [True, False, None]})
    ]
    stem = pi05[2].removesuffix("Action: ")
    assert stem.startswith(f"Task: {task}, State: ")
    assert len(stem.split("State: ")[1].split()) == len(state.split())
    assert pi05 == [f"{stem}Advantage: {word}\nAction: " for word in ("positive", "negative")] + [f"{stem}Action: "]
    smolvla = read(checkpoints["smolvla"], {**batch, "indicator": [True, False, None]})
    assert smolvla == [f"{task}\nAdvantage: positive\n", f"{task}\nAdvantage: negative\n", f"{task}\n"]
    for policy, texts in (("pi05", pi05), ("smolvla", smolvla)):
        for told, text in zip((True, False, None), texts, strict=True):
            checkpoints[policy].set_prompt(told)
            assert [one.replace("128", "127") for one in read(checkpoints[policy], batch)] == [text] * 3


@each_policy
def test_the_indicator_changes_the_actions(policy: str, checkpoints: dict[str, Checkpoint]) -> None:
    batch, noise = observation(3), chunk_noise(3)
    results = [act(checkpoints[policy], {**batch, "indicator": [told] * 3}, noise) for told in (True, False, None)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (results[a] - results[b]).abs().max() > 1e-4


@each_policy
def test_a_prompt_that_does_not_fit_is_refused(policy: str, tmp_path: Path) -> None:
    """While a batch is prepared; and before any work, where the state counts too."""
    ours = small(policy)
    length = int(ours.prepare({**observation(1), "indicator": [False]})[MASK].sum())
    tight = small(policy, tokenizer_max_length=length - 1)
    with pytest.raises(RecapError, match=rf"policy\.tokenizer_max_length={length - 1}: .* has {length} tokens\. Fix"):
        tight.prepare({**observation(1), "indicator": [False]})
    done = run("loop", "experiment=demo_small", f"policy={policy}", "policy.tokenizer_max_length=25", "+iterations=1",
               cwd=tmp_path)  # fmt: skip
    assert done.code == 1
    assert "policy.tokenizer_max_length=25: the prompt" in done.err
    assert ("255 255" in done.err) == (policy == "pi05"), "the longest that a state can be"
    assert not list(tmp_path.rglob("manifest.json"))


# ---------------------------------------------------------------------------------------------------- acting
@each_policy
def test_guidance(policy: str, checkpoints: dict[str, Checkpoint]) -> None:
    ours, batch, noise = checkpoints[policy], observation(3), chunk_noise(3)
    passes: list[int] = []
    hook = ours.policy.model.action_out_proj.register_forward_hook(lambda m, args, out: passes.append(len(out)))

    def guided(beta: float, indicator: bool | None) -> torch.Tensor:
        passes.clear()
        ours.set_prompt(indicator, beta)
        return act(ours, batch, noise)

    positive, plain = guided(1.0, indicator=True), guided(1.0, indicator=None)
    assert passes == [3] * 3, "beta=1 costs nothing"
    torch.testing.assert_close(guided(0.0, indicator=True), plain, atol=1e-5, rtol=0)
    assert passes == [6] * 3, "one pass of two halves for each step"
    assert (guided(2.0, indicator=True) - positive).abs().max() > 1e-4
    assert torch.equal(guided(2.0, indicator=None), plain)
    hook.remove()
    ours.set_prompt(True)


@each_policy
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_actions_do_not_depend_on_place_or_neighbours(
    policy: str, beta: float, checkpoints: dict[str, Checkpoint]
) -> None:
    """An episode's noise is its own, whatever batch it is in and whatever torch drew before."""
    rng = np.random.default_rng(0)
    images = {key: rng.integers(0, 256, (9, 24, 24, 3), np.uint8) for key in CAMERAS}
    state = rng.normal(size=(9, STATE)).astype(np.float32)

    def rows(indices: list[int]) -> dict[str, Any]:
        seen = {key: image[indices] for key, image in images.items()}
        return {**seen, "observation.state": state[indices], "task": [TASKS[i % 2] for i in indices]}

    chunks, key = ActionChunks(checkpoints[policy], indicator=True, beta=beta), (2**40 + 7, 3)
    first = chunks(rows([4, 0, 1, 2, 3]), [key, (1, 0), (1, 1), (1, 2), (1, 3)])
    torch.rand(7)
    moved = chunks(rows([8, 7, 6, 4, 5]), [(2, 0), (2, 1), (2, 2), key, (2, 4)])
    np.testing.assert_allclose(first[0], moved[3], atol=1e-5)
    other = chunks(rows([4, 0, 1, 2, 3]), [(key[0], 4), (1, 0), (1, 1), (1, 2), (1, 3)])
    assert np.abs(first[0] - other[0]).max() > 1e-2
    checkpoints[policy].set_prompt(True)


@each_policy
def test_cameras(policy: str, checkpoints: dict[str, Checkpoint]) -> None:
    """By name; one that is missing is an error, but for placeholders that pre-trained weights may want."""
    seen = {key: np.zeros((1, 24, 24, 3), np.uint8) for key in CAMERAS}
    robot = {"observation.state": np.zeros((1, STATE), np.float32), "task": [TASKS[0]]}
    with pytest.raises(RecapError, match=r"camera observation\.images\.image2, which the environment does not have"):
        ActionChunks(checkpoints[policy], indicator=True)({CAMERAS[0]: seen[CAMERAS[0]], **robot}, [(0, 0)])
    spare = small(policy, empty_cameras=1)
    assert [*spare.policy.config.image_features][-1] == "observation.images.empty_camera_0"
    found = ActionChunks(spare, indicator=True)({**seen, **robot}, [(0, 0)])
    without = ActionChunks(checkpoints[policy], indicator=True)({**seen, **robot}, [(0, 0)])
    np.testing.assert_allclose(found, without, atol=1e-5, err_msg="nothing looks at a placeholder")


@each_policy
@pytest.mark.parametrize("mode", ["quantiles", "mean_std"])
def test_normalisation(policy: str, mode: str) -> None:
    keys = demo_of(policy, f"policy.normalization={mode}").policy
    ours = small(policy, normalization=keys.normalization)  # type: ignore[attr-defined]
    low, high = (STATS["action"][name] for name in (("q01", "q99") if mode == "quantiles" else ("mean", "std")))
    ends = torch.zeros(1, CHUNK, ACTION), torch.ones(1, CHUNK, ACTION)
    first, second = (ours.postprocess(one)[0, 0].numpy() for one in ends)
    middle, spread = ((low + high) / 2, (high - low) / 2) if mode == "quantiles" else (low, high)
    np.testing.assert_allclose(first, middle, atol=1e-5)
    np.testing.assert_allclose(second, middle + spread, atol=1e-5)


@each_policy
def test_half_precision_keeps_the_weights(policy: str, checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    """bfloat16 is how they are multiplied: an update smaller than its steps is not lost."""
    checkpoints[policy].save(tmp_path)
    half = Checkpoint.load(tmp_path, checkpoints[policy].adapter, "cpu", Precision.bfloat16)
    assert {p.dtype for p in half.policy.parameters()} == {torch.float32}
    batch, noise = observation(2), chunk_noise(2)
    for one in (half, checkpoints[policy]):
        one.set_prompt(True)
    found, exact = act(half, batch, noise), act(checkpoints[policy], batch, noise)
    assert 0 < (found - exact).abs().max() < 0.1


# ---------------------------------------------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("chosen", "why"), [("act", "no instruction"), ("diffusion", "no instruction"), ("groot", "loss")]
)
@pytest.mark.parametrize("key", ["policy", "policy.type"])
def test_a_policy_that_cannot_be_used(key: str, chosen: str, why: str, tmp_path: Path) -> None:
    done = run("loop", "experiment=demo_small", f"{key}={chosen}", "+iterations=1", cwd=tmp_path)
    assert done.code == 2
    assert f"{key}={chosen}: lerobot's '{chosen}'" in done.err
    assert why in done.err
    assert "Fix: one of pi0, pi05, smolvla" in done.err
    assert done.err.count("error:") == 1
    assert not list(tmp_path.iterdir())


def test_an_adapter_for_one_that_cannot_be_used() -> None:
    class Policy(Steered, ACTPolicy):
        pass

    class ACTAdapter(LerobotAdapter):
        model = Policy

    with pytest.raises(RecapError, match="lerobot's 'act' reads no instruction, so nothing tells it the advantage"):
        ACTAdapter()


def test_all_of_lerobots_policies_are_known(repository: Path) -> None:
    """None of a later lerobot is offered or refused by an old list."""
    import lerobot.policies

    folder = Path(lerobot.policies.__file__).parent
    there = {path.parent.name for path in folder.glob("*/modeling_*.py")} - {"rtc"}
    by_hand_alone = {"evo1", "molmoact2"}  # they could be told, and nobody has written their folder
    assert there == {"pi0", *POLICIES, *UNUSABLE, *by_hand_alone}
    for name in UNUSABLE:
        text = (folder / name / f"modeling_{name}.py").read_text()
        assert "reduction: str" not in text, name


def test_a_vlm_with_code_is_refused(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    checkpoint = checkpoints["smolvla"]
    checkpoint.save(tmp_path)
    file = tmp_path / "vlm/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": {"AutoConfig": "evil.Config"}}))
    with pytest.raises(RecapError, match="auto_map"):
        held(tmp_path, checkpoint.adapter.keys, "it")


def test_a_small_pi05_has_no_form_for_lerobot_alone(
    checkpoints: dict[str, Checkpoint], tmp_path: Path, capsys: Any
) -> None:
    checkpoints["pi05"].save(tmp_path / "ours")
    assert numbers_of(checkpoints["pi05"])
    assert export([str(tmp_path / "ours"), str(tmp_path / "out")]) == 1
    assert "π0.5 has no form that lerobot runs by itself" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
