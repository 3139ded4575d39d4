"""Keys of the value function."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Annotated, ClassVar

from recap.policies.config import AnyPolicy, Compiled, Memory, PolicyConfig, ReadsText
from recap.policies.memory import FULL, HALF, UNCHECKED, gemma, gemma_kept, siglip, siglip_kept
from recap.policies.sizes import Backbone, GemmaSize, Language, SiglipSize, image_fits
from recap.utils.typed import Amount, Count, Number, Whole, later, must, part

VOCABULARY = 262_144  # Gemma 3's
HeldOut = Annotated[
    Number, must(lambda x: 0 <= x < 1, "must be at least 0 and below 1 (0.1 leaves a tenth of the episodes out)")
]


class Start(Enum):
    own = "own"  # SigLIP and Gemma 3, of `vision`, `text` and the two `pretrained_…`
    policy = "policy"  # what the SFT policy sees and reads with


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
    backbone: Start = later(Start.own)
    pretrained_vision: str | None = None
    pretrained_text: str | None = None
    freeze_vision: bool = False
    memory: Memory = "auto"
    compile: Compiled = "auto"

    def problems(self, key: str) -> Iterator[str]:
        yield from image_fits(key, self.image_size, self.vision)
        started = self.backbone is Start.policy
        if started and self.pretrained is not None:
            yield (
                f"{key}.pretrained={self.pretrained}: with {key}.backbone=policy it starts from the SFT policy. "
                f"Fix: {key}.pretrained=null, or {key}.backbone=own"
            )
        if self.freeze_vision and not started and self.pretrained is None and self.pretrained_vision is None:
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
        own = self.pretrained is None and self.backbone is Start.own
        for key in ("pretrained_vision", "pretrained_text") if own else ():
            if repository := getattr(self, key):
                yield key, repository

    def of(self, policy: PolicyConfig, folder: Path | None = None) -> ValueConfig:
        """With `backbone=policy` as large as this policy is, else as it is; folder: the policy's checkpoint."""
        if self.backbone is Start.own:
            return self
        return StartedValueConfig(
            **{f.name: getattr(self, f.name) for f in fields(ValueConfig)}, policy=policy, folder=folder
        )

    def built(self) -> Backbone:
        """What it sees and reads with."""
        return Backbone(
            language=Language.gemma3,
            vision=self.vision,
            text=self.text,
            image_size=self.image_size,
            tokenizer=self.tokenizer,
            vocab_size=self.vocabulary(VOCABULARY),
        )

    def weights(self) -> tuple[int, int]:
        """But for its few small norms and its bins."""
        size = self.built()
        vision, text = size.vision, size.text
        around = (vision.width * size.joined**2 + 1 + size.vocab_size) * text.width
        return siglip(vision, size.image_size) + around + text.depth * gemma(text), 0

    def activations(self, batch: float, cameras: int) -> tuple[float, float]:
        size = self.built()
        vision, text = size.vision, size.text
        patches = cameras * (size.image_size // vision.patch_size) ** 2
        tokens = patches // size.joined**2 + self.tokenizer_max_length
        towers = 0 if self.freeze_vision else vision.depth
        least = batch * (towers * patches * vision.width * FULL + text.depth * tokens * text.width * HALF)
        inside = max(patches * (5 * vision.mlp_dim + 8 * vision.width), tokens * (5 * text.mlp_dim + 8 * text.width))
        largest = batch * inside * HALF
        most = towers * siglip_kept(vision, batch * patches) + text.depth * gemma_kept(text, batch * tokens, 0)
        return least + largest, max(least, most) + largest

    def sample_bytes(self, read: float, cameras: int) -> float:
        size = self.built()
        vision, text, patches = size.vision, size.text, (size.image_size // size.vision.patch_size) ** 2
        seen = cameras * 3 * size.image_size**2 * FULL
        inside = vision.depth * vision.width + text.depth * text.width / size.joined**2
        kept = cameras * patches * inside * FULL
        return (read + seen + kept) * (1 if self.memory == 0 else UNCHECKED)


@part
class StartedValueConfig(ValueConfig):
    """One that starts from what a policy sees and reads with; folder: the policy's checkpoint, where there is one."""

    smaller: ClassVar[str] = "value.backbone=own, size=tiny"

    policy: AnyPolicy
    folder: Path | None

    def built(self) -> Backbone:
        found = self.policy.backbone(self.folder)
        assert found is not None  # recap.config.checks refuses others
        return found
