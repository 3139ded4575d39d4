"""The optimiser and its learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch

from recap.training.config import Optimizer, TrainConfig
from recap.utils.errors import RecapError


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up over `warmup_steps`, then a cosine down to `min_lr_ratio` × peak at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)


def make_optimizer(policy: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters, or bitsandbytes' with 8-bit moments.

    Raises RecapError where bitsandbytes is not installed.
    """
    trainable = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    options: dict[str, Any] = {"lr": config.learning_rate, "betas": (0.9, 0.95), "weight_decay": config.weight_decay}
    if config.optimizer is Optimizer.adamw:
        return torch.optim.AdamW(trainable, **options, fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise RecapError(
            "optimizer=adamw8bit: bitsandbytes is not installed. Fix: pip install bitsandbytes, or optimizer=adamw."
        ) from error
    return AdamW8bit(trainable, **options)
