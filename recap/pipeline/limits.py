"""Limits of the configuration against what the data, the environment and given checkpoints need, before any stage."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from recap.config import AdvantageJob, Config, EvalJob, LoopJob, StageKind
from recap.data.frames import Frames
from recap.data.mixture import Mixture
from recap.envs import Env
from recap.jobs.config import Resources
from recap.method.config import Normalization, Threshold
from recap.method.returns import c_fail_floor, cost
from recap.policies.config import ReadsText
from recap.policies.folder import checkpoint_of
from recap.policies.memory import machine_bytes, sample_bytes
from recap.policies.value.config import Start
from recap.policies.value.splits import left_out
from recap.policies.words import BUILTIN
from recap.rollout.config import Prompt
from recap.stages.acting import Acting
from recap.stages.advantage import Advantage, no_success
from recap.stages.base import DEMONSTRATIONS, Stage
from recap.stages.training import Training, TrainPolicy
from recap.training.config import IndicatorMode
from recap.utils.errors import RecapError

INDICATORS: dict[IndicatorMode, tuple[bool | None, ...]] = {
    IndicatorMode.ignore: (None,),
    IndicatorMode.always_positive: (True,),
    IndicatorMode.use: (True, False),
    IndicatorMode.positive_only: (True, None),
}
TOLD = {Prompt.positive: True, Prompt.negative: False, Prompt.none: None}
SPARE = 8  # tokens that a tokenizer may add; an ASCII text has no more others than characters
ROOM = 0.8  # share of a machine's memory that an advised batch takes


def limits(
    cfg: Config,
    stages: Sequence[Stage],
    jobs: Mapping[str, Resources] | None,
    data: Sequence[Frames],
    env: Env | None,
    absent: Collection[str] = (),
) -> Iterator[str]:
    """What would stop these stages later, or be silently wrong, each with the number that is needed.

    jobs: see `preflight`. data: the given data sets that are here. env: None where it cannot be built here.
    absent: keys of networks and tokenizers that are not here.
    """
    yield from _sizes(cfg, stages, data, env)
    yield from _lengths(cfg, data)
    yield from _outcomes(cfg, stages, data)
    yield from _fractions(cfg, stages, data, env)
    yield from _left_out(cfg, stages, data)
    yield from _prompts(cfg, stages, data, env, absent)
    yield from _batches(cfg, stages, jobs, data, env)


# ---------------------------------------------------------------------------------------------------- sizes
def _sizes(cfg: Config, stages: Sequence[Stage], data: Sequence[Frames], env: Env | None) -> Iterator[str]:
    """States and actions fit into the policy."""
    if not any(isinstance(stage, TrainPolicy) for stage in stages):
        return
    found = [(f"data.sources.{one.name}", one.state.shape[1], one.action.shape[1]) for one in data]
    found += [(f"env={cfg.env.type}", env.state_dim, env.action_dim)] if env else []
    yield from cfg.policy.too_small("policy", found)


# ---------------------------------------------------------------------------------------------------- returns
def _lengths(cfg: Config, data: Sequence[Frames]) -> Iterator[str]:
    """Returns of the data lie within the bins, and failures below successes, but for the gate's `max_misplaced`."""
    if not data:
        return
    settings, allowed = cfg.advantage, cfg.gate.max_misplaced
    found = [_c_fail(cfg, task, data) for task in _tasks_of(data)]
    needed, _, text = max((one for one in found if one[1] > allowed), key=lambda one: one[0], default=(0, 0.0, ""))
    c_fail = max(settings.c_fail, float(needed))
    length, success = (np.concatenate([getattr(one, key) for one in data]) for key in ("length", "success"))
    costs = cost(length, success, c_fail)
    constant = settings.normalizer if settings.normalization is Normalization.constant else None
    longest = cfg.env.max_steps if cfg.data.demonstrator is None else cfg.data.demonstrator.max_steps
    wide = math.ceil(max(costs.max(), max(longest, cfg.env.max_steps) + c_fail))
    also = f" advantage.normalizer={wide}" if constant is not None and constant < wide else ""
    if c_fail != settings.c_fail:
        yield f"advantage.c_fail={settings.c_fail:g}: {text}. Fix: advantage.c_fail={needed}{also}"
        return
    if constant is None or (outside := float((costs > constant).mean())) <= allowed:
        return
    slowest = int(length.max())
    yield (
        f"advantage.normalizer={constant:g}: the returns of {outside:.0%} of {len(costs)} episodes of the data lie "
        f"below the bins, down to -{costs.max():g} steps (the longest episode has {slowest}): there, a success looks "
        f"like a failure. Fix:{also}, or advantage.normalization=per_task advantage.normalizer=null"
    )


