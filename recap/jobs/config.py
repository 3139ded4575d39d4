"""Keys of where stages run, and what a cluster is asked for. Nothing here shows in a result."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum

from recap.utils.typed import Count, Index, Positive, part


class LauncherKind(Enum):
    auto = "auto"
    inline = "inline"
    local = "local"
    slurm = "slurm"


@part
class LauncherConfig:
    kind: LauncherKind
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    options: list[str]
    setup: list[str]
    python: str | None = None
    grace_period_s: Count  # seconds
    max_requeues: Index

    def problems(self, key: str) -> Iterator[str]:
        for option in self.options:
            if not re.fullmatch(r"[a-z][a-z-]*(=.+)?", option):
                yield f"{key}.options={option}: options of sbatch go without their dashes: ['reservation=robots']"


@part
class Resources:
    """What the job of a stage asks for: nodes, on each of them processes and GPUs; `shards` such jobs side by side."""

    nodes: Count = 1
    tasks_per_node: Count | None = None  # on each node; None: one for each GPU
    gpus_per_node: Index = 0  # on each node
    cpus_per_task: Count  # of each process
    mem_gb: Positive  # GB on each node
    timeout_min: Count
    shards: Count = 1

    @property
    def tasks(self) -> int:
        """Processes on each node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    def problems(self, key: str) -> Iterator[str]:
        if self.gpus_per_node and self.tasks_per_node not in (None, self.gpus_per_node):
            yield (
                f"{key}.tasks_per_node={self.tasks_per_node}: there is one process for each GPU. "
                f"Fix: leave it out, or {key}.gpus_per_node={self.tasks_per_node}"
            )
        stage = key.rpartition(".")[2]
        if stage in ("demonstrations", "policy", "value", "advantage", "gate") and self.shards > 1:
            more = {"demonstrations": "workers.num_workers make", "advantage": "resources.value_inference.shards make"}
            faster = more.get(stage, f"{key}.nodes and {key}.gpus_per_node make")
            yield f"{key}.shards={self.shards}: this stage is one job. Fix: {key}.shards=1; {faster} it faster"
        if stage in ("advantage", "gate") and self.nodes * self.tasks > 1:
            fix = f"Fix: {key}.nodes=1, {key}.tasks_per_node=1, {key}.gpus_per_node=0"
            yield f"{key}: this stage is one process. {fix}"
        if stage == "demonstrations" and self.nodes * self.tasks > 1:
            yield (
                f"{key}: one process starts the simulators. "
                f"Fix: {key}.nodes=1, {key}.tasks_per_node=1, and as many workers.num_workers as it has cpus"
            )


@part
class ResourcesConfig:
    demonstrations: Resources
    policy: Resources
    value: Resources
    rollout: Resources
    value_inference: Resources
    advantage: Resources
    gate: Resources
    eval: Resources
