"""Sizes of the transformers, and how a policy is held and trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from recap.utils.typed import Count, Index, part


class Precision(Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class Trained(Enum):
    all = "all"
    frozen_vision = "frozen_vision"  # all but the vision tower
    expert = "expert"  # the action expert and its projections
    lora = "lora"  # low-rank adapters of the VLM and the expert


@part
class GemmaSize:
    width: Count
    depth: Count
    mlp_dim: Count
    num_heads: Count
    num_kv_heads: Count
    head_dim: Count

    def problems(self, key: str) -> Iterator[str]:
        if self.head_dim % 2:
            yield f"{key}.head_dim={self.head_dim}: must be even (rotary positions turn pairs of numbers)"
        if self.num_heads % self.num_kv_heads:
            yield f"{key}.num_heads={self.num_heads}: must be a multiple of {key}.num_kv_heads={self.num_kv_heads}"


@part
class SiglipSize:
    width: Count
    depth: Count
    mlp_dim: Count
    num_heads: Count
    patch_size: Count
    stem: Index = 0

    def problems(self, key: str) -> Iterator[str]:
        if self.width % self.num_heads:
            yield f"{key}.width={self.width}: must be a multiple of {key}.num_heads={self.num_heads}"


SIGLIP = SiglipSize(width=1152, depth=27, mlp_dim=4304, num_heads=16, patch_size=14)  # so400m, of PaliGemma too


class Language(Enum):
    """Language models that a value function can be made of, with what surrounds them."""

    gemma3 = "gemma3"  # its own
    paligemma = "paligemma"  # Gemma, of π0 and π0.5
    smolvlm = "smolvlm"  # SmolLM2, of SmolVLA


@dataclass(frozen=True)
class Backbone:
    """What a network sees and reads with: SigLIP, a projection of its patches, and a language model.

    joined: so many patches of a side become one token. weights: names of a value function's parts -> of the same parts
    in a policy's checkpoint.
    """

    language: Language
    vision: SiglipSize
    text: GemmaSize
    image_size: int
    tokenizer: str
    vocab_size: int
    joined: int = 1
    weights: Mapping[str, str] = field(default_factory=dict)


def image_fits(key: str, image_size: int, vision: SiglipSize) -> Iterator[str]:
    """The image is a whole number of patches."""
    if image_size % vision.patch_size:
        yield f"{key}.image_size={image_size}: must be a multiple of {key}.vision.patch_size={vision.patch_size}"


def padded(keys: Any, key: str, found: Sequence[tuple[str, int, int]]) -> Iterator[str]:
    """States and actions fit into what a policy pads them to, as in `NetworkConfig.too_small`."""
    for what, limit, at in (("observation.state", "max_state_dim", 1), ("action", "max_action_dim", 2)):
        most = max(found, key=lambda one: one[at], default=None)
        if most is None or most[at] <= getattr(keys, limit):
            continue
        weights = f" and {key}.pretrained=null: {keys.pretrained} is for fewer" if keys.pretrained else ""
        yield (
            f"{key}.{limit}={getattr(keys, limit)}: {most[0]} has {what} of dimension {most[at]}. "
            f"Fix: {key}.{limit}={most[at]}{weights}"
        )
