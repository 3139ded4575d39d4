"""How W&B and trackio show a run: a name, a group, a job type and a configuration for each of its stages."""

from __future__ import annotations

import re
from pathlib import Path

from recap.config import Config, shared
from recap.stages.base import Stage
from recap.tracking import Shown


def stage(stage: Stage) -> Shown:
    run, out = Path(stage.cfg.output).absolute(), stage.out.absolute()
    found = re.search(r"(?:^|/)iter_(\d+)/", stage.path)
    about = {"iteration": int(found[1]) if found else 0, "ablation": stage.ablation}
    return Shown(
        wanted=stage.cfg.tracking,
        run=run,
        out=out,
        name=out.name if Path(stage.path).is_absolute() else stage.path,
        group=group(stage.cfg),
        kind=stage.kind,
        trains=stage.trains,
        config={**stage.identity, **about},
        inputs={role: path.absolute() for role, path in stage.read.items()},
    )


def loop(cfg: Config) -> Shown:
    """What the run achieved so far, from its summary.json, over the iteration."""
    run = Path(cfg.output).absolute()
    config = {key: value for key, value in shared(cfg).items() if key != "launcher"}  # it may hold secrets
    return Shown(cfg.tracking, run, run, "loop", group(cfg), "loop", config=config)


def group(cfg: Config) -> str:
    """The experiment, what a sweep changed in it, and the seed: `demo/seed=0`."""
    parts = Path(cfg.output).parts
    place = "/".join(parts[parts.index(cfg.name) :]) if cfg.name in parts else cfg.name
    return place if re.search(r"(^|/)seed=", place) else f"{place}/seed={cfg.seed}"
