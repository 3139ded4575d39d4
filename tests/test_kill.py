"""Kill -9 in every stage and run again: the same results as a run that nothing interrupted, and nobody left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_run import ROOT, RUN, STAGES, TINY, read, results, summary

pytestmark = pytest.mark.slow

# Long enough that a stage can be hit several times, and in the middle.
LONGER = [
    *TINY,
    *"data.demonstrator.episodes=6 rollout.episodes=12 eval.episodes=12".split(),
    *[f"{model}.{stage}.steps=24" for model in ("pi0", "value") for stage in ("sft", "finetune")],
]
LOOP = [sys.executable, str(ROOT / "loop.py"), *LONGER, "+iterations=1"]
LIMIT = 240.0  # seconds for a stage to be reached


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("uninterrupted")
    subprocess.run(LOOP, cwd=cwd, check=True, capture_output=True, timeout=LIMIT)
    return cwd / RUN


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A variable in the environment of everything that a test starts; in the end nothing of it may be alive."""
    name = f"RECAP_TEST_{uuid.uuid4().hex}"
    monkeypatch.setenv(name, "1")
    yield name
    for pid in alive(name):
        os.kill(pid, signal.SIGKILL)


def alive(mark: str) -> list[int]:
    """Processes that carry the mark, but this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
        except OSError:
            continue  # gone meanwhile, or somebody else's
    return found


def nobody_left(mark: str, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while alive(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not alive(mark)


# ---------------------------------------------------------------------------------------------------- moments
Moment = Callable[[Path], bool]


def lines(name: str, count: int) -> Moment:
    """A file has that many lines."""
    return lambda stage: (stage / name).is_file() and (stage / name).read_bytes().count(b"\n") >= count


def episodes(count: int) -> Moment:
    return lambda stage: len([*(stage / "episodes").glob("[0-9]*.parquet")]) >= count


def writing(pattern: str) -> Moment:
    """Something is half written."""
    return lambda stage: any(stage.glob(pattern))


def exists(name: str) -> Moment:
    return lambda stage: (stage / name).exists()


# In the order in which a run gets there; each kill is followed by the same command again.
KILLS: list[tuple[str, str, Moment]] = [
    ("demonstrations", "as it begins", exists("config.yaml")),
    ("demonstrations", "between episodes", episodes(2)),
    ("demonstrations", "writing an episode", writing("episodes/*.tmp")),
    ("demonstrations", "writing the data set", writing("dataset.tmp/**/*")),
    ("sft", "in the first steps", lines("metrics.jsonl", 1)),
    ("sft", "writing a checkpoint", writing("checkpoints/.*.tmp")),
    ("sft", "in the middle", lines("metrics.jsonl", 13)),
    ("sft/eval", "in the middle", lines("episodes.jsonl", 1)),
    ("value", "in the middle", lines("metrics.jsonl", 9)),
    ("iter_01/rollout", "between episodes", episodes(3)),
    ("iter_01/rollout", "writing an episode", writing("episodes/*.tmp")),
    ("iter_01/value", "writing a checkpoint", writing("checkpoints/.*.tmp")),
    ("iter_01/advantage", "writing the labels", exists("demonstrations")),
    ("iter_01/policy", "in the middle", lines("metrics.jsonl", 11)),
    ("iter_01/eval", "in the middle", lines("episodes.jsonl", 1)),
]


def kill_at(stage: Path, moment: Moment, delay: float, cwd: Path) -> bool:
    """Starts the loop and kills its process group at the moment; whether it was within the stage."""
    with (cwd / "console.txt").open("ab") as console:
        process = subprocess.Popen(LOOP, cwd=cwd, stdout=console, stderr=console, start_new_session=True)
    deadline = time.monotonic() + LIMIT
    while not (moment(stage) or (stage / "manifest.json").exists()):
        assert process.poll() is None, (cwd / "console.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return not (stage / "manifest.json").exists()


def test_killed_everywhere(uninterrupted: Path, tmp_path: Path, mark: str) -> None:
    random.seed(0)
    run_dir, hit = tmp_path / RUN, set()
    for stage, name, moment in KILLS:
        if (run_dir / stage / "manifest.json").exists():
            continue  # an earlier kill came too late for its stage
        delay = 0.0 if "writing" in name else random.uniform(0, 0.02)
        if kill_at(run_dir / stage, moment, delay, tmp_path):
            hit.add(stage)
        assert nobody_left(mark), "the simulation processes end with the run"
    done = subprocess.run(LOOP, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    assert hit == set(STAGES), f"never hit within {set(STAGES) - hit}"
    assert summary(run_dir) == summary(uninterrupted)
    assert results(run_dir) == results(uninterrupted), "the same episodes, weights and labels, byte by byte"
    for recording, count in {"demonstrations": 6, "iter_01/rollout": 12}.items():
        listed = read(run_dir / recording / "dataset/meta/recap.json")["episodes"]
        assert [episode["episode_index"] for episode in listed] == list(range(count))
    for evaluation in ("sft/eval", "iter_01/eval"):
        listed = read(run_dir / evaluation / "result.json")["episodes"]
        assert [episode["index"] for episode in listed] == list(range(12))
    for training in ("sft", "value", "iter_01/value", "iter_01/policy"):
        assert losses(run_dir / training) == losses(uninterrupted / training)
    assert not [path for path in run_dir.rglob("*") if path.name.endswith(".tmp")], "nothing half written is left"
    assert nobody_left(mark)


def losses(training: Path) -> list[tuple[float, ...]]:
    import json

    records = map(json.loads, (training / "metrics.jsonl").read_text().splitlines())
    return [(record["step"], record["loss"], record["lr"], record["grad_norm"]) for record in records]
