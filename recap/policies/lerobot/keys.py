"""Keys that lerobot's policies have in common, and which of them can be used at all; without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, ClassVar

from recap.policies.config import PolicyConfig, ReadsText
from recap.policies.sizes import Trained, padded
from recap.policies.words import BUILTIN
from recap.utils.typed import Count, Index, part

_BLIND = "reads no instruction, so nothing tells it the advantage"
_WHOLE = "gives no loss for each sample (reduction='none'), so no sample can be weighed"
UNUSABLE = {  # of lerobot's policies: why an adapter alone is not enough
    **dict.fromkeys(("act", "diffusion", "tdmpc", "vqbet", "gaussian_actor"), _BLIND),
    **dict.fromkeys(("eo1", "fastwam", "groot", "lingbot_va", "multi_task_dit"), _WHOLE),
    **dict.fromkeys(("pi0_fast", "vla_jepa", "wall_x", "xvla"), _WHOLE),
}


class Normalization(Enum):
    quantiles = "quantiles"  # 1st and 99th percentile to -1 and 1
    mean_std = "mean_std"
    min_max = "min_max"


@part
class LerobotConfig(PolicyConfig, ReadsText):
    """A policy of lerobot's own class that makes a chunk of actions from noise."""

    has_guidance: ClassVar[bool] = True
    shardable: ClassVar[bool] = False  # its layers are called in parts, which fully_shard does not see
    counted: ClassVar[dict[Trained, tuple[int, int]]] = {}  # weights at full size that learn, that do not

    image_size: Count
    max_state_dim: Count
    max_action_dim: Count
    num_inference_steps: Count
    normalization: Normalization
    empty_cameras: Index = 0
    trainable: Trained = Trained.all

    def problems(self, key: str) -> Iterator[str]:
        yield from PolicyConfig.problems(self, key)
        if self.trainable is Trained.lora:
            yield (
                f"{key}.trainable=lora: not for policy.type={self.type}. Fix: {key}.trainable=expert, or policy=pi0, "
                "which has adapters"
            )
        elif self.trainable is not Trained.all and self.pretrained is None:
            yield (
                f"{key}.trainable={self.trainable.name}: what it leaves alone would stay random. "
                f"Fix: {key}.pretrained=<a folder or hub id>, or {key}.trainable=all"
            )

    def too_small(self, key: str, found: Sequence[tuple[str, int, int]]) -> Iterator[str]:
        yield from padded(self, key, found)

    def acting(self) -> dict[str, Any]:
        return {**PolicyConfig.acting(self), "num_inference_steps": self.num_inference_steps}

    def weights(self) -> tuple[int, int]:
        return (0, 0) if self.tokenizer == BUILTIN else self.counted[self.trainable]
