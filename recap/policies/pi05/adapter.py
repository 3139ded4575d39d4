"""π0.5 as the rest of the code meets it: lerobot's class, of lerobot's size or a smaller one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pi05 import modeling_pi05
from lerobot.policies.pi05.configuration_pi05 import PI05Config as LerobotPI05Config
from lerobot.policies.pi05.modeling_pi05 import PI05Policy
from torch import Tensor, nn

from recap.policies.adapter import Spec
from recap.policies.lerobot.adapter import LerobotAdapter
from recap.policies.lerobot.policy import Steered, Strict, instead
from recap.policies.pi05.config import ACTION, PI05Config
from recap.policies.pi05.small import STOCK, Sizes, shrunk
from recap.policies.prompt import BUILTIN, builtin_tokenizer, load_tokenizer
from recap.policies.words import NUMBERS


@PreTrainedConfig.register_subclass("recap_pi05")
@dataclass
class RecapPI05Config(LerobotPI05Config):
    """lerobot's configuration with sizes that it has no words for."""

    sizes: Sizes = field(default_factory=lambda: STOCK)


class RecapPI05Policy(Strict, Steered, PI05Policy):
    """lerobot's π0.5, of its own configuration or of one with sizes."""

    config_class = RecapPI05Config
    name = "recap_pi05"
    keys = PI05Config

    def __init__(self, config: LerobotPI05Config, **_: Any) -> None:
        with instead(modeling_pi05, **shrunk(getattr(config, "sizes", STOCK))):
            super().__init__(config)


class PI05Adapter(LerobotAdapter):
    keys = PI05Config
    model = RecapPI05Policy
    before = ACTION

    def config(self, keys: PI05Config, spec: Spec) -> LerobotPI05Config:
        words = len(self.tokenizer(BUILTIN)) if keys.tokenizer == BUILTIN else STOCK.vocab_size
        sizes = Sizes(vision=keys.vision, vlm=keys.vlm, expert=keys.expert, vocab_size=words)
        made, own = (LerobotPI05Config, {}) if sizes == STOCK else (RecapPI05Config, {"sizes": sizes})
        image = (keys.image_size, keys.image_size)
        config = made(**self.common(keys, spec), **own, image_resolution=image)
        config.tokenizer = keys.tokenizer  # no field of it: the tokenizer travels in the processors
        return config

    @contextmanager
    def made(self, config: LerobotPI05Config, folder: Path | None) -> Iterator[None]:
        """lerobot moves the model to its device at once; weights that are yet to be read have no device."""
        with instead(modeling_pi05.PI05Pytorch, to=lambda model, *_: model):
            yield

    def tokenizer(self, name: str) -> Any:
        return builtin_tokenizer(numbers=True) if name == BUILTIN else load_tokenizer(name)

    @torch.no_grad()
    def new(self, config: Any, keys: Any) -> Any:
        """A small one starts with neighbouring numbers alike: too few are seen to learn it."""
        policy = super().new(config, keys)
        if keys.tokenizer == BUILTIN:
            words = policy.model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight
            words[-len(NUMBERS) :] = sines(len(NUMBERS), words.shape[1]) * 2**0.5 * words.std()
        return policy

    def unread(self, policy: RecapPI05Policy) -> Iterator[nn.Module]:
        """No text is written, and of the last prefix layer only keys and values are used."""
        both = policy.model.paligemma_with_expert
        yield from (both.paligemma.lm_head, both.gemma_expert.lm_head, both.paligemma.model.language_model.norm)
        last = both.paligemma.model.language_model.layers[-1]
        yield from (last.self_attn.q_proj, last.self_attn.o_proj, last.mlp, last.post_attention_layernorm)

    def stock(self, config: LerobotPI05Config) -> LerobotPI05Config:
        return LerobotPI05Config(**{f.name: getattr(config, f.name) for f in fields(LerobotPI05Config)})

    def plain(self, config: LerobotPI05Config, folder: str) -> LerobotPI05Config | None:
        return config if type(config) is LerobotPI05Config else None

    def prepare_training(self, policy: RecapPI05Policy, keys: PI05Config) -> None:
        if keys.gradient_checkpointing:
            policy.model.gradient_checkpointing_enable()


def sines(count: int, width: int) -> Tensor:
    """Sines and cosines [count, width] of numbers: neighbours look alike."""
    waves = torch.linspace(0.5, 16, width // 2) * torch.pi
    angles = torch.linspace(0, 1, count)[:, None] * waves
    return torch.cat([angles.sin(), angles.cos()], dim=1)
