"""Which values make sense, alone and together. Types and choices are the schema's; this is what types cannot say."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from recap.config.arms import with_arm
from recap.config.choices import (
    EnvKind,
    Images,
    IndicatorMode,
    Normalization,
    Optimizer,
    PolicyKind,
    Prompt,
    ReadValue,
    Restart,
    Sharding,
    StageKind,
    Threshold,
    TrackingKind,
    TrackingMode,
    Trained,
)
from recap.config.names import nearest
from recap.config.schema import (
    ArmConfig,
    Config,
    EvalConfig,
    EvalJob,
    GemmaSize,
    PI0Config,
    PolicyTrainConfig,
    Resources,
    RolloutConfig,
    SiglipSize,
    TrainConfig,
    TrainJob,
    ValueConfig,
)
from recap.config.sources import source_problems

Rule = tuple[Callable[[float], bool], str]


def at_least(low: float) -> Rule:
    return lambda x: x >= low, f"must be at least {low}"


FRACTION: Rule = (lambda x: 0 <= x <= 1, "must lie between 0 and 1")
POSITIVE: Rule = (lambda x: x > 0, "must be greater than 0")

# By the last part of the key: a word means the same wherever it stands.
RULES: dict[str, Rule] = {
    "bins": at_least(2),
    "iterations": (lambda x: 1 <= x <= 1000, "must be at least 1 and at most 1000"),
    "positive_fraction": (lambda x: 0 < x < 1, "must lie strictly between 0 and 1 (0.3 labels 30 % of the frames)"),
    "held_out": (lambda x: 0 <= x < 1, "must be at least 0 and below 1 (0.1 leaves a tenth of the episodes out)"),
    "indicator_dropout": (lambda x: 0 <= x < 1, "must be at least 0 and below 1 (at 1 no indicator is ever read)"),
}
for words, rule in {
    "width depth mlp_dim num_heads num_kv_heads head_dim patch_size image_size tokenizer_max_length": at_least(1),
    "max_state_dim max_action_dim chunk_size n_action_steps num_inference_steps flow_samples lora_rank": at_least(1),
    "steps batch_size save_every keep_checkpoints log_every members": at_least(1),
    "fps action_freq max_steps episodes look_ahead processes slots min_episodes": at_least(1),
    "nodes cpus minutes shards notice": at_least(1),
    "seed warmup_steps weight_decay videos beta noise c_fail image_shift stem": at_least(0),
    "gpus requeues iteration": at_least(0),
    "learning_rate grad_clip normalizer weight mem awr_temperature": POSITIVE,
    "demonstration_share slow hesitate miss decay_to": FRACTION,
    "min_auc max_saturation max_clipped max_misplaced share_tolerance": FRACTION,
    "min_rank min_success_lead": (lambda x: -1 <= x <= 1, "must lie between -1 and 1"),
    "max_over_fit min_spread": at_least(0),
}.items():
    RULES.update(dict.fromkeys(words.split(), rule))


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything under a dataclass that is not one itself."""
    for f in fields(node):
        value = getattr(node, f.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{f.name}.")
        elif isinstance(value, dict):
            for name, one in value.items():
                key = f"{prefix}{f.name}.{name}"
                yield from leaves(one, f"{key}.") if is_dataclass(one) else [(key, one)]
        else:
            yield f"{prefix}{f.name}", value


def problems(cfg: Config) -> list[str]:
    """Everything wrong with a typed configuration, each as one line that names key, value and fix."""
    found = [*_ranges(cfg)]
    if not found:  # the rest divides and compares, which means little when a number is out of range
        found = [*_models(cfg), *_experiment(cfg), *_arms(cfg), *_tracking(cfg), *_jobs(cfg), *_job(cfg)]
    return found


def _ranges(cfg: Config) -> Iterator[str]:
    for key, value in leaves(cfg):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        good, text = RULES.get(key.rsplit(".", 1)[-1], (lambda x: True, ""))
        if not math.isfinite(value):
            yield f"{key}={value}: must be a finite number"
        elif not good(value):
            yield f"{key}={value}: {text}"
    if not re.fullmatch(r"[\w.,=+-]+", cfg.name) or set(cfg.name) == {"."}:
        yield f"name={cfg.name!r}: names a directory, so use letters, digits and . _ - + = only"
    if not cfg.output.strip():
        yield "output='': must be a directory. Fix: leave it out (outputs/<name>)"


def _models(cfg: Config) -> Iterator[str]:
    pi0, value = cfg.pi0, cfg.value
    if pi0.n_action_steps > pi0.chunk_size:
        yield (
            f"pi0.n_action_steps={pi0.n_action_steps}: only pi0.chunk_size={pi0.chunk_size} actions are predicted. "
            f"Fix: pi0.n_action_steps={pi0.chunk_size}"
        )
    for node, image_size, vision in (("pi0", pi0.image_size, pi0.vision), ("value", value.image_size, value.vision)):
        yield from _vision(node, image_size, vision)
    for node, size in (("pi0.vlm", pi0.vlm), ("pi0.expert", pi0.expert), ("value.text", value.text)):
        yield from _gemma(node, size)
    for key in ("depth", "head_dim", "num_heads", "num_kv_heads"):
        vlm, expert = getattr(pi0.vlm, key), getattr(pi0.expert, key)
        if vlm != expert:
            yield (
                f"pi0.expert.{key}={expert}: the two attend jointly, layer by layer: must equal pi0.vlm.{key}={vlm}. "
                "Fix: the same number for both"
            )
    trainings = {
        "pi0.sft": pi0.sft,
        "pi0.finetune": pi0.finetune,
        "value.sft": value.sft,
        "value.finetune": value.finetune,
    }
    for node, training in trainings.items():
        yield from _training(node, training)
        if node.endswith(".sft") and training.restart is Restart.last:
            yield f"{node}.restart=last: there is no iteration before. Fix: pretrained, or {node[:-3]}finetune.restart"
        if training.optimizer is Optimizer.adamw8bit and cfg.sharding is not Sharding.none:
            yield (
                f"{node}.optimizer=adamw8bit: its moments cannot be shared out by sharding={cfg.sharding.name}. "
                f"Fix: {node}.optimizer=adamw, or sharding=none"
            )
    yield from _weighted("pi0.sft", pi0.sft)
    yield from _weighted("pi0.finetune", pi0.finetune)
    yield from _start(pi0, value)
    if value.read is ReadValue.out_of_fold and value.members == 1:
        yield "value.read=out_of_fold: one value function has no folds. Fix: value.members=5, or value.read=mean"


def _weighted(node: str, training: PolicyTrainConfig) -> Iterator[str]:
    if training.awr_temperature is None:
        return
    if node == "pi0.sft":
        yield "pi0.sft.awr_temperature: SFT has no advantages. Fix: null, or pi0.finetune.awr_temperature"
    elif training.indicator is not IndicatorMode.ignore:
        yield (
            f"{node}.awr_temperature={training.awr_temperature:g}: weighs frames instead of naming them. "
            f"Fix: {node}.indicator=ignore, or {node}.awr_temperature=null"
        )


def _start(pi0: PI0Config, value: ValueConfig) -> Iterator[str]:
    """Weights to start from."""
    if pi0.trains is not Trained.all and pi0.pretrained is None:
        yield (
            f"pi0.trains={pi0.trains.name}: what it leaves alone would stay random. "
            "Fix: pi0.pretrained=<a folder or hub id>, or pi0.trains=all"
        )
    if value.freeze_vision and value.pretrained is None and value.pretrained_vision is None:
        yield (
            "value.freeze_vision=true: the vision tower would stay random. "
            "Fix: value.pretrained_vision=<a folder or hub id>, or value.freeze_vision=false"
        )
    if value.pretrained_vision is not None and value.vision.stem:
        yield (
            f"value.vision.stem={value.vision.stem}: SigLIP's own weights ({value.pretrained_vision}) have no such "
            "convolutions. Fix: value.vision.stem=0"
        )


def _vision(node: str, image_size: int, size: SiglipSize) -> Iterator[str]:
    if image_size % size.patch_size:
        yield f"{node}.image_size={image_size}: must be a multiple of {node}.vision.patch_size={size.patch_size}"
    if size.width % size.num_heads:
        yield f"{node}.vision.width={size.width}: must be a multiple of {node}.vision.num_heads={size.num_heads}"


def _gemma(node: str, size: GemmaSize) -> Iterator[str]:
    if size.head_dim % 2:
        yield f"{node}.head_dim={size.head_dim}: must be even (rotary positions turn pairs of numbers)"
    if size.num_heads % size.num_kv_heads:
        yield f"{node}.num_heads={size.num_heads}: must be a multiple of {node}.num_kv_heads={size.num_kv_heads}"


def _training(node: str, training: TrainConfig) -> Iterator[str]:
    if training.warmup_steps > training.steps:
        yield (
            f"{node}.warmup_steps={training.warmup_steps}: longer than the training. "
            f"Fix: at most {node}.steps={training.steps}"
        )
    if node.endswith(".sft") and training.demonstration_share != 1:
        yield (
            f"{node}.demonstration_share={training.demonstration_share}: this stage has demonstrations only. "
            f"Fix: 1, or {node.removesuffix('sft')}finetune.demonstration_share"
        )


def _experiment(cfg: Config) -> Iterator[str]:
    tasks, workers = cfg.env.tasks, cfg.workers
    if not tasks or not all(task.strip() for task in tasks):
        yield f"env.tasks={tasks}: must list at least one instruction"
    elif len(set(tasks)) < len(tasks):
        yield f"env.tasks={tasks}: the same instruction stands twice"
    if workers.processes > workers.slots:
        yield f"workers.processes={workers.processes}: each needs a slot. Fix: at most workers.slots={workers.slots}"
    if cfg.env.recorded_images is Images.video and cfg.env.image_size % 2:
        yield f"env.image_size={cfg.env.image_size}: videos need an even number. Fix: that, or env.recorded_images=png"
    if unknown := [task for task in cfg.rollout.tasks or [] if task not in tasks]:
        yield f"rollout.tasks={cfg.rollout.tasks}: {unknown[0]!r} is none of env.tasks={tasks}"
    elif cfg.rollout.tasks == []:
        yield "rollout.tasks=[]: must name at least one. Fix: null takes all of env.tasks"
    yield from _demonstrations(cfg)
    yield from _normalization(cfg)
    yield from _fractions(cfg)
    yield from _episodes("rollout", cfg.rollout, cfg)
    yield from _episodes("eval", cfg.eval, cfg)


def _demonstrations(cfg: Config) -> Iterator[str]:
    data, env = cfg.data, cfg.env.type
    if data.demonstrator is None and not data.sources:
        yield "data.sources={}: no demonstrations. Fix: data=moka, data=libero, or +data.sources.mine.root=<a data set>"
    elif data.demonstrator is not None and env is not EnvKind.moka:
        yield f"env={env.name}: only env=moka has this data's scripted demonstrator. Fix: env=moka, or data=libero"
    elif env is EnvKind.moka and data.demonstrator is None and not any(one.root for one in data.sources.values()):
        listed = ", ".join(f"data.sources.{name}.repo_id={one.repo_id}" for name, one in data.sources.items())
        yield (
            f"env=moka: {listed} was not recorded in it. "
            "Fix: data=moka, or +data.sources.mine.root=<a data set recorded in env=moka>"
        )
    if data.action_freq is not None and data.action_freq != cfg.env.fps:
        yield (
            f"data.action_freq={data.action_freq}: the policy would act at env.fps={cfg.env.fps}, another pace than it "
            f"learned. Fix: data.action_freq={cfg.env.fps}"
        )
    for name, source in data.sources.items():
        yield from source_problems(f"data.sources.{name}", name, source)


def _normalization(cfg: Config) -> Iterator[str]:
    advantage, demonstrator = cfg.advantage, cfg.data.demonstrator
    longest = max(cfg.env.max_steps, demonstrator.max_steps if demonstrator else 0)
    lowest = longest + advantage.c_fail
    if advantage.normalization is Normalization.per_task:
        if advantage.normalizer is not None:
            yield (
                f"advantage.normalizer={advantage.normalizer:g}: advantage.normalization=per_task measures its own. "
                "Fix: advantage.normalizer=null, or advantage.normalization=constant"
            )
    elif advantage.normalizer is None:
        yield (
            "advantage.normalizer=null: advantage.normalization=constant needs it. "
            f"Fix: advantage.normalizer={lowest:g}, or advantage.normalization=per_task"
        )
    elif advantage.normalizer < lowest:
        yield (
            f"advantage.normalizer={advantage.normalizer:g}: returns reach -(max_steps + c_fail) = -{lowest:g}, "
            f"below the bins. Fix: advantage.normalizer={lowest:g}, or a smaller advantage.c_fail={advantage.c_fail:g}"
        )


def _fractions(cfg: Config) -> Iterator[str]:
    given = cfg.advantage.positive_fraction_by_task
    for task, fraction in given.items():
        if not 0 < fraction < 1:
            yield f"advantage.positive_fraction_by_task.{task}={fraction:g}: must lie strictly between 0 and 1"
    if given and cfg.advantage.threshold is Threshold.all:
        yield (
            "advantage.positive_fraction_by_task: advantage.threshold=all has one ε for all tasks. "
            "Fix: advantage.threshold=per_task"
        )


def _arms(cfg: Config) -> Iterator[str]:
    for name in cfg.controls:
        if name not in cfg.arms:
            yield f"controls=[{name}]: there is no such arm. {nearest(name, list(cfg.arms))}"
    for name, arm in cfg.arms.items():
        if not re.fullmatch(r"\w+", name):
            yield f"arms.{name}: names a directory. Fix: letters, digits and _ only"
        elif name in cfg.controls:
            yield from _arm(f"arms.{name}", arm, with_arm(cfg, name))


def _arm(node: str, arm: ArmConfig, changed: Config) -> Iterator[str]:
    given = {f.name for f in fields(arm) if getattr(arm, f.name) != f.default}
    if not arm.trains and (of_training := sorted(given - {"trains", "prompt", "beta"})):
        yield f"{node}.{of_training[0]}: trains=false leaves the policy as it is. Fix: only prompt and beta beside it"
    if not given:
        yield f"{node}={{}}: differs from RECAP in nothing. Fix: one of {', '.join(f.name for f in fields(arm))}"
    yield from (f"{node}: {text}" for text in _weighted("pi0.finetune", changed.pi0.finetune))
    if changed.eval.beta != 1 and arm.beta is not None:
        yield from (f"{node}: {text}" for text in _episodes("eval", changed.eval, changed))


def _episodes(node: str, run: RolloutConfig | EvalConfig, cfg: Config) -> Iterator[str]:
    if run.videos > run.episodes:
        yield f"{node}.videos={run.videos}: more than {node}.episodes={run.episodes}"
    if run.prompt is not Prompt.none and cfg.pi0.sft.indicator is cfg.pi0.finetune.indicator is IndicatorMode.ignore:
        yield (
            f"{node}.prompt={run.prompt.name}: with indicator=ignore in both trainings no policy reads it. "
            f"Fix: {node}.prompt=none"
        )
    if run.beta != 1 and run.prompt is Prompt.none:
        yield f"{node}.beta={run.beta:g}: guidance needs a prompt. Fix: {node}.beta=1, or {node}.prompt=positive"
    elif run.beta != 1 and cfg.pi0.indicator_dropout == 0:
        yield (
            f"{node}.beta={run.beta:g}: guidance needs the policy without indicator, which pi0.indicator_dropout=0 "
            f"never trains. Fix: {node}.beta=1, or pi0.indicator_dropout=0.3"
        )


def _tracking(cfg: Config) -> Iterator[str]:
    wanted = cfg.tracking
    if wanted.kind is not TrackingKind.wandb and wanted.mode is not TrackingMode.off:
        kind = f"tracking={wanted.kind.name}"
        yield f"tracking.mode={wanted.mode.name}: {kind} has no W&B. Fix: tracking=wandb, or leave the mode out"
    if long := [tag for tag in wanted.tags if not 1 <= len(tag) <= 64]:
        yield f"tracking.tags={wanted.tags}: {long[0]!r} must have 1 to 64 characters"


def _jobs(cfg: Config) -> Iterator[str]:
    """What jobs ask a cluster for."""
    for option in cfg.launcher.options:
        if not re.fullmatch(r"[a-z][a-z-]*(=.+)?", option):
            yield f"launcher.options={option}: options of sbatch go without their dashes: ['reservation=robots']"
    for f in fields(cfg.resources):
        node, asked = f"resources.{f.name}", getattr(cfg.resources, f.name)
        yield from _resources(node, asked, cfg)
    for run in ("rollout", "eval"):
        episodes, shards = getattr(cfg, run).episodes, getattr(cfg.resources, run).shards
        if shards > episodes:
            yield f"resources.{run}.shards={shards}: more than {run}.episodes={episodes}"


def _resources(node: str, asked: Resources, cfg: Config) -> Iterator[str]:
    if asked.gpus and asked.processes not in (None, asked.gpus):
        yield (
            f"{node}.processes={asked.processes}: there is one process for each GPU. "
            f"Fix: leave it out, or {node}.gpus={asked.processes}"
        )
    if cfg.launcher.notice >= 60 * asked.minutes:
        yield (
            f"launcher.notice={cfg.launcher.notice}: seconds, more than {node}.minutes={asked.minutes}. "
            f"Fix: a longer job, or launcher.notice={max(1, 60 * asked.minutes - 30)}"
        )
    stage = node.rpartition(".")[2]
    if stage in ("demonstrations", "pi0", "value", "advantage") and asked.shards > 1:
        more = {"demonstrations": "workers.processes make", "advantage": "resources.values.shards make"}
        faster = more.get(stage, f"{node}.nodes and {node}.gpus make")
        yield f"{node}.shards={asked.shards}: this stage is one job. Fix: {node}.shards=1; {faster} it faster"
    if stage == "advantage" and asked.nodes * asked.tasks > 1:
        yield f"{node}: one process labels. Fix: {node}.nodes=1, {node}.processes=1, and no more than one of its gpus"
    if stage == "demonstrations" and asked.nodes * asked.tasks > 1:
        yield (
            f"{node}: one process starts the simulators. "
            f"Fix: {node}.nodes=1, {node}.processes=1, and as many workers.processes as it has cpus"
        )


def _job(cfg: Config) -> Iterator[str]:
    if isinstance(cfg, TrainJob) and cfg.stage is StageKind.sft and cfg.data.rollouts:
        yield (
            "stage=sft: trains on demonstrations only, but data.rollouts=true. "
            "Fix: stage=finetune, or the data choice without '+rollouts'"
        )
    if isinstance(cfg, TrainJob) and cfg.stage is StageKind.finetune and cfg.iteration == 0:
        yield "iteration=0: is the pre-training. Fix: iteration=1, or stage=sft"
    if isinstance(cfg, EvalJob) and cfg.policy is PolicyKind.value:
        yield "policy=value: the value function cannot act. Fix: policy=pi0 (advantage.py asks the value function)"
    if isinstance(cfg, EvalJob) and not cfg.checkpoint.strip():
        yield "checkpoint='': must be a checkpoint directory, e.g. outputs/demo/sft/checkpoints/last"
