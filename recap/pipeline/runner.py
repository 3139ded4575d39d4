"""Runs stages: each once, under a lock, checked against its configuration and inputs, finished by its manifest."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TextIO

from recap import tracking
from recap.config import Action, AdvantageJob, Config, EvalJob, LoopJob, StageKind, TrainJob, shared
from recap.jobs.chain import Chain
from recap.jobs.config import LauncherKind
from recap.jobs.job import Run, launcher, resources, submitted
from recap.pipeline import shown
from recap.pipeline.commands import advantage_job, eval_job
from recap.pipeline.graph import by_hand, demonstrations, run_stages
from recap.pipeline.preflight import preflight
from recap.report import build_summary, print_table, write_html, write_summary
from recap.stages.base import DEMONSTRATIONS, Say, Stage
from recap.stages.training import EXECUTION
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

# What may change from one call of a run to the next: where and how it is executed, and the ablations beside it.
RUNNING = ("output", "device", "sharding", "launcher", "resources", "tracking", "ablations", "action", "follow")
INPUT_SECONDS = 60.0  # after which a network file system shows what another node has finished
ELSEWHERE = "result=<another directory> writes there"  # for somebody who wants other values by hand


# ---------------------------------------------------------------------------------------------------- one stage
def run_stage(stage: Stage, shard: Share = WHOLE) -> None:
    """Runs one stage, or a shard of it, or does nothing if it is finished.

    Processes that were started together divide a shardable stage, or train together. The share that is done last
    finishes the stage.

    Raises:
        RecapError: an input is missing or damaged, the directory belongs to another configuration, or another process
            works in it; and whatever the stage itself reports.
    """
    beside = process()
    share = shard.among(beside.index, beside.count) if stage.shardable else shard
    if share.whole and not is_main_process():
        _assist(stage)
        return
    out = stage.out
    check(out, stage.identity)
    if stage.finished:
        if is_main_process():
            _check_kept(stage)
            tracking.publish(shown.stage(stage))
        return
    for role in stage.inputs:
        _check_input(stage, role)
    if share.whole or _contribute(stage, share):
        with lock(out):
            if stage.finished:  # another process finished it while this one looked
                return
            claim(out, stage.identity)
            if stage.resumes:
                begin(out, stage.read)
            clear_leftovers(out)
            began = time.time()
            with _logged(stage) as say, tracking.tracked(shown.stage(stage)):
                stage.run(say)
                write_manifest(out, node=stage.path, seed=stage.cfg.seed, inputs=stage.read, began=began)
            (out / SHARES).unlink(missing_ok=True)
    elif shard.whole:
        _wait(stage)


def run_job(cfg: Config, stage: Stage, shard: Share = WHOLE) -> None:
    """A stage as a job. cfg: the run's, where the stage has that of an ablation."""
    run_stage(stage, shard)


def _contribute(stage: Stage, share: Share) -> bool:
    """Does one share of a stage beside the others; whether all are done."""
    with lock(stage.out, shared=True):
        if stage.finished:
            return False
        claim(stage.out, stage.identity)
        begin(stage.out, stage.read)
        with _logged(stage) as say:
            stage.run(say, share)
        return note_share(stage.out, share)


def _assist(stage: Stage) -> None:
    """A process beside the main one: does its part of a training, and waits for any other stage."""
    if stage.finished:
        return
    if stage.trains:
        stage.run(lambda _: None)
    _wait(stage)


def _wait(stage: Stage) -> None:
    wait(lambda: stage.finished, stage.out / LOCK, f"to finish {stage.path}")


@contextmanager
def _logged(stage: Stage) -> Iterator[Say]:
    """`say`, which prints to the console and the stage's log; errors go to the log too."""
    with (
        (stage.out / "log.txt").open("a", buffering=1, encoding="utf-8", errors="backslashreplace") as log,
        _reported(stage, log),
    ):

        def say(text: str) -> None:
            print(text, flush=True)
            log.write(text + "\n")

        yield say


@contextmanager
def _reported(stage: Stage, log: TextIO) -> Iterator[None]:
    """Errors go to the stage's log with their traceback; what the disk or the device refuses becomes a RecapError."""
    try:
        yield
    except Exception as error:
        with suppress(OSError):
            log.write(traceback.format_exc())
        if not isinstance(error, RecapError) and (refusal := disk_error(error, stage.out)):
            raise RecapError(f"{stage.path}: {refusal}") from error
        if type(error).__name__ == "OutOfMemoryError":  # torch's, by name: torch is not imported here
            raise RecapError(
                f"{stage.path}: the device is out of memory ({str(error).splitlines()[0]}). "
                "Fix: a smaller batch_size, or a larger device."
            ) from error
        raise


def _check_kept(stage: Stage) -> None:
    """Raises RecapError if a finished stage was damaged since, or was made from other inputs than there are now."""
    verify(stage.out, _command(stage.path), quick=True)
    recorded = read_manifest(stage.out)["inputs"]
    for role, path in stage.read.items():
        there = finished(stage_of(path)) or (path / "config.json").is_file()  # or a checkpoint folder by hand
        if role in recorded and there and recorded[role]["sha256"] != results_digest(path):
            raise RecapError(
                f"{stage.out} was made from another {stage.inputs[role]} than there is now. "
                f"Fix: delete {stage.out} and run the command again."
            )


def _check_input(stage: Stage, role: str) -> None:
    path, deadline = stage.read[role], time.monotonic() + (INPUT_SECONDS if in_job() else 0)
    while not finished(stage_of(path)) and time.monotonic() < deadline and not (path / "config.json").is_file():
        time.sleep(1)
    if finished(stage_of(path)):
        verify(stage_of(path), _command(stage.inputs[role]))
    elif not (path / "config.json").is_file():  # a checkpoint folder by hand needs no finished stage
        raise _missing(stage, role)


