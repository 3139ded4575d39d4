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
        down, right = (rng.integers(0, 2 * pixels + 1, size) for _ in range(2))
        wide = np.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode="edge")
        moved = [image[y : y + height, x : x + width] for image, y, x in zip(wide, down, right, strict=True)]
        batch[key] = np.stack(moved)
