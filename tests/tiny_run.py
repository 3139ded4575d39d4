"""A whole run in seconds, the entrypoints as functions, and what a run directory holds."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RUN = Path("outputs/demo_small")  # where the experiment puts its run, seen from the working directory

_SMALL = "batch_size=4 log_every=1 save_every=2 warmup_steps=1"
TINY = [
    "experiment=demo_small",
    "ablation=[]",
    *["data.demonstrator.episodes=3", "rollout.episodes=4", "eval.episodes=4", "eval.videos=1", "workers.num_envs=4"],
    *[
        "env.max_steps=20",
        "policy.sft.steps=6",
        "policy.finetune.steps=4",
        "value.sft.steps=4",
        "value.finetune.steps=4",
    ],
    *[f"{model}.{stage}.{x}" for model in ("policy", "value") for stage in ("sft", "finetune") for x in _SMALL.split()],
]
STAGES = ["demonstrations", "sft", "sft/eval", "value"]
STAGES += [
    f"iter_01/{stage}" for stage in ("rollout", "value", "value_inference", "advantage", "gate", "policy", "eval")
]


@dataclass
class Outcome:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


@cache
def _main(entry: str) -> Callable[[], None]:
    spec = importlib.util.spec_from_file_location(f"entry_{entry}", ROOT / f"{entry}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def call(main: Callable[[], None], argv: list[str], cwd: Path) -> Outcome:
    """What a command's `main` does with these arguments in the directory `cwd`, in this process."""
    out, err, old = io.StringIO(), io.StringIO(), sys.argv
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    sys.argv = argv
    try:
        with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.argv, root.handlers[:], root.level = old, handlers, level
    return Outcome(code, out.getvalue(), err.getvalue())


def run(entry: str, *overrides: str, cwd: Path) -> Outcome:
    """`python <entry>.py <overrides>` in this process, so that torch is imported only once."""
    return call(_main(entry), [f"{entry}.py", *overrides], cwd)


def tiny(entry: str, *overrides: str, cwd: Path) -> Outcome:
    """The same with the tiny run's numbers."""
    return run(entry, *TINY, *overrides, cwd=cwd)


def files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """{file: (time of change, SHA-256)} of everything below a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in files(folder)
    }


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def summary(run_dir: Path) -> dict[str, Any]:
    """summary.json without what may differ between two runs of the same configuration."""
    return {key: value for key, value in read(run_dir / "summary.json").items() if key != "wall_seconds"}


def results(run_dir: Path) -> dict[str, dict[str, str]]:
    """{stage: {file: SHA-256}} of all results, by the manifests: equal for two runs that did the same."""
    return {
        str(path.parent.relative_to(run_dir)): {name: entry["sha256"] for name, entry in read(path)["outputs"].items()}
        for path in sorted(run_dir.rglob("manifest.json"))
    }
