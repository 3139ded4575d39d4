"""What the value function is trained on: observations and the bins of their returns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from recap.data.augment import shift_images
from recap.data.mixture import Mixture
from recap.data.tensors import Batch
from recap.training.config import TrainConfig


def value_batches(
    mixture: Mixture, train: TrainConfig, seed: int, return_bins: list[np.ndarray]
) -> Callable[[int], Batch]:
    """Batches of the value function: observations and the bin of each frame's return (int [frames] per source)."""

    def batch(step: int) -> Batch:
        picked = mixture.pick(seed, step, train.batch_size)
        data = mixture.gather(picked)
        shift_images(data, train.random_shift, np.random.default_rng([seed, step, 1]))
        data["return_bin"] = np.array(
            [return_bins[s][f] for s, f in zip(picked.source, picked.frame, strict=True)], dtype=np.int64
        )
        return data

    return batch
