"""Keys of a training."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from recap.data.config import EpisodeFilter
from recap.utils.typed import Amount, Count, Fraction, Index, Positive, later, part

OPTIMIZER = "training_state.pt"  # of an unfinished training; read as numbers alone


class Optimizer(Enum):
    adamw = "adamw"
    adamw8bit = "adamw8bit"


class Sharding(Enum):
    none = "none"
    fsdp = "fsdp"
    deepspeed = "deepspeed"


class Restart(Enum):
    pretrained = "pretrained"  # the paper and the guide
    last = "last"  # the iteration before


class LabelsOf(Enum):
    iteration = "iteration"
    pretraining = "pretraining"  # of the demonstrations, by the value function that saw nothing else


class IndicatorMode(Enum):
    always_positive = "always_positive"  # every sample carries "Advantage: positive" (OpenTau's `advantage: on`)
    use = "use"  # the sample's own label (OpenTau's `use`)
    positive_only = "positive_only"  # "Advantage: positive" where the label is positive, no text elsewhere
    ignore = "ignore"  # no indicator text at all (OpenTau's `ignore`)

    @property
    def labelled(self) -> bool:
        """Whether it reads the labels of the advantage stage."""
        return self in (IndicatorMode.use, IndicatorMode.positive_only)


@part
class TrainConfig:
    """One training: optimiser, length, checkpoints."""

    steps: Count
    batch_size: Count
    learning_rate: Positive
    warmup_steps: Index
    min_lr_ratio: Fraction  # of learning_rate
    weight_decay: Amount
    grad_clip: Positive
    save_every: Count
    keep_checkpoints: Count
    log_every: Count
    demo_fraction: Fraction
    random_shift: Index
    optimizer: Optimizer = Optimizer.adamw
    restart: Restart = Restart.pretrained

    def problems(self, key: str) -> Iterator[str]:
        if self.warmup_steps > self.steps:
            fix = f"Fix: at most {key}.steps={self.steps}"
            yield f"{key}.warmup_steps={self.warmup_steps}: longer than the training. {fix}"
        if key.endswith(".sft"):
            finetune = f"{key.removesuffix('sft')}finetune"
            if self.demo_fraction != 1:
                fix = f"Fix: 1, or {finetune}.demo_fraction"
                yield f"{key}.demo_fraction={self.demo_fraction}: this stage has demonstrations only. {fix}"
            if self.restart is Restart.last:
                yield f"{key}.restart=last: there is no iteration before. Fix: pretrained, or {finetune}.restart"


@part
class PolicyTrainConfig(TrainConfig):
    indicator: IndicatorMode
    episode_filter: EpisodeFilter
    awr_temperature: Positive | None = None
    indicator_temperature: Positive | None = later(None)
    labels: LabelsOf = LabelsOf.iteration
    correction_fraction: Fraction | None = later(None)  # None: as many as there are

    def problems(self, key: str) -> Iterator[str]:
        yield from TrainConfig.problems(self, key)
        if self.labels is LabelsOf.pretraining and self.episode_filter is not EpisodeFilter.demonstrations:
            yield (
                f"{key}.labels=pretraining: rollouts have none. Fix: {key}.episode_filter=demonstrations, or "
                f"{key}.labels=iteration"
            )
        if self.indicator_temperature is not None and not self.indicator.labelled:
            yield (
                f"{key}.indicator_temperature={self.indicator_temperature:g}: says how sure a frame's label is, and "
                f"{key}.indicator={self.indicator.name} reads none. Fix: {key}.indicator=use, or "
                f"{key}.indicator_temperature=null"
            )
        if self.awr_temperature is None:
            return
        if key.endswith(".sft"):
            finetune = f"{key.removesuffix('sft')}finetune"
            yield f"{key}.awr_temperature: SFT has no advantages. Fix: null, or {finetune}.awr_temperature"
        elif self.indicator is not IndicatorMode.ignore:
            fix = f"Fix: {key}.indicator=ignore, or {key}.awr_temperature=null"
            yield f"{key}.awr_temperature={self.awr_temperature:g}: weighs frames instead of naming them. {fix}"
