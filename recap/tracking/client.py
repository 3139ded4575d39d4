"""The run's side of W&B: it tells a process beside it (mirror.py) what to look at, and never waits for it.

Nothing here raises, asks or blocks: a W&B that fails costs the run a line on the console.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from recap.config import Config, PolicyKind, StageKind, TrackingKind, TrackingMode, shared
from recap.graph import Node
from recap.rundir import MANIFEST, git_commit, is_main_process
from recap.tracking.mode import decide
from recap.tracking.state import is_sent

LEAVE_SECONDS = 30.0  # at the end of a command, for what is still on its way
PREEMPTED_SECONDS = 5.0  # the same before a job goes back into the queue
SUMMARY = "summary.json"


# ---------------------------------------------------------------------------------------------------- the process
class Mirror:
    """The process beside this one. It ends with it, however that ends."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parents[2])  # a job's code is a snapshot
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "recap.tracking.mirror"],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            text=True,
        )

    def tell(self, **command: Any) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def close(self, seconds: float, **last: Any) -> bool:
        """Lets it finish; False if it had to be ended."""
        assert self._process.stdin
        with suppress(OSError, ValueError):
            self.tell(**last)
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self._process.kill()
            self._process.wait()
            return False
        return True


_running: list[Mirror] = []


def _tell(**command: Any) -> None:
    try:
        if not _running:
            _running.append(Mirror())
        _running[0].tell(**command)
    except OSError as error:
        _say(f"W&B: cannot be used ({error}); the record is local")


def close(seconds: float = LEAVE_SECONDS, **last: Any) -> None:
    """Waits a little for what is on its way; what does not arrive is sent when the same command is given again."""
    while _running:
        if not _running.pop().close(seconds, **(last or {"do": "leave"})):
            _say("W&B: not everything was sent; the same command again sends the rest")


atexit.register(close)


def preempting() -> None:
    """Tells W&B that this process is about to be pushed out and comes back."""
    if _running:
        close(PREEMPTED_SECONDS, do="preempting")


@cache
def _say(line: str) -> None:
    """Once."""
    print(line, flush=True)


# ---------------------------------------------------------------------------------------------------- what is told
@contextmanager
def tracked(cfg: Config, node: Node, out: Path) -> Iterator[None]:
    """Around the work of a stage: a training is followed while it goes on, any other stage is sent when it is done."""
    told = _stage(cfg, node, out)
    if told:  # the process has time to start while the stage works
        _tell(do="follow" if node.kind == "train" else "expect", **told)
    try:
        yield
    except BaseException:
        if told:
            _tell(do="failed", **told)
        raise
    if told:
        _tell(do="publish", **told)


def publish(cfg: Config, node: Node, out: Path) -> None:
    """A stage that was finished before: it is sent, unless it was."""
    if not is_sent(out, MANIFEST) and (told := _stage(cfg, node, out)):
        _tell(do="publish", **told)


def publish_run(cfg: Config) -> None:
    """What the run achieved so far, from its summary.json: the W&B run `loop`, whose x-axis is the iteration."""
    run = Path(cfg.output)
    if is_sent(run, SUMMARY) or not (common := _common(cfg)):
        return
    _tell(
        do="publish",
        **common,
        name="loop",
        kind="loop",
        job="loop",
        out=str(run.absolute()),
        config={key: value for key, value in _plain(shared(cfg)).items() if key != "launcher"},  # it may hold secrets
    )


def _stage(cfg: Config, node: Node, out: Path) -> dict[str, Any]:
    """What there is to know about a stage's W&B run; {} where W&B is not wanted."""
    common = _common(cfg)
    if not common:
        return {}
    found = re.match(r"iter_(\d+)/(?:controls/(\w+)/)?", node.path)
    inputs = {role: str((Path(cfg.output) / path).absolute()) for role, path in node.inputs.items()}
    name = node.path if not Path(node.path).is_absolute() else out.name
    about = {"iteration": int(found[1]) if found else 0, "arm": found[2] if found else None}
    return {
        **common,
        "name": name,
        "kind": node.kind,
        "job": job_type(node),
        "out": str(out.absolute()),
        "inputs": inputs,
        "config": {**_plain(node.config(cfg)), **about},
    }


def job_type(node: Node) -> str:
    """`sft`, `policy`, `value`, `eval`, or what the stage is."""
    if node.kind == "train":
        if node.options["policy"] is PolicyKind.value:
            return "value"
        return "sft" if node.options["stage"] is StageKind.sft else "policy"
    return "eval" if node.kind == "evaluate" else node.kind


def group(cfg: Config) -> str:
    """The experiment, what a sweep changed in it, and the seed: `demo/seed=0`."""
    parts = Path(cfg.output).parts
    place = "/".join(parts[parts.index(cfg.name) :]) if cfg.name in parts else cfg.name
    return place if re.search(r"(^|/)seed=", place) else f"{place}/seed={cfg.seed}"


def _common(cfg: Config) -> dict[str, Any]:
    """{} where W&B is not wanted, or not here."""
    wanted = cfg.tracking
    if wanted.kind is TrackingKind.local or not is_main_process():
        return {}
    mode, line = decide(wanted)
    if line:
        _say(line)
    if mode is TrackingMode.off:
        return {}
    return {
        "mode": mode.name,
        "project": wanted.project or os.environ.get("WANDB_PROJECT") or "recap",
        "entity": wanted.entity,
        "tags": wanted.tags,
        "videos": wanted.videos,
        "group": group(cfg),
        "run": str(Path(cfg.output).absolute()),
        "shown": cfg.output,
        "commit": git_commit(),
        "pid": os.getpid(),
    }


def _plain(values: Any) -> Any:
    """As JSON has it."""
    return json.loads(json.dumps(values, default=str))
