"""Keys of returns, advantages, thresholds, and of the gate that judges them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from enum import Enum
from typing import Annotated

from recap.utils.typed import Amount, Correlation, Count, Fraction, Number, Positive, Whole, later, must, part

Share = Annotated[
    Number, must(lambda x: 0 < x < 1, "must lie strictly between 0 and 1 (0.3 labels 30 % of the frames)")
]


class SourceKind(Enum):
    demonstration = "demonstration"
    rollout = "rollout"
    correction = "correction"


class Normalization(Enum):
    per_task = "per_task"
    constant = "constant"


class Threshold(Enum):
    per_task = "per_task"
    all = "all"


class Within(Enum):
    """Frames that are compared with each other, where it is not all of a task."""

    value_bin = "value_bin"  # of equal value, so at the same stage of progress
    initial_state = "initial_state"  # of the tries from one initial state


class Prefix(Enum):
    failure = "failure"  # the operator saw it fail
    episode = "episode"


class GateAction(Enum):
    stop = "stop"
    warn = "warn"


@part
class PretrainingLabels:
    """Labels of the demonstrations alone, where policy.sft reads them (the paper's pre-training)."""

    n_step: Count | None
    positive_fraction: Share


@part
class AdvantageConfig:
    n_step: Count | None  # None: the whole episode
    positive_fraction: Share
    positive_fraction_by_task: dict[str, Share] = field(default_factory=dict)
    sft: PretrainingLabels
    threshold: Threshold
    normalization: Normalization
    normalizer: Positive | None = None
    c_fail: Amount
    force_positive: list[SourceKind]
    correction_prefix: Prefix = later(Prefix.failure)  # how what the policy did before an operator took over has ended
    shuffle: bool = False  # a baseline: labels at random
    within: Within | None = later(None)
    value_bins: Annotated[Whole, must(lambda x: x >= 2, "must be at least 2")] = later(10)  # of within=value_bin

    def problems(self, key: str) -> Iterator[str]:
        if self.positive_fraction_by_task and self.threshold is Threshold.all:
            fix = f"Fix: {key}.threshold=per_task"
            yield f"{key}.positive_fraction_by_task: {key}.threshold=all has one ε for all tasks. {fix}"
        if self.normalization is Normalization.per_task and self.normalizer is not None:
            fix = f"Fix: {key}.normalizer=null, or {key}.normalization=constant"
            yield f"{key}.normalizer={self.normalizer:g}: {key}.normalization=per_task measures its own. {fix}"


@part
class GateConfig:
    """Which labels are good enough to train a policy on; limits are the worst that still pass."""

    action: GateAction
    min_rank: Correlation
    min_auc: Fraction
    max_over_fit: Amount
    min_spread: Amount
    max_saturation: Fraction
    max_clipped: Fraction
    max_misplaced: Fraction
    share_tolerance: Fraction
    min_success_lead: Correlation
    min_episodes: Count
