"""What the user sees of runs whose stages are jobs: a live table, and at the end what failed and why."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from recap.config import Action
from recap.jobs.chain import Chain, Executor, OnSlurm, Seen, State, cancel
from recap.jobs.config import LauncherKind
from recap.jobs.job import launcher, resources
from recap.jobs.local import OnThisMachine
from recap.stages.base import Stage
from recap.storage.manifest import JOB
from recap.utils.errors import RecapError

WIDE = 120  # columns from which the logs fit into the table
POLL_SECONDS = (1.0, 15.0)  # between two looks: at first, and after some minutes
TAIL_LINES, TAIL_BYTES = 12, 20_000
STYLES = {
    State.finished: "green",
    State.running: "bold cyan",
    State.queued: "yellow",
    State.missing: "dim",
    State.failed: "bold red",
    State.stopped: "red",
}


def carry_out(chains: Sequence[Chain]) -> list[Chain]:
    """Submits what is missing of these runs, side by side, and follows them, or does `action`; those that failed.

    Raises RecapError where SLURM refuses or does not answer, or where nothing is there for the action.
    """
    cfg = chains[0].cfg
    on_slurm = launcher(cfg) is LauncherKind.slurm
    if cfg.action is Action.status:
        return _status(chains, on_slurm)
    if cfg.action is Action.cancel:
        if not on_slurm:
            raise RecapError("action=cancel: there are no jobs but on a cluster. Fix: launcher=slurm, or Ctrl-C.")
        for chain in chains:
            print(f"{chain.directory}: {len(cancel(chain))} jobs cancelled")
        return []
    executor: Executor = OnSlurm() if on_slurm else OnThisMachine()
    if executor.tied and not cfg.follow:
        raise RecapError("follow=false: jobs of launcher=local end with this command. Fix: leave it out.")
    for chain in chains:
        executor.submit(chain)
    if not cfg.follow:
        print(f"To follow: {command()}\nTo end the jobs: {command()} action=cancel".replace(" follow=false", ""))
        return []
    return follow(chains, executor)


def _status(chains: Sequence[Chain], on_slurm: bool) -> list[Chain]:
    if on_slurm:
        if not OnSlurm().look(chains):
            raise RecapError("SLURM does not answer (squeue). Fix: the same command again.")
    else:
        for chain in chains:
            for stage in chain.stages:
                chain.seen[stage.path] = Seen(State.finished if stage.finished else State.missing)
    console = Console()
    console.print(table(chains, console.width))
    return [chain for chain in chains if chain.failures()]


def follow(chains: Sequence[Chain], executor: Executor) -> list[Chain]:
    """Shows the chains until they have ended; those that failed. Ctrl-C leaves, and jobs of a cluster go on."""
    console, began = Console(), time.monotonic()
    live, lines = Live(console=console, auto_refresh=False), _Lines()
    try:
        with live if console.is_terminal else nullcontext():
            while True:
                answered = executor.look(chains)
                if console.is_terminal:
                    live.update(table(chains, console.width, answered), refresh=True)
                else:
                    lines.show(chains)
                if answered and all(chain.ended() for chain in chains):
                    break
                time.sleep(min(POLL_SECONDS[1], max(POLL_SECONDS[0], (time.monotonic() - began) / 30)))
    except KeyboardInterrupt:
        if not executor.tied:
            print(f"\nThe jobs go on. To follow them again: {command()}\nTo end them: {command()} action=cancel")
        raise
    finally:
        executor.close()
    failed = [chain for chain in chains if chain.failures()]
    for chain in chains:
        if chain not in failed:
            chain.done()
    return failed


def command() -> str:
    """The command of this process, without its action."""
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("action=")]
    return shlex.join(["python", os.path.relpath(sys.argv[0]), *arguments])


# ---------------------------------------------------------------------------------------------------- the table
def table(chains: Sequence[Chain], width: int, answered: bool = True) -> RenderableType:
    """All stages of all runs as they were seen last."""
    rows: list[RenderableType] = []
    for chain in chains:
        shown = Table(title=str(chain.directory), title_justify="left", title_style="bold", box=None, pad_edge=False)
        shown.add_column("stage", overflow="fold")  # gives way to the others
        for name in ("job", "state", "progress"):
            shown.add_column(name, no_wrap=True)
        shown.add_column("elapsed", no_wrap=True, justify="right")
        if width >= WIDE:
            shown.add_column("log", overflow="fold")
        for stage in chain.stages:
            seen = _seen(chain, stage)
            state, log = Text(seen.state.value, STYLES[seen.state]), [_log(chain, stage)] if width >= WIDE else []
            shown.add_row(stage.path, seen.job, state, _progress(chain, stage), seen.elapsed, *log)
        rows.append(shown)
    if width < WIDE:
        rows.append(Text(f"logs: {chains[0].directory}/<stage>/{JOB}/<job>_0_log.err", "dim", overflow="fold"))
    if not answered:
        rows.append(Text("SLURM does not answer; asking again. The jobs go on.", "yellow"))
    return Group(*rows)


def _seen(chain: Chain, stage: Stage) -> Seen:
    return chain.seen.get(stage.path, Seen(State.missing))


def _log(chain: Chain, stage: Stage) -> str:
    """Where the first process of the stage's job writes; found without a look at the disk."""
    job, shard = _seen(chain, stage).job, "_0" if resources(chain.cfg, stage).shards > 1 else ""
    return os.path.relpath(stage.out / JOB / f"{job}{shard}_0_log.err") if job else ""


def _logs(chain: Chain, stage: Stage) -> list[Path]:
    """What the stage's job wrote to the console, the file written last at the end."""
    job = _seen(chain, stage).job
    return sorted((stage.out / JOB).glob(f"{job}_*log.err"), key=lambda path: path.stat().st_mtime) if job else []


def _progress(chain: Chain, stage: Stage) -> str:
    """How far a running stage is, and why another one waits."""
    seen = _seen(chain, stage)
    if seen.state is not State.running:
        return seen.note
    progress = stage.progress()
    return " · ".join(filter(None, [f"{progress[0]}/{progress[1]}" if progress else "", seen.note]))


class _Lines:
    """Where there is no terminal: a line for each change."""

    def __init__(self) -> None:
        self.shown: dict[Path, tuple[State, str]] = {}

    def show(self, chains: Sequence[Chain]) -> None:
        for chain in chains:
            for stage in chain.stages:
                seen, out = _seen(chain, stage), stage.out
                if (seen.state, seen.job) != self.shown.get(out, (State.missing, "")):
                    self.shown[out] = (seen.state, seen.job)
                    job = f"job {seen.job}" if seen.job else "kept" if seen.state is State.finished else seen.note
                    print(f"── {time.strftime('%H:%M:%S')}  {out}  {seen.state.value}  {job}".rstrip(), flush=True)


# ---------------------------------------------------------------------------------------------------- the end
def failure(chain: Chain) -> RecapError:
    """What failed in a chain, with the end of its log and the command that goes on."""
    parts = []
    for path, seen in chain.failures().items():
        stage = next(stage for stage in chain.stages if stage.path == path)
        logs = _logs(chain, stage)
        lines = [f"{path} failed: {seen.problem}"]
        if logs:
            lines += [] if seen.told else [f"  | {line}" for line in _tail(logs[-1])]
            lines.append(f"Log: {os.path.relpath(logs[-1])}")
        parts.append("\n".join(lines))
    return RecapError("\n".join([*parts, f"To go on from there: {command()}"]))


def _tail(log: Path) -> list[str]:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("submitit ")][-TAIL_LINES:]
