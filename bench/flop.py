"""Useful floating-point operations of the networks: each product once, and nothing of what is computed twice."""

from __future__ import annotations

from recap.policies.pi0.config import PI0Config
from recap.policies.sizes import GemmaSize, SiglipSize
from recap.policies.value.config import ValueConfig


def gemma(size: GemmaSize, tokens: float, seen: float, layers: int) -> float:
    """Forward, of `tokens` that each see so many keys."""
    inner = size.num_heads * size.head_dim
    weights = size.width * (2 * inner + 2 * size.num_kv_heads * size.head_dim + 3 * size.mlp_dim)
    return layers * tokens * (2.0 * weights + 4 * seen * inner)


def vision(size: SiglipSize, image_size: int, cameras: int, out: int) -> float:
    """out: the width that its patches are projected to."""
    patches, width = (image_size // size.patch_size) ** 2, size.width
    layer = 2 * (4 * width**2 + 2 * width * size.mlp_dim) + 4 * patches * width
    return cameras * patches * (size.depth * layer + 2 * width * (3 * size.patch_size**2 + out))


def tokens(size: PI0Config | ValueConfig, cameras: int, text: int) -> int:
    return cameras * (size.image_size // size.vision.patch_size) ** 2 + text


def prefix(size: PI0Config, cameras: int, text: int) -> float:
    """Images and prompt, without the vision tower; of the last layer keys and values."""
    there = tokens(size, cameras, text)
    last = 4 * there * size.vlm.width * size.vlm.num_kv_heads * size.vlm.head_dim
    return gemma(size.vlm, there, there, size.vlm.depth - 1) + last


def velocity(size: PI0Config, cameras: int, text: int) -> float:
    suffix = 1 + size.chunk_size
    return gemma(size.expert, suffix, tokens(size, cameras, text) + suffix, size.expert.depth)


def training(size: PI0Config, cameras: int, text: int) -> float:
    """A sample, forward and backward."""
    seen = vision(size.vision, size.image_size, cameras, size.vlm.width) + prefix(size, cameras, text)
    return 3 * (seen + size.flow_samples * velocity(size, cameras, text))


def chunk(size: PI0Config, cameras: int, text: int, halves: int) -> float:
    """halves: 2 with guidance; the images are seen once."""
    flow = size.num_inference_steps * velocity(size, cameras, text)
    return vision(size.vision, size.image_size, cameras, size.vlm.width) + halves * (prefix(size, cameras, text) + flow)


def value(size: ValueConfig, cameras: int, text: int) -> float:
    """Of one frame; a token sees what stands before it, so half of the others."""
    there = tokens(size, cameras, text) + 1
    read = gemma(size.text, there, there / 2, size.text.depth)
    return vision(size.vision, size.image_size, cameras, size.text.width) + read
