"""π0: flow matching with a PaliGemma prefix and a Gemma action expert, as a lerobot policy of any size.

State-dict keys and shapes are those of lerobot's `PI0Policy`; at full size its weights load here and ours load there.
The forward pass is ours: prefix and suffix are computed apart (the prefix never looks at the suffix), so that several
flow samples share one prefix, the last prefix layer is only keys and values, and guidance is one batched pass.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lerobot.configs import PolicyFeature, PreTrainedConfig
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.policies.common.vla_utils import pad_vector
from lerobot.policies.pi0 import modeling_pi0
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi0.modeling_pi0 import PI0Policy, PI0Pytorch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor, nn

from recap.policies.backbone import autocast, finish, recompute, stack_images, trim
from recap.policies.folder import held
from recap.policies.pi0 import config as keys
from recap.policies.pi0.paligemma import PaliGemmaWithExpert
from recap.policies.prompt import UNCONDITIONAL_MASK, UNCONDITIONAL_TOKENS
from recap.policies.sizes import GemmaSize, SiglipSize

KeysValues = list[tuple[Tensor, Tensor]]
# Written into lerobot's code.
SIGLIP = SiglipSize(width=1152, depth=27, mlp_dim=4304, num_heads=16, patch_size=14)
VOCABULARY = 257152
EMPTY_CAMERA = f"{OBS_IMAGES}.empty_camera_"


@PreTrainedConfig.register_subclass("recap_pi0")
@dataclass
class RecapPI0Config(PI0Config):
    """lerobot's PI0Config with the sizes as numbers instead of variant names."""

    vision: SiglipSize = field(default_factory=lambda: SIGLIP)
    vlm: GemmaSize = field(default_factory=lambda: sizes("gemma_2b"))
    expert: GemmaSize = field(default_factory=lambda: sizes("gemma_300m"))
    vocab_size: int = VOCABULARY
    tokenizer: str = "google/paligemma-3b-pt-224"
    flow_samples: int = 1  # noise and time samples per observation in training; they share the prefix
    beta: float = 1.0  # guidance β at inference

    @classmethod
    def of(cls, config: PI0Config) -> RecapPI0Config:
        """A configuration of lerobot's own, with the sizes that its variant names stand for."""
        vlm, expert = (sizes(name) for name in (config.paligemma_variant, config.action_expert_variant))
        own = {f.name: getattr(config, f.name) for f in fields(PI0Config)}
        return cls(**own, vision=SIGLIP, vlm=vlm, expert=expert, vocab_size=VOCABULARY)

    @property
    def image_size(self) -> int:
        return self.image_resolution[0]

    @property
    def image_features(self) -> dict[str, PolicyFeature]:
        """Its cameras, without those that lerobot adds as placeholders (`empty_cameras`) and masks."""
        return {key: feature for key, feature in super().image_features.items() if not key.startswith(EMPTY_CAMERA)}

    def plain(self) -> PI0Config | None:
        """The same as lerobot's own configuration, or None where that has no words for these sizes."""
        config = PI0Config(**{f.name: getattr(self, f.name) for f in fields(PI0Config)})
        other = RecapPI0Config.of(config)
        same = all(getattr(other, name) == getattr(self, name) for name in ("vision", "vlm", "expert", "vocab_size"))
        return config if same else None


def sizes(variant: str) -> GemmaSize:
    """lerobot's numbers for one of its names."""
    return GemmaSize(**vars(modeling_pi0.get_gemma_config(variant)))


