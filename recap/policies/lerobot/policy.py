"""What a lerobot policy is given beside its own inputs: noise and time, weights of samples, guidance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor

from recap.policies.backbone import trim
from recap.policies.config import NetworkConfig
from recap.policies.folder import held
from recap.policies.prompt import UNCONDITIONAL_MASK, UNCONDITIONAL_TOKENS

PLAIN = {OBS_LANGUAGE_TOKENS: UNCONDITIONAL_TOKENS, OBS_LANGUAGE_ATTENTION_MASK: UNCONDITIONAL_MASK}


@contextmanager
def instead(owner: Any, **attributes: Any) -> Iterator[None]:
    """Attributes of an object, a class or a module replaced for a while."""
    before = {name: vars(owner)[name] for name in attributes if name in vars(owner)}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name in attributes:
            delattr(owner, name)
        for name, value in before.items():
            setattr(owner, name, value)


class Strict:
    """Stands before π0 or π0.5 of lerobot's in a class's bases: `from_pretrained` as any other policy has it.

    Theirs swallow errors of loading. `keys` are ours, which say what a folder may hold: lerobot-eval comes here
    before it builds the processors of it.
    """

    keys: ClassVar[type[NetworkConfig]]

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, *, strict: bool = True, **options: Any) -> Any:
        if (folder := Path(pretrained_name_or_path)).is_dir():
            held(folder, cls.keys, str(folder))
        usual: Any = PreTrainedPolicy.from_pretrained
        return usual.__func__(cls, pretrained_name_or_path, strict=strict, **options)


class Steered:
    """Stands before a policy of lerobot's in a class's bases; its weights and their names are that policy's.

    The policy's `model` draws by `sample_noise(shape, device)` and `sample_time(size, device)`, and denoises by
    `denoise_step(x_t=…, …)`, one velocity a row: so do π0, π0.5 and SmolVLA. Their draws are those of the batch, where
    it brings them: `noise` [B, chunk, max_action_dim] and `time` [B].
    """

    beta = 1.0  # guidance

    def forward(self: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The policy's own loss; with `weight` [B] in the batch, the mean of its samples' losses times these."""
        tokens, mask = trim(batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK])
        seen = {**batch, OBS_LANGUAGE_TOKENS: tokens, OBS_LANGUAGE_ATTENTION_MASK: mask}
        drawn = {f"sample_{name}": _always(batch[name]) for name in ("noise", "time") if name in batch}
        lerobots: Any = super()
        with instead(self.model, **drawn), self._precision():
            if "weight" not in batch:
                loss: tuple[Tensor, dict[str, Any]] = lerobots.forward(seen)
                return loss
            each, numbers = lerobots.forward(seen, reduction="none")
        return (each * batch["weight"]).mean(), numbers

    @torch.no_grad()
    def predict_action_chunk(self: Any, batch: dict[str, Any]) -> Any:
        """Normalised actions [B, chunk, A], from the batch's `noise` where it brings it.

        With β ≠ 1: v = v_uncond + β (v_cond − v_uncond), both halves in one batch. Prompts are padded to one length
        whoever else is in the batch, so that the last digits of an action do not depend on them either.
        """
        lerobots: Any = super()
        texts = {name: self._padded(batch[name]) for name in (*PLAIN, *PLAIN.values()) if name in batch}
        with self._precision():
            if UNCONDITIONAL_TOKENS not in batch:
                return lerobots.predict_action_chunk(batch | texts, noise=batch.get("noise"))
            both = {name: torch.cat([x, x]) if isinstance(x, Tensor) else x for name, x in batch.items()}
            both |= {name: torch.cat([texts[name], texts[plain]]) for name, plain in PLAIN.items()}
            with instead(self.model, denoise_step=_guided(self.model.denoise_step, self.beta)):
                return lerobots.predict_action_chunk(both, noise=both.get("noise")).chunk(2)[0]

    def _padded(self: Any, tokens: Tensor) -> Tensor:
        return F.pad(tokens, (0, self.config.tokenizer_max_length - tokens.shape[1]))

    def _precision(self: Any) -> torch.autocast:
        """Matrix products in bfloat16 with `use_amp`, as lerobot-eval has it; the weights stay float32."""
        device = torch.device(self.config.device).type
        return torch.autocast(device, torch.bfloat16, enabled=self.config.use_amp)


def _always(value: Tensor) -> Callable[..., Tensor]:
    return lambda *_: value


def _guided(denoise: Callable[..., Tensor], beta: float) -> Callable[..., Tensor]:
    """The same step for both halves of a batch, so that they stay equal but for what they read."""

    def step(**given: Any) -> Tensor:
        conditional, plain = denoise(**given).chunk(2)
        return (plain + beta * (conditional - plain)).repeat(2, 1, 1)

    return step
