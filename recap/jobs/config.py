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
    notice: Count  # seconds
    requeues: Index

    def problems(self, key: str) -> Iterator[str]:
        for option in self.options:
            if not re.fullmatch(r"[a-z][a-z-]*(=.+)?", option):
                yield f"{key}.options={option}: options of sbatch go without their dashes: ['reservation=robots']"


@part
class Resources:
    """What the job of a stage asks for: nodes, on each of them processes and GPUs; `shards` such jobs side by side."""

    nodes: Count = 1
    processes: Count | None = None  # on each node; None: one for each GPU
    gpus: Index = 0  # on each node
    cpus: Count  # of each process
    mem: Positive  # GB on each node
    minutes: Count
    shards: Count = 1

    @property
    def tasks(self) -> int:
        """Processes on each node."""
        return self.processes or max(1, self.gpus)

    def problems(self, key: str) -> Iterator[str]:
        if self.gpus and self.processes not in (None, self.gpus):
            yield (
                f"{key}.processes={self.processes}: there is one process for each GPU. "
                f"Fix: leave it out, or {key}.gpus={self.processes}"
            )
        stage = key.rpartition(".")[2]
        if stage in ("demonstrations", "pi0", "value", "advantage") and self.shards > 1:
            more = {"demonstrations": "workers.processes make", "advantage": "resources.values.shards make"}
            faster = more.get(stage, f"{key}.nodes and {key}.gpus make")
            yield f"{key}.shards={self.shards}: this stage is one job. Fix: {key}.shards=1; {faster} it faster"
        if stage == "advantage" and self.nodes * self.tasks > 1:
            yield f"{key}: one process labels. Fix: {key}.nodes=1, {key}.processes=1, and no more than one of its gpus"
        if stage == "demonstrations" and self.nodes * self.tasks > 1:
            yield (
                f"{key}: one process starts the simulators. "
                f"Fix: {key}.nodes=1, {key}.processes=1, and as many workers.processes as it has cpus"
            )


@part
class ResourcesConfig:
    demonstrations: Resources
    pi0: Resources
    value: Resources
    rollout: Resources
    values: Resources
    advantage: Resources
    eval: Resources
