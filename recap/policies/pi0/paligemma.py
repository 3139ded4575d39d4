"""PaliGemma with a Gemma action expert, built from numbers, and the layer that both are made of."""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from lerobot.policies.pi0.modeling_pi0 import PaliGemmaWithExpertModel
from lerobot.policies.pi_gemma import PaliGemmaForConditionalGenerationWithPiGemma, PiGemmaForCausalLM
from torch import Tensor, nn
from transformers import GemmaConfig, PaliGemmaConfig
from transformers.models.gemma.modeling_gemma import rotate_half

from recap.policies.backbone import make_stem, siglip_config
from recap.policies.sizes import GemmaSize

if TYPE_CHECKING:
    from recap.policies.pi0.modeling_pi0 import RecapPI0Config


def gemma_config(size: GemmaSize, vocab_size: int) -> GemmaConfig:
    config = GemmaConfig(
        vocab_size=vocab_size,
        hidden_size=size.width,
        intermediate_size=size.mlp_dim,
        num_hidden_layers=size.depth,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_kv_heads,
        head_dim=size.head_dim,
        hidden_activation="gelu_pytorch_tanh",
    )
    config.use_adarms = False
    config.adarms_cond_dim = None
    return config


class PaliGemmaWithExpert(PaliGemmaWithExpertModel):
    """lerobot's pair of modules, built from numbers."""

    def __init__(self, config: RecapPI0Config) -> None:
        nn.Module.__init__(self)
        self.freeze_vision_encoder = config.freeze_vision_encoder
        self.train_expert_only = config.train_expert_only
        vision = siglip_config(config.vision, config.image_resolution[0])
        vision.projection_dim = config.vlm.width
        text = gemma_config(config.vlm, config.vocab_size)
        paligemma = PaliGemmaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=config.vocab_size,
            vocab_size=config.vocab_size,
            projection_dim=config.vlm.width,
            hidden_size=config.vlm.width,
        )
        self.paligemma = PaliGemmaForConditionalGenerationWithPiGemma(config=paligemma)
        self.stem = make_stem(config.vision)
        self.gemma_expert = PiGemmaForCausalLM(config=gemma_config(config.expert, config.vocab_size))
        self.gemma_expert.model.embed_tokens = None
        self._set_requires_grad()
        self.freeze_unread()
        for layer in self.layers():  # called as modules, so that checkpointing and sharding find them
            layer.forward = MethodType(joint_layer, layer)

    def layers(self) -> list[nn.Module]:
        return [*self.paligemma.model.language_model.layers, *self.gemma_expert.model.layers]

    def freeze_unread(self) -> None:
        for module in self.unread():
            module.requires_grad_(requires_grad=False)

    def unread(self) -> list[nn.Module]:
        """What no action depends on: the language heads, and all but keys and values of the last prefix layer."""
        text = self.paligemma.model.language_model
        last = text.layers[-1]
        heads = [self.paligemma.lm_head, self.gemma_expert.lm_head]
        return [
            *heads,
            last.self_attn.q_proj,
            last.self_attn.o_proj,
            last.mlp,
            last.post_attention_layernorm,
            text.norm,
        ]

    def embed_images(self, images: Tensor) -> Tensor:
        """[B, cameras, 3, S, S] -> [B, cameras · patches, width], all cameras in one pass of the vision tower."""
        pixels = images.flatten(0, 1) if self.stem is None else self.stem(images.flatten(0, 1))
        features = self.paligemma.model.get_image_features(pixels).pooler_output
        return features.reshape(images.shape[0], -1, features.shape[-1])


def joint_layer(
    self: Any,
    hidden: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
    before: tuple[Tensor, Tensor] | None = None,
    only_keys: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """One Gemma layer whose queries also see the keys and values `before` its own tokens.

    Args:
        hidden: [B, L, D]; cos, sin: rotary positions [B, L, head_dim].
        mask: bool, broadcastable to [B, heads, L, all keys].
        only_keys: nobody reads the layer's output; `hidden` comes back as it is.

    Returns:
        hidden [B, L, D], and its own keys and values [B, kv heads, L, head_dim].
    """
    attention = self.self_attn
    normed, _ = self.input_layernorm(hidden)
    shape = (*normed.shape[:-1], -1, attention.head_dim)
    k, v = (proj(normed).view(shape).transpose(1, 2) for proj in (attention.k_proj, attention.v_proj))
    if only_keys:
        return hidden, rotate(k, cos, sin), v
    q = rotate(attention.q_proj(normed).view(shape).transpose(1, 2), cos, sin)
    k = rotate(k, cos, sin)
    keys, values = (k, v) if before is None else (torch.cat([a, b], dim=2) for a, b in zip(before, (k, v), strict=True))
    heads = q.shape[1] // k.shape[1]
    out = F.scaled_dot_product_attention(
        q,
        keys.repeat_interleave(heads, 1),
        values.repeat_interleave(heads, 1),
        attn_mask=mask,
        scale=attention.scaling,
    )
    hidden = hidden + attention.o_proj(out.transpose(1, 2).flatten(2))
    normed, _ = self.post_attention_layernorm(hidden)
    return hidden + self.mlp(normed), k, v


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions; x [B, heads, L, head_dim]."""
    return x * cos[:, None] + rotate_half(x) * sin[:, None]
