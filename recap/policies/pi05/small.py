"""Other sizes than those written into lerobot's code, put there while a model is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lerobot.policies.pi05 import modeling_pi05

from recap.policies.pi0.memory import VOCABULARY
from recap.policies.sizes import SIGLIP, GemmaSize, SiglipSize

VARIANTS = {"gemma_2b": "vlm", "gemma_300m": "expert"}  # lerobot's names


@dataclass(frozen=True)
class Sizes:
    vision: SiglipSize
    vlm: GemmaSize
    expert: GemmaSize
    vocab_size: int


STOCK = Sizes(
    vision=SIGLIP,
    **{part: GemmaSize(**vars(modeling_pi05.get_gemma_config(name))) for name, part in VARIANTS.items()},
    vocab_size=VOCABULARY,
)


def shrunk(sizes: Sizes) -> dict[str, Any]:
    """Attributes of lerobot's `modeling_pi05` with these sizes."""
    names = ("PaliGemmaForConditionalGenerationWithPiGemma", "PiGemmaForCausalLM")
    return {
        "get_gemma_config": lambda variant: getattr(sizes, VARIANTS[variant]),
        **{name: _small(getattr(modeling_pi05, name), sizes) for name in names},
    }


def _small(make: Callable[..., Any], sizes: Sizes) -> Callable[..., Any]:
    def build(config: Any) -> Any:
        getattr(config, "text_config", config).vocab_size = sizes.vocab_size
        if hasattr(config, "vision_config"):
            tower, vision = config.vision_config, sizes.vision
            tower.hidden_size, tower.intermediate_size = vision.width, vision.mlp_dim
            tower.num_hidden_layers, tower.num_attention_heads = vision.depth, vision.num_heads
            tower.patch_size, tower.projection_dim = vision.patch_size, sizes.vlm.width
        return make(config=config)

    return build
