"""A stage of a run: where it lies, what it reads, and which part of the configuration decides its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recap.config import Config, StageKind, plain, with_arm
from recap.policies.roles import Role
from recap.rollout.config import Prompt
from recap.training.config import IndicatorMode, PolicyTrainConfig

DEMONSTRATIONS = "demonstrations"


@dataclass(frozen=True)
class Node:
    """One stage. `path`: its directory below the run directory; `inputs`: role -> path of the stage it reads.

    `kind` names the function in `recap.stages`; `options` are its arguments beside the configuration, which is that of
    the control arm `arm` if one is named. Absolute paths are those given by hand: a result directory elsewhere, a
    checkpoint folder instead of a stage.
    """

    path: str
    kind: str
    inputs: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    arm: str | None = None

    def config(self, cfg: Config) -> dict[str, Any]:
        """The resolved values that decide this stage's result, as in its config.yaml."""
        cfg = with_arm(cfg, self.arm)
        values = plain(cfg)
        used: dict[str, Any] = {"stage": self.kind, **plain_options(self.options), "seed": cfg.seed}
        used |= {f"input_{role}": path for role, path in self.inputs.items() if Path(path).is_absolute()}
        for key in USES[self.kind]:
            used[key] = values[key]
        used.get("data", {}).pop("rollouts", None)
        used.get("workers", {}).pop("num_workers", None)  # how many processes simulate does not show in the result
        if self.kind == "train":
            used |= self._trained(values)
        if self.kind == "advantage":
            used["value"] = {"aggregation": values["value"]["aggregation"]}
            if self.options["stage"] is StageKind.sft:
                used["advantage"] |= used["advantage"].pop("sft")
            else:
                del used["advantage"]["sft"]
        if self.kind == "gate":
            used["value"] = {"bins": values["value"]["bins"]}
            del used["gate"]["action"], used["advantage"]["sft"]
        if self.kind in ("rollout", "evaluate"):
            used |= cfg.policy.acting()
        return used

    def _trained(self, values: dict[str, Any]) -> dict[str, Any]:
        """The model, and what its targets come from."""
        model = values[self.options["role"].name]
        other = StageKind.finetune if self.options["stage"] is StageKind.sft else StageKind.sft
        for key in (*EXECUTION, other.name):
            model.pop(key, None)
        if self.options["role"] is Role.policy:
            return {"policy": model}
        returns = {key: values["advantage"][key] for key in ("normalization", "normalizer", "c_fail")}
        return {"value": model, "advantage": returns}


EXECUTION = ("gradient_checkpointing", "compile")  # of a model: how it is computed, not what
USES: dict[str, tuple[str, ...]] = {
    "demonstrations": ("env", "data"),
    "train": ("precision", "data"),
    "rollout": ("env", "workers"),
    "value_inference": ("data",),
    "advantage": ("data", "advantage"),
    "gate": ("gate", "advantage"),
    "evaluate": ("env", "workers"),
}


def plain_options(options: dict[str, Any]) -> dict[str, Any]:
    return {key: getattr(value, "name", value) for key, value in options.items() if value is not None}


def iteration_dir(iteration: int) -> str:
    return f"iter_{iteration:02d}"


def prompt_for(wanted: Prompt, training: PolicyTrainConfig) -> Prompt:
    """A policy trained without the indicator is not prompted with it."""
    return Prompt.none if training.indicator is IndicatorMode.ignore else wanted
