"""What starting costs, in seconds of CPU: the entrypoints, and a stage as a job until it begins its work."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from rows.row import Bench, Row

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 5.0
JOB = "import submitit.core.submission, recap.pipeline.runner as r, recap.policies.registry as p; "
PI0 = "from recap.policies.pi0.config import PI0Config as k; p.adapter_of(k); "
VALUE = "from recap.policies.value.config import ValueConfig as k; p.adapter_of(k); "
STAGES = {
    "demonstrations": "from recap.stages.demonstrations import Demonstrations",
    "training": PI0 + "from recap.stages.train import train_stage",
    "rollout and evaluation": PI0 + "from recap.stages.simulate import rollout",
    "value pass": VALUE + "from recap.policies.checkpoint import Checkpoint; from recap.stages.train import check_fit",
    "advantage": "from recap.stages.advantage import advantage",
    "gate": "from recap.stages.gate import gate_stage",
}


def rows(bench: Bench) -> Iterator[Row]:
    ours = partial(cpu_seconds, ["loop.py", "--help"])
    theirs = partial(cpu_seconds, ["-c", "from lerobot.scripts.lerobot_train import main; main()", "--help"])
    yield Row("start of `loop.py --help`", "s", ours, theirs, "lerobot-train --help")
    for entry in ("train.py", "eval.py", "advantage.py"):
        yield Row(f"start of `{entry} --help`", "s", partial(cpu_seconds, [entry, "--help"]))
    for name, code in STAGES.items():
        yield Row(f"start of a job: {name}", "s", partial(cpu_seconds, ["-c", JOB + code]), most=LIMIT)
    yield Row(
        "start of a simulator", "s", partial(cpu_seconds, ["-c", "import recap.rollout.worker, recap.envs.moka.env"])
    )


def cpu_seconds(arguments: Sequence[str]) -> float:
    """Of Python with these arguments and all that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
