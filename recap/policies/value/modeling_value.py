"""The value function V(o, l): SigLIP, a language model, a learned read-out token, return bins (RECAP, section IV-B).

It sees and reads with networks of its own (SigLIP, Gemma 3), or with those of a policy (`value.backbone`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor, nn
from transformers import (
    Gemma3TextConfig,
    Gemma3TextModel,
    GemmaConfig,
    GemmaModel,
    LlamaConfig,
    LlamaModel,
    SiglipVisionModel,
)

from recap.method.returns import Bins
from recap.policies.backbone import (
    autocast,
    finish,
    join,
    make_stem,
    recompute,
    siglip_config,
    siglip_layer,
    stack_images,
    trim,
)
from recap.policies.compiled import compile_for_shapes, keep
from recap.policies.sizes import SIGLIP, GemmaSize, Language, SiglipSize

# google/siglip-so400m-patch14-224 and google/gemma-3-270m
GEMMA = GemmaSize(width=640, depth=18, mlp_dim=2048, num_heads=4, num_kv_heads=1, head_dim=256)


@dataclass(frozen=True)
class Kind:
    """A language model, and how what it comes from feeds it.

    both_ways: images and instruction see each other; else each token sees what stands before it. scaled: what is seen
    and read is multiplied by √width. bias: of the projection.
    """

    config: Callable[..., Any]
    model: Callable[[Any], Any]
    both_ways: bool = True
    scaled: bool = False
    bias: bool = True


KINDS = {
    Language.gemma3: Kind(Gemma3TextConfig, Gemma3TextModel, both_ways=False),
    Language.paligemma: Kind(GemmaConfig, GemmaModel),
    Language.smolvlm: Kind(LlamaConfig, LlamaModel, scaled=True, bias=False),
}


@PreTrainedConfig.register_subclass("recap_value")
@dataclass
class RecapValueConfig(PreTrainedConfig):
    language: Language = Language.gemma3
    vision: SiglipSize = field(default_factory=lambda: SIGLIP)
    text: GemmaSize = field(default_factory=lambda: GEMMA)
    image_size: int = 224
    vocab_size: int = 262_144
    tokenizer: str = "google/gemma-3-270m"
    tokenizer_max_length: int = 48
    joined: int = 1  # so many patches of a side become one token
    bins: int = 201
    use_state: bool = False
    dtype: str = "float32"  # of its matrix products; weights that learn and the head are float32
    freeze_vision: bool = False
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {"VISUAL": NormalizationMode.IDENTITY, "STATE": NormalizationMode.MEAN_STD}
    )

    def validate_features(self) -> None:
        if not self.image_features:
            raise ValueError("the value function needs at least one camera")

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig()

    def get_scheduler_preset(self) -> None:
        return None

    observation_delta_indices = None
    action_delta_indices = None
    reward_delta_indices = None


class RecapValuePolicy(PreTrainedPolicy):
    """V(o, l) behind lerobot's policy interface; it acts in no environment."""

    config_class = RecapValueConfig
    name = "recap_value"
    float32 = ("head.",)  # weights of products that are never computed in bfloat16

    def __init__(self, config: RecapValueConfig, **_: Any) -> None:
        super().__init__(config)
        self.config: RecapValueConfig = config
        size, kind = config.text, KINDS[config.language]
        self.stem = make_stem(config.vision)
        self.vision_tower = SiglipVisionModel(siglip_config(config.vision, config.image_size))
        for layer in self.vision_tower.vision_model.encoder.layers:
            layer.forward = MethodType(siglip_layer, layer)
        self.projector = nn.Linear(config.vision.width * config.joined**2, size.width, bias=kind.bias)
        self.language_model = kind.model(
            kind.config(
                vocab_size=config.vocab_size,
                hidden_size=size.width,
                intermediate_size=size.mlp_dim,
                num_hidden_layers=size.depth,
                num_attention_heads=size.num_heads,
                num_key_value_heads=size.num_kv_heads,
                head_dim=size.head_dim,
                query_pre_attn_scalar=size.head_dim,  # Gemma 3's own; the others always divide by it
            )
        )
        self.state_proj = nn.Linear(config.input_features[OBS_STATE].shape[0], size.width) if config.use_state else None
        self.head = nn.Linear(size.width, config.bins)
        finish(self, config.device)
        self.read_out = nn.Parameter(torch.randn(size.width).to(config.device))
        centers = torch.tensor(Bins(config.bins).centers, dtype=torch.float32, device=config.device)
        self.register_buffer("centers", centers, persistent=False)
        if config.freeze_vision:
            self.vision_tower.requires_grad_(requires_grad=False)

    def run_with(self, *, compiled: bool, memory: float = 1.0) -> None:
        """How it is computed; the results are the same but for the last digits.

        memory: the share of a training's activations that is kept. Not compiled, it is all or nothing.
        """
        if compiled:
            if not any(parameter.requires_grad for parameter in self.parameters()):
                for layer in self.vision_tower.vision_model.encoder.layers:
                    join(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
            keep(memory)
            for layer in (*self.vision_tower.vision_model.encoder.layers, *self.language_model.layers):
                layer.forward = compile_for_shapes(layer.forward)
        elif memory < 1:
            for part in (self.vision_tower, self.language_model):
                recompute(part)

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-odds over the return bins, float32 [B, bins]."""
        with autocast(self.config):
            hidden = self._read(batch)
        return self.head(hidden.float())

    def _read(self, batch: dict[str, Tensor]) -> Tensor:
        """What the read-out token gathered [B, width]."""
        images = stack_images(batch, list(self.config.image_features), self.config.image_size)
        tokens, mask = trim(batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK])
        size = images.shape[0]
        pixels = images.flatten(0, 1) if self.stem is None else self.stem(images.flatten(0, 1))
        seen = join_patches(self.vision_tower(pixels).last_hidden_state, self.config.joined)
        features = self.projector(seen).reshape(size, -1, self.config.text.width)
        text = self.language_model.embed_tokens(tokens).to(features.dtype)
        kind = KINDS[self.config.language]
        if kind.scaled:
            features, text = (part * self.config.text.width**0.5 for part in (features, text))
        behind = [self.read_out.to(features.dtype).expand(size, 1, -1)]
        if self.state_proj is not None:
            behind.insert(0, self.state_proj(batch[OBS_STATE])[:, None].to(features.dtype))
        lengths = mask.sum(dim=1)
        text, ends = after_text(text, lengths, torch.cat(behind, dim=1))
        hidden = torch.cat([features, text], dim=1)
        # Each token sees what stands before it, and the padding stands behind the read-out token: no mask is needed.
        # All layers see everything: Gemma 3's window is wider than all cameras and the text together.
        sees: Any = {"full_attention": None, "sliding_attention": None}
        if kind.both_ways:
            sees = seen_by(hidden.shape[1], features.shape[1] + lengths)
        out = self.language_model(inputs_embeds=hidden, attention_mask=sees, use_cache=False).last_hidden_state
        return out[torch.arange(size, device=out.device), features.shape[1] + ends - 1]

    def value(self, batch: dict[str, Tensor]) -> Tensor:
        """V = Σ_b p(b | o, l) · centre_b, float32 [B] in (−1, 0)."""
        return self.logits(batch).softmax(-1) @ self.centers

    def forward(self, batch: dict[str, Tensor], reduction: str = "mean") -> tuple[Tensor, dict[str, Any]]:
        """Cross-entropy against `return_bin` int [B]."""
        loss = F.cross_entropy(self.logits(batch), batch["return_bin"], reduction=reduction)
        return loss, {}

    def get_optim_params(self) -> Any:
        return self.parameters()

    def predict_action_chunk(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        raise NotImplementedError("the value function does not act")

    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        raise NotImplementedError("the value function does not act")

    def reset(self) -> None:
        """Nothing to clear."""


def after_text(text: Tensor, lengths: Tensor, behind: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens put behind the real ones of each text, before its padding.

    Args:
        text: [B, L, D], padded on the right; lengths: int [B], how much of each is real; behind: [B, T, D].

    Returns:
        [B, L + T, D], and where what is real ends, int [B].
    """
    ends, there = lengths + behind.shape[1], text.shape[1]
    place = torch.arange(there + behind.shape[1], device=text.device).expand(len(text), -1)
    moved = torch.where(place < ends[:, None], place - lengths[:, None] + there, place - behind.shape[1])
    source = torch.where(place < lengths[:, None], place, moved)
    together = torch.cat([text, behind], dim=1)
    return together.gather(1, source[:, :, None].expand_as(together)), ends


def join_patches(seen: Tensor, side: int) -> Tensor:
    """side · side neighbouring patches as one, in SmolVLM's order: [N, P, D] -> [N, P / side², D · side²]."""
    rows = math.isqrt(seen.shape[1]) // side
    return seen.unflatten(1, (rows, side, rows, side)).transpose(2, 3).flatten(3).flatten(1, 2)


def seen_by(length: int, together: Tensor) -> Tensor:
    """What each token sees, bool [B, 1, length, length]: the first `together` int [B], and those before it."""
    place = torch.arange(length, device=together.device)
    return ((place <= place[:, None]) | (place < together[:, None, None]))[:, None]
