"""Batches: arrays as data sets give them, tensors as networks take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Batch = dict[str, Any]


def tensors(batch: Batch) -> Batch:
    """A batch of arrays as the preprocessor takes it."""
    return {key: to_tensor(value) if isinstance(value, np.ndarray) else value for key, value in batch.items()}


def to_tensor(value: np.ndarray) -> torch.Tensor:
    """Images uint8 [..., H, W, 3] -> float [..., 3, H, W] in [0, 1], as lerobot gives them; the rest stays."""
    tensor = torch.from_numpy(value)
    return tensor.movedim(-1, -3).float().div_(255) if value.dtype == np.uint8 else tensor
