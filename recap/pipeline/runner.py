"""Runs stages: each once, under a lock, checked against its configuration and inputs, finished by its manifest."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import TextIO

from recap import tracking
from recap.config import Action, AdvantageJob, Config, EvalJob, LoopJob, StageKind, TrainJob, shared, with_arm
from recap.jobs.chain import Chain
from recap.jobs.config import LauncherKind
from recap.jobs.job import Run, launcher, resources, section, submitted
from recap.pipeline import shown
from recap.pipeline.commands import advantage_job, eval_job
from recap.pipeline.graph import control_nodes, iteration_nodes, pretraining, train_node, value_nodes
from recap.pipeline.preflight import preflight
from recap.policies.roles import Role
from recap.report import build_summary, print_table, write_html, write_summary
from recap.stages.base import DEMONSTRATIONS, EXECUTION, Node
from recap.storage.inside import stay_inside
from recap.storage.manifest import (
    LOCK,
    SHARES,
    begin,
    check,
    claim,
    clear_leftovers,
    finished,
    in_job,
    is_main_process,
    lock,
    note_share,
    read_manifest,
    results_digest,
    stage_of,
    verify,
    write_manifest,
)
from recap.utils.errors import RecapError, disk_error
from recap.utils.ranks import WHOLE, Share, process, wait

SHARED = {"rollout", "evaluate", "value_inference"}  # kinds of stages whose work can be shared out
RESUMED = SHARED | {"train"}  # those that go on where they were
# What may change from one call of a run to the next: where and how it is executed, and the arms beside it.
RUNNING = ("output", "device", "sharding", "launcher", "resources", "tracking", "arms", "controls", "action", "follow")
INPUT_SECONDS = 60.0  # after which a network file system shows what another node has finished
ELSEWHERE = "result=<another directory> writes there"  # for somebody who wants other values by hand


# ---------------------------------------------------------------------------------------------------- one stage
def run_node(cfg: Config, node: Node, shard: Share = WHOLE) -> None:
    """Runs one stage of the run directory `cfg.output`, or a shard of it, or does nothing if it is finished.

    Processes that were started together share a stage (SHARED) or train together. Of shares, the one that is done last
    finishes the stage.

    Raises:
        RecapError: an input is missing or damaged, the directory belongs to another configuration, or another process
            works in it; and whatever the stage itself reports.
    """
    cfg, out = with_arm(cfg, node.arm), Path(cfg.output) / node.path
    inputs = {role: Path(cfg.output) / path for role, path in node.inputs.items()}
    beside = process()
    share = shard.among(beside.index, beside.count) if node.kind in SHARED else shard
    if share.whole and not is_main_process():
        _assist(cfg, node, inputs, out)
        return
    config = node.config(cfg)
    check(out, config)
    if finished(out):
        if is_main_process():
            _check_kept(node, out, inputs)
            tracking.publish(shown.stage(cfg, node, out))
        return
    for role, path in inputs.items():
        _check_input(cfg, node, role, path)
    if share.whole or _contribute(cfg, node, inputs, out, share):
        with lock(out):
            if finished(out):  # another process finished it while this one looked
                return
            claim(out, config)
            if node.kind in RESUMED:
                begin(out, inputs)
            clear_leftovers(out)
            began = time.time()
            with _logged(node, out) as say, tracking.tracked(shown.stage(cfg, node, out)):
                _stage(node)(cfg, inputs, out, say, **node.options)
                write_manifest(out, node=node.path, seed=cfg.seed, inputs=inputs, began=began)
            (out / SHARES).unlink(missing_ok=True)
    elif shard.whole:
        _wait(node, out)


def _contribute(cfg: Config, node: Node, inputs: dict[str, Path], out: Path, share: Share) -> bool:
    """Does one share of a stage beside the others; whether all are done."""
    with lock(out, shared=True):
        if finished(out):
            return False
        claim(out, node.config(cfg))
        begin(out, inputs)
        with _logged(node, out) as say:
            _stage(node)(cfg, inputs, out, say, share=share, **node.options)
        return note_share(out, share)


def _assist(cfg: Config, node: Node, inputs: dict[str, Path], out: Path) -> None:
    """What a process beside the main one does in a stage that is not shared out: its part of a training, or waiting."""
    if finished(out):
        return
    if node.kind == "train":
        _stage(node)(cfg, inputs, out, lambda _: None, **node.options)
    _wait(node, out)


def _wait(node: Node, out: Path) -> None:
    wait(lambda: finished(out), out / LOCK, f"to finish {node.path}")


def _stage(node: Node) -> Callable[..., None]:
    from recap.stages import stage

    return stage(node.kind)


@contextmanager
def _logged(node: Node, out: Path) -> Iterator[Callable[[str], None]]:
    """`say`, which tells the console and the stage's log; errors go to the log too."""
    with (
        (out / "log.txt").open("a", buffering=1, encoding="utf-8", errors="backslashreplace") as log,
        _reported(node, out, log),
    ):

        def say(text: str) -> None:
            print(text, flush=True)
            log.write(text + "\n")

        yield say