class PI0Model(PI0Pytorch):
    """lerobot's PI0Pytorch (its projections, time embedding, noise) with the joint attention in two parts."""

    def __init__(self, config: RecapPI0Config) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.rtc_processor = None
        self.gradient_checkpointing_enabled = False
        self.paligemma_with_expert = PaliGemmaWithExpert(config)
        width = config.expert.width
        self.action_in_proj = nn.Linear(config.max_action_dim, width)
        self.action_out_proj = nn.Linear(width, config.max_action_dim)
        self.state_proj = nn.Linear(config.max_state_dim, width)
        self.action_time_mlp_in = nn.Linear(2 * width, width)
        self.action_time_mlp_out = nn.Linear(width, width)

    def _rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of the positions int [B, L]: [B, L, head_dim] each."""
        return self.paligemma_with_expert.paligemma.model.language_model.rotary_emb(hidden, positions)

    def encode_prefix(self, images: Tensor, tokens: Tensor, mask: Tensor) -> tuple[KeysValues, Tensor]:
        """Keys and values of images and prompt for every layer.

        Args:
            images: [B, cameras, 3, S, S] in [-1, 1].
            tokens, mask: int and bool [B, L], padded on the right.

        Returns:
            per layer (k, v), each [B, kv heads, P, head_dim], and the mask bool [B, P] of real prefix tokens.
        """
        vlm = self.paligemma_with_expert
        image_embs = vlm.embed_images(images)
        hidden = torch.cat([image_embs, vlm.embed_language_tokens(tokens).to(image_embs.dtype)], dim=1)
        valid = torch.cat([mask.new_ones(image_embs.shape[:2]), mask], dim=1)
        cos, sin = self._rotary(hidden, torch.cumsum(valid, dim=1) - 1)
        layers = vlm.paligemma.model.language_model.layers
        cache: KeysValues = []
        for i, layer in enumerate(layers):  # nobody reads the prefix's output, only its keys and values
            hidden, k, v = layer(hidden, cos, sin, valid[:, None, None, :], None, i + 1 == len(layers))
            cache.append((k, v))
        return cache, valid

    def velocity(self, state: Tensor, x_t: Tensor, time: Tensor, cache: KeysValues, valid: Tensor) -> Tensor:
        """v_θ(x_t, t | prefix, state): [B, chunk, max_action_dim].

        state [B, max_state_dim], x_t like the result, time [B] (1 = noise).
        """
        with torch.autocast(x_t.device.type, enabled=False):  # as lerobot: what is not Gemma or SigLIP stays float32
            hidden, _, _, _ = self.embed_suffix(state, x_t, time)
        hidden = hidden.to(cache[0][1].dtype)
        batch, length = hidden.shape[:2]
        positions = valid.sum(dim=1, keepdim=True) + torch.arange(length, device=valid.device)
        cos, sin = self._rotary(hidden, positions)
        # the state token sees itself, actions see state and actions; both see the real prefix
        own = torch.ones(length, length, dtype=torch.bool, device=valid.device)
        own[0, 1:] = False
        mask = torch.cat([valid[:, None, :].expand(-1, length, -1), own.expand(batch, -1, -1)], dim=2)[:, None]
        expert = self.paligemma_with_expert.gemma_expert.model
        for layer, before in zip(expert.layers, cache, strict=True):
            hidden, _, _ = layer(hidden, cos, sin, mask, before)
        hidden, _ = expert.norm(hidden)
        with torch.autocast(x_t.device.type, enabled=False):
            return self.action_out_proj(hidden[:, 1:].to(torch.float32))

    def flow_loss(
        self, images: Tensor, tokens: Tensor, mask: Tensor, state: Tensor, actions: Tensor, noise: Tensor, time: Tensor
    ) -> Tensor:
        """Flow matching: |v_θ(x_t, t) − (noise − actions)|² with x_t = t · noise + (1 − t) · actions.

        Args:
            actions: [B, chunk, max_action_dim]; noise: [B, K, chunk, max_action_dim]; time: [B, K].

        Returns:
            squared error [B, K, chunk, max_action_dim].
        """
        samples = noise.shape[1]
        cache, valid = self.encode_prefix(images, tokens, mask)
        cache = [(k.repeat_interleave(samples, 0), v.repeat_interleave(samples, 0)) for k, v in cache]
        t = time[:, :, None, None]
        x_t = t * noise + (1 - t) * actions[:, None]
        v_t = self.velocity(
            state.repeat_interleave(samples, 0),
            x_t.flatten(0, 1),
            time.flatten(),
            cache,
            valid.repeat_interleave(samples, 0),
        )
        return F.mse_loss(v_t.view_as(noise), noise - actions[:, None], reduction="none")

    @torch.no_grad()
    def sample_actions(
        self,
        images: Tensor,
        tokens: Tensor,
        mask: Tensor,
        state: Tensor,
        noise: Tensor,
        beta: float = 1.0,
        unconditional: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Euler steps from `noise` at t = 1 to actions [B, chunk, max_action_dim] at t = 0.

        With β ≠ 1: v = v_uncond + β (v_cond − v_uncond), both halves in one batch; `unconditional` is the prompt
        (tokens, mask) without the indicator.
        """
        if beta == 1.0 or unconditional is None:
            cache, valid = self.encode_prefix(images, tokens, mask)
            return euler_integrate(
                lambda x, t: self.velocity(state, x, t, cache, valid), noise, self.config.num_inference_steps
            )
        plain_tokens, plain_mask = unconditional
        pad = tokens.shape[1] - plain_tokens.shape[1]
        cache, valid = self.encode_prefix(
            images.repeat(2, 1, 1, 1, 1),
            torch.cat([tokens, F.pad(plain_tokens, (0, pad))]),
            torch.cat([mask, F.pad(plain_mask, (0, pad))]),
        )
        state = state.repeat(2, 1)

        def guided(x: Tensor, t: Tensor) -> Tensor:
            cond, uncond = self.velocity(state, x.repeat(2, 1, 1), t.repeat(2), cache, valid).chunk(2)
            return uncond + beta * (cond - uncond)

        return euler_integrate(guided, noise, self.config.num_inference_steps)


