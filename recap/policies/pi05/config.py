"""Keys of π0.5. Names as in lerobot's PI05Config where it has one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from tokenizers import Tokenizer

from recap.policies.lerobot.keys import LerobotConfig
from recap.policies.pi0.config import paligemma
from recap.policies.sizes import Backbone, GemmaSize, SiglipSize, Trained, image_fits
from recap.policies.words import builtin_words, prompt
from recap.utils.typed import part

ACTION = "Action: "  # the end of its prompt, in front of which the indicator stands
HEADS = 8  # written into lerobot's code


@part
class PI05Config(LerobotConfig):
    """π0.5: as π0, with the state as text in the prompt and the time in the expert's norms."""

    checkpoints: ClassVar[tuple[str, ...]] = ("recap_pi05", "pi05")
    readable: ClassVar[str] = "a policy of a run (…/sft or …/policy), or a π0.5 of lerobot"
    named: ClassVar[str] = "π0.5"
    extra_steps: ClassVar[tuple[str, ...]] = ("pi05_prepare_state_tokenizer_processor_step",)
    smaller: ClassVar[str] = "policy.trainable=expert, size=tiny"
    counted: ClassVar[dict[Trained, tuple[int, int]]] = {
        Trained.all: (3_244_377_872, 899_026_944),
        Trained.frozen_vision: (2_831_935_520, 1_311_469_296),
        Trained.expert: (430_098_464, 3_713_306_352),
    }

    vision: SiglipSize
    vlm: GemmaSize
    expert: GemmaSize
    gradient_checkpointing: bool = False

    def problems(self, key: str) -> Iterator[str]:
        yield from image_fits(key, self.image_size, self.vision)
        yield from LerobotConfig.problems(self, key)
        for part_ in ("vlm", "expert"):
            size, name = getattr(self, part_), f"{key}.{part_}"
            if size.num_heads != HEADS:
                yield f"{name}.num_heads={size.num_heads}: lerobot's π0.5 has {HEADS}. Fix: {name}.num_heads={HEADS}"
        for name in ("depth", "head_dim", "num_kv_heads"):
            vlm, expert = getattr(self.vlm, name), getattr(self.expert, name)
            if vlm != expert:
                yield (
                    f"{key}.expert.{name}={expert}: the two attend jointly, layer by layer: must equal "
                    f"{key}.vlm.{name}={vlm}. Fix: the same number for both"
                )

    def longest(self, task: str, indicator: bool | None, state: int) -> str:
        """As lerobot's Pi05PrepareStateTokenizerProcessorStep writes it: each number of the state as one of 256."""
        clean = task.strip().replace("_", " ").replace("\n", " ")
        return prompt(f"Task: {clean}, State: {' '.join(['255'] * state)};\n{ACTION}", indicator, ACTION)

    def backbone(self, folder: Path | None = None) -> Backbone:
        return paligemma(self)

    def builtin(self) -> Tokenizer:
        """Each number of the state is one token."""
        return builtin_words(numbers=True)
