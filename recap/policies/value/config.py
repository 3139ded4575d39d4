"""Keys of the value function."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Annotated, ClassVar

from recap.policies.config import Compiled, Memory, ReadsText
from recap.policies.memory import FULL, HALF, UNCHECKED, gemma, gemma_kept, siglip, siglip_kept, words
from recap.policies.sizes import GemmaSize, SiglipSize, image_fits
from recap.utils.typed import Amount, Count, Number, Whole, later, must, part

VOCABULARY = 262_144  # Gemma 3's
HeldOut = Annotated[
    Number, must(lambda x: 0 <= x < 1, "must be at least 0 and below 1 (0.1 leaves a tenth of the episodes out)")
]


class Aggregation(Enum):
    mean = "mean"
    worst = "worst"
    lower_bound = "lower_bound"  # the mean less `uncertainty_penalty` standard deviations
    out_of_fold = "out_of_fold"  # the member that never trained on the episode


@part
class ValueConfig(ReadsText):
    """The distributional value function V(o, l)."""

    checkpoints: ClassVar[tuple[str, ...]] = ("recap_value",)
    readable: ClassVar[str] = "a value function of a run (…/value)"
    named: ClassVar[str] = "the value function"

    vision: SiglipSize
    text: GemmaSize
    image_size: Count
    bins: Annotated[Whole, must(lambda x: x >= 2, "must be at least 2")]
    use_state: bool
    ensemble_size: Count
    aggregation: Aggregation
    held_out: HeldOut
    interventions: bool
    uncertainty_penalty: Amount = later(1.0)
    pretrained_vision: str | None = None
    pretrained_text: str | None = None
    freeze_vision: bool = False
    memory: Memory = "auto"
    compile: Compiled = "auto"

    def problems(self, key: str) -> Iterator[str]:
        yield from image_fits(key, self.image_size, self.vision)
        if self.freeze_vision and self.pretrained is None and self.pretrained_vision is None:
            yield (
                f"{key}.freeze_vision=true: the vision tower would stay random. "
                f"Fix: {key}.pretrained_vision=<a folder or hub id>, or {key}.freeze_vision=false"
            )
        if self.pretrained_vision is not None and self.vision.stem:
            yield (
                f"{key}.vision.stem={self.vision.stem}: SigLIP's own weights ({self.pretrained_vision}) have no such "
                f"convolutions. Fix: {key}.vision.stem=0"
            )
        if self.aggregation is Aggregation.out_of_fold and self.ensemble_size == 1:
            yield (
                f"{key}.aggregation=out_of_fold: one value function has no folds. "
                f"Fix: {key}.ensemble_size=5, or {key}.aggregation=mean"
            )
        if self.aggregation is Aggregation.lower_bound and self.ensemble_size == 1:
            yield (
                f"{key}.aggregation=lower_bound: one value function never disagrees with itself. "
                f"Fix: {key}.ensemble_size=3, or {key}.aggregation=mean"
            )

    def needs(self) -> Iterator[tuple[str, str]]:
        for key in ("pretrained_vision", "pretrained_text") if self.pretrained is None else ():
            if repository := getattr(self, key):
                yield key, repository

    def weights(self) -> tuple[int, int]:
        """But for its few small norms and its bins."""
        text = self.text
        around = (self.vision.width + 1 + words(self.tokenizer, VOCABULARY)) * text.width
        return siglip(self.vision, self.image_size) + around + text.depth * gemma(text), 0

    def activations(self, batch: float, cameras: int) -> tuple[float, float]:
        vision, text = self.vision, self.text
        patches = cameras * (self.image_size // vision.patch_size) ** 2
        tokens = patches + self.tokenizer_max_length
        towers = 0 if self.freeze_vision else vision.depth
        least = batch * (towers * patches * vision.width * FULL + text.depth * tokens * text.width * HALF)
        largest = batch * patches * (5 * vision.mlp_dim + 8 * vision.width) * HALF
        most = towers * siglip_kept(vision, batch * patches) + text.depth * gemma_kept(text, batch * tokens, 0)
        return least + largest, max(least, most) + largest

    def sample_bytes(self, read: float, cameras: int) -> float:
        vision, text = self.vision, self.text
        seen, patches = cameras * 3 * self.image_size**2 * FULL, (self.image_size // vision.patch_size) ** 2
        kept = cameras * patches * (vision.depth * vision.width + text.depth * text.width) * FULL
        return (read + seen + kept) * (1 if self.memory == 0 else UNCHECKED)