class RecapPI0Policy(PI0Policy):
    """π0 of any size behind lerobot's policy interface.

    Batches come from the saved preprocessor (`recap.policies.checkpoint`).
    """

    config_class = RecapPI0Config
    name = "recap_pi0"
    float32 = ("model.state_proj", "model.action_")  # weights of products that are never computed in bfloat16

    def __init__(self, config: RecapPI0Config, **_: Any) -> None:
        PreTrainedPolicy.__init__(self, config)
        config.validate_features()
        self.config: RecapPI0Config = config
        self.rtc_processor = None
        self.model = PI0Model(config)
        finish(self.model, config.device)
        self.run_with(gradient_checkpointing=config.gradient_checkpointing, compiled=config.compile_model)
        self.reset()

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, strict: bool = True, **options: Any
    ) -> RecapPI0Policy:
        """As for any lerobot policy, and strict: lerobot's override for π0 swallows loading errors.

        A folder may hold what is not allowed: lerobot-eval calls this before it builds the processors of it.
        """
        if (folder := Path(pretrained_name_or_path)).is_dir():
            held(folder, keys.PI0Config, str(folder))
        return super(PI0Policy, cls).from_pretrained(pretrained_name_or_path, strict=strict, **options)

    def run_with(self, *, gradient_checkpointing: bool, compiled: bool = False) -> None:
        """How it is computed; the results are the same but for the last digits when compiled."""
        model = self.model.paligemma_with_expert
        if gradient_checkpointing:
            for part in (model.paligemma, model.gemma_expert):
                recompute(part)
        if compiled:
            for name in ("encode_prefix", "velocity"):
                setattr(self.model, name, torch.compile(getattr(self.model, name)))

    def _inputs(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        images = stack_images(batch, list(self.config.image_features), self.config.image_size)
        return (
            images,
            batch[OBS_LANGUAGE_TOKENS],
            batch[OBS_LANGUAGE_ATTENTION_MASK],
            pad_vector(batch[OBS_STATE], self.config.max_state_dim),
        )

    def forward(self, batch: dict[str, Tensor], reduction: str = "mean") -> tuple[Tensor, dict[str, Any]]:
        """Flow-matching loss over the real action dimensions and the real frames of the chunk.

        The batch has `action` [B, chunk, A] normalised, `action_is_pad` bool [B, chunk], and may bring its own `noise`
        [B, K, chunk, max_action_dim], `time` [B, K] and a `weight` [B] of each sample's loss. `reduction="none"` gives
        one loss a sample.
        """
        images, tokens, mask, state = self._inputs(batch)
        tokens, mask = trim(tokens, mask)
        actions = pad_vector(batch[ACTION], self.config.max_action_dim)
        size, samples = actions.shape[0], self.config.flow_samples
        noise = (
            batch["noise"]
            if "noise" in batch
            else self.model.sample_noise((size, samples, *actions.shape[1:]), actions.device)
        )
        time = (
            batch["time"]
            if "time" in batch
            else self.model.sample_time(size * samples, actions.device).view(size, samples)
        )
        with autocast(self.config):
            losses = self.model.flow_loss(images, tokens, mask, state, actions, noise, time)
        losses = losses[..., : self.config.output_features[ACTION].shape[0]].mean(dim=(1, 3))
        if "weight" in batch:
            losses = losses * batch["weight"][:, None]
        real = torch.ones_like(losses) if "action_is_pad" not in batch else (~batch["action_is_pad"]).to(losses.dtype)
        per_sample = (losses * real).sum(1) / real.sum(1).clamp(min=1)
        if reduction == "none":
            return per_sample, {}
        # frames weigh the same wherever they fall in the batch
        loss = (losses * real).sum() / real.sum().clamp(min=1)
        return loss, {"loss": loss.item()}

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Normalised actions [B, chunk, A].

        The batch may bring its own `noise` [B, chunk, max_action_dim], for repeatable rollouts.
        """
        self.eval()
        images, tokens, mask, state = self._inputs(batch)
        shape = (state.shape[0], self.config.chunk_size, self.config.max_action_dim)
        noise = batch["noise"] if "noise" in batch else self.model.sample_noise(shape, state.device)
        unconditional = (
            (batch[UNCONDITIONAL_TOKENS], batch[UNCONDITIONAL_MASK]) if UNCONDITIONAL_TOKENS in batch else None
        )
        with autocast(self.config):
            actions = self.model.sample_actions(images, tokens, mask, state, noise, self.config.beta, unconditional)
        return actions[:, :, : self.config.output_features[ACTION].shape[0]]

    def reset(self) -> None:
        self._action_queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)
