"""Runs stages: each once, under a lock, checked against its configuration and its inputs, finished when its manifest is there."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from recap.config import AdvantageJob, Config, EvalJob, LoopJob, TrainJob, shared
from recap.errors import RecapError
from recap.graph import (
    DEMONSTRATIONS,
    Node,
    advantage_node,
    control_nodes,
    eval_node,
    iteration_nodes,
    pretraining,
    prompt_for,
    train_node,
)
from recap.launch import launch
from recap.preflight import preflight
from recap.report import print_table, write_html, write_summary
from recap.rundir import claim, finished, lock, verify, write_manifest

COMMANDS = {
    DEMONSTRATIONS: "python train.py policy=pi0 stage=sft",
    "sft": "python train.py policy=pi0 stage=sft",
    "value": "python train.py policy=value stage=sft",
}


def run_node(cfg: Config, node: Node, given: dict[str, Path] | None = None) -> None:
    """Runs one stage of the run directory `cfg.output`, or does nothing if it is finished.

    Args:
        given: role -> folder that stands in for an input of the graph (a checkpoint named by hand).

    Raises:
        RecapError: an input is missing or damaged, the directory belongs to another configuration, or another process works in it.
    """
    run, out = Path(cfg.output), Path(cfg.output) / node.path
    inputs = {role: run / path for role, path in node.inputs.items()} | (given or {})
    config = node.config(cfg) | ({f"input_{role}": str(path) for role, path in given.items()} if given else {})
    if out.is_dir() and (out / "config.yaml").is_file():
        claim(out, config)
        if finished(out):
            return
    for role, path in inputs.items():
        if given and role in given:
            continue
        if not finished(path):
            raise RecapError(
                f"{node.path} needs {node.inputs[role]}, which is not finished in {run}. Fix: `{_command(node.inputs[role])}` first, or let loop.py run it all."
            )
        verify(path)
    from recap.stages import STAGES  # torch and lerobot take seconds that finished stages should not cost

    with lock(out):
        if finished(out):  # another process finished it while this one looked
            return
        claim(out, config)
        began = time.time()
        with (out / "log.txt").open("a", buffering=1) as log:

            def say(text: str) -> None:
                print(text, flush=True)
                log.write(text + "\n")

            try:
                STAGES[node.kind](cfg, inputs, out, say, **node.options)
            except OSError as error:
                raise RecapError(
                    f"{node.path}: {error.strerror or error} ({error.filename or out}). {_space(out)}"
                ) from error
        own = {role: path for role, path in inputs.items() if finished(path)}
        write_manifest(out, node=node.path, seed=cfg.seed, inputs=own, began=began)


def _command(path: str) -> str:
    head, _, stage = path.rpartition("/")
    number = f" iteration={int(head[5:])}" if head.startswith("iter_") and head[5:].isdigit() else ""
    by_stage = {
        "rollout": "python eval.py checkpoint=… record=true",
        "value": "python train.py policy=value stage=finetune",
        "advantage": "python advantage.py",
        "policy": "python train.py policy=pi0 stage=finetune",
    }
    return (COMMANDS.get(path) or by_stage.get(stage, "python loop.py")) + number


def _space(path: Path) -> str:
    free = shutil.disk_usage(path).free
    return (
        f"Free space there: {free / 1e9:.1f} GB. Fix: free some space or choose output=<a folder that can be written>."
    )


def run_nodes(cfg: Config, nodes: Iterable[Node], show: Callable[[str], None] = print) -> None:
    """Runs stages one after the other through the launcher, and says what each did."""
    for node in nodes:
        out = Path(cfg.output) / node.path
        kept, began = finished(out), time.perf_counter()
        if not kept:
            show(f"── {node.path}")
        launch(cfg, node, run_node)
        show(f"── {node.path}  kept" if kept else f"── {node.path}  done in {time.perf_counter() - began:.0f} s")


# ---------------------------------------------------------------------------------------------------- what the entrypoints call
def run_loop(cfg: LoopJob) -> None:
    """Iteration `cfg.iteration` of a run; the first one also pre-trains, the last one also runs the controls and reports."""
    assert cfg.iteration is not None
    run = Path(cfg.output)
    last = cfg.iteration == cfg.iterations
    nodes = (pretraining(cfg) if cfg.iteration == 1 else []) + iteration_nodes(cfg, cfg.iteration)
    for arm in cfg.controls if last else []:
        nodes += control_nodes(cfg, arm, cfg.iteration)
    if cfg.iteration == 1:
        preflight(cfg)
        claim(run, _identity(cfg))
    run_nodes(cfg, nodes)
    summary = write_summary(run)
    page = write_html(run, summary)
    if last:
        print_table(summary)
        print(f"{run / 'summary.json'}\n{page}")


def _identity(cfg: Config) -> dict:
    """What all stages of a run share. How it is executed may change between two calls of the same run."""
    values = shared(cfg)
    for key in ("output", "device", "launcher", "tracking"):
        values.pop(key)
    values["workers"].pop("processes")
    return values


def run_train(cfg: TrainJob) -> None:
    preflight(cfg)
    if cfg.data.demonstrator is not None:
        run_nodes(cfg, [Node(DEMONSTRATIONS, "demonstrations")])
    run_nodes(cfg, [train_node(cfg, cfg.policy, cfg.stage, cfg.iteration)])


def run_advantage(cfg: AdvantageJob) -> None:
    """Labels of an iteration; with `checkpoint` those of another value function, beside it."""
    node = advantage_node(cfg, cfg.iteration)
    if cfg.checkpoint is None:
        run_nodes(cfg, [node])
        return
    run_node(
        cfg,
        dataclasses.replace(node, inputs={k: v for k, v in node.inputs.items() if k != "value"}),
        {"value": _folder(cfg.checkpoint)},
    )


def run_eval(cfg: EvalJob) -> None:
    """Evaluates a checkpoint beside it, or records rollouts with it (`record=true`); `result` names another directory."""
    preflight(cfg)
    stage = _folder(cfg.checkpoint)
    own = stage.parent.parent if stage.parent.name == "checkpoints" else stage
    settings = cfg.rollout if cfg.record else cfg.eval
    episodes = cfg.episodes or settings.episodes
    training = cfg.pi0.sft if own.name == "sft" else cfg.pi0.finetune
    if cfg.record:
        path = cfg.result or str(own / "rollout")
        options = {"iteration": 1, "prompt": prompt_for(settings.prompt, training), "beta": settings.beta}
        node = Node(path, "rollout", {}, options | {"episodes": episodes, "videos": min(settings.videos, episodes)})
    else:
        node = eval_node(cfg, cfg.result or str(own / "eval"), "", training)
        node.inputs.clear()
        node.options.update(episodes=episodes, videos=min(settings.videos, episodes))
    with_output = dataclasses.replace(cfg, output="")  # paths by hand are relative to where the command is typed
    run_node(with_output, node, {"policy": stage})
    if not cfg.record:
        print(Path(node.path) / "result.json")


def _folder(checkpoint: str) -> Path:
    path = Path(checkpoint)
    if not path.is_dir():
        raise RecapError(
            f"checkpoint={checkpoint}: there is no such folder. Fix: name one, such as outputs/demo/sft/checkpoints/last."
        )
    return path
