"""PaliGemma with a Gemma action expert, built from numbers, and the layer that both are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from lerobot.policies.pi0.modeling_pi0 import PaliGemmaWithExpertModel
from lerobot.policies.pi_gemma import PaliGemmaForConditionalGenerationWithPiGemma, PiGemmaForCausalLM
from torch import Tensor, nn
from transformers import GemmaConfig, PaliGemmaConfig
from transformers.models.gemma.modeling_gemma import rotate_half

from recap.policies.backbone import heads, join, make_stem, products, siglip_config, siglip_layer
from recap.policies.compiled import compile_for_shapes
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
        for forward, layers in self.layers().items():  # called as modules, so that checkpointing and sharding find them
            for layer in layers:
                layer.forward = MethodType(forward, layer)

    def layers(self) -> dict[Callable[..., Any], Sequence[Any]]:
        """All layers by what they compute."""
        *prefix, last = self.paligemma.model.language_model.layers
        return {
            siglip_layer: self.paligemma.model.vision_tower.vision_model.encoder.layers,
            prefix_layer: prefix,
            last_prefix_layer: [last],
            expert_layer: self.gemma_expert.model.layers,
        }

    def compile_layers(self) -> None:
        """Every layer becomes a compiled function, its own for each kind: they meet other shapes."""
        for layer in chain(*self.layers().values()):
            layer.forward = compile_for_shapes(layer.forward)

    def join_products(self) -> None:
        """Fewer and larger matrix products, where no weight learns."""
        for layer in chain(*self.layers().values()):
            attention = layer.self_attn
            join(attention.q_proj, attention.k_proj, attention.v_proj)
            if hasattr(layer.mlp, "gate_proj"):
                join(layer.mlp.gate_proj, layer.mlp.up_proj)

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


def prefix_layer(self: Any, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One Gemma layer of the prefix.

    Args:
        hidden: [B, P, D]; cos, sin: rotary positions [B, P, head_dim].
        mask: bool, broadcastable to [B, heads, P, P].

    Returns:
        hidden [B, P, D], and keys and values [B, kv heads, P, head_dim].
    """
    q, k, v = queries_keys_values(self, hidden, cos, sin)
    return after_attention(self, hidden, attend(q, k, v, mask)), k, v


def last_prefix_layer(self: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The keys and values of a layer whose output nobody reads."""
    attention = self.self_attn
    normed, _ = self.input_layernorm(hidden)
    k, v = (heads(proj(normed), attention.head_dim) for proj in (attention.k_proj, attention.v_proj))
    return rotate(k, cos, sin), v.clone(memory_format=torch.contiguous_format)


def expert_layer(
    self: Any, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, before: tuple[Tensor, Tensor]
) -> Tensor:
    """One Gemma layer whose queries also see the prefix's keys and values `before` its own; hidden [B, L, D].

    mask: as in `prefix_layer`; it may be wider than there are keys.
    """
    q, *own = queries_keys_values(self, hidden, cos, sin)
    k, v = (torch.cat(both, dim=2) for both in zip(before, own, strict=True))
    room = (0, 0, 0, mask.shape[-1] - k.shape[2])
    return after_attention(self, hidden, attend(q, F.pad(k, room), F.pad(v, room), mask))


def queries_keys_values(self: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, heads or kv heads, L, head_dim] each; the queries are scaled for their product with the keys."""
    attention = self.self_attn
    normed, _ = self.input_layernorm(hidden)
    found = products(normed, attention.q_proj, attention.k_proj, attention.v_proj)
    q, k, v = (heads(part, attention.head_dim) for part in found)
    return rotate(q, cos, sin) * attention.scaling, rotate(k, cos, sin), v.clone(memory_format=torch.contiguous_format)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention [B, L, heads · head_dim] of scaled queries.

    Torch's own is the faster on a processor, where it never writes the scores down: four times for a prefix of 528.
    """
    if q.device.type == "cpu":
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0, enable_gqa=True)
        return found.transpose(1, 2).flatten(2)
    return by_products(q, k, v, mask)


def by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The same: query heads that share keys are rows of one matrix product.

    With a mask and heads of 256, torch's own kernels reach a tenth of what the products of a GPU do.
    """
    batch, heads, length, width = q.shape
    rows = q.reshape(batch, k.shape[1], -1, width)
    scores = (rows @ k.transpose(2, 3)).view(batch, heads, length, -1)
    shares = scores.float().masked_fill(~mask, -torch.inf).softmax(-1).to(v.dtype)
    out = shares.view(batch, k.shape[1], rows.shape[2], -1) @ v
    return out.view(batch, heads, length, width).transpose(1, 2).flatten(2)


def after_attention(self: Any, hidden: Tensor, attended: Tensor) -> Tensor:
    hidden = hidden + self.self_attn.o_proj(attended)
    normed, _ = self.post_attention_layernorm(hidden)
    gate, up = products(normed, self.mlp.gate_proj, self.mlp.up_proj)
    return hidden + self.mlp.down_proj(self.mlp.act_fn(gate) * up)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions; x [B, heads, L, head_dim]."""
    return x * cos[:, None] + rotate_half(x) * sin[:, None]
