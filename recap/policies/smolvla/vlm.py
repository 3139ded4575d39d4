"""The folder of a SmolVLM without weights: its configuration, its tokenizer, and how it takes images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from recap.policies.sizes import GemmaSize, SiglipSize
from recap.policies.smolvla.config import SmolVLAConfig
from recap.policies.words import builtin_words

SPECIAL = {  # tokens that lerobot asks a SmolVLM's tokenizer for
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "image_token": "<image>",
}


def write_small(folder: Path, keys: SmolVLAConfig) -> Path:
    """The folder of a SmolVLM of these sizes that reads the built-in words."""
    assert keys.vision is not None
    assert keys.text is not None
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=builtin_words(),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens=SPECIAL,
    )
    vision, text = keys.vision, keys.text
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp_dim,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.num_heads,
            "patch_size": vision.patch_size,
            "image_size": keys.image_size,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": text.width,
            "intermediate_size": text.mlp_dim,
            "num_hidden_layers": text.depth,
            "num_attention_heads": text.num_heads,
            "num_key_value_heads": text.num_kv_heads,
            "head_dim": text.head_dim,
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
        },
        scale_factor=keys.scale_factor,
        image_token_id=tokenizer.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.save_pretrained(folder)
    SmolVLMProcessor(SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor()).save_pretrained(folder)
    return folder


def sizes_of(folder: Path) -> dict[str, Any]:
    """How large the SmolVLM of a folder is, as fields of `Backbone`."""
    config = SmolVLMConfig.from_pretrained(folder)
    vision, text = config.vision_config, config.text_config
    return {
        "vision": SiglipSize(
            width=vision.hidden_size,
            depth=vision.num_hidden_layers,
            mlp_dim=vision.intermediate_size,
            num_heads=vision.num_attention_heads,
            patch_size=vision.patch_size,
        ),
        "text": GemmaSize(
            width=text.hidden_size,
            depth=text.num_hidden_layers,
            mlp_dim=text.intermediate_size,
            num_heads=text.num_attention_heads,
            num_kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
        ),
        "image_size": vision.image_size,
        "vocab_size": text.vocab_size,
        "joined": config.scale_factor,
    }
