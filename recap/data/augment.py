"""Image augmentation."""

from __future__ import annotations

import numpy as np

from recap.data.tensors import Batch


def shift_images(batch: Batch, pixels: int, rng: np.random.Generator) -> None:
    """Moves every image [B, H, W, 3] by up to `pixels` in each direction, repeating the edge, in place.

    So that a policy cannot memorise which pixels a pot covers.
    """
    for key, images in batch.items():
        if pixels == 0 or not key.startswith("observation.images."):
            continue
        size, height, width = images.shape[:3]
        rows = np.arange(height) + rng.integers(-pixels, pixels + 1, (size, 1))
        columns = np.arange(width) + rng.integers(-pixels, pixels + 1, (size, 1))
        rows, columns = rows.clip(0, height - 1), columns.clip(0, width - 1)
        batch[key] = images[np.arange(size)[:, None, None], rows[:, :, None], columns[:, None, :]]
