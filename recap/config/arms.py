"""The configuration of a control arm: that of the run, but for what the arm changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from recap.config.schema import ArmConfig, Config
from recap.training.config import IndicatorMode


def with_arm(cfg: Config, name: str | None) -> Config:
    """`cfg` as the stages of arm `name` see it; None is the run itself."""
    if name is None:
        return cfg
    arm = cfg.arms[name]
    sft: dict[str, Any] = {"indicator": IndicatorMode.use} if arm.conditioned_pretraining else {}
    finetune = _given(arm, "indicator", "episode_filter", "awr_temperature", "demo_fraction")
    if arm.as_sft:
        finetune["indicator"] = cfg.policy.sft.indicator
    return replace(
        cfg,
        policy=replace(
            cfg.policy,
            **_given(arm, "indicator_dropout"),
            sft=replace(cfg.policy.sft, **sft),
            finetune=replace(cfg.policy.finetune, **finetune),
        ),
        advantage=replace(cfg.advantage, **_given(arm, "n_step", "positive_fraction", "force_positive")),
        eval=replace(cfg.eval, **_given(arm, "prompt", "beta")),
    )


def relabels(arm: ArmConfig) -> bool:
    """Whether the arm has labels of its own."""
    return bool(_given(arm, "n_step", "positive_fraction", "force_positive"))


def _given(arm: ArmConfig, *keys: str) -> dict[str, Any]:
    return {key: value for key in keys if (value := getattr(arm, key)) is not None}
