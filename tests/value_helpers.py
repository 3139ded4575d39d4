"""Real value functions in seconds: recorded experience of a clumsy demonstrator, and the stages up to the gate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from tiny_run import ROOT

from recap.config import LoopJob, StageKind, typed
from recap.data.lerobot_writer import assemble
from recap.envs.config import DemonstratorConfig
from recap.policies.roles import Role
from recap.rollout.collect import demonstrate
from recap.rollout.pool import Pool
from recap.stages.advantage import advantage
from recap.stages.base import DEMONSTRATIONS
from recap.stages.gate import gate_stage
from recap.stages.inputs import plan
from recap.stages.train import train_stage
from recap.stages.value_inference import value_inference

CLEAN = DemonstratorConfig(episodes=24, max_steps=100, slow=0.4, hesitate=0.3, miss=0.05, noise=0.05)
CLUMSY = DemonstratorConfig(episodes=70, max_steps=50, slow=0.0, hesitate=0.0, miss=0.3, noise=0.3)  # half of it fails
SMALL = [
    *["device=cpu", "env.image_size=32", "value.image_size=32", "value.held_out=0.3"],
    *["value.finetune.steps=250", "value.finetune.save_every=250", "value.finetune.demo_fraction=0.2"],
]


def quiet(_: str) -> None:
    """A stage's `say`."""


def configured(*overrides: str) -> LoopJob:
    """The one stove with a shorter training and more held out: there are fewer episodes."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return typed(compose("loop", ["experiment=stove", "iterations=1", *SMALL, *overrides]), LoopJob)


def experience(folder: Path, seed: int = 0) -> dict[str, Path]:
    """Demonstrations, and rollouts of which half fail: as the stages that read them name them."""
    found = {}
    for role, clumsiness in ((DEMONSTRATIONS, CLEAN), ("rollouts_01", CLUMSY)):
        cfg = configured(f"seed={seed}")
        out = folder / role
        first = 0 if role == DEMONSTRATIONS else 100_000
        with Pool(replace(cfg.env, max_steps=clumsiness.max_steps), 2, 2) as pool:
            episodes = plan(cfg, clumsiness.episodes, first, stream=first)
            failed = clumsiness is CLUMSY
            demonstrate(pool, episodes, clumsiness, record=out / "episodes", keep_failures=failed, progress=None)
        assemble(out / "episodes", out / "dataset", fps=cfg.env.fps, source="demonstration", robot_type="moka")
        found[role] = out
    return found


def judged(out: Path, data: dict[str, Path], cfg: LoopJob) -> dict[str, Any]:
    """gate.json of a value function that is trained on the data, asked, and judged. Raises what the gate raises."""
    for stage in ("value", "value_inference", "advantage", "gate"):
        (out / stage).mkdir(parents=True)
    train_stage(cfg, data, out / "value", quiet, role=Role.value, stage=StageKind.finetune)
    value_inference(cfg, {"value": out / "value", **data}, out / "value_inference", quiet)
    advantage(
        cfg, {"value_inference": out / "value_inference", **data}, out / "advantage", quiet, stage=StageKind.finetune
    )
    gate_stage(cfg, {"labels": out / "advantage"}, out / "gate", quiet)
    found: dict[str, Any] = json.loads((out / "gate/gate.json").read_text())
    return found
