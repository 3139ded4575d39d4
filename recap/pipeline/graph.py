"""The graph of a run: which stages there are and what each reads.

demonstrations ─┬─ sft ──────────────┬─ sft/eval   policy.sft.indicator=use: value ─ value_inference ─ advantage ─ sft
                └─ value             │             value.backbone=policy: sft ─ value
iter_k:  rollout ─ value ─ value_inference ─ advantage ─ gate ─ policy ─ eval    on the demonstrations and the rollouts
                                                                  of iterations 1..k; restarts as `restart` says
ablations/<name>/…                                    those of its stages that differ from the run's
Further members of the value function (value.ensemble_size) are value_1, value_2, … beside `value`.
"""

from __future__ import annotations

from dataclasses import replace

from recap.config import Config, StageKind, ablated
from recap.data.config import EpisodeFilter
from recap.policies.roles import Role
from recap.policies.value.config import Start
from recap.rollout.config import Collector, Prompt, TakeOver
from recap.stages.acting import Evaluation, Rollout
from recap.stages.advantage import Advantage
from recap.stages.base import DEMONSTRATIONS, Stage, iteration_dir, prompt_for
from recap.stages.demonstrations import Demonstrations
from recap.stages.gate import Gate
from recap.stages.training import Training, TrainPolicy, TrainValue
from recap.stages.value_inference import ValueInference
from recap.training.config import LabelsOf, PolicyTrainConfig, Restart
from recap.utils.errors import RecapError


def _in(iteration: int, stage: str) -> str:
    """The path of a stage of an iteration; 0 is the pre-training."""
    return f"{iteration_dir(iteration)}/{stage}" if iteration else stage


def _phase(iteration: int) -> StageKind:
    return StageKind.finetune if iteration else StageKind.sft


def data_inputs(cfg: Config, iteration: int) -> dict[str, str]:
    """Where the data up to an iteration comes from: role = name of the data set in labels and messages."""
    recorded = {} if cfg.data.demonstrator is None else {DEMONSTRATIONS: DEMONSTRATIONS}
    return recorded | {f"rollouts_{k:02d}": _in(k, "rollout") for k in range(1, iteration + 1)}


def reads_labels(training: PolicyTrainConfig) -> bool:
    return training.indicator.labelled or training.awr_temperature is not None


# ---------------------------------------------------------------------------------------------------- trainings
def demonstrations(cfg: Config) -> list[Stage]:
    """Recorded where the data has a scripted demonstrator."""
    return [] if cfg.data.demonstrator is None else [Demonstrations(cfg=cfg, path=DEMONSTRATIONS, inputs={})]


def policy_path(iteration: int) -> str:
    return _in(iteration, "policy") if iteration else "sft"


def train_policy(cfg: Config, iteration: int) -> TrainPolicy:
    """SFT on the demonstrations, or a fine-tuning on the data of iterations 1..`iteration`."""
    training = cfg.policy.finetune if iteration else cfg.policy.sft
    inputs: dict[str, str] = {}
    if iteration:
        inputs["pretrained"] = policy_path(iteration - 1 if training.restart is Restart.last else 0)
    only_demonstrations = training.episode_filter is EpisodeFilter.demonstrations
    inputs |= data_inputs(cfg, 0 if only_demonstrations else iteration)
    if reads_labels(training):
        labelled = 0 if training.labels is LabelsOf.pretraining else iteration
        inputs["labels"] = _in(labelled, "advantage")
        if labelled:
            inputs["gate"] = _in(labelled, "gate")
    return TrainPolicy(cfg=cfg, path=policy_path(iteration), inputs=inputs, training=_phase(iteration))


def train_value(cfg: Config, iteration: int) -> list[TrainValue]:
    """The members of the value function: pre-trained on the demonstrations, then fine-tuned in each iteration."""
    before = iteration - 1 if cfg.value.finetune.restart is Restart.last else 0
    members = []
    for member in range(cfg.value.ensemble_size):
        name = f"value_{member}" if member else "value"
        if iteration:
            start = {"pretrained": _in(before, name)}
        else:
            start = {"backbone": policy_path(0)} if cfg.value.backbone is Start.policy else {}
        inputs = start | data_inputs(cfg, iteration)
        members.append(
            TrainValue(
                cfg=cfg, path=_in(iteration, name), inputs=inputs, training=_phase(iteration), member=member or None
            )
        )
    return members


# ---------------------------------------------------------------------------------------------------- labels
def value_inference(cfg: Config, iteration: int) -> ValueInference:
    """What every member of the value function says of every frame."""
    members = {stage.path.rpartition("/")[2]: stage.path for stage in train_value(cfg, iteration)}
    inputs = members | data_inputs(cfg, iteration)
    return ValueInference(cfg=cfg, path=_in(iteration, "value_inference"), inputs=inputs)


def advantage(cfg: Config, iteration: int) -> Advantage:
    """The labels of all frames up to an iteration, from their values."""
    inputs = {"value_inference": _in(iteration, "value_inference"), **data_inputs(cfg, iteration)}
    return Advantage(cfg=cfg, path=_in(iteration, "advantage"), inputs=inputs, training=_phase(iteration))


def gate(cfg: Config, iteration: int) -> Gate:
    """Whether the labels of an iteration are good enough to train on."""
    return Gate(cfg=cfg, path=_in(iteration, "gate"), inputs={"labels": _in(iteration, "advantage")})


