"""Keys of π0. Names as in lerobot's PI0Config where it has one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from recap.policies.config import Compiled, Memory, PolicyConfig, ReadsText
from recap.policies.memory import FULL, UNCHECKED
from recap.policies.pi0 import memory
from recap.policies.sizes import Backbone, GemmaSize, Language, SiglipSize, Trained, image_fits, padded
from recap.utils.typed import Count, part

if TYPE_CHECKING:
    from recap.policies.folder import Held

# Every matrix of both Gemmas, and the projections around them; the vision tower stays as it is.
TARGETS = (
    r".*\.(language_model|gemma_expert\.model)\.layers\.\d+\.(self_attn|mlp)\..*_proj"
    r"|model\.(state_proj|action_in_proj|action_out_proj|action_time_mlp_in|action_time_mlp_out)"
)
LEROBOT_TARGETS = (
    r"(.*\.gemma_expert\..*\.self_attn\.(q|v)_proj"
    r"|model\.(state_proj|action_in_proj|action_out_proj|action_time_mlp_in|action_time_mlp_out))"
)


@part
class PI0Config(PolicyConfig, ReadsText):
    """π0: VLM prefix, action expert, flow matching."""

    checkpoints: ClassVar[tuple[str, ...]] = ("recap_pi0", "pi0")
    readable: ClassVar[str] = "a policy of a run (…/sft or …/policy), or a π0 of lerobot"
    named: ClassVar[str] = "π0"
    has_adapters: ClassVar[bool] = True
    lora_targets: ClassVar[tuple[str, ...]] = (TARGETS, LEROBOT_TARGETS)
    has_guidance: ClassVar[bool] = True
    extra_steps: ClassVar[tuple[str, ...]] = ("pi0_new_line_processor",)
    smaller: ClassVar[str] = "policy.trainable=lora, size=tiny"

    vision: SiglipSize
    vlm: GemmaSize
    expert: GemmaSize
    image_size: Count
    max_state_dim: Count
    max_action_dim: Count
    num_inference_steps: Count
    flow_samples: Count
    trainable: Trained = Trained.all
    lora_rank: Count = 16
    memory: Memory = "auto"
    compile: Compiled = "auto"

    def problems(self, key: str) -> Iterator[str]:
        yield from image_fits(key, self.image_size, self.vision)
        yield from PolicyConfig.problems(self, key)
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

    def start_problems(self, key: str, name: str, holds: Held) -> Iterator[str]:
        if holds.adapters and self.trainable is not Trained.lora:
            yield (
                f"{key}={name}: holds adapters, but policy.trainable={self.trainable.name}. "
                "Fix: policy.trainable=lora, or start from a checkpoint without."
            )

    def too_small(self, key: str, found: Sequence[tuple[str, int, int]]) -> Iterator[str]:
        yield from padded(self, key, found)

    def acting(self) -> dict[str, Any]:
        return {**PolicyConfig.acting(self), "num_inference_steps": self.num_inference_steps}

    def backbone(self, folder: Path | None = None) -> Backbone:
        return paligemma(self)

    def weights(self) -> tuple[int, int]:
        return memory.learned_and_frozen(self, self.trainable)

    def saved_bytes(self) -> float:
        """Adapters are saved alone."""
        return PolicyConfig.saved_bytes(self) if self.trainable is not Trained.lora else self.weights()[0] * FULL

    def activations(self, batch: float, cameras: int) -> tuple[float, float]:
        least = memory.activations(self, self.trainable, batch, cameras)
        return least, max(least, memory.all_activations(self, self.trainable, batch, cameras))

    def sample_bytes(self, read: float, cameras: int) -> float:
        seen = cameras * 3 * self.image_size**2 * FULL
        kept = memory.activations(self, self.trainable, 1, cameras)
        return (read + seen + kept) * (1 if self.memory == 0 else UNCHECKED)


def paligemma(keys: Any) -> Backbone:
    """What π0 and π0.5 see and read with."""
    both = "model.paligemma_with_expert"
    weights = {
        "vision_tower.vision_model": f"{both}.paligemma.model.vision_tower.vision_model",
        "projector": f"{both}.paligemma.model.multi_modal_projector.linear",
        "language_model": f"{both}.paligemma.model.language_model",
    }
    return Backbone(
        language=Language.paligemma,
        vision=keys.vision,
        text=keys.vlm,
        image_size=keys.image_size,
        tokenizer=keys.tokenizer,
        vocab_size=keys.vocabulary(memory.VOCABULARY),
        weights=weights | ({"stem": f"{both}.stem"} if keys.vision.stem else {}),
    )
