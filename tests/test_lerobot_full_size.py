"""π0.5 and SmolVLA at full size, without their memory; and stock lerobot-eval with small ones."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import CAMERAS
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from lerobot_helpers import EVERY, POLICIES, SMALL, STATS, demo_of, numbers_of, take_for_full_size
from policy_helpers import act
from test_stock_lerobot import EVALUATE, PUSHT, batch, needs_pusht, python, stock
from transformers import SmolVLMConfig

from recap.export import export
from recap.policies.adapter import features
from recap.policies.checkpoint import Checkpoint
from recap.policies.lerobot.adapter import LerobotAdapter
from recap.policies.processors import new_processors
from recap.policies.registry import adapter_of
from recap.policies.sizes import Trained
from recap.policies.smolvla.vlm import write_small
from recap.policies.weights import load_weights
from recap.utils.errors import RecapError

each_policy = pytest.mark.parametrize("policy", POLICIES)
# SmolVLM2-500M-Video-Instruct: SmolLM2-360M behind SigLIP base. Written down, not fetched.
TEXT = {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15}
TEXT |= {"num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280, "model_type": "llama"}
SEEN = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SEEN |= {"patch_size": 16, "image_size": 512}
STEPS = {  # of lerobot's preprocessors
    "pi05": [
        "rename_observations",
        "to_batch",
        "relative_actions",
        "normalizer",
        "pi05_prepare_state",
        "tokenizer",
        "device",
    ],
    "smolvla": ["rename_observations", "to_batch", "smolvla_new_line", "tokenizer", "device", "normalizer"],
}
NAMES = {"pi05_prepare_state_processor": "pi05_prepare_state_tokenizer_processor_step"}
WEIGHTS = {"pi05": 4_143_404_816, "smolvla": 450_046_176}  # smolvla: the 450 M of its paper


def full(policy: str, folder: Path, **changes: Any) -> tuple[LerobotAdapter, Any, Any]:
    """(adapter, keys, lerobot's configuration) of full size; the tokenizer is the built-in one, in the right place."""
    keys = demo_of(policy, "size=full", *(["policy.tokenizer=builtin"] if policy == "pi05" else [])).policy
    if policy == "smolvla":
        small = demo_of(policy).policy
        write_small(folder, small)  # type: ignore[arg-type]
        SmolVLMConfig(vision_config=SEEN, text_config=dict(TEXT), scale_factor=4).save_pretrained(folder)
        keys = replace(keys, tokenizer=str(folder))
    keys = replace(keys, **changes)
    adapter: Any = adapter_of(keys)
    config = adapter.config(keys, features(dict.fromkeys(CAMERAS, (256, 256)), 8, 7))
    if policy == "pi05":
        config = adapter.stock(config)
    return adapter, keys, config


def on_meta(adapter: LerobotAdapter, config: Any) -> Any:
    config.device = "meta"
    with torch.device("meta"):
        return adapter._model(config)


def sparse(policy: Any, file: Path, left_out: str = "") -> None:
    """A file of these weights, but for those of one name, that takes no room: all of them are 0."""
    header: dict[str, Any] = {}
    end = 0
    for name, value in policy.state_dict().items():
        if name == left_out:
            continue
        size = 4 * prod(value.shape)
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        opened.truncate(8 + len(text) + end)


@each_policy
def test_full_size_has_the_weights_of_lerobots_class(policy: str, tmp_path: Path) -> None:
    """Their names and shapes; and as many as are published, and as `policy.trainable` counts."""
    adapter, keys, config = full(policy, tmp_path)
    config.device = "meta"
    with torch.device("meta"), adapter.made(config, None):
        theirs = get_policy_class(config.type)(config)
    assert config.type == policy
    assert sum(p.numel() for p in theirs.parameters()) == WEIGHTS[policy]
    for trainable in (Trained.all, Trained.frozen_vision, Trained.expert):
        adapter, keys, config = full(policy, tmp_path, trainable=trainable)
        ours = on_meta(adapter, config)
        shapes = [{name: value.shape for name, value in one.state_dict().items()} for one in (ours, theirs)]
        assert shapes[0] == shapes[1]
        learned = sum(p.numel() for p in ours.parameters() if p.requires_grad)
        assert keys.counted[trainable] == (learned, WEIGHTS[policy] - learned)


@each_policy
def test_full_size_is_exported_as_lerobots_own(policy: str, tmp_path: Path) -> None:
    adapter, keys, config = full(policy, tmp_path / "vlm")
    ours = tmp_path / "ours"
    ours.mkdir()
    sparse(on_meta(adapter, config), ours / "model.safetensors")
    config.device = "cpu"
    config.tokenizer = "builtin"
    for pipeline in new_processors(adapter, config, STATS):
        pipeline.save_pretrained(ours)
    config.save_pretrained(ours)
    if policy == "smolvla":
        (tmp_path / "vlm").rename(ours / "vlm")
    out = export(ours, tmp_path / "stock")
    again = PreTrainedConfig.from_pretrained(out)
    assert (again.type, type(again)) == (policy, type(config))
    assert os.path.samefile(out / "model.safetensors", ours / "model.safetensors"), "no second copy"
    steps = [step["registry_name"] for step in json.loads((out / "policy_preprocessor.json").read_text())["steps"]]
    assert steps == [NAMES.get(f"{name}_processor", f"{name}_processor") for name in STEPS[policy]]
    if policy == "smolvla":
        assert again.vlm_model_name == str(out / "vlm")
        assert (out / "vlm/tokenizer.json").is_file()
    assert keys.n_action_steps == again.n_action_steps


@each_policy
@pytest.mark.slow
def test_full_size_is_read_strictly(policy: str, tmp_path: Path) -> None:
    """Through all of its weights, one at a time; a weight that is missing is named."""
    adapter, _, config = full(policy, tmp_path / "vlm")
    model, file = on_meta(adapter, config), tmp_path / "model.safetensors"
    sparse(model, file)
    load_weights(model, file)
    sparse(model, file, left_out="model.action_in_proj.weight")
    with pytest.raises(RecapError, match=r"missing model\.action_in_proj\.weight"):
        load_weights(model, file)


def pusht(policy: str) -> Checkpoint:
    """A small policy for the environment that comes with lerobot."""
    keys = replace(demo_of(policy).policy, **{**EVERY, **SMALL[policy], "max_state_dim": 4, "max_action_dim": 4})
    adapter = adapter_of(keys)
    torch.manual_seed(3)
    numbers = {"mean": [1.0, -2.0], "std": [3.0, 0.5], "q01": [-4.0, -3.0], "q99": [4.0, 2.0]}
    stats = {key: {name: np.array(value) for name, value in numbers.items()} for key in ("observation.state", "action")}
    made = Checkpoint.new(adapter, adapter.build(keys, features(**PUSHT), "cpu").eval(), stats)
    made.set_prompt(True)
    return made


@needs_pusht
@each_policy
@pytest.mark.slow
def test_stock_lerobot_eval_runs_an_export(
    policy: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process that cannot import recap: the same tokens and actions, and lerobot-eval in an environment."""
    ours = pusht(policy)
    ours.save(tmp_path / "ours")
    take_for_full_size(monkeypatch)
    out = export(tmp_path / "ours", tmp_path / "stock")
    noise = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
    theirs = stock(out, noise, numbers_of(ours), repository, tmp_path)
    tokens = ours.prepare(batch())["observation.language.tokens"]
    assert torch.equal(theirs["tokens"][:, : tokens.shape[1]], tokens)  # theirs are padded to the longest possible
    torch.testing.assert_close(ours.postprocess(act(ours, batch(), noise)), theirs["actions"], atol=1e-4, rtol=0)
    ours.set_prompt(None)
    assert (ours.postprocess(act(ours, batch(), noise)) - theirs["actions"]).abs().max() > 1e-3, "it would be empty"


@needs_pusht
@pytest.mark.slow
def test_lerobot_eval_runs_a_small_pi05_with_this_package_as_the_plugin(repository: Path, tmp_path: Path) -> None:
    pusht("pi05").save(tmp_path / "ours")
    arguments = ["--policy.path=ours", "--env.discover_packages_path=recap.policies", *EVALUATE]
    script = "from lerobot.scripts.lerobot_eval import main; main()"
    python("-c", script, *arguments, "--output_dir=eval", cwd=tmp_path, PYTHONPATH=str(repository))
    assert json.loads((tmp_path / "eval/eval_info.json").read_text())["overall"]["n_episodes"] == 2
