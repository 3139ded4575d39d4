"""The graph of a run: which stages there are, what each reads, and which part of the configuration decides its result.

demonstrations ─┬─ sft ──────────────┬─ sft/eval       with policy.sft.indicator=use: value ─ values ─ advantage ─ sft
                └─ value             │
iter_k:  rollout ─ value ─ values ─ advantage ─ gate ─ policy ─ eval      on the demonstrations and the rollouts of
                                                                          iterations 1..k; restarts as `restart` says
iter_N/controls/<arm>/{advantage,policy,eval}                      whatever the arm changes
Further members of the value function (value.ensemble_size) are value_1, value_2, … beside `value`.
"""

from __future__ import annotations

from recap.config import Config, StageKind, relabels, with_arm
from recap.policies.roles import Role
from recap.rollout.config import Collector, Prompt
from recap.stages.base import DEMONSTRATIONS, Node, iteration_dir, prompt_for
from recap.training.config import PolicyTrainConfig, Restart


def _in(iteration: int, stage: str) -> str:
    """The path of a stage of an iteration; 0 is the pre-training."""
    return f"{iteration_dir(iteration)}/{stage}" if iteration else stage


def data_inputs(cfg: Config, iteration: int) -> dict[str, str]:
    """Where the data up to an iteration comes from: role = name of the data set in labels and messages."""
    recorded = {} if cfg.data.demonstrator is None else {DEMONSTRATIONS: DEMONSTRATIONS}
    return recorded | {f"rollouts_{k:02d}": f"{iteration_dir(k)}/rollout" for k in range(1, iteration + 1)}


def reads_labels(training: PolicyTrainConfig) -> bool:
    return training.indicator.labelled or training.awr_temperature is not None


# ---------------------------------------------------------------------------------------------------- trainings
def policy_path(iteration: int) -> str:
    return f"{iteration_dir(iteration)}/policy" if iteration else "sft"


def train_node(cfg: Config, policy: Role, stage: StageKind, iteration: int = 0) -> Node:
    """The SFT or a fine-tuning of the policy, or the first member of the value function."""
    if policy is Role.value:
        return value_node(cfg, iteration if stage is StageKind.finetune else 0)
    if stage is StageKind.sft:
        return sft_node(cfg, "sft", "advantage")
    return policy_node(cfg, policy_path(iteration), iteration)


def sft_node(cfg: Config, path: str, labels: str, arm: str | None = None) -> Node:
    read = {"labels": labels} if with_arm(cfg, arm).policy.sft.indicator.labelled else {}
    options = {"role": Role.policy, "stage": StageKind.sft}
    return Node(path, "train", data_inputs(cfg, 0) | read, options, arm)


def policy_node(
    cfg: Config,
    path: str,
    iteration: int,
    *,
    arm: str | None = None,
    pretrained: str | None = None,
    labels: str | None = None,
    rollouts: bool = True,
) -> Node:
    """A fine-tuning of the policy on the data of iterations 1..`iteration`, or on the demonstrations alone."""
    training = with_arm(cfg, arm).policy.finetune
    start = policy_path(iteration - 1) if training.restart is Restart.last else "sft"
    inputs = {"pretrained": pretrained or start, **data_inputs(cfg, iteration if rollouts else 0)}
    if reads_labels(training):
        inputs |= {"labels": labels or _in(iteration, "advantage"), "gate": _in(iteration, "gate")}
    return Node(path, "train", inputs, {"role": Role.policy, "stage": StageKind.finetune}, arm)


def value_node(cfg: Config, iteration: int, member: int = 0) -> Node:
    """A member of the value function: pre-trained on the demonstrations, then fine-tuned in each iteration."""
    name = f"value_{member}" if member else "value"
    stage = StageKind.finetune if iteration else StageKind.sft
    options = {"role": Role.value, "stage": stage} | ({"member": member} if member else {})
    inputs = data_inputs(cfg, iteration)
    if iteration:
        before = iteration - 1 if cfg.value.finetune.restart is Restart.last else 0
        inputs = {"pretrained": _in(before, name), **inputs}
    return Node(_in(iteration, name), "train", inputs, options)


def value_nodes(cfg: Config, iteration: int) -> list[Node]:
    return [value_node(cfg, iteration, member) for member in range(cfg.value.ensemble_size)]


# ---------------------------------------------------------------------------------------------------- labels
def value_inference_node(cfg: Config, iteration: int) -> Node:
    """What every member of the value function says of every frame."""
    members = {node.path.rpartition("/")[2]: node.path for node in value_nodes(cfg, iteration)}
    return Node(_in(iteration, "value_inference"), "value_inference", members | data_inputs(cfg, iteration))


