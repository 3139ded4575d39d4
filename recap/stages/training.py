"""Training of the policy and of the value function: SFT (pre-training) on demonstrations, then fine-tuning."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from recap.config import StageKind
from recap.policies.roles import Role
from recap.policies.value.config import Aggregation, Start
from recap.stages.base import Say, Stage
from recap.training.config import PolicyTrainConfig, TrainConfig
from recap.utils.ranks import WHOLE, Share

EXECUTION = ("memory", "compile", "gradient_checkpointing")  # of a network: how it is computed, not what
OWN = ("vision", "text", "image_size", "tokenizer", "pretrained_vision", "pretrained_text")  # of backbone=own alone
TAIL_BYTES = 2000  # of metrics.jsonl: enough for its last line


@dataclass(frozen=True, kw_only=True)
class Training(Stage):
    """`training`: SFT or fine-tuning. Of the model's keys, those of the other one do not matter."""

    role: ClassVar[Role]
    keys = ("precision", "data")
    trains = reads_data = computes = resumes = True

    training: StageKind

    @property
    def settings(self) -> TrainConfig:
        found: TrainConfig = getattr(getattr(self.cfg, self.role.name), self.training.name)
        return found

    def refined(self, used: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        other = StageKind.finetune if self.training is StageKind.sft else StageKind.sft
        model = {key: value for key, value in values[self.role.name].items() if key not in (*EXECUTION, other.name)}
        return {**used, self.role.name: model}

    def run(self, say: Say, share: Share = WHOLE) -> None:
        from recap.stages.train import train_stage  # imports torch

        train_stage(self.cfg, self.read, self.out, say, role=self.role, stage=self.training, member=self.number)

    @property
    def number(self) -> int:
        """Which member of an ensemble it is."""
        return 0

    def progress(self) -> tuple[int, int]:
        try:
            with (self.out / "metrics.jsonl").open("rb") as file:
                file.seek(0, 2)
                file.seek(max(0, file.tell() - TAIL_BYTES))
                done = int(json.loads(file.read().splitlines()[-1])["step"])
        except (OSError, ValueError, IndexError, KeyError):
            done = 0
        return done, self.settings.steps


@dataclass(frozen=True, kw_only=True)
class TrainPolicy(Training):
    kind = "policy"
    role = Role.policy

    @property
    def settings(self) -> PolicyTrainConfig:
        found: PolicyTrainConfig = getattr(self.cfg.policy, self.training.name)
        return found

    def refined(self, used: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        used = super().refined(used, values)
        if not self.reads_corrections:
            used["policy"][self.training.name].pop("correction_fraction", None)
        return {**used, "advantage": prefix} if (prefix := self.prefix(values)) else used


@dataclass(frozen=True, kw_only=True)
class TrainValue(Training):
    """A member of the value function's ensemble."""

    kind = "value"
    role = Role.value

    member: int | None = None  # None: the first

    @property
    def number(self) -> int:
        return self.member or 0

    def refined(self, used: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        returns = {key: values["advantage"][key] for key in ("normalization", "normalizer", "c_fail")}
        found = {**super().refined(used, values), "advantage": returns | self.prefix(values)}
        found["value"].pop("uncertainty_penalty", None)
        if self.cfg.value.backbone is Start.policy:
            found["value"] = {key: value for key, value in found["value"].items() if key not in OWN}
        if self.cfg.value.aggregation is not Aggregation.out_of_fold:
            # Only folds depend on how many there are: other members are the same whoever reads them, and how.
            found["value"] |= {"ensemble_size": 1, "aggregation": Aggregation.mean.value}
        return found
