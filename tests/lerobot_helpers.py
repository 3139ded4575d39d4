"""π0.5 and SmolVLA, small enough to build and run in a moment, and lerobot's own classes beside them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import CAMERAS
from demo_keys import CONF
from hydra import compose, initialize_config_dir
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from policy_helpers import ACTION, CHUNK, EXPERT, STATE, VISION, VLM
from safetensors.torch import load_file
from stock_lerobot import shrink

from recap.config import LoopJob, typed
from recap.export import export
from recap.policies.adapter import features
from recap.policies.checkpoint import Checkpoint
from recap.policies.pi05.adapter import PI05Adapter
from recap.policies.registry import adapter_of
from recap.rollout.config import Prompt

POLICIES = ("pi05", "smolvla")
SMALL: dict[str, dict[str, Any]] = {
    "pi05": {"vision": VISION, "vlm": VLM, "expert": EXPERT, "tokenizer_max_length": 104},
    "smolvla": {"vision": VISION, "text": VLM, "scale_factor": 3, "tokenizer_max_length": 40},
}
EVERY: dict[str, Any] = {"image_size": 24, "chunk_size": CHUNK, "n_action_steps": 3, "num_inference_steps": 3}
EVERY |= {"max_state_dim": STATE + 2, "max_action_dim": ACTION + 2}
_SPREAD = {"observation.state": 2.0, "action": 0.5}
STATS = {
    key: {
        "mean": np.linspace(-0.2, 0.2, size),
        "std": np.full(size, spread),
        "q01": np.linspace(-2, -1, size) * spread,
        "q99": np.linspace(1, 2, size) * spread,
    }
    for (key, spread), size in zip(_SPREAD.items(), (STATE, ACTION), strict=True)
}


@cache
def demo_of(policy: str, *overrides: str) -> LoopJob:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return typed(compose("loop", ["experiment=stove", f"policy={policy}", "iterations=1", *overrides]), LoopJob)


def small(policy: str, seed: int = 0, image: tuple[int, int] = (24, 24), **changes: Any) -> Checkpoint:
    keys = replace(demo_of(policy).policy, **{**EVERY, **SMALL[policy], **changes})
    adapter = adapter_of(keys)
    torch.manual_seed(seed)
    model = adapter.build(keys, features(dict.fromkeys(CAMERAS, image), STATE, ACTION), "cpu")
    checkpoint = Checkpoint.new(adapter, model.eval(), STATS)
    checkpoint.set_prompt(True)
    return checkpoint


def take_for_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a π0.5 of any size is exported as lerobot's own."""
    monkeypatch.setattr(PI05Adapter, "plain", lambda self, config, folder: self.stock(config))


def numbers_of(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The sizes of a π0.5, as `stock_lerobot.shrink` takes them; SmolVLA's are in its VLM's folder."""
    sizes = getattr(checkpoint.policy.config, "sizes", None)
    if sizes is None:
        return None
    return {
        **{name: vars(getattr(sizes, name)) for name in ("vision", "vlm", "expert")},
        "vocab_size": sizes.vocab_size,
    }


def by_hand(
    checkpoint: Checkpoint, told: Prompt, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Any, Any]:
    """(policy, preprocessor, postprocessor) of lerobot's own, from the export of a checkpoint."""
    checkpoint.save(folder / "ours")
    take_for_full_size(monkeypatch)
    out = export(folder / "ours", folder / "stock", told)
    config = PreTrainedConfig.from_pretrained(out)
    if numbers := numbers_of(checkpoint):
        shrink(numbers, monkeypatch.setattr, config.type)
    policy = get_policy_class(config.type)(config)
    policy.load_state_dict(load_file(out / "model.safetensors"), strict=True)
    return policy.eval(), *make_pre_post_processors(config, str(out))
