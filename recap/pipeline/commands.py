"""What a command given by hand stands for in the graph of a run: eval.py and advantage.py with a checkpoint."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from recap.config import AdvantageJob, EvalJob, with_arm
from recap.pipeline.graph import advantage_node, eval_node, gate_node, value_inference_node
from recap.policies.config import NetworkConfig
from recap.policies.folder import PRETRAINED, checkpoint_of, held
from recap.stages.base import Node, iteration_dir, prompt_for
from recap.storage.manifest import stage_of

TRAININGS = re.compile(r"sft|value|iter_\d+/(policy|value)|iter_\d+/controls/\w+/(policy|sft)")


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
            return run, path
    return None


def eval_job(cfg: EvalJob) -> tuple[EvalJob, Node, bool]:
    """What eval.py does: (configuration, stage, whether the stage is one of the run `cfg.output` itself).

    The last checkpoint of a run's training is evaluated where loop.py does it, and collects the rollouts of the next
    iteration; any other goes to `eval/<its name>` or `rollout/<its name>`; `result` names another directory, and of
    swept values each has its own below the run.
    """
    checkpoint = checkpoint_folder(cfg.checkpoint, type(cfg.policy))
    found = origin(checkpoint)
    run, source = found or (Path(cfg.output), "")
    if found and cfg.result is None and run.resolve() in Path(cfg.output).resolve().parents:
        cfg = replace(cfg, result=cfg.output)  # one of several values: eval.beta=1,1.5,2 -m
    head = source.rpartition("/")[0]  # iter_01, or that of a control
    if cfg.result is not None:
        place = str(Path(cfg.result).absolute())
    elif not found:
        step = checkpoint.parent if checkpoint.name == PRETRAINED else checkpoint
        stage = stage_of(step)
        tag = step.resolve().name if stage == step else f"{stage.resolve().name}_{step.name}"
        place = f"{'rollout' if cfg.record else 'eval'}/{tag}"
    elif not cfg.record:
        place = f"{source}/eval" if source.endswith("sft") else f"{head}/eval"
    else:
        place = f"{head}/rollout" if "/controls/" in source else f"{iteration_dir(_next(source))}/rollout"
    as_graph = found is not None and cfg.result is None
    policy = source if as_graph else str((stage_of(checkpoint) if found else checkpoint).absolute())
    arm = next((name for name in cfg.arms if f"/controls/{name}/" in source), None)
    training = cfg.policy.sft if source.endswith("sft") else with_arm(cfg, arm).policy.finetune
    settings = cfg.rollout if cfg.record else cfg.eval
    episodes = settings.episodes if cfg.episodes is None else cfg.episodes
    options: dict[str, Any] = {"episodes": episodes, "videos": min(settings.videos, episodes)}
    if cfg.record:
        prompt = prompt_for(settings.prompt, training)
        beta = settings.beta if prompt is settings.prompt else 1.0
        options = {"iteration": _next(source), "prompt": prompt, "beta": beta, **options}
        node = Node(place, "rollout", {"policy": policy}, options)
    else:
        node = eval_node(cfg, place, policy, training, arm)
        node.options.update(options)
    own = as_graph and run.resolve() == Path(cfg.output).resolve()
    return replace(cfg, output=str(run)), node, own


def _next(source: str) -> int:
    """The iteration whose rollouts a policy collects."""
    found = re.match(r"iter_(\d+)/", source)
    return int(found[1]) + 1 if found else 1


def advantage_job(cfg: AdvantageJob) -> tuple[list[Node], bool]:
    """What advantage.py does: (stages, whether they are the run's own); `result` names another place for the labels.

    With a checkpoint from elsewhere the values lie beside the labels; otherwise they are the run's, asked for once. The
    gate judges the labels of an iteration; demonstrations alone hold no failure to judge by.
    """
    values, labels = value_inference_node(cfg, cfg.iteration), advantage_node(cfg, cfg.iteration)
    gates = [gate_node(cfg, cfg.iteration)] if cfg.iteration else []
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
    gate = str(result.with_name(f"{result.name}_gate"))
    return [values, labels, *(replace(node, path=gate, inputs={"labels": labels.path}) for node in gates)], False


def _absolute(cfg: AdvantageJob, inputs: dict[str, str]) -> dict[str, str]:
    return {role: str((Path(cfg.output) / path).absolute()) for role, path in inputs.items()}
