"""Keys of SmolVLA. Names as in lerobot's SmolVLAConfig where it has one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from recap.policies.lerobot.keys import LerobotConfig
from recap.policies.sizes import GemmaSize, SiglipSize, Trained, image_fits
from recap.policies.words import BUILTIN
from recap.utils.typed import Count, Positive, part


@part
class SmolVLAConfig(LerobotConfig):
    """SmolVLA: a small VLM, and an expert that reads its keys and values.

    `tokenizer` is the VLM's repository or folder, which also says how large it is; with the built-in one, `vision` and
    `text` do.
    """

    checkpoints: ClassVar[tuple[str, ...]] = ("smolvla",)
    readable: ClassVar[str] = "a policy of a run (…/sft or …/policy), or a SmolVLA of lerobot"
    named: ClassVar[str] = "SmolVLA"
    extra_steps: ClassVar[tuple[str, ...]] = ("smolvla_new_line_processor",)
    smaller: ClassVar[str] = "size=tiny"
    counted: ClassVar[dict[Trained, tuple[int, int]]] = {
        Trained.all: (392_904_096, 57_142_080),
        Trained.frozen_vision: (306_471_072, 143_575_104),
        Trained.expert: (99_880_992, 350_165_184),
    }

    num_vlm_layers: Count
    self_attn_every_n_layers: Count
    expert_width_multiplier: Positive
    vision: SiglipSize | None = None
    text: GemmaSize | None = None
    scale_factor: Count = 4

    def problems(self, key: str) -> Iterator[str]:
        yield from LerobotConfig.problems(self, key)
        if self.tokenizer != BUILTIN:
            return
        if self.vision is None or self.text is None:
            yield (
                f"{key}.tokenizer=builtin: {key}.vision and {key}.text have to say how large the VLM is. "
                "Fix: size=tiny, or the VLM's repository as tokenizer"
            )
            return
        yield from image_fits(key, self.image_size, self.vision)
        if self.text.depth != self.num_vlm_layers:
            yield f"{key}.num_vlm_layers={self.num_vlm_layers}: must equal {key}.text.depth={self.text.depth}"
        if (patches := self.image_size // self.vision.patch_size) % self.scale_factor:
            yield (
                f"{key}.scale_factor={self.scale_factor}: {patches} patches a side cannot be joined by that many. "
                f"Fix: a divisor of {patches}"
            )
