"""Keys of π0. Names as in lerobot's PI0Config where it has one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from recap.policies.sizes import GemmaSize, SiglipSize, Trained, image_fits
from recap.training.config import PolicyTrainConfig
from recap.utils.typed import Count, Number, must, part

Dropout = Annotated[
    Number, must(lambda x: 0 <= x < 1, "must be at least 0 and below 1 (at 1 no indicator is ever read)")
]


@part
class PI0Config:
    """π0: VLM prefix, action expert, flow matching."""

    type: str
    vision: SiglipSize
    vlm: GemmaSize
    expert: GemmaSize
    image_size: Count
    tokenizer: str
    tokenizer_max_length: Count
    max_state_dim: Count
    max_action_dim: Count
    chunk_size: Count
    n_action_steps: Count
    num_inference_steps: Count
    flow_samples: Count
    indicator_dropout: Dropout
    pretrained: str | None = None
    trainable: Trained = Trained.all
    lora_rank: Count = 16
    gradient_checkpointing: bool = False
    compile: bool = False
    sft: PolicyTrainConfig
    finetune: PolicyTrainConfig

    def problems(self, key: str) -> Iterator[str]:
        yield from image_fits(key, self.image_size, self.vision)
        if self.n_action_steps > self.chunk_size:
            yield (
                f"{key}.n_action_steps={self.n_action_steps}: only {key}.chunk_size={self.chunk_size} actions are "
                f"predicted. Fix: {key}.n_action_steps={self.chunk_size}"
            )
        for size in ("depth", "head_dim", "num_heads", "num_kv_heads"):
            vlm, expert = getattr(self.vlm, size), getattr(self.expert, size)
            if vlm != expert:
                yield (
                    f"{key}.expert.{size}={expert}: the two attend jointly, layer by layer: must equal "
                    f"{key}.vlm.{size}={vlm}. Fix: the same number for both"
                )
        if self.trainable is not Trained.all and self.pretrained is None:
            yield (
                f"{key}.trainable={self.trainable.name}: what it leaves alone would stay random. "
                f"Fix: {key}.pretrained=<a folder or hub id>, or {key}.trainable=all"
            )