@contextmanager
def _reported(node: Node, out: Path, log: TextIO) -> Iterator[None]:
    """Errors go to the stage's log with their traceback; what the disk or the device refuses becomes a RecapError."""
    try:
        yield
    except Exception as error:
        with suppress(OSError):
            log.write(traceback.format_exc())
        if not isinstance(error, RecapError) and (refusal := disk_error(error, out)):
            raise RecapError(f"{node.path}: {refusal}") from error
        if type(error).__name__ == "OutOfMemoryError":  # torch's, by name: torch is not imported here
            raise RecapError(
                f"{node.path}: the device is out of memory ({str(error).splitlines()[0]}). "
                "Fix: a smaller batch_size, or a larger device."
            ) from error
        raise


def _check_kept(node: Node, out: Path, inputs: dict[str, Path]) -> None:
    """Raises RecapError if a finished stage was damaged since, or was made from other inputs than there are now."""
    verify(out, _command(node.path), quick=True)
    recorded = read_manifest(out)["inputs"]
    for role, path in inputs.items():
        there = finished(stage_of(path)) or (path / "config.json").is_file()  # or a checkpoint folder by hand
        if role in recorded and there and recorded[role]["sha256"] != results_digest(path):
            raise RecapError(
                f"{out} was made from another {node.inputs[role]} than there is now. "
                f"Fix: delete {out} and run the command again."
            )


def _check_input(cfg: Config, node: Node, role: str, path: Path) -> None:
    deadline = time.monotonic() + (INPUT_SECONDS if in_job() else 0)
    while not finished(stage_of(path)) and time.monotonic() < deadline and not (path / "config.json").is_file():
        time.sleep(1)
    if finished(stage_of(path)):
        verify(stage_of(path), _command(node.inputs[role]))
    elif not (path / "config.json").is_file():  # a checkpoint folder by hand needs no finished stage
        raise _missing(cfg, node, role)


def _missing(cfg: Config, node: Node, role: str) -> RecapError:
    return RecapError(
        f"{node.path} needs {node.inputs[role]}, which is not finished in {cfg.output}. "
        f"Fix: {_command(node.inputs[role])} with the same settings first, or let loop.py run it all."
    )


