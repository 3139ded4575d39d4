"""OpenTau's RECAP guide: each of its six configurations, composed from our groups (docs/opentau.md maps the keys)."""

from __future__ import annotations

import re
from functools import reduce
from typing import Any

import pytest
from test_config import ROOT, load

from recap.config import Config, StageKind
from recap.data.config import EpisodeFilter
from recap.method.config import Normalization, Threshold
from recap.pipeline.graph import by_hand
from recap.policies.pi0.modeling_pi0 import RecapPI0Config
from recap.policies.roles import Role
from recap.policies.value.modeling_value import RecapValueConfig
from recap.training.config import IndicatorMode

EXPERIMENT = ("experiment=libero_moka",)
TEN = list(range(10))

# What the guide's files say, in our words: the mixture and the optimiser, which are the same everywhere.
MIXTURE = {
    "data.sources.libero.weight": 1.0,
    "data.action_freq": 20,
    "data.image_resample_strategy.name": "nearest",
    "data.vector_resample_strategy.name": "nearest",
    "env.fps": 20,
}
REWARD = {
    "value.bins": 201,
    "advantage.c_fail": 1000,
    "advantage.normalizer": 1600,
    "advantage.normalization": Normalization.constant,
    "advantage.n_step": 50,
    "value.tokenizer_max_length": 52,
}


def optimizer(node: str) -> dict[str, float]:
    return {
        f"{node}.learning_rate": 2.5e-5,
        f"{node}.weight_decay": 1e-10,
        f"{node}.grad_clip": 10.0,
        f"{node}.min_lr_ratio": 0.1,
    }


def rollouts(model: str) -> dict[str, Any]:
    """Weights 1:1 of the original data and the rollouts."""
    return {"data.rollouts": True, f"{model}.finetune.demo_fraction": 0.5}


CONFIGS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "stage 1, SFT of the policy": (
        "train",
        ("policy=pi0", "data=libero", "stage=sft"),
        {
            **MIXTURE,
            **optimizer("policy.sft"),
            "role": Role.policy,
            "stage": StageKind.sft,
            "data.rollouts": False,
            "policy.pretrained": "lerobot/pi0_base",
            "policy.sft.indicator": IndicatorMode.always_positive,
            "policy.sft.steps": 10_000,
            "policy.sft.warmup_steps": 1_000,
            "policy.tokenizer_max_length": 100,
            "policy.max_state_dim": 32,
            "policy.max_action_dim": 32,
            "policy.chunk_size": 10,
            "policy.n_action_steps": 10,
            "policy.num_inference_steps": 10,
            "policy.image_size": 224,
            "policy.indicator_dropout": 0.0,
        },
    ),
    "stage 2, value function": (
        "train",
        ("policy=value", "data=libero", "stage=sft"),
        {
            **MIXTURE,
            **REWARD,
            **optimizer("value.sft"),
            "role": Role.value,
            "value.sft.steps": 80_000,
            "value.sft.warmup_steps": 1_000,
            "value.image_size": 224,
        },
    ),
    "stage 3.2, value function on all data": (
        "train",
        ("policy=value", "data=libero+rollouts", "stage=finetune", f"data.sources.libero.episodes={TEN}"),
        {**MIXTURE, **REWARD, **optimizer("value.finetune"), **rollouts("value"), "data.sources.libero.episodes": TEN},
    ),
    "stage 3.3, advantages of two data sets": (
        "advantage",
        (
            "data=libero+rollouts",
            "data.sources.libero={root: /akshay/libero, episodes: [0,1,2,3,4,5,6,7,8,9]}",
            "+data.sources.libero1={root: /akshay/libero1, episodes: [10,11,12,13,14,15,16,17,18,19]}",
        ),
        {
            **MIXTURE,
            **REWARD,
            "data.sources.libero.root": "/akshay/libero",
            "data.sources.libero.episodes": TEN,
            "data.sources.libero1.root": "/akshay/libero1",
            "data.sources.libero1.episodes": [10 + k for k in TEN],
            "data.sources.libero1.weight": 1.0,
            "advantage.positive_fraction": 0.3,
            "advantage.threshold": Threshold.all,
        },
    ),
    "stage 3.4, policy on all data": (
        "train",
        ("policy=pi0", "data=libero+rollouts", "stage=finetune"),
        {
            **MIXTURE,
            **optimizer("policy.finetune"),
            **rollouts("policy"),
            "policy.finetune.indicator": IndicatorMode.use,
            "policy.finetune.episode_filter": EpisodeFilter.all,
            "policy.tokenizer_max_length": 100,
        },
    ),
    "values of one episode, to look at": (
        "advantage",
        ("data=libero", "data.sources.libero.root=/home/libero", "data.sources.libero.episodes=[4]"),
        {**MIXTURE, "data.sources.libero.root": "/home/libero", "data.sources.libero.episodes": [4]},
    ),
}


def value_of(cfg: Config, key: str) -> Any:
    return reduce(lambda node, name: node[name] if isinstance(node, dict) else getattr(node, name), key.split("."), cfg)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_of_the_guide(name: str) -> None:
    entry, overrides, wanted = CONFIGS[name]
    cfg = load(entry, *EXPERIMENT, *overrides)
    assert {key: value_of(cfg, key) for key in wanted} == wanted


def test_the_loop_of_the_guide() -> None:
    cfg = load("loop", *EXPERIMENT, "+iterations=3")
    assert (cfg.env.suite, cfg.env.tasks, cfg.env.max_steps) == ("libero_10", ["put both moka pots on the stove"], 520)
    assert (cfg.rollout.episodes, cfg.rollout.prompt.name, cfg.rollout.beta) == (300, "positive", 1)
    for policy, start in ((Role.policy, "sft"), (Role.value, "value")):
        for iteration in (1, 2, 3):
            (stage,) = by_hand(cfg, policy, iteration)
            assert stage.inputs["pretrained"] == start, "restarts from the pre-trained one, not from the last"
            assert [role for role in stage.inputs if role.startswith("rollouts_")] == [
                f"rollouts_{k:02d}" for k in range(1, iteration + 1)
            ], "all rollouts so far"


def test_normalisation_of_the_guide() -> None:
    for config in (RecapPI0Config, RecapValueConfig):
        modes = {key: mode.value for key, mode in config().normalization_mapping.items()}
        assert (modes["VISUAL"], modes["STATE"]) == ("IDENTITY", "MEAN_STD")
    assert RecapPI0Config().normalization_mapping["ACTION"].value == "MEAN_STD"


def test_the_papers_settings() -> None:
    cfg = load("loop", "experiment=paper", "+iterations=1")
    advantage = cfg.advantage
    assert (advantage.threshold, advantage.normalization) == (Threshold.per_task, Normalization.per_task)
    assert (advantage.positive_fraction, advantage.normalizer) == (0.4, None)
    assert (cfg.policy.indicator_dropout, cfg.eval.beta, cfg.rollout.beta) == (0.3, 1.5, 1.0)


def test_the_map_names_keys_that_exist() -> None:
    """Every `a.b` of the middle column of docs/opentau.md is a key of the configuration."""
    cfg = load("train", *EXPERIMENT)
    text = (ROOT / "docs/opentau.md").read_text().split("## Keys")[1].split("## What differs")[0]
    columns = [line.split("|")[2] for line in text.splitlines() if line.startswith("| ")]
    keys = re.findall(r"`((?:policy|value|data|env|advantage)\.[\w.<>]+)`", " ".join(columns))
    assert len(keys) > 25
    for key in keys:
        value_of(cfg, key.replace("<name>", "libero"))