def advantage_node(cfg: Config, iteration: int, path: str | None = None, arm: str | None = None) -> Node:
    """The labels of all frames up to an iteration, from their values."""
    inputs = {"value_inference": _in(iteration, "value_inference"), **data_inputs(cfg, iteration)}
    options = {"stage": StageKind.finetune if iteration else StageKind.sft}
    return Node(path or _in(iteration, "advantage"), "advantage", inputs, options, arm)


def gate_node(cfg: Config, iteration: int) -> Node:
    """Whether the labels of an iteration are good enough to train on."""
    return Node(_in(iteration, "gate"), "gate", {"labels": _in(iteration, "advantage")})


def _gated(cfg: Config) -> bool:
    """Whether anything reads the labels of an iteration."""
    return any(reads_labels(with_arm(cfg, arm).policy.finetune) for arm in (None, *cfg.controls))


# ---------------------------------------------------------------------------------------------------- acting
def rollout_node(cfg: Config, iteration: int) -> Node:
    """Experience of the policy before, or with rollout.policy=best of the best of those before."""
    training = cfg.policy.sft if iteration == 1 else cfg.policy.finetune
    inputs = {"policy": policy_path(iteration - 1)}
    if cfg.rollout.policy is Collector.best and iteration > 1:
        for k in range(iteration):
            inputs |= {f"policy_{k}": policy_path(k), f"eval_{k}": _in(k, "eval") if k else "sft/eval"}
        del inputs["policy"]
    prompt = prompt_for(cfg.rollout.prompt, training)
    options = {
        "iteration": iteration,
        "episodes": cfg.rollout.episodes,
        "tasks": cfg.rollout.tasks,
        "videos": cfg.rollout.videos,
        "prompt": prompt,
        "beta": 1.0 if prompt is Prompt.none else cfg.rollout.beta,
    }
    return Node(_in(iteration, "rollout"), "rollout", inputs, options)


def eval_node(cfg: Config, path: str, policy: str, training: PolicyTrainConfig, arm: str | None = None) -> Node:
    wanted = with_arm(cfg, arm).eval
    prompt = prompt_for(wanted.prompt, training)
    options = {
        "episodes": wanted.episodes,
        "videos": wanted.videos,
        "prompt": prompt,
        "beta": 1.0 if prompt is not wanted.prompt else wanted.beta,
    }
    return Node(path, "evaluate", {"policy": policy}, options, arm)


# ---------------------------------------------------------------------------------------------------- a run
def control_nodes(cfg: Config, arm: str, iteration: int) -> list[Node]:
    """An arm: trained for as many steps as the last policy, and evaluated on the same initial states."""
    changed, own = cfg.arms[arm], with_arm(cfg, arm)
    head = f"{iteration_dir(iteration)}/controls/{arm}"
    if not changed.trains:
        return [eval_node(cfg, f"{head}/eval", policy_path(iteration), own.policy.finetune, arm)]
    nodes: list[Node] = []
    pretrained = labels = None
    if changed.conditioned_pretraining and not cfg.policy.sft.indicator.labelled:
        nodes = [] if _conditioned(cfg) else [value_inference_node(cfg, 0), advantage_node(cfg, 0)]
        pretrained = f"{head}/sft"
        nodes.append(sft_node(cfg, pretrained, "advantage", arm))
    if relabels(changed):
        labels = f"{head}/advantage"
        nodes.append(advantage_node(cfg, iteration, labels, arm))
    policy = policy_node(
        cfg,
        f"{head}/policy",
        iteration,
        arm=arm,
        pretrained=pretrained,
        labels=labels,
        rollouts=changed.rollouts,
    )
    return [*nodes, policy, eval_node(cfg, f"{head}/eval", policy.path, own.policy.finetune, arm)]


def _conditioned(cfg: Config) -> bool:
    """Whether SFT itself reads labels, as in the paper's pre-training."""
    return cfg.policy.sft.indicator.labelled


def pretraining(cfg: Config) -> list[Node]:
    """What all iterations share."""
    recorded = [] if cfg.data.demonstrator is None else [Node(DEMONSTRATIONS, "demonstrations")]
    policy = train_node(cfg, Role.policy, StageKind.sft)
    policies = [policy, eval_node(cfg, "sft/eval", policy.path, cfg.policy.sft)]
    values = value_nodes(cfg, 0)
    if _conditioned(cfg):
        return [*recorded, *values, value_inference_node(cfg, 0), advantage_node(cfg, 0), *policies]
    return [*recorded, *policies, *values]


def iteration_nodes(cfg: Config, iteration: int) -> list[Node]:
    policy = train_node(cfg, Role.policy, StageKind.finetune, iteration)
    return [
        rollout_node(cfg, iteration),
        *value_nodes(cfg, iteration),
        value_inference_node(cfg, iteration),
        advantage_node(cfg, iteration),
        *([gate_node(cfg, iteration)] if _gated(cfg) else []),
        policy,
        eval_node(cfg, _in(iteration, "eval"), policy.path, cfg.policy.finetune),
    ]
