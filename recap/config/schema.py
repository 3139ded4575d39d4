"""What the four entrypoints take: the parts' own keys under one roof. conf/ holds the values."""

from __future__ import annotations

import re
from dataclasses import field
from enum import Enum
from typing import Annotated, Any

from recap.data.config import DataConfig
from recap.envs.config import EnvConfig
from recap.jobs.config import LauncherConfig, ResourcesConfig
from recap.method.config import AdvantageConfig, GateConfig
from recap.policies.config import AnyPolicy, NetworkConfig
from recap.policies.roles import Role
from recap.policies.sizes import Precision
from recap.policies.value.config import ValueConfig
from recap.rollout.config import EvalConfig, RolloutConfig, WorkersConfig
from recap.tracking.config import TrackingConfig
from recap.training.config import Sharding
from recap.utils.device import Device
from recap.utils.typed import Count, Index, Whole, must, part

Name = Annotated[
    str,
    must(
        lambda x: bool(x.strip(".")) and all(c.isalnum() or c in "_.,=+-" for c in x),
        "names a directory, so use letters, digits and . _ - + = only",
    ),
]
Folder = Annotated[str, must(lambda x: bool(x.strip()), "must be a directory. Fix: leave it out (outputs/<name>)")]


AblationName = Annotated[
    str, must(lambda x: bool(re.fullmatch(r"\w+", x)), "names a directory, so use letters, digits and _ only")
]


class StageKind(Enum):
    sft = "sft"
    finetune = "finetune"


class Action(Enum):
    run = "run"
    status = "status"
    cancel = "cancel"


@part
class Config:
    """What all four entrypoints share; one run directory `output` = one Config."""

    name: Name
    output: Folder
    seed: Index
    size: str
    device: Device
    precision: Precision
    sharding: Sharding = Sharding.none
    policy: AnyPolicy
    value: ValueConfig
    env: EnvConfig
    data: DataConfig
    advantage: AdvantageConfig
    gate: GateConfig
    rollout: RolloutConfig
    eval: EvalConfig
    workers: WorkersConfig
    launcher: LauncherConfig
    resources: ResourcesConfig
    tracking: TrackingConfig
    ablations: dict[AblationName, dict[str, Any]] = field(default_factory=dict)  # name -> its overrides
    action: Action = Action.run
    follow: bool = True

    def network(self, role: Role) -> NetworkConfig:
        """The keys of a network; those of a value function that starts from the policy know how large that is."""
        return self.policy if role is Role.policy else self.value.of(self.policy)


@part
class TrainJob(Config):
    """train.py: one training of one policy."""

    role: Role
    stage: StageKind
    iteration: Index = 1


@part
class EvalJob(Config):
    """eval.py: evaluate a checkpoint on held-out initial states, or collect rollouts with it (record=true)."""

    role: Role = Role.policy
    checkpoint: str
    episodes: Count | None = None
    record: bool = False
    result: str | None = None  # the stage directory to write; by default where loop.py has it


@part
class AdvantageJob(Config):
    """advantage.py: values, advantages and ε of all data up to an iteration."""

    checkpoint: str | None = None
    iteration: Index = 1
    result: str | None = None  # the stage directory to write; by default where loop.py has it


@part
class LoopJob(Config):
    """loop.py: everything."""

    iterations: Annotated[Whole, must(lambda x: 1 <= x <= 1000, "must be at least 1 and at most 1000")]
    iteration: Index | None = None  # set by the multirun, one job an iteration
