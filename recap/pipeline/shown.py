"""How W&B and trackio show a run: a name, a group, a job type and a configuration for each of its stages."""

from __future__ import annotations

import re
from pathlib import Path

from recap.config import Config, StageKind, shared
from recap.policies.roles import Role
from recap.stages.base import Node
from recap.tracking import Shown


def stage(cfg: Config, node: Node, out: Path) -> Shown:
    run, out = Path(cfg.output).absolute(), out.absolute()
    found = re.match(r"iter_(\d+)/(?:controls/(\w+)/)?", node.path)
    about = {"iteration": int(found[1]) if found else 0, "arm": found[2] if found else None}
    return Shown(
        wanted=cfg.tracking,
        run=run,
        out=out,
        name=out.name if Path(node.path).is_absolute() else node.path,
        group=group(cfg),
        kind=node.kind,
        job=job_type(node),
        config={**node.config(cfg), **about},
        inputs={role: run / path for role, path in node.inputs.items()},
    )


def loop(cfg: Config) -> Shown:
    """What the run achieved so far, from its summary.json, over the iteration."""
    run = Path(cfg.output).absolute()
    config = {key: value for key, value in shared(cfg).items() if key != "launcher"}  # it may hold secrets
    return Shown(cfg.tracking, run, run, "loop", group(cfg), "loop", "loop", config)


def job_type(node: Node) -> str:
    """`sft`, `policy`, `value`, `eval`, or what the stage is."""
    if node.kind == "train":
        if node.options["role"] is Role.value:
            return "value"
        return "sft" if node.options["stage"] is StageKind.sft else "policy"
    return "eval" if node.kind == "evaluate" else node.kind


def group(cfg: Config) -> str:
    """The experiment, what a sweep changed in it, and the seed: `demo/seed=0`."""
    parts = Path(cfg.output).parts
    place = "/".join(parts[parts.index(cfg.name) :]) if cfg.name in parts else cfg.name
    return place if re.search(r"(^|/)seed=", place) else f"{place}/seed={cfg.seed}"