def _c_fail(cfg: Config, task: str, data: Sequence[Frames]) -> tuple[int, float, str]:
    """The C_fail that a task needs, the share of misplaced pairs of a success and a failure with the one given, words.

    Where no failure is known yet, a policy will fail at the time-out.
    """
    rows = [(one, one.task == i) for one in data for i, name in enumerate(one.tasks) if name == task]
    length = np.concatenate([one.length[chosen] for one, chosen in rows])
    success = np.concatenate([one.success[chosen] for one, chosen in rows])
    won, lost = length[success], length[~success]
    what = f"the fastest failure of the data ({min(lost, default=0)} steps)"
    if not len(lost):
        lost, what = np.array([cfg.env.max_steps]), f"a time-out of env.max_steps={cfg.env.max_steps}"
    if not len(won):
        return 0, 0.0, ""
    share = float((won[:, None] >= lost + cfg.advantage.c_fail).mean())
    floor = c_fail_floor([*won, *lost], [True] * len(won) + [False] * len(lost))
    text = f"{what} would score no worse than the slowest success ({won.max()} steps) of {task!r}"
    return floor + 1, share, text


def _tasks_of(data: Sequence[Frames]) -> list[str]:
    return sorted({one.tasks[i] for one in data for i in np.union1d(one.task, one.task_index)})


# ---------------------------------------------------------------------------------------------------- labels
def _outcomes(cfg: Config, stages: Sequence[Stage], data: Sequence[Frames]) -> Iterator[str]:
    """Labels of the pre-training need a success: of failures alone, 30 % of the frames would be called positive."""
    before = [stage for stage in stages if isinstance(stage, Advantage) and stage.training is StageKind.sft]
    if before and data and cfg.data.demonstrator is None and not any(one.success.any() for one in data):
        yield no_success([one.name for one in data], cfg.advantage.sft.positive_fraction)


def _fractions(cfg: Config, stages: Sequence[Stage], data: Sequence[Frames], env: Env | None) -> Iterator[str]:
    given = set(cfg.advantage.positive_fraction_by_task)
    if cfg.advantage.threshold is Threshold.all or not given:
        return
    for stage in stages:
        known = _tasks(cfg, stage, data, env)
        if stage.kind == "advantage" and known and (unknown := sorted(given - known)):
            yield (
                f"advantage.positive_fraction_by_task names {unknown[0]!r}, of which {stage.path} has no frame. "
                f"Fix: one of {', '.join(map(repr, sorted(known)[:8]))}"
            )
            return


def _left_out(cfg: Config, stages: Sequence[Stage], data: Sequence[Frames]) -> Iterator[str]:
    """Something is left to train on."""
    for stage in stages:
        if (
            not isinstance(stage, Training)
            or DEMONSTRATIONS in stage.inputs
            or "rollouts_01" in stage.inputs
            or not data
        ):
            continue
        if isinstance(stage, TrainPolicy):
            try:
                Mixture(data, 1.0, stage.settings.episode_filter)
            except RecapError as error:
                yield f"{stage.path}: {error}"
        elif all(left_out(one, cfg.value, cfg.seed, stage.number).all() for one in data):
            count = sum(len(one.length) for one in data)
            yield (
                f"value.held_out={cfg.value.held_out:g}, value.ensemble_size={cfg.value.ensemble_size}, "
                f"value.aggregation={cfg.value.aggregation.name}: of {count} episode{'s' if count > 1 else ''} "
                f"{stage.path} would train on none. Fix: more episodes, or value.held_out=0 value.aggregation=mean"
            )


# ---------------------------------------------------------------------------------------------------- prompts
def _tasks(cfg: Config, stage: Stage, data: Sequence[Frames], env: Env | None) -> set[str]:
    """The instructions that a stage reads: of the given data, of what is recorded in the environment, or of it."""
    found = set(_tasks_of(data)) if stage.reads_data else set()
    if env is None:
        return found
    named = dict(zip(cfg.env.tasks, env.tasks, strict=True))
    collected = [named[task] for task in cfg.rollout.tasks or cfg.env.tasks]
    if stage.kind in ("demonstrations", "eval") or DEMONSTRATIONS in stage.inputs:
        found |= set(env.tasks)
    if stage.kind == "rollout" or any(role.startswith("rollouts_") for role in stage.inputs):
        found |= set(collected)
    return found


def _said(cfg: Config, stage: Stage) -> Collection[bool | None]:
    """The indicators that a stage puts behind its instructions."""
    if isinstance(stage, Acting):
        told = TOLD[stage.prompt]
        return (told,) if stage.beta == 1 else (told, None)
    if isinstance(stage, TrainPolicy):
        said = set(INDICATORS[stage.settings.indicator])
        return said if isinstance(cfg, LoopJob) else said | _later(cfg)
    return (None,)


def _later(cfg: Config) -> set[bool | None]:
    """What the stages behind a training by hand will say: the length that its policy reads is settled by then."""
    ignored = IndicatorMode.ignore
    acting = [
        TOLD[run.prompt]
        for run in (cfg.rollout, cfg.eval)
        for training in (cfg.policy.sft, cfg.policy.finetune)
        if training.indicator is not ignored
    ]
    return {*INDICATORS[cfg.policy.finetune.indicator], *acting}


