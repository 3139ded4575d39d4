"""What a command given by hand stands for in the graph of a run: eval.py and advantage.py with a checkpoint."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from recap.config import AdvantageJob, EvalJob, ablated
from recap.pipeline.graph import advantage, evaluation, gate, rollout, value_inference
from recap.policies.config import NetworkConfig
from recap.policies.folder import PRETRAINED, checkpoint_of, held
from recap.stages.acting import Evaluation, Rollout
from recap.stages.base import Stage
from recap.storage.manifest import stage_of
from recap.utils.errors import RecapError

TRAININGS = re.compile(r"(ablations/\w+/)?(sft|value|iter_\d+/(policy|value))")


def checkpoint_folder(checkpoint: str, keys: type[NetworkConfig]) -> Path:
    """The folder of one checkpoint; that of a training stands for its last.

    Raises:
        RecapError: it is missing, incomplete or unreadable, holds another kind of policy, or what is not allowed.
    """
    path = checkpoint_of(Path(checkpoint))
    held(path, keys, f"checkpoint={checkpoint}")
    return path


def origin(checkpoint: Path) -> tuple[Path, str] | None:
    """(run directory, path of the stage in it) of the last checkpoint of a run's training; None for any other."""
    stage = stage_of(checkpoint)
    if stage == checkpoint or checkpoint.resolve() != (stage / "checkpoints" / "last").resolve():
        return None
    for run in stage.parents:
        path = stage.relative_to(run).as_posix()
        if TRAININGS.fullmatch(path) and not re.fullmatch(r"iter_\d+", run.resolve().name):
            return (run, path) if run.parent.name != "ablations" else (run.parents[1], f"ablations/{run.name}/{path}")
    return None


def eval_job(cfg: EvalJob) -> tuple[Stage, bool]:
    """What eval.py does: (stage, whether it is one of the run `cfg.output` itself).

    The last checkpoint of a run's training is evaluated where loop.py does it, and collects the rollouts of the next
    iteration; any other goes to `eval/<its name>` or `rollout/<its name>`; `result` names another directory, and of
    swept values each has its own below the run.

    Raises:
        RecapError: the checkpoint cannot be used, or is of an ablation that the configuration does not have.
    """
    checkpoint = checkpoint_folder(cfg.checkpoint, type(cfg.policy))
    found = origin(checkpoint)
    run, source = found or (Path(cfg.output), "")
    result = cfg.result
    if found and result is None and run.resolve() in Path(cfg.output).resolve().parents:
        result = cfg.output  # one of several values: eval.beta=1,1.5,2 -m
    own, ablation = replace(cfg, output=str(run)), _ablation(source)
    if ablation is not None:
        if ablation not in cfg.ablations:
            raise RecapError(f"checkpoint={cfg.checkpoint}: is of ablation {ablation}. Fix: ablation=[{ablation}]")
        own = ablated(own, ablation)
    iteration = _iteration(source)
    there = result is None and found is not None
    name = source if there else str((stage_of(checkpoint) if found else checkpoint).absolute())
    stage: Rollout | Evaluation
    stage = rollout(own, iteration + 1) if cfg.record else evaluation(own, iteration)
    episodes = stage.episodes if cfg.episodes is None else cfg.episodes
    stage = replace(stage, episodes=episodes, videos=min(stage.videos, episodes), ablation=ablation)
    stage = replace(stage, inputs={"policy": name}, path=_place(result, source, checkpoint, stage))
    return stage, there and run.resolve() == Path(cfg.output).resolve()


def _place(result: str | None, source: str, checkpoint: Path, stage: Stage) -> str:
    """The directory of what eval.py makes."""
    if result is not None:
        return str(Path(result).absolute())
    if source:
        return f"ablations/{stage.ablation}/{stage.path}" if stage.ablation else stage.path
    step = checkpoint.parent if checkpoint.name == PRETRAINED else checkpoint
    training = stage_of(step)
    tag = step.resolve().name if training == step else f"{training.resolve().name}_{step.name}"
    return f"{stage.kind}/{tag}"


def _ablation(source: str) -> str | None:
    found = re.match(r"ablations/(\w+)/", source)
    return found[1] if found else None


def _iteration(source: str) -> int:
    """The iteration that a training belongs to; 0 is the pre-training."""
    found = re.search(r"(?:^|/)iter_(\d+)/", source)
    return int(found[1]) if found else 0


def advantage_job(cfg: AdvantageJob) -> tuple[list[Stage], bool]:
    """What advantage.py does: (stages, whether they are the run's own); `result` names another place for the labels.

    With a checkpoint from elsewhere the values lie beside the labels; otherwise they are the run's, asked for once. The
    gate judges the labels of an iteration; demonstrations alone hold no failure to judge by.
    """
    values, labels = value_inference(cfg, cfg.iteration), advantage(cfg, cfg.iteration)
    gates = [gate(cfg, cfg.iteration)] if cfg.iteration else []
    inputs = dict(values.inputs)
    if cfg.checkpoint is not None:
        checkpoint = checkpoint_folder(cfg.checkpoint, type(cfg.value))
        found = origin(checkpoint)
        if found is None:
            inputs["value"] = str(checkpoint.absolute())
        elif (found[0] / found[1]).resolve() != (Path(cfg.output) / inputs["value"]).resolve():
            inputs["value"] = str(stage_of(checkpoint).absolute())
    values = replace(values, inputs=inputs)
    if cfg.result is None:
        return [values, labels, *gates], True
    result = Path(cfg.result).absolute()
    if cfg.checkpoint is not None:
        values = replace(values, path=str(result.with_name(f"{result.name}_values")), inputs=_absolute(cfg, inputs))
    inputs = _absolute(cfg, {**labels.inputs, "value_inference": values.path})
    labels = replace(labels, path=str(result), inputs=inputs)
    beside = str(result.with_name(f"{result.name}_gate"))
    return [values, labels, *(replace(one, path=beside, inputs={"labels": labels.path}) for one in gates)], False


def _absolute(cfg: AdvantageJob, inputs: dict[str, str]) -> dict[str, str]:
    return {role: str((Path(cfg.output) / path).absolute()) for role, path in inputs.items()}