def _missing(stage: Stage, role: str) -> RecapError:
    return RecapError(
        f"{stage.path} needs {stage.inputs[role]}, which is not finished in {stage.cfg.output}. "
        f"Fix: {_command(stage.inputs[role])} with the same settings first, or let loop.py run it all."
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
def run_all(
    cfg: Config, stages: Sequence[Stage], *, identity: bool = True, run: Run = run_job, done: Callable[[], None]
) -> Chain | None:
    """Runs stages here, one after the other, and says what each did; or returns them as a chain of jobs, checked.

    identity: whether they are stages of the run `cfg.output`, which then has to have this configuration as a whole.
    run: what a job does with its stage. done: called when all are finished, here or by who follows the jobs.

    Raises:
        RecapError: before any work, for whatever can be known by then; and what a stage reports.
    """
    chain, inline = Chain(cfg, stages, run, done), launcher(cfg) is LauncherKind.inline
    if cfg.action is not Action.run:
        return chain
    elsewhere = {stage.path: "result" for stage in stages if Path(stage.path).is_absolute()}
    for place, key in {cfg.output: "output", **elsewhere}.items():
        stay_inside(Path(place), key)
    if inline and not cfg.follow:
        raise RecapError("follow=false: launcher=inline works in this process. Fix: leave it out, or launcher=slurm.")
    if is_main_process():
        _check(cfg, stages, identity)
    if not inline:
        for stage in stages:
            if stage.finished:
                run_stage(stage)
        return chain
    show: Callable[[str], None] = print if is_main_process() else lambda _: None
    for stage in stages:
        kept, began = stage.finished, time.perf_counter()
        if not kept:
            show(f"── {stage.path}")
        try:
            run_stage(stage)
        except RecapError:
            if stage.kind == "gate" and is_main_process():
                done()  # the report shows what it stopped for
            raise
        show(f"── {stage.path}  kept" if kept else f"── {stage.path}  done in {time.perf_counter() - began:.0f} s")
    if is_main_process():
        done()
    return None


def _check(cfg: Config, stages: Sequence[Stage], identity: bool) -> None:
    """Raises RecapError for whatever can be known before the first stage; the run directory is this run's then."""
    run = Path(cfg.output)
    if identity:
        check(run, _identity(cfg))
    for stage in stages:
        check(stage.out, stage.identity, "name=<another> starts a new run" if identity else ELSEWHERE)
    to_do = [stage for stage in stages if not stage.finished]
    if to_do:
        _check_queue(cfg, to_do)
        _check_order(stages)
        asked = {stage.kind: resources(cfg, stage) for stage in to_do}
        preflight(cfg, to_do, asked if launcher(cfg) is LauncherKind.slurm else None)
    if identity:
        claim(run, _identity(cfg))


def _check_queue(cfg: Config, stages: Sequence[Stage]) -> None:
    """Raises RecapError where `auto` would run here what may be in the queue of a cluster that does not answer now."""
    if cfg.launcher.kind is not LauncherKind.auto or launcher(cfg) is LauncherKind.slurm or not is_main_process():
        return
    for stage in stages:
        if jobs := submitted(stage.out):
            raise RecapError(
                f"{stage.path} was submitted to SLURM (job {next(reversed(jobs))}), which does not answer now. "
                "Fix: the same command again later, or launcher=inline if that job is gone."
            )


def _check_order(stages: Sequence[Stage]) -> None:
    """Raises RecapError for an input that is neither there nor made by an earlier one of these stages."""
    made: set[str] = set()
    for stage in stages:
        for role, path in stage.inputs.items():
            there = finished(stage_of(stage.read[role])) or Path(path).is_absolute()
            if path not in made and not there and not stage.finished:
                raise _missing(stage, role)
        made.add(stage.path)


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
    """A run: pre-training, the iterations, the ablations of the last, the report; `cfg.iteration`: that one alone.

    Iteration 1 brings the pre-training with it.
    """
    rounds = run_stages(cfg, cfg.iterations)
    stages = [stage for one in rounds for stage in one] if cfg.iteration is None else rounds[cfg.iteration - 1]
    last = cfg.iteration in (None, cfg.iterations)
    return run_all(cfg, stages, run=run_and_report, done=lambda: _report(cfg, show=last))


def run_and_report(cfg: Config, stage: Stage, shard: Share = WHOLE) -> None:
    """A stage of a loop as a job. The report is up to date after each evaluation and each value gate, also one that
    stops the run.
    """
    try:
        run_stage(stage, shard)
    finally:
        reported = stage.kind == "gate" or (stage.kind == "eval" and stage.finished)
        if reported and is_main_process():
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
    iteration = cfg.iteration if cfg.stage is StageKind.finetune else 0
    return run_all(cfg, [*demonstrations(cfg), *by_hand(cfg, cfg.role, iteration)], done=lambda: None)


def run_advantage(cfg: AdvantageJob) -> Chain | None:
    """Values and labels of an iteration, by the run's own value function or the one in `checkpoint`."""
    stages, identity = advantage_job(cfg)
    return run_all(cfg, stages, identity=identity, done=lambda: None)


def run_eval(cfg: EvalJob) -> Chain | None:
    """Evaluates a checkpoint, or records rollouts with it (`record=true`)."""
    stage, identity = eval_job(cfg)
    result = stage.out / ("dataset" if cfg.record else "result.json")
    run = replace(cfg, output=stage.cfg.output)
    return run_all(run, [stage], identity=identity, done=lambda: print(result))
