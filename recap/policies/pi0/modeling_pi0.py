"""π0: flow matching with a PaliGemma prefix and a Gemma action expert, as a lerobot policy of any size.

State-dict keys and shapes are those of lerobot's `PI0Policy`; at full size its weights load here and ours load there.
The forward pass is ours: prefix and suffix are computed apart (the prefix never looks at the suffix), so that several
flow samples share one prefix, the last prefix layer is only keys and values, and guidance is one batched pass.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from lerobot.configs import PolicyFeature, PreTrainedConfig
from lerobot.policies.common.vla_utils import create_sinusoidal_pos_embedding, pad_vector
from lerobot.policies.pi0 import modeling_pi0
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi0.modeling_pi0 import PI0Policy, PI0Pytorch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor, nn

from recap.policies.adapter import EMPTY_CAMERA
from recap.policies.backbone import autocast, finish, recompute, stack_images, trim
from recap.policies.compiled import Graphs, keep
from recap.policies.lerobot.policy import Strict
from recap.policies.pi0 import config as keys
from recap.policies.pi0.memory import VOCABULARY
from recap.policies.pi0.paligemma import PaliGemmaWithExpert
from recap.policies.prompt import UNCONDITIONAL_MASK, UNCONDITIONAL_TOKENS
from recap.policies.sizes import SIGLIP, GemmaSize, SiglipSize

KeysValues = list[tuple[Tensor, Tensor]]
ALIGNED = 8  # numbers: rows of other lengths take matrix products three times as long


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
            images: [B, cameras, 3, S, S] in [-1, 1]; or of the first half, whose images the others see too.
            tokens, mask: int and bool [B, L], padded on the right.

        Returns:
            per layer (k, v), each [B, kv heads, P, head_dim], and the mask bool [B, P] of real prefix tokens.
        """
        vlm = self.paligemma_with_expert
        image_embs = vlm.embed_images(images)
        image_embs = image_embs.repeat(len(tokens) // len(images), 1, 1)
        hidden = torch.cat([image_embs, vlm.embed_language_tokens(tokens).to(image_embs.dtype)], dim=1)
        valid = torch.cat([mask.new_ones(image_embs.shape[:2]), mask], dim=1)
        cos, sin = self._rotary(hidden, torch.cumsum(valid, dim=1) - 1)
        *layers, last = vlm.paligemma.model.language_model.layers
        cache: KeysValues = []
        for layer in layers:
            hidden, k, v = layer(hidden, cos, sin, valid[:, None, None, :])
            cache.append((k, v))
        cache.append(last(hidden, cos, sin))  # nobody reads the prefix's output, only its keys and values
        return cache, valid

    def around(self, valid: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the suffix: cos and sin of its positions [B, 1 + chunk, head_dim], what it sees [B, 1, 1 + chunk, keys].

        valid: of `encode_prefix`. like: a tensor of the type that cos and sin shall have.
        """
        length = 1 + self.config.chunk_size
        positions = valid.sum(dim=1, keepdim=True) + torch.arange(length, device=valid.device)
        cos, sin = self._rotary(like, positions)
        # the state token sees itself, actions see state and actions; both see the real prefix
        own = torch.ones(length, length, dtype=torch.bool, device=valid.device)
        own[0, 1:] = False
        mask = torch.cat([valid[:, None, :].expand(-1, length, -1), own.expand(len(valid), -1, -1)], dim=2)
        return cos, sin, F.pad(mask, (0, -mask.shape[2] % ALIGNED))[:, None]

    def embed_times(self, times: Tensor) -> Tensor:
        """Sines and cosines [N, expert width] of flow times [N]."""
        config = self.config
        periods = config.min_period, config.max_period
        found = create_sinusoidal_pos_embedding(times, config.expert.width, *periods, times.device)
        return found.to(times.dtype)

    def embed_state(self, state: Tensor) -> Tensor:
        """Its token [B, 1, expert width]; state [B, max_state_dim]."""
        with torch.autocast(state.device.type, enabled=False):
            return self.state_proj(state)[:, None]

    def velocity(
        self,
        state: Tensor,
        x_t: Tensor,
        time: Tensor,
        cache: KeysValues,
        around: tuple[Tensor, Tensor, Tensor],
    ) -> Tensor:
        """v_θ(x_t, t | prefix, state): [B, chunk, max_action_dim].

        state [B, 1, expert width], x_t like the result, time [B or 1, expert width] of `embed_times`.
        """
        cos, sin, mask = around
        with torch.autocast(x_t.device.type, enabled=False):  # as lerobot: what is not Gemma or SigLIP stays float32
            actions = self.action_in_proj(x_t)
            hidden = torch.cat([actions, time[:, None].expand_as(actions)], dim=2)
            hidden = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(hidden)))
            hidden = torch.cat([state, hidden], dim=1)
        hidden = hidden.to(cache[0][1].dtype)
        expert = self.paligemma_with_expert.gemma_expert.model
        for layer, before in zip(expert.layers, cache, strict=True):
            hidden = layer(hidden, cos, sin, mask, before)
        hidden, _ = expert.norm(hidden[:, 1:])
        with torch.autocast(x_t.device.type, enabled=False):
            return self.action_out_proj(hidden.to(torch.float32))

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
            self.embed_state(state).repeat_interleave(samples, 0),
            x_t.flatten(0, 1),
            self.embed_times(time.flatten()),
            cache,
            self.around(valid.repeat_interleave(samples, 0), cache[0][1]),
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
        beta: float,
        steps: int,
    ) -> Tensor:
        """So many Euler steps from `noise` at t = 1 to actions [B, chunk, max_action_dim] at t = 0.

        With β ≠ 1: v = v_uncond + β (v_cond − v_uncond), both halves in one batch; tokens and mask [2 B, L] then hold
        the prompts with the indicator and, behind them, those without.
        """
        halves = len(tokens) // len(images)
        cache, valid = self.encode_prefix(images, tokens, mask)
        around, state = self.around(valid, cache[0][1]), self.embed_state(state).repeat(halves, 1, 1)
        # as lerobot has them to the last digit: the sines tell a millionth apart
        times = 1.0 + torch.arange(steps, dtype=torch.float64, device=noise.device) * (-1.0 / steps)
        times = self.embed_times(times.float())
        x = noise
        for time in times.split(1):
            v = self.velocity(state, x.repeat(halves, 1, 1), time, cache, around)
            if halves == 2:
                cond, uncond = v.chunk(2)
                v = uncond + beta * (cond - uncond)
            x = x - v / steps
        return x


class RecapPI0Policy(Strict, PI0Policy):
    """π0 of any size behind lerobot's policy interface.

    Batches come from the saved preprocessor (`recap.policies.checkpoint`).
    """

    config_class = RecapPI0Config
    name = "recap_pi0"
    keys = keys.PI0Config
    float32 = ("model.state_proj", "model.action_")  # weights of products that are never computed in bfloat16

    def __init__(self, config: RecapPI0Config, **_: Any) -> None:
        PreTrainedPolicy.__init__(self, config)
        config.validate_features()
        self.config: RecapPI0Config = config
        self.rtc_processor = None
        self.model = PI0Model(config)
        finish(self.model, config.device)
        self.run_with(compiled=config.compile_model, memory=0.0 if config.gradient_checkpointing else 1.0)
        self.reset()

    def run_with(self, *, compiled: bool, memory: float = 1.0) -> None:
        """How it is computed; the results are the same but for the last digits.

        memory: the share of a training's activations that is kept. Not compiled, it is all or nothing.
        """
        model = self.model.paligemma_with_expert
        if compiled:
            if not any(parameter.requires_grad for parameter in self.parameters()) and not self.config.use_peft:
                model.join_products()
            keep(memory)
            model.compile_layers()
            if torch.device(self.config.device).type == "cuda":
                self._chunk = Graphs(self._chunk)  # type: ignore[assignment, method-assign]
        elif memory < 1:
            for part in (model.paligemma, model.gemma_expert):
                recompute(part)

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
        return loss, {}

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Normalised actions [B, chunk, A].

        The batch may bring its own `noise` [B, chunk, max_action_dim], for repeatable rollouts.
        """
        self.eval()
        images, tokens, mask, state = self._inputs(batch)
        shape = (state.shape[0], self.config.chunk_size, self.config.max_action_dim)
        noise = batch["noise"] if "noise" in batch else self.model.sample_noise(shape, state.device)
        beta = self.config.beta if UNCONDITIONAL_TOKENS in batch else 1.0
        if beta != 1.0:
            pad = (0, tokens.shape[1] - batch[UNCONDITIONAL_TOKENS].shape[1])
            tokens = torch.cat([tokens, F.pad(batch[UNCONDITIONAL_TOKENS], pad)])
            mask = torch.cat([mask, F.pad(batch[UNCONDITIONAL_MASK], pad)])
        actions = self._chunk([images, tokens, mask, state, noise], beta, self.config.num_inference_steps)
        return actions[:, :, : self.config.output_features[ACTION].shape[0]]

    def _chunk(self, inputs: list[Tensor], beta: float, steps: int) -> Tensor:
        """Padded actions [B, chunk, max_action_dim]; inputs as of `sample_actions`."""
        images, tokens, mask, state, noise = inputs
        with autocast(self.config):
            return self.model.sample_actions(images, tokens, mask, state, noise, beta, steps)

    def reset(self) -> None:
        self._action_queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)
