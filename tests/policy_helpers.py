"""Policies small enough to build, run and train in a moment, and what they are fed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import CAMERAS, TASKS
from demo_keys import demo

from recap.data.config import EpisodeFilter
from recap.policies.adapter import Adapter, features
from recap.policies.checkpoint import Checkpoint
from recap.policies.pi0 import modeling_pi0 as pi0_module
from recap.policies.pi0.adapter import PI0Adapter
from recap.policies.pi0.config import PI0Config
from recap.policies.prompt import BUILTIN
from recap.policies.sizes import GemmaSize, Precision, SiglipSize
from recap.policies.value.adapter import ValueAdapter
from recap.policies.value.config import ValueConfig
from recap.training.config import IndicatorMode, PolicyTrainConfig

STATE, ACTION, CHUNK = 8, 7, 5
STATS = {
    "observation.state": {"mean": np.linspace(-1, 1, STATE), "std": np.linspace(0.5, 2, STATE)},
    "action": {"mean": np.linspace(-0.2, 0.2, ACTION), "std": np.linspace(0.3, 0.6, ACTION)},
}
VISION = SiglipSize(width=32, depth=2, mlp_dim=48, num_heads=4, patch_size=8, stem=0)
VLM = GemmaSize(width=32, depth=2, mlp_dim=48, num_heads=8, num_kv_heads=1, head_dim=8)
EXPERT = GemmaSize(width=24, depth=2, mlp_dim=40, num_heads=8, num_kv_heads=1, head_dim=8)


def numbers_of(config: Any) -> dict[str, Any]:
    """The sizes of a π0, as `stock_lerobot.shrink` takes them."""
    sizes = {name: vars(getattr(config, name)) for name in ("vision", "vlm", "expert")}
    return {**sizes, "vocab_size": config.vocab_size}


def settings(**changes: Any) -> PolicyTrainConfig:
    """A training of ten steps."""
    values: dict[str, Any] = {
        "steps": 10,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "warmup_steps": 3,
        "min_lr_ratio": 0.1,
        "weight_decay": 0.01,
        "grad_clip": 1.0,
        "save_every": 3,
        "keep_checkpoints": 2,
        "log_every": 2,
        "random_shift": 1,
        "demo_fraction": 0.5,
        "indicator": IndicatorMode.always_positive,
        "episode_filter": EpisodeFilter.all,
    }
    return PolicyTrainConfig(**{**values, **changes})


def pi0_size(**changes: Any) -> PI0Config:
    """π0 of 0.1 M parameters; 8 heads, because lerobot's own code has that number written into it."""
    size: dict[str, Any] = {
        "vision": VISION,
        "vlm": VLM,
        "expert": EXPERT,
        "image_size": 24,
        "tokenizer": BUILTIN,
        "tokenizer_max_length": 40,
        "max_state_dim": STATE + 2,
        "max_action_dim": ACTION + 2,
        "chunk_size": CHUNK,
        "n_action_steps": 3,
        "num_inference_steps": 3,
        "flow_samples": 2,
        "indicator_dropout": 0.0,
    }
    return replace(demo().policy, **{**size, **changes})


def value_size(**changes: Any) -> ValueConfig:
    size: dict[str, Any] = {
        "vision": VISION,
        "text": VLM,
        "image_size": 24,
        "tokenizer": BUILTIN,
        "tokenizer_max_length": 24,
        "bins": 21,
        "use_state": False,
    }
    return replace(demo().value, **{**size, **changes})


def made(adapter: Adapter, keys: Any, seed: int, image: tuple[int, int], precision: Precision) -> Checkpoint:
    torch.manual_seed(seed)
    spec = features(dict.fromkeys(CAMERAS, image), STATE, ACTION)
    checkpoint = Checkpoint.new(adapter, adapter.build(keys, spec, "cpu", precision), STATS)
    checkpoint.policy.eval()
    return checkpoint


def new_pi0(
    seed: int = 0, image: tuple[int, int] = (24, 24), precision: Precision = Precision.float32, **changes: Any
) -> Checkpoint:
    return made(PI0Adapter(), pi0_size(**changes), seed, image, precision)


def new_value(seed: int = 0, precision: Precision = Precision.float32, **changes: Any) -> Checkpoint:
    return made(ValueAdapter(), value_size(**changes), seed, (24, 24), precision)


def take_for_full_size(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this package takes the sizes of a small π0 for lerobot's only ones."""
    config = checkpoint.policy.config
    variants = {"gemma_2b": config.vlm, "gemma_300m": config.expert}
    monkeypatch.setattr(pi0_module.modeling_pi0, "get_gemma_config", variants.__getitem__)
    monkeypatch.setattr(pi0_module, "SIGLIP", config.vision)
    monkeypatch.setattr(pi0_module, "VOCABULARY", config.vocab_size)


def observation(rows: int, seed: int = 0, image: tuple[int, int] = (24, 24)) -> dict[str, Any]:
    """A batch as the data set gives it; the instructions, of different length, in turn."""
    generator = torch.Generator().manual_seed(seed)
    return {
        **{key: torch.rand(rows, 3, *image, generator=generator) for key in CAMERAS},
        "observation.state": torch.randn(rows, STATE, generator=generator),
        "task": [TASKS[i % 2] for i in range(rows)],
    }


def training_batch(rows: int, seed: int = 0, samples: int = 2, image: tuple[int, int] = (24, 24)) -> dict[str, Any]:
    """`observation` with what π0's loss needs besides; every fourth chunk runs past its episode's end."""
    generator = torch.Generator().manual_seed(seed + 1000)
    pad = torch.zeros(rows, CHUNK, dtype=torch.bool)
    pad[::4, CHUNK // 2 :] = True
    return {
        **observation(rows, seed, image),
        "action": torch.rand(rows, CHUNK, ACTION, generator=generator) * 2 - 1,
        "action_is_pad": pad,
        "noise": torch.randn(rows, samples, CHUNK, ACTION + 2, generator=generator),
        "time": torch.rand(rows, samples, generator=generator),
    }


def chunk_noise(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, CHUNK, ACTION + 2, generator=torch.Generator().manual_seed(seed))


def act(checkpoint: Checkpoint, batch: dict[str, Any], noise: torch.Tensor) -> torch.Tensor:
    return checkpoint.policy.predict_action_chunk(checkpoint.prepare({**batch, "noise": noise}))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")