# ---------------------------------------------------------------------------------------------------- acting
def rollout(cfg: Config, iteration: int) -> Rollout:
    """Experience of the policy before, or with rollout.policy=best of the best of those before."""
    training = cfg.policy.sft if iteration == 1 else cfg.policy.finetune
    inputs = {"policy": policy_path(iteration - 1)}
    if cfg.rollout.policy is Collector.best and iteration > 1:
        for k in range(iteration):
            inputs |= {f"policy_{k}": policy_path(k), f"eval_{k}": evaluation(cfg, k).path}
        del inputs["policy"]
    if cfg.rollout.corrections.share > 0 and cfg.rollout.corrections.when is TakeOver.value_drop:
        inputs["value"] = _in(iteration - 1, "value")
    prompt = prompt_for(cfg.rollout.prompt, training)
    return Rollout(
        cfg=cfg,
        path=_in(iteration, "rollout"),
        inputs=inputs,
        iteration=iteration,
        episodes=cfg.rollout.episodes,
        tasks=cfg.rollout.tasks,
        tries=cfg.rollout.tries if cfg.rollout.tries > 1 else None,
        corrections=cfg.rollout.corrections if cfg.rollout.corrections.share > 0 else None,
        videos=cfg.rollout.videos,
        prompt=prompt,
        beta=1.0 if prompt is Prompt.none else cfg.rollout.beta,
    )


def evaluation(cfg: Config, iteration: int) -> Evaluation:
    prompt = prompt_for(cfg.eval.prompt, cfg.policy.finetune if iteration else cfg.policy.sft)
    return Evaluation(
        cfg=cfg,
        path=_in(iteration, "eval") if iteration else "sft/eval",
        inputs={"policy": policy_path(iteration)},
        episodes=cfg.eval.episodes,
        videos=cfg.eval.videos,
        prompt=prompt,
        beta=1.0 if prompt is not cfg.eval.prompt else cfg.eval.beta,
    )


# ---------------------------------------------------------------------------------------------------- a run
def pretraining(cfg: Config) -> list[Stage]:
    """What all iterations share."""
    policy: list[Stage] = [train_policy(cfg, 0), evaluation(cfg, 0)]
    labels = [value_inference(cfg, 0), advantage(cfg, 0)]
    if reads_labels(cfg.policy.sft):
        return [*demonstrations(cfg), *train_value(cfg, 0), *labels, *policy]
    later = reads_labels(cfg.policy.finetune) and cfg.policy.finetune.labels is LabelsOf.pretraining
    return [*demonstrations(cfg), *policy, *train_value(cfg, 0), *(labels if later else [])]


def iteration_stages(cfg: Config, iteration: int, *, gated: bool = True) -> list[Stage]:
    return [
        rollout(cfg, iteration),
        *train_value(cfg, iteration),
        value_inference(cfg, iteration),
        advantage(cfg, iteration),
        *([gate(cfg, iteration)] if gated else []),
        train_policy(cfg, iteration),
        evaluation(cfg, iteration),
    ]


def run_stages(cfg: Config, iterations: int) -> list[list[Stage]]:
    """A whole run, iteration by iteration: the first brings the pre-training with it, the last the ablations."""
    own = {name: ablated(cfg, name) for name in cfg.ablations}
    gated = any(reads_labels(one.policy.finetune) for one in (cfg, *own.values()))
    rounds = [iteration_stages(cfg, iteration, gated=gated) for iteration in range(1, iterations + 1)]
    rounds[0] = [*pretraining(cfg), *rounds[0]]
    known = {stage.path: stage for stages in rounds for stage in stages}
    for name, changed in own.items():
        further = ablation_stages(cfg, changed, name, iterations, known)
        known |= {stage.path: stage for stage in further}
        rounds[-1] += further
    return rounds


def ablation_stages(cfg: Config, changed: Config, name: str, iterations: int, known: dict[str, Stage]) -> list[Stage]:
    """The stages that an ablation needs beside the run's for its evaluation after the last iteration.

    A stage belongs to the ablation where its identity, or one of its inputs, differs from the run's; it then lies in
    ablations/<name>. Rollouts are the run's unless the ablation collects otherwise: policies are compared on the same
    experience. The value gate judges the run's labels alone: an ablation may well be about worse ones.

    Args:
        changed: the ablation's configuration. known: path -> stage, of the run and of the ablations before.

    Raises:
        RecapError: no stage differs.
    """
    anew = any(getattr(cfg, key) != getattr(changed, key) for key in ("seed", "env", "rollout", "workers"))
    planned = pretraining(changed)
    for iteration in range(1, iterations + 1):
        planned += iteration_stages(changed, iteration, gated=False)
    moved: dict[str, str] = {}  # path in the run -> path of the ablation's own
    stages: dict[str, Stage] = {}
    for stage in planned:
        there = known.get(stage.path) or replace(stage, cfg=cfg)
        gone = "gate" if stage.inputs.get("labels") in moved else ""
        inputs = {role: moved.get(path, path) for role, path in stage.inputs.items() if role != gone}
        same = stage.identity == there.identity and inputs == there.inputs
        if not anew if isinstance(stage, Rollout) else same:
            stages[stage.path] = there
            continue
        moved[stage.path] = f"ablations/{name}/{stage.path}"
        stages[moved[stage.path]] = replace(stage, path=moved[stage.path], inputs=inputs, ablation=name)
    goal = moved.get(evaluation(changed, iterations).path)
    if goal is None:
        raise RecapError(f"ablations.{name}: changes nothing of what the policy of iteration {iterations} does.")
    needed = {goal}
    for path, stage in reversed(stages.items()):
        needed |= set(stage.inputs.values()) if path in needed else set()
    return [stage for path, stage in stages.items() if path in needed and path not in known]


def by_hand(cfg: Config, role: Role, iteration: int) -> list[Training]:
    """What train.py trains."""
    return [*train_value(cfg, iteration)] if role is Role.value else [train_policy(cfg, iteration)]
