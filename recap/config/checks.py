"""What must fit between parts of the configuration. What a part can see of itself, it checks itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from recap.config.schema import Config, EvalJob, Role, StageKind, TrainJob
from recap.envs.registry import has_demonstrator
from recap.method.config import Normalization, Within
from recap.policies.config import PolicyConfig
from recap.policies.registry import known
from recap.policies.sizes import Trained
from recap.policies.value.config import Start
from recap.rollout.config import EvalConfig, Prompt
from recap.training.config import IndicatorMode, Optimizer, Sharding


def between(cfg: Config) -> Iterator[str]:
    """Each contradiction as one line that names key, value and fix."""
    yield from _sharding(cfg)
    yield from _backbone(cfg)
    yield from _demonstrations(cfg)
    yield from _normalization(cfg)
    yield from _acting(cfg)
    yield from _jobs(cfg)
    yield from _job(cfg)


def _sharding(cfg: Config) -> Iterator[str]:
    if cfg.sharding is Sharding.fsdp and not cfg.policy.shardable:
        yield (
            f"sharding=fsdp: the layers of policy.type={cfg.policy.type} cannot be shared out. "
            "Fix: sharding=none or deepspeed"
        )
    for model in ("policy", "value"):
        for stage in ("sft", "finetune"):
            node, training = f"{model}.{stage}", getattr(getattr(cfg, model), stage)
            if training.optimizer is Optimizer.adamw8bit and cfg.sharding is not Sharding.none:
                yield (
                    f"{node}.optimizer=adamw8bit: its moments cannot be shared out by sharding={cfg.sharding.name}. "
                    f"Fix: {node}.optimizer=adamw, or sharding=none"
                )


def _backbone(cfg: Config) -> Iterator[str]:
    """The SFT policy that a value function starts from is there before it, whole, and has a model that reads images."""
    if cfg.value.backbone is Start.own:
        return
    policy, sft = cfg.policy, cfg.policy.sft.indicator
    if policy.backbone() is None:
        able = [name for name, keys in known().items() if keys.backbone is not PolicyConfig.backbone]
        yield (
            f"value.backbone=policy: policy.type={policy.type} has no vision-language model that a value function can "
            f"start from. Fix: value.backbone=own, or one of policy={', '.join(able)}"
        )
    elif getattr(policy, "trainable", None) is Trained.lora:
        yield (
            "value.backbone=policy: with policy.trainable=lora the SFT checkpoint holds adapters alone. "
            "Fix: value.backbone=own, or policy.trainable=expert"
        )
    if sft.labelled:
        yield (
            f"value.backbone=policy: starts from the SFT policy, which with policy.sft.indicator={sft.name} is trained "
            "on labels of the value function. Fix: value.backbone=own, or policy.sft.indicator=always_positive"
        )


def _demonstrations(cfg: Config) -> Iterator[str]:
    data, env = cfg.data, cfg.env.type
    if data.demonstrator is None and not data.sources:
        yield "data.sources={}: no demonstrations. Fix: data=moka, data=libero, or +data.sources.mine.root=<a data set>"
    elif data.demonstrator is not None and not has_demonstrator(env):
        yield f"env={env}: has no scripted demonstrator, which this data is recorded by. Fix: env=moka, or data=libero"
    elif has_demonstrator(env) and data.demonstrator is None and not any(one.root for one in data.sources.values()):
        listed = ", ".join(f"data.sources.{name}.repo_id={one.repo_id}" for name, one in data.sources.items())
        yield (
            f"env={env}: {listed} was not recorded in it. "
            f"Fix: data={env}, or +data.sources.mine.root=<a data set recorded in env={env}>"
        )
    if data.action_freq is not None and data.action_freq != cfg.env.fps:
        yield (
            f"data.action_freq={data.action_freq}: the policy would act at env.fps={cfg.env.fps}, another pace than it "
            f"learned. Fix: data.action_freq={cfg.env.fps}"
        )


def _normalization(cfg: Config) -> Iterator[str]:
    advantage, demonstrator = cfg.advantage, cfg.data.demonstrator
    operated = 2 if cfg.rollout.corrections.share > 0 else 1  # an operator has as much time again
    longest = max(operated * cfg.env.max_steps, demonstrator.max_steps if demonstrator else 0)
    lowest = longest + advantage.c_fail
    if advantage.normalization is Normalization.per_task:
        return
    if advantage.normalizer is None:
        yield (
            "advantage.normalizer=null: advantage.normalization=constant needs it. "
            f"Fix: advantage.normalizer={lowest:g}, or advantage.normalization=per_task"
        )
    elif advantage.normalizer < lowest:
        yield (
            f"advantage.normalizer={advantage.normalizer:g}: returns reach -(max_steps + c_fail) = -{lowest:g}, "
            f"below the bins. Fix: advantage.normalizer={lowest:g}, or a smaller advantage.c_fail={advantage.c_fail:g}"
        )


def _acting(cfg: Config) -> Iterator[str]:
    tasks, wanted = cfg.env.tasks, cfg.rollout.tasks
    if unknown := [task for task in wanted or [] if task not in tasks]:
        yield f"rollout.tasks={wanted}: {unknown[0]!r} is none of env.tasks={tasks}"
    elif wanted == []:
        yield "rollout.tasks=[]: must name at least one. Fix: null takes all of env.tasks"
    if cfg.advantage.within is Within.initial_state and cfg.rollout.tries == 1:
        yield (
            "advantage.within=initial_state: rollout.tries=1 collects one episode from each, which has none to be "
            "compared with. Fix: rollout.tries=4, or advantage.within=null"
        )
    if (share := cfg.rollout.corrections.share) > 0 and not has_demonstrator(cfg.env.type):
        yield (
            f"rollout.corrections.share={share:g}: env={cfg.env.type} has no scripted demonstrator that takes over. "
            "Fix: rollout.corrections.share=0; corrections that people record are data: +data.sources.mine.root=…"
        )
    yield from _guided("rollout", cfg.rollout, cfg)
    yield from _guided("eval", cfg.eval, cfg)


def unread_prompts(cfg: Config) -> Iterator[str]:
    """Prompts that no policy of the run was trained to read. Those of an ablation are then prompted without."""
    if not cfg.policy.sft.indicator is cfg.policy.finetune.indicator is IndicatorMode.ignore:
        return
    for node, run in (("rollout", cfg.rollout), ("eval", cfg.eval)):
        if run.prompt is not Prompt.none:
            yield (
                f"{node}.prompt={run.prompt.name}: with indicator=ignore in both trainings no policy reads it. "
                f"Fix: {node}.prompt=none"
            )


def _guided(node: str, run: EvalConfig, cfg: Config) -> Iterator[str]:
    """Guidance needs a policy that has it, and was trained without the indicator too."""
    if run.beta != 1 and not cfg.policy.has_guidance:
        yield f"{node}.beta={run.beta:g}: policy.type={cfg.policy.type} has no guidance. Fix: {node}.beta=1"
    elif run.beta != 1 and run.prompt is not Prompt.none and cfg.policy.indicator_dropout == 0:
        yield (
            f"{node}.beta={run.beta:g}: guidance needs the policy without indicator, which policy.indicator_dropout=0 "
            f"never trains. Fix: {node}.beta=1, or policy.indicator_dropout=0.3"
        )


def _jobs(cfg: Config) -> Iterator[str]:
    """What jobs ask a cluster for."""
    for f in fields(cfg.resources):
        minutes = getattr(cfg.resources, f.name).timeout_min
        if cfg.launcher.grace_period_s >= 60 * minutes:
            yield (
                f"launcher.grace_period_s={cfg.launcher.grace_period_s}: seconds, more than "
                f"resources.{f.name}.timeout_min={minutes}. "
                f"Fix: a longer job, or launcher.grace_period_s={max(1, 60 * minutes - 30)}"
            )
    for run in ("rollout", "eval"):
        episodes, shards = getattr(cfg, run).episodes, getattr(cfg.resources, run).shards
        if shards > episodes:
            yield f"resources.{run}.shards={shards}: more than {run}.episodes={episodes}"


def _job(cfg: Config) -> Iterator[str]:
    if isinstance(cfg, TrainJob) and cfg.stage is StageKind.sft and cfg.data.rollouts:
        yield (
            "stage=sft: trains on demonstrations only, but data.rollouts=true. "
            "Fix: stage=finetune, or the data choice without '+rollouts'"
        )
    if isinstance(cfg, TrainJob) and cfg.stage is StageKind.finetune and cfg.iteration == 0:
        yield "iteration=0: is the pre-training. Fix: iteration=1, or stage=sft"
    if isinstance(cfg, EvalJob) and cfg.role is Role.value:
        yield (
            f"policy=value: the value function cannot act. Fix: policy={cfg.policy.type} "
            "(advantage.py asks the value function)"
        )
    if isinstance(cfg, EvalJob) and not cfg.checkpoint.strip():
        yield "checkpoint='': must be a checkpoint directory, e.g. outputs/demo/sft/checkpoints/last"
