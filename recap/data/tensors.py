"""Batches: arrays as data sets give them, tensors as networks take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Batch = dict[str, Any]


def tensors(batch: Batch, device: str = "cpu") -> Batch:
    """A batch of arrays as the preprocessor takes it."""
    return {key: to_tensor(value, device) if isinstance(value, np.ndarray) else value for key, value in batch.items()}


def to_tensor(value: np.ndarray, device: str = "cpu") -> torch.Tensor:
    """Images uint8 [..., H, W, 3] -> float [..., 3, H, W] in [0, 1] on the device, as lerobot gives them.

    The rest stays. They travel as bytes: a quarter of the numbers that they become there.
    """
    tensor = torch.from_numpy(value)
    return tensor.to(device).movedim(-1, -3).float().div_(255) if value.dtype == np.uint8 else tensor