def _command(path: str) -> str:
    """The command that runs a stage by hand."""
    head, _, stage = path.rpartition("/")
    iteration = int(head[5:]) if head.startswith("iter_") and head[5:].isdigit() else None
    before = "sft" if iteration == 1 else f"iter_{(iteration or 0) - 1:02d}/policy"
    known = {
        (DEMONSTRATIONS, True): "python train.py stage=sft",
        ("sft", True): "python train.py stage=sft",
        ("value", True): "python train.py policy=value stage=sft",
        ("rollout", False): f"python eval.py record=true checkpoint=…/{before}/checkpoints/last",
        ("value", False): f"python train.py policy=value stage=finetune iteration={iteration}",
        ("value_inference", True): "python advantage.py iteration=0",
        ("advantage", True): "python advantage.py iteration=0",
        ("value_inference", False): f"python advantage.py iteration={iteration}",
        ("advantage", False): f"python advantage.py iteration={iteration}",
        ("gate", False): f"python advantage.py iteration={iteration}",
        ("policy", False): f"python train.py stage=finetune iteration={iteration}",
    }
    fallback = "the command" if Path(path).is_absolute() else "python loop.py"
    found = known.get((stage, iteration is None), fallback) if not head or iteration else fallback
    return found if found == "the command" else f"`{found}`"


# ---------------------------------------------------------------------------------------------------- several stages
def run_nodes(
    cfg: Config, nodes: Sequence[Node], *, identity: bool = True, run: Run = run_node, done: Callable[[], None]
) -> Chain | None:
    """Runs stages here, one after the other, and says what each did; or returns them as a chain of jobs, checked.

    identity: whether they are stages of the run `cfg.output`, which then has to have this configuration as a whole.
    run: what a job does with its stage. done: called when all are finished, here or by who follows the jobs.

    Raises:
        RecapError: before any work, for whatever can be known by then; and what a stage reports.
    """
    chain, inline = Chain(cfg, nodes, run, done), launcher(cfg) is LauncherKind.inline
    if cfg.action is not Action.run:
        return chain
    for place, key in {cfg.output: "output", **{n.path: "result" for n in nodes if Path(n.path).is_absolute()}}.items():
        stay_inside(Path(place), key)
    if inline and not cfg.follow:
        raise RecapError("follow=false: launcher=inline works in this process. Fix: leave it out, or launcher=slurm.")
    if is_main_process():
        _check(cfg, nodes, identity)
    if not inline:
        for node in nodes:
            if finished(chain.out(node)):
                run_node(cfg, node)
        return chain
    show: Callable[[str], None] = print if is_main_process() else lambda _: None
    for node in nodes:
        kept, began = finished(chain.out(node)), time.perf_counter()
        if not kept:
            show(f"── {node.path}")
        try:
            run_node(cfg, node)
        except RecapError:
            if node.kind == "gate" and is_main_process():
                done()  # the report shows what it stopped for
            raise
        show(f"── {node.path}  kept" if kept else f"── {node.path}  done in {time.perf_counter() - began:.0f} s")
    if is_main_process():
        done()
    return None


def _check(cfg: Config, nodes: Sequence[Node], identity: bool) -> None:
    """Raises RecapError for whatever can be known before the first stage; the run directory is this run's then."""
    run = Path(cfg.output)
    if identity:
        check(run, _identity(cfg))
    for node in nodes:
        check(run / node.path, node.config(cfg), "name=<another> starts a new run" if identity else ELSEWHERE)
    to_do = [node for node in nodes if not finished(run / node.path)]
    if to_do:
        _check_queue(cfg, to_do)
        _check_order(cfg, nodes)
        asked = {section(node): resources(cfg, node) for node in to_do}
        preflight(cfg, to_do, asked if launcher(cfg) is LauncherKind.slurm else None)
    if identity:
        claim(run, _identity(cfg))


def _check_queue(cfg: Config, nodes: Sequence[Node]) -> None:
    """Raises RecapError where `auto` would run here what may be in the queue of a cluster that does not answer now."""
    if cfg.launcher.kind is not LauncherKind.auto or launcher(cfg) is LauncherKind.slurm or not is_main_process():
        return
    for node in nodes:
        if jobs := submitted(Path(cfg.output) / node.path):
            raise RecapError(
                f"{node.path} was submitted to SLURM (job {next(reversed(jobs))}), which does not answer now. "
                "Fix: the same command again later, or launcher=inline if that job is gone."
            )


