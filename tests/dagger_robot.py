"""The embedded task as a robot and a teleoperator of lerobot, for its own tool that records corrections."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.configs.dataset import DatasetRecordConfig
from lerobot.policies import make_pre_post_processors
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.robots import Robot, RobotConfig
from lerobot.rollout.configs import DAggerStrategyConfig, RolloutConfig
from lerobot.rollout.context import build_rollout_context
from lerobot.rollout.strategies.dagger import DAggerStrategy
from lerobot.teleoperators import Teleoperator, TeleoperatorConfig

from recap.envs.moka.demonstrator import Demonstrator
from recap.envs.moka.env import ACTION_NAMES, STATE_NAMES, MokaEnv
from recap.rollout.config import CorrectionsConfig

TASK = "put the moka pot on the stove"
WATCHED = 4  # control steps of the policy before each correction
PATIENCE = 500  # control steps of one attempt
WORLD = MokaEnv(TASK, split="collection", max_steps=1000)
ACTIONS = dict.fromkeys((f"{name}.pos" for name in ACTION_NAMES), float)


@RobotConfig.register_subclass("moka_robot")
@dataclass
class MokaRobotConfig(RobotConfig):
    pass


@TeleoperatorConfig.register_subclass("moka_operator")
@dataclass
class MokaOperatorConfig(TeleoperatorConfig):
    pass


class Device:
    """What a robot and a teleoperator have in common here."""

    is_connected = is_calibrated = True

    def connect(self, calibrate: bool = True) -> None: ...

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def disconnect(self) -> None: ...


class MokaRobot(Device, Robot):
    config_class, name = MokaRobotConfig, "moka_robot"
    observation_features = {"image": (64, 64, 3), "image2": (64, 64, 3)}  # noqa: RUF012
    observation_features |= dict.fromkeys((f"{name}.pos" for name in STATE_NAMES), float)
    action_features = ACTIONS

    def __init__(self, config: MokaRobotConfig) -> None:
        super().__init__(config)
        WORLD.reset(options={"initial_state": 0})

    def get_observation(self) -> dict[str, Any]:
        seen = WORLD.observe()
        images = {key: seen[f"observation.images.{key}"] for key in ("image", "image2")}
        names = [key for key in self.observation_features if key.endswith(".pos")]
        return images | dict(zip(names, seen["observation.state"].tolist(), strict=True))

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        WORLD.step(np.array([action[key] for key in ACTIONS], np.float32), render=False)
        return action


class MokaOperator(Device, Teleoperator):
    """The scripted demonstrator, who presses the keys of lerobot's tool too: he stops when the pot is on the stove."""

    config_class, name = MokaOperatorConfig, "moka_operator"
    action_features, feedback_features = ACTIONS, {}

    def __init__(self, config: MokaOperatorConfig) -> None:
        super().__init__(config)
        self.begin()

    def begin(self) -> None:
        self.demonstrator = Demonstrator(CorrectionsConfig(), np.random.default_rng(0))
        self.demonstrator.reset(WORLD, TASK)

    def get_action(self) -> dict[str, float]:
        return dict(zip(ACTIONS, self.demonstrator.act(WORLD).tolist(), strict=True))

    def send_feedback(self, feedback: dict[str, Any]) -> None: ...


class Keys(DAggerStrategy):
    """lerobot's strategy, whose keys are pressed at set moments: after some steps of the policy, and at a success."""

    def _log_telemetry(self, observation: Any, action: Any, runtime: Any) -> None:
        """Called once a control step, by the policy and by the operator."""
        phase, self.seen = self._events.phase.name, getattr(self, "seen", 0) + 1
        assert self.seen < PATIENCE, f"{phase}: the pot is where the operator cannot reach it"
        if phase == "AUTONOMOUS" and self.seen >= WATCHED:
            self._events.request_transition("pause_resume")
        elif phase == "CORRECTING" and WORLD.success():
            self.seen, self.placed = 0, getattr(self, "placed", 0) + 1
            self._events.request_transition("correction")

    def _apply_transition(self, old: Any, new: Any, engine: Any, interpolator: Any, ctx: Any, action: Any) -> None:
        super()._apply_transition(old, new, engine, interpolator, ctx, action)
        if (old.name, new.name) == ("AUTONOMOUS", "PAUSED"):
            self._events.request_transition("correction")
            ctx.hardware.teleop.begin()
        elif (old.name, new.name) == ("CORRECTING", "PAUSED"):
            WORLD.reset(options={"initial_state": self.placed})
            self._events.request_transition("pause_resume")


def act_policy(folder: Path) -> ACTConfig:
    """A small policy of lerobot's for this robot, untrained, saved as its tools save one.

    Seeded: some throw the pot where the operator cannot reach it, and he would try for ever.
    """
    torch.manual_seed(0)
    image = PolicyFeature(FeatureType.VISUAL, (3, 64, 64))
    config = ACTConfig(
        input_features={
            **{f"observation.images.{key}": image for key in ("image", "image2")},
            "observation.state": PolicyFeature(FeatureType.STATE, (len(STATE_NAMES),)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (len(ACTION_NAMES),))},
        chunk_size=4,
        n_action_steps=4,
        dim_model=32,
        n_heads=2,
        dim_feedforward=32,
        n_encoder_layers=1,
        n_vae_encoder_layers=1,
        pretrained_backbone_weights=None,
        device="cpu",
    )
    ACTPolicy(config).save_pretrained(folder)
    for processor in make_pre_post_processors(config, dataset_stats={}):
        processor.save_pretrained(folder)
    config.pretrained_path = folder
    return config


def record(folder: Path, episodes: int, record_autonomous: bool = False) -> Path:
    """A data set by `lerobot-rollout --strategy.type=dagger`: its root."""
    cfg = RolloutConfig(
        robot=MokaRobotConfig(id="moka", calibration_dir=folder / "calibration"),
        teleop=MokaOperatorConfig(id="operator", calibration_dir=folder / "calibration"),
        policy=act_policy(folder / "policy"),
        strategy=DAggerStrategyConfig(num_episodes=episodes, record_autonomous=record_autonomous),
        dataset=DatasetRecordConfig(
            "me/rollout_moka", TASK, folder / "set", fps=10, video=False, push_to_hub=False, no_stamp=True
        ),
        fps=40,  # of control; no need to wait as long as a robot does
        task=TASK,
        play_sounds=False,
        return_to_initial_position=False,
    )
    context = build_rollout_context(cfg, Event())
    strategy = Keys(cfg.strategy)
    strategy.setup(context)
    try:
        strategy.run(context)
    finally:
        strategy.teardown(context)
    return folder / "set"
