"""The graph of a run: which stages there are, what each reads, and which part of the configuration decides its result.

demonstrations ─┬─ sft ──────────────┬─ sft/eval
                └─ value             │
iter_k:  rollout ─ value ─ advantage ─ policy ─ eval        value and policy restart from the pre-trained ones,
                                                            on the demonstrations and the rollouts of iterations 1..k
iter_N/controls/<arm>/{policy,eval}
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recap.config import Config, Control, IndicatorMode, PolicyKind, PolicyTrainConfig, Prompt, StageKind, plain

DEMONSTRATIONS = "demonstrations"


@dataclass(frozen=True)
class Node:
    """One stage. `path`: its directory below the run directory; `inputs`: role -> path of the stage it reads.

    `kind` names the function in `recap.stages`; `options` are its arguments beside the configuration. Absolute paths
    are those given by hand: a result directory elsewhere, a checkpoint folder instead of a stage.
    """

    path: str
    kind: str
    inputs: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def config(self, cfg: Config) -> dict[str, Any]:
        """The resolved values that decide this stage's result, as in its config.yaml."""
        values = plain(cfg)
        used: dict[str, Any] = {"stage": self.kind, **plain_options(self.options), "seed": cfg.seed}
        used |= {f"input_{role}": path for role, path in self.inputs.items() if Path(path).is_absolute()}
        for key in USES[self.kind]:
            used[key] = values[key]
        used.get("data", {}).pop("rollouts", None)
        used.get("workers", {}).pop("processes", None)  # how many processes simulate does not show in the result
        if self.kind == "train":
            model = used[self.options["policy"].name] = values[self.options["policy"].name]
            for key in EXECUTION:
                model.pop(key, None)
            for other in StageKind:
                if other is not self.options["stage"]:
                    model.pop(other.name)
            if self.options.get("indicator") is not None:
                model[self.options["stage"].name]["indicator"] = self.options["indicator"].name
            if self.options["policy"] is PolicyKind.value:
                used["advantage"] = {key: values["advantage"][key] for key in ("normalization", "normalizer", "c_fail")}
        if self.kind in ("rollout", "evaluate"):
            used["n_action_steps"], used["num_inference_steps"] = cfg.pi0.n_action_steps, cfg.pi0.num_inference_steps
        return used


EXECUTION = ("gradient_checkpointing", "compile")  # of a model: how it is computed, not what
USES: dict[str, tuple[str, ...]] = {
    "demonstrations": ("env", "data"),
    "train": ("precision", "data"),
    "rollout": ("env", "workers"),
    "advantage": ("data", "advantage"),
    "evaluate": ("env", "workers"),
}


def plain_options(options: dict[str, Any]) -> dict[str, Any]:
    return {key: getattr(value, "name", value) for key, value in options.items() if value is not None}


def iteration_dir(iteration: int) -> str:
    return f"iter_{iteration:02d}"


def data_inputs(cfg: Config, iteration: int) -> dict[str, str]:
    """Where the data up to an iteration comes from: role = name of the data set in labels and messages."""
    recorded = {} if cfg.data.demonstrator is None else {DEMONSTRATIONS: DEMONSTRATIONS}
    return recorded | {f"rollouts_{k:02d}": f"{iteration_dir(k)}/rollout" for k in range(1, iteration + 1)}


def prompt_for(wanted: Prompt, training: PolicyTrainConfig) -> Prompt:
    """A policy trained without the indicator is not prompted with it."""
    return Prompt.none if training.indicator is IndicatorMode.ignore else wanted


def train_node(cfg: Config, policy: PolicyKind, stage: StageKind, iteration: int = 0) -> Node:
    own = "sft" if policy is PolicyKind.pi0 else "value"
    options = {"policy": policy, "stage": stage}
    if stage is StageKind.sft:
        return Node(own, "train", data_inputs(cfg, 0), options)
    head = iteration_dir(iteration)
    inputs = {"pretrained": own, **data_inputs(cfg, iteration)}
    if policy is PolicyKind.value:
        return Node(f"{head}/value", "train", inputs, options)
    labels = {"labels": f"{head}/advantage"} if cfg.pi0.finetune.indicator is IndicatorMode.use else {}
    return Node(f"{head}/policy", "train", inputs | labels, options)


def advantage_node(cfg: Config, iteration: int) -> Node:
    head = iteration_dir(iteration)
    return Node(f"{head}/advantage", "advantage", {"value": f"{head}/value", **data_inputs(cfg, iteration)})


def rollout_node(cfg: Config, iteration: int) -> Node:
    source, training = (
        ("sft", cfg.pi0.sft) if iteration == 1 else (f"{iteration_dir(iteration - 1)}/policy", cfg.pi0.finetune)
    )
    prompt = prompt_for(cfg.rollout.prompt, training)
    options = {
        "iteration": iteration,
        "episodes": cfg.rollout.episodes,
        "videos": cfg.rollout.videos,
        "prompt": prompt,
        "beta": 1.0 if prompt is Prompt.none else cfg.rollout.beta,
    }
    return Node(f"{iteration_dir(iteration)}/rollout", "rollout", {"policy": source}, options)


def eval_node(cfg: Config, path: str, policy: str, training: PolicyTrainConfig, prompt: Prompt | None = None) -> Node:
    prompt = prompt_for(prompt or cfg.eval.prompt, training)
    options = {
        "episodes": cfg.eval.episodes,
        "videos": cfg.eval.videos,
        "prompt": prompt,
        "beta": 1.0 if prompt is not cfg.eval.prompt else cfg.eval.beta,
    }
    return Node(path, "evaluate", {"policy": policy}, options)


def control_nodes(cfg: Config, arm: Control, iteration: int) -> Iterable[Node]:
    """An arm trained for as many steps as the last policy, and its evaluation on the same initial states."""
    head = f"{iteration_dir(iteration)}/controls/{arm.name}"
    last = f"{iteration_dir(iteration)}/policy"
    if arm is Control.negative_prompt:
        yield eval_node(cfg, f"{head}/eval", last, cfg.pi0.finetune, Prompt.negative)
        return
    options: dict[str, Any] = {"policy": PolicyKind.pi0, "stage": StageKind.finetune}
    inputs = {"pretrained": "sft", **data_inputs(cfg, 0)}
    training = cfg.pi0.finetune
    if arm is Control.labels_on_demonstrations:
        inputs["labels"] = f"{iteration_dir(iteration)}/advantage"
    else:  # SFT goes on as it was
        options["indicator"] = cfg.pi0.sft.indicator
        training = cfg.pi0.sft
    yield Node(f"{head}/policy", "train", inputs, options)
    yield eval_node(cfg, f"{head}/eval", f"{head}/policy", training)


def pretraining(cfg: Config) -> list[Node]:
    """What all iterations share."""
    recorded = [] if cfg.data.demonstrator is None else [Node(DEMONSTRATIONS, "demonstrations")]
    return [
        *recorded,
        train_node(cfg, PolicyKind.pi0, StageKind.sft),
        eval_node(cfg, "sft/eval", "sft", cfg.pi0.sft),
        train_node(cfg, PolicyKind.value, StageKind.sft),
    ]


def iteration_nodes(cfg: Config, iteration: int) -> list[Node]:
    policy = train_node(cfg, PolicyKind.pi0, StageKind.finetune, iteration)
    return [
        rollout_node(cfg, iteration),
        train_node(cfg, PolicyKind.value, StageKind.finetune, iteration),
        advantage_node(cfg, iteration),
        policy,
        eval_node(cfg, f"{iteration_dir(iteration)}/eval", policy.path, cfg.pi0.finetune),
    ]