def _prompts(
    cfg: Config, stages: Sequence[Stage], data: Sequence[Frames], env: Env | None, absent: Collection[str]
) -> Iterator[str]:
    """Every prompt of every stage fits; the longest of each network is named."""
    texts: dict[str, dict[str, str]] = {"policy": {}, "value": {}}  # {prompt: the first stage that reads it}
    state = max([one.state.shape[1] for one in data] + ([env.state_dim] if env else []), default=0)
    for stage in stages:
        policy = "policy" if stage.acts or isinstance(stage, TrainPolicy) else "value"
        reader = getattr(cfg, policy)
        if not stage.computes or not isinstance(reader, ReadsText):
            continue
        for task in sorted(_tasks(cfg, stage, data, env)):
            for indicator in _said(cfg, stage):
                texts[policy].setdefault(reader.longest(task, indicator, state), stage.path)
    for policy, found in texts.items():
        if not found:
            continue
        reader = getattr(cfg, policy)
        given = _given(cfg, stages, policy)
        most = _padding(given) if given else reader.tokenizer_max_length
        said = "policy" if not given and cfg.value.backbone is Start.policy else policy  # whose tokenizer it is
        if all(text.isascii() and len(text) + SPARE <= most for text in found):
            continue  # whatever the tokenizer
        if not given and not {f"{said}.tokenizer", f"{said}.pretrained"}.isdisjoint(absent):
            continue
        counts = _counts(getattr(cfg, said), said, list(found), given, data, env)
        text, count = max(counts.items(), key=lambda one: one[1])
        if count <= most:
            continue
        has = f"the prompt {text!r} of {found[text]} has {count} tokens"
        if given:
            yield (
                f"checkpoint={given}: reads {most} tokens, and {has}. Fix: a shorter instruction, or a policy trained "
                f"with {policy}.tokenizer_max_length={count}"
            )
        else:
            yield f"{policy}.tokenizer_max_length={most}: {has}. Fix: {policy}.tokenizer_max_length={count}"


def _given(cfg: Config, stages: Sequence[Stage], policy: str) -> Path | None:
    """The checkpoint that was given by hand to act or to be asked."""
    if not isinstance(cfg, EvalJob if policy == "policy" else AdvantageJob) or cfg.checkpoint is None:
        return None
    paths = [stage.inputs[policy] for stage in stages if policy in stage.inputs and not stage.trains]
    return checkpoint_of(Path(cfg.output) / paths[0]) if paths else None


def _padding(folder: Path) -> int:
    """How many tokens a checkpoint reads; 0 where its file does not say."""
    try:
        steps = json.loads((folder / "policy_preprocessor.json").read_text(encoding="utf-8"))["steps"]
        return max(int(step.get("config", {}).get("max_length", 0)) for step in steps)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0  # whoever loads the checkpoint says what is wrong with it


def _counts(
    keys: ReadsText, policy: str, texts: list[str], given: Path | None, data: Sequence[Frames], env: Env | None
) -> dict[str, int]:
    """Tokens of each text, by the tokenizer that will be used."""
    if given is None and keys.pretrained is None and keys.tokenizer == BUILTIN:
        return {text: len(keys.builtin().encode(text).ids) for text in texts}
    from recap.policies.checkpoint import tokenizer_of

    robot = (data[0].cameras, data[0].state.shape[1], data[0].action.shape[1]) if data else None
    robot = (env.cameras, env.state_dim, env.action_dim) if env and not robot else robot
    tokenizer = tokenizer_of(keys, f"{policy}.pretrained", given, robot)
    return {text: len(tokenizer(text)["input_ids"]) for text in texts}


# ---------------------------------------------------------------------------------------------------- memory
def _batches(
    cfg: Config, stages: Sequence[Stage], jobs: Mapping[str, Resources] | None, data: Sequence[Frames], env: Env | None
) -> Iterator[str]:
    """A batch of pictures fits into memory: of this machine, or of what the jobs ask for."""
    if data:
        shapes = list(data[0].image_shapes.values())
    elif env is not None:
        shapes = [(cfg.env.image_size, cfg.env.image_size, 3)] * len(env.cameras)
    else:
        return
    for stage in stages:
        if not isinstance(stage, Training):
            continue
        size = stage.cfg.network(stage.role)
        key = f"{stage.role.name}.{stage.training.name}.batch_size"
        asked = jobs[stage.kind] if jobs is not None else None
        memory = asked.mem_gb * 1e9 * asked.nodes if asked else machine_bytes()
        sample = sample_bytes(size, shapes, _on_device(cfg, asked))
        batch = stage.settings.batch_size
        if batch * sample > memory:
            yield (
                f"{key}={batch}: takes about {batch * sample / 1e9:.0f} GB of memory for {len(shapes)} cameras, and "
                f"{f'resources.{stage.kind}.mem_gb asks for' if asked else 'this machine has'} "
                f"{memory / 1e9:.0f} GB. Fix: {key}={max(1, int(ROOM * memory / sample))} or less"
            )


def _on_device(cfg: Config, asked: Resources | None) -> bool:
    """Whether the network computes in other memory than the machine's."""
    if asked is not None:
        return asked.gpus_per_node > 0
    from recap.utils.device import device_name

    try:
        return device_name(cfg.device) == "cuda"
    except RecapError:
        return True  # said elsewhere
