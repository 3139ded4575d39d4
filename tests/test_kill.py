"""Kill -9 in every stage and run again: the same results as a run that nothing interrupted, and nobody left behind."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_run import ROOT, RUN, STAGES, TINY, read, results, summary, tiny

pytestmark = pytest.mark.slow

# Long enough that a stage can be hit several times, and in the middle.
LONGER = [
    *TINY,
    *["data.demonstrator.episodes=6", "rollout.episodes=12", "eval.episodes=12"],
    *["rollout.corrections.share=0.5", "rollout.corrections.when=random", "advantage.force_positive=[correction]"],
    *[f"{model}.{stage}.steps=24" for model in ("policy", "value") for stage in ("sft", "finetune")],
]
LOOP = [sys.executable, str(ROOT / "loop.py"), *LONGER, "+iterations=1"]
LIMIT = 600.0  # seconds for a stage to be reached


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
    ("demonstrations", "between episodes", episodes(2)),
    ("demonstrations", "writing the data set", writing("dataset.tmp/**/*")),
    ("sft", "writing a checkpoint", writing("checkpoints/.*.tmp")),
    ("sft/eval", "in the middle", lines("episodes.jsonl", 1)),
    ("value", "in the middle", lines("metrics.jsonl", 9)),
    ("iter_01/rollout", "writing an episode", lambda stage: episodes(3)(stage) and writing("episodes/*.tmp")(stage)),
    ("iter_01/value", "writing a checkpoint", writing("checkpoints/.*.tmp")),
    ("iter_01/value_inference", "asking the value function", exists("blocks")),
    ("iter_01/advantage", "writing the labels", exists("demonstrations")),
    ("iter_01/gate", "drawing its figure", exists("gate.json")),
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
    run_dir, hit = tmp_path / RUN, dict[tuple[str, str], float]()
    for stage, name, moment in KILLS:
        if (run_dir / stage / "manifest.json").exists():
            continue  # an earlier kill came too late for its stage
        delay = 0.0 if "writing" in name else random.uniform(0, 0.02)
        if kill_at(run_dir / stage, moment, delay, tmp_path):
            hit[stage, name] = delay
        assert nobody_left(mark), "the simulation processes end with the run"
    done = subprocess.run(LOOP, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    print(*hit, sep="\n")
    assert {stage for stage, _ in hit} == set(STAGES)
    assert summary(run_dir) == summary(uninterrupted)
    assert results(run_dir) == results(uninterrupted), "the same episodes, weights and labels, byte by byte"
    for recording, count in {"demonstrations": 6, "iter_01/rollout": 12}.items():
        listed = read(run_dir / recording / "dataset/meta/recap.json")["episodes"]
        assert [episode["episode_index"] for episode in listed] == list(range(count))
        assert any("corrected_from" in episode for episode in listed) == (recording == "iter_01/rollout")
    for evaluation in ("sft/eval", "iter_01/eval"):
        listed = read(run_dir / evaluation / "result.json")["episodes"]
        assert [episode["index"] for episode in listed] == list(range(12))
    for training in ("sft", "value", "iter_01/value", "iter_01/policy"):
        assert losses(run_dir / training) == losses(uninterrupted / training)
    assert not [path for path in run_dir.rglob("*") if path.name.endswith(".tmp")], "nothing half written is left"
    assert nobody_left(mark)


def losses(training: Path) -> list[tuple[float, ...]]:
    records = map(json.loads, (training / "metrics.jsonl").read_text().splitlines())
    return [(record["step"], record["loss"], record["lr"], record["grad_norm"]) for record in records]


# ---------------------------------------------------------------------------------------------------- other ends
def start(cwd: Path, *overrides: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "loop.py"), *TINY, "+iterations=1", *overrides]
    console = (cwd / "console.txt").open("wb")
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        return subprocess.Popen(command, cwd=cwd, stdout=console, stderr=console, start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, handler)


def wait_for(moment: Moment, stage: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + LIMIT
    while not moment(stage):
        assert process.poll() is None, "ended before its moment"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("launcher", ["inline", "local"])
def test_interrupted(work: Path, mark: str, launcher: str) -> None:
    """Ctrl-C at the keyboard reaches the main process; it cancels its job and closes its simulations."""
    stage = work / RUN / "iter_01/rollout"
    shutil.rmtree(stage.parent)
    process = start(work, f"launcher={launcher}")
    wait_for(exists("log.txt"), stage, process)
    time.sleep(0.3)  # its simulations start; an idle machine is done with all of it in a second
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    told = (work / "console.txt").read_text()
    assert "interrupted. The same command again continues." in told
    assert "Traceback" not in told
    assert nobody_left(mark)
    assert not (stage / "manifest.json").exists()


def test_jobs_of_their_own(finished_run: Path, work: Path, mark: str) -> None:
    """launcher=local: a job ends with its main process, reports its error, and makes what inline makes."""
    first, second = work / RUN / "iter_01/advantage", work / RUN / "iter_01/eval"
    shutil.rmtree(first)
    shutil.rmtree(second)
    process = start(work, "launcher=local")
    wait_for(exists("episodes.jsonl"), second, process)
    os.kill(process.pid, signal.SIGKILL)  # only the main process: the jobs have to notice
    process.wait()
    assert nobody_left(mark)
    assert results(work / RUN).keys() == results(finished_run / RUN).keys() - {"iter_01/eval"}

    checkpoint = work / RUN / "iter_01/policy/checkpoints/last/model.safetensors"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # its size, which is looked at before, is the same
    refused = start(work, "launcher=local")
    assert refused.wait(LIMIT) == 1
    told = (work / "console.txt").read_text()
    assert "model.safetensors was changed (its SHA-256 differs)" in told, "an error inside the job"
    assert re.search(r"Log: \S+/iter_01/eval/job/\d+_0_log.err", told)
    assert "Traceback" not in told
    assert len(told[told.index("error:") :].splitlines()) < 10
    checkpoint.write_bytes(whole)

    done = start(work, "launcher=local")
    assert done.wait(LIMIT) == 0
    assert results(work / RUN) == results(finished_run / RUN)
    assert summary(work / RUN) == summary(finished_run / RUN)
    assert nobody_left(mark)


def test_two_seeds_are_two_runs(finished_run: Path, tmp_path: Path) -> None:
    seen = tiny("loop", "+iterations=1", "seed=0,1", "-m", cwd=tmp_path)
    assert seen.code == 0, seen.err
    first, second = (tmp_path / RUN / f"seed={seed}" for seed in (0, 1))
    assert results(first) == results(finished_run / RUN), "a run does not depend on where it is"
    assert results(second)["demonstrations"] != results(first)["demonstrations"]
    assert summary(second)["seed"] == 1
