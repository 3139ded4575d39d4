"""Keys of SmolVLA. Names as in lerobot's SmolVLAConfig where it has one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from recap.policies.folder import VLM
from recap.policies.lerobot.keys import LerobotConfig
from recap.policies.sizes import Backbone, GemmaSize, Language, SiglipSize, Trained, image_fits
from recap.policies.words import BUILTIN
from recap.utils.typed import Count, Positive, part

# SmolVLM2-500M-Video-Instruct, as published: SigLIP base, and SmolLM2-360M, of which SmolVLA takes the first layers
VISION = SiglipSize(width=768, depth=12, mlp_dim=3072, num_heads=12, patch_size=16)
TEXT = GemmaSize(width=960, depth=32, mlp_dim=2560, num_heads=15, num_kv_heads=5, head_dim=64)
VOCABULARY = 49_280


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

    def backbone(self, folder: Path | None = None) -> Backbone:
        """How large its VLM is, a checkpoint says; before there is one, these keys, or else its authors."""
        whole = "model.vlm_with_expert.vlm.model"
        found = Backbone(
            language=Language.smolvlm,
            vision=self.vision or VISION,
            text=self.text or TEXT,
            image_size=self.image_size,
            tokenizer=self.tokenizer,
            vocab_size=self.vocabulary(VOCABULARY),
            joined=self.scale_factor,
            weights={
                "vision_tower.vision_model": f"{whole}.vision_model",
                "projector": f"{whole}.connector.modality_projection.proj",
                "language_model": f"{whole}.text_model",
            },
        )
        if folder is not None:
            from recap.policies.smolvla.vlm import sizes_of  # imports torch

            found = replace(found, **sizes_of(folder / VLM))
        depth = min(self.num_vlm_layers, found.text.depth)
        return replace(found, text=replace(found.text, depth=depth))