def _check_order(cfg: Config, nodes: Sequence[Node]) -> None:
    """Raises RecapError for an input that is neither there nor made by an earlier one of these stages."""
    made: set[str] = set()
    for node in nodes:
        for role, path in node.inputs.items():
            there = finished(stage_of(Path(cfg.output) / path)) or Path(path).is_absolute()
            if path not in made and not there and not finished(Path(cfg.output) / node.path):
                raise _missing(cfg, node, role)
        made.add(node.path)


def _identity(cfg: Config) -> dict:
    """What all stages of a run share. How it is executed may change between two calls of the same run."""
    values = shared(cfg)
    for key in RUNNING:
        values.pop(key)
    for model, key in product(("policy", "value"), EXECUTION):
        values[model].pop(key, None)
    values["workers"].pop("num_workers")
    values["gate"].pop("action")
    return values


# ---------------------------------------------------------------------------------------------------- entrypoints
def run_loop(cfg: LoopJob) -> Chain | None:
    """A run: pre-training, the iterations, the controls of the last, the report; `cfg.iteration`: that one alone.

    Iteration 1 brings the pre-training with it.
    """
    iterations = range(1, cfg.iterations + 1) if cfg.iteration is None else [cfg.iteration]
    last = iterations[-1] == cfg.iterations
    nodes = pretraining(cfg) if iterations[0] == 1 else []
    for iteration in iterations:
        nodes += iteration_nodes(cfg, iteration)
    for arm in cfg.controls if last else []:
        nodes += control_nodes(cfg, arm, cfg.iterations)
    nodes = list({node.path: node for node in nodes}.values())  # arms share the labels of the pre-training
    return run_nodes(cfg, nodes, run=run_and_report, done=lambda: _report(cfg, show=last))


def run_and_report(cfg: Config, node: Node, shard: Share = WHOLE) -> None:
    """A stage of a loop as a job: the report is up to date after each evaluation and each value gate, also one that
    stops the run; whoever follows it.
    """
    try:
        run_node(cfg, node, shard)
    finally:
        told = node.kind == "gate" or (node.kind == "evaluate" and finished(Path(cfg.output) / node.path))
        if told and is_main_process():
            with lock(Path(cfg.output)):
                _report(cfg, show=False)


def _report(cfg: Config, show: bool) -> None:
    """summary.json and report.html, written anew only when the run has something new; the summary last."""
    run = Path(cfg.output)
    summary, page = build_summary(run), run / "report.html"
    if not page.is_file() or _read(run / "summary.json") != json.loads(json.dumps(summary)):
        write_html(run, summary)
        write_summary(run, summary)
    tracking.publish(shown.loop(cfg))
    if show:
        print_table(summary)
        print(f"{run / 'summary.json'}\n{page}")


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # missing or damaged: it is written anew


def run_train(cfg: TrainJob) -> Chain | None:
    """One training; the demonstrations first, if they are to be recorded."""
    recorded = [] if cfg.data.demonstrator is None else [Node(DEMONSTRATIONS, "demonstrations")]
    before = cfg.iteration if cfg.stage is StageKind.finetune else 0
    trained = (
        value_nodes(cfg, before) if cfg.role is Role.value else [train_node(cfg, cfg.role, cfg.stage, cfg.iteration)]
    )
    return run_nodes(cfg, [*recorded, *trained], done=lambda: None)


def run_advantage(cfg: AdvantageJob) -> Chain | None:
    """Values and labels of an iteration, by the run's own value function or the one in `checkpoint`."""
    nodes, identity = advantage_job(cfg)
    return run_nodes(cfg, nodes, identity=identity, done=lambda: None)


def run_eval(cfg: EvalJob) -> Chain | None:
    """Evaluates a checkpoint, or records rollouts with it (`record=true`)."""
    cfg, node, identity = eval_job(cfg)
    result = Path(cfg.output) / node.path / ("dataset" if cfg.record else "result.json")
    return run_nodes(cfg, [node], identity=identity, done=lambda: print(result))
