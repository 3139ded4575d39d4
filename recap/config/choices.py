"""The choices that keys of the schema have."""

from __future__ import annotations

from enum import Enum


# OmegaConf takes the member name as the string that users type, so names are lower case.
class PolicyKind(Enum):
    pi0 = "pi0"
    value = "value"


class StageKind(Enum):
    sft = "sft"
    finetune = "finetune"


class IndicatorMode(Enum):
    on = "on"  # every sample carries "Advantage: positive" (OpenTau's `advantage: on`)
    use = "use"  # the sample's own label (OpenTau's `use`)
    positive_only = "positive_only"  # "Advantage: positive" where the label is positive, no text elsewhere
    ignore = "ignore"  # no indicator text at all (OpenTau's `ignore`)

    @property
    def labelled(self) -> bool:
        """Whether it reads the labels of the advantage stage."""
        return self in (IndicatorMode.use, IndicatorMode.positive_only)


class Prompt(Enum):
    positive = "positive"
    negative = "negative"
    none = "none"


class Outcomes(Enum):
    all = "all"
    success = "success"


class Normalization(Enum):
    per_task = "per_task"
    constant = "constant"


class Threshold(Enum):
    per_task = "per_task"
    all = "all"


class SourceKind(Enum):
    demonstration = "demonstration"
    rollout = "rollout"
    correction = "correction"


class Resample(Enum):
    nearest = "nearest"
    linear = "linear"


class ImageResample(Enum):
    nearest = "nearest"


class Images(Enum):
    png = "png"
    video = "video"


class EnvKind(Enum):
    moka = "moka"
    libero = "libero"
    # others of lerobot's registry, by lerobot's name
    aloha = "aloha"
    metaworld = "metaworld"
    pusht = "pusht"
    robocasa = "robocasa"


class LauncherKind(Enum):
    auto = "auto"
    inline = "inline"
    local = "local"
    slurm = "slurm"


class Action(Enum):
    run = "run"
    status = "status"
    cancel = "cancel"


class GateAction(Enum):
    stop = "stop"
    warn = "warn"


class TrackingKind(Enum):
    local = "local"
    wandb = "wandb"
    trackio = "trackio"


class TrackingMode(Enum):
    auto = "auto"
    online = "online"
    offline = "offline"
    off = "off"


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Precision(Enum):
    no = "no"
    bf16 = "bf16"


class Trained(Enum):
    all = "all"
    frozen_vision = "frozen_vision"  # all but the vision tower
    expert = "expert"  # the action expert and its projections
    lora = "lora"  # low-rank adapters of the VLM and the expert


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


class Collector(Enum):
    last = "last"
    best = "best"  # of those evaluated so far


class ReadValue(Enum):
    mean = "mean"
    worst = "worst"
    out_of_fold = "out_of_fold"  # the member that never trained on the episode
