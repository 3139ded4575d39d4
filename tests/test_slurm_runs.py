"""Whole runs on a real SLURM: the results of one process, whatever happens to the jobs and to who follows them."""

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
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import jobs, sh, wait
from tiny_run import ROOT, RUN, STAGES, TINY, read, results, summary, tiny

pytestmark = pytest.mark.slow

LIMIT = 1500.0  # seconds for a chain, on a machine that has other things to do
FAULTS = int(os.environ.get("RECAP_FAULTS", "12"))


def command(*overrides: str, entry: str = "loop") -> list[str]:
    return [sys.executable, str(ROOT / f"{entry}.py"), *TINY, *overrides]


def finish(*overrides: str, cwd: Path, entry: str = "loop") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*overrides, entry=entry), cwd=cwd, capture_output=True, text=True, timeout=LIMIT, check=False
    )


def losses(training: Path) -> dict[int, tuple[float, ...]]:
    records = map(json.loads, (training / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: (record["loss"], record["lr"], record["grad_norm"]) for record in records}


# ---------------------------------------------------------------------------------------------------- alike
def test_three_launchers_make_the_same_run(finished_run: Path, tmp_path: Path, slurm: None) -> None:
    """Two iterations as one chain, split into shards and processes, while somebody edits the code; as jobs of this
    machine; and in this process."""
    repository = tmp_path / "repository"
    shutil.copytree(ROOT, repository, ignore=shutil.ignore_patterns(".*", "outputs", "tests", "*.egg-info"))
    cwd = {name: tmp_path / name for name in ("slurm", "local", "inline")}
    for name in ("local", "slurm"):
        cwd[name].mkdir()
    split = [
        *("resources.rollout.shards=4", "resources.eval.shards=2", "resources.value_inference.tasks_per_node=2"),
        *("resources.rollout.cpus_per_task=4", "resources.eval.cpus_per_task=1", "workers.num_workers=1"),
    ]
    loop = [sys.executable, "loop.py", *TINY, "+iterations=2", "launcher=slurm", *split, f"output={cwd['slurm'] / RUN}"]
    submitted = subprocess.run(
        [*loop, "follow=false"], cwd=repository, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert submitted.returncode == 0, submitted.stderr
    second = sum(stage.startswith("iter_01/") for stage in STAGES)
    assert f"{len(STAGES) + second} jobs submitted" in submitted.stdout
    for file in ("recap/pipeline/runner.py", "recap/stages/__init__.py", "conf/base.yaml"):
        (repository / file).write_text("edited, and wrong: {")
    arrays = sh("squeue", "-h", "-r", "-o", "%j").count(".rollout.")
    assert arrays == 8, "two iterations of four tasks"

    with subprocess.Popen(
        command("+iterations=2", "launcher=local"), cwd=cwd["local"], stdout=subprocess.PIPE
    ) as local:
        shutil.copytree(finished_run, cwd["inline"], symlinks=True)
        assert tiny("loop", "+iterations=2", "launcher=inline", cwd=cwd["inline"]).code == 0
        assert local.wait(LIMIT) == 0
    wait(lambda: not jobs(), LIMIT, "the chain does not end")
    nodes = set(sh("squeue", "-h", "-r", "-t", "all", "-o", "%N").split())
    assert nodes == {"127.0.0.2", "127.0.0.3"}

    expected = results(cwd["inline"] / RUN)
    assert results(cwd["local"] / RUN) == expected
    assert results(cwd["slurm"] / RUN) == expected, "the same episodes, advantages and weights, byte by byte"
    assert summary(cwd["slurm"] / RUN) == summary(cwd["local"] / RUN) == summary(cwd["inline"] / RUN)
    assert not list((cwd["slurm"] / RUN).rglob("episodes.*of*.jsonl"))
    assert not list((cwd["slurm"] / RUN).rglob(".shares"))


def test_two_nodes_train_as_one_process(finished_run: Path, tmp_path: Path, slurm: None) -> None:
    """Two processes on each of two nodes, started by srun; and the labels of two processes of `accelerate launch`."""
    shutil.copytree(finished_run / RUN / "demonstrations", tmp_path / RUN / "demonstrations")
    asked = ["resources.policy.nodes=2", "resources.policy.tasks_per_node=2", "resources.policy.cpus_per_task=1"]
    done = finish("policy=pi0", "stage=sft", "launcher=slurm", *asked, cwd=tmp_path, entry="train")
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / RUN / "sft/job/jobs.jsonl").read_text().splitlines()
    logs = [*(tmp_path / RUN / "sft/job").glob(f"{json.loads(record)['job']}_*_log.err")]
    assert len(logs) == 4
    assert {re.search(r"process (\d)", log.read_text())[1] for log in logs} == {*"0123"}  # type: ignore[index]
    one, four = losses(finished_run / RUN / "sft"), losses(tmp_path / RUN / "sft")
    assert four.keys() == one.keys()
    for step, numbers in one.items():
        assert four[step] == pytest.approx(numbers, rel=2e-4)


# ---------------------------------------------------------------------------------------------------- one that fails
def test_a_stage_that_raises_stops_its_loop_only(finished_run: Path, tmp_path: Path, slurm: None) -> None:
    bad, good = tmp_path / RUN / "seed=0", tmp_path / RUN / "seed=1"
    shutil.copytree(finished_run / RUN, bad, symlinks=True)
    assert tiny("loop", "+iterations=1", "seed=1", f"output='{good}'", "launcher=inline", cwd=tmp_path).code == 0
    expected = results(good)
    for run in (bad, good):
        shutil.rmtree(run / "iter_01/policy")
        shutil.rmtree(run / "iter_01/eval")
    weights = bad / "sft/checkpoints/last/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-7] ^= 1  # the stage that reads it sees that; the size, which is all that is looked at before, is the same
    weights.write_bytes(content)
    done = finish("+iterations=1", "seed=0,1", "launcher=slurm", "-m", cwd=tmp_path)
    assert done.returncode == 1, done.stdout
    assert results(good) == expected, "the other loop is done"
    assert summary(good)["policies"][1]["iteration"] == 1
    assert "iter_01/policy failed" in done.stderr
    assert "model.safetensors was changed" in done.stderr
    assert re.search(r"Log: \S+/seed=0/iter_01/policy/job/\d+_0_log.err", done.stderr)
    assert re.search(r"To go on from there: python \S*loop.py .*seed=0,1 launcher=slurm -m", done.stderr)
    assert re.search(r"seed=0/iter_01/eval  stopped", done.stdout)
    assert "Traceback" not in done.stderr
    wait(lambda: not jobs(), 60, "what needs the failed stage is cancelled, and the others end")
    content[-7] ^= 1
    weights.write_bytes(content)
    assert finish("+iterations=1", "seed=0,1", "launcher=slurm", "-m", cwd=tmp_path).returncode == 0
    assert results(bad) == results(finished_run / RUN)


# ---------------------------------------------------------------------------------------------------- its time is up
def test_a_time_limit_costs_no_step(tmp_path: Path, slurm: None) -> None:
    """SLURM's shortest limit, a minute, and a training that is longer; only the notice makes it save."""
    # Few and heavy steps: a start does at least one, so it gets there even where starting takes the minute.
    longer = [
        "policy.sft.steps=16",
        "policy.sft.batch_size=640",
        "policy.sft.save_every=16",
        "policy.sft.random_shift=0",
    ]
    # The notice comes 20 s after the job begins: a loaded machine needs most of them until Python heeds signals.
    asked = ["resources.policy.timeout_min=1", "launcher.grace_period_s=40", "launcher.max_requeues=60"]
    train = ["policy=pi0", "stage=sft", *longer, *asked]
    done = finish(*train, "launcher=slurm", cwd=tmp_path, entry="train")
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / RUN / "sft/job").glob("*_log.err")
    assert re.findall(r"restart (\d+)", log.read_text())
    assert "goes back into the queue" in log.read_text()
    (tmp_path / "inline").mkdir()
    assert tiny("train", *train, "launcher=inline", cwd=tmp_path / "inline").code == 0
    assert losses(tmp_path / RUN / "sft") == losses(tmp_path / "inline" / RUN / "sft")
    assert results(tmp_path / RUN) == results(tmp_path / "inline" / RUN)


def test_a_notice_in_the_middle_costs_no_step(finished_run: Path, tmp_path: Path, slurm: None) -> None:
    """The training saves after the step that it is at, though no checkpoint was due."""
    longer = ["policy=pi0", "stage=sft", "policy.sft.steps=400", "policy.sft.save_every=400"]
    quiet, disturbed = tmp_path / "quiet", tmp_path / "disturbed"
    for folder in (quiet, disturbed):
        shutil.copytree(finished_run / RUN / "demonstrations", folder / RUN / "demonstrations")
    assert tiny("train", *longer, "launcher=inline", cwd=quiet).code == 0
    assert finish(*longer, "launcher=slurm", "follow=false", cwd=disturbed, entry="train").returncode == 0
    metrics = disturbed / RUN / "sft/metrics.jsonl"
    wait(lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") > 20, 600, "the training does not begin")
    sh("scancel", "--signal=USR2", jobs()["sft"]["job"])
    saved = disturbed / RUN / "sft/checkpoints/last"
    wait(saved.exists, 60, "nothing is saved")
    assert 20 < int(saved.readlink().name) < 400
    wait(lambda: not jobs(), LIMIT, "the training does not end")
    assert losses(metrics.parent) == losses(quiet / RUN / "sft")
    assert results(disturbed / RUN) == results(quiet / RUN)


# ---------------------------------------------------------------------------------------------------- faults
LONGER = [
    *["rollout.episodes=24", "eval.episodes=24", "resources.rollout.shards=2"],
    *[f"{model}.finetune.steps=60" for model in ("policy", "value")],
    *[
        "resources.rollout.cpus_per_task=1",
        "resources.policy.cpus_per_task=1",
        "resources.value.cpus_per_task=1",
        "launcher.max_requeues=200",
    ],
]


def running() -> list[str]:
    """Jobs, and tasks of arrays, that have processes."""
    return sh("squeue", "-h", "-r", "-t", "RUNNING", "-o", "%A").split()


def processes(job: str) -> list[int]:
    """Those of the job's stage: submitit's, which SLURM started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            mine = f"SLURM_JOB_ID={job}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if mine and b"submitit.core._submit" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue  # gone meanwhile
    return found


def kill(job: str) -> None:
    for pid in processes(job)[:1]:
        os.kill(pid, signal.SIGKILL)


def preempt(job: str) -> None:
    """A job of a higher partition that wants both nodes whole, for a moment."""
    sh("sbatch", "--partition=hi", "--nodes=2", "--exclusive", "--time=1", "--output=/dev/null", "--wrap=sleep 1")


KINDS: dict[str, Callable[[str], object]] = {
    "killed": kill,
    "cancelled": lambda job: sh("scancel", job),
    "requeued": lambda job: sh("scontrol", "requeue", job),
    "preempted": preempt,
    "given notice": lambda job: sh("scancel", "--signal=USR2", job),
}


def test_faults_cost_no_result(finished_run: Path, tmp_path: Path, slurm: None) -> None:
    """An iteration, hit again and again, and with it who follows it: the results of an undisturbed one."""
    random.seed(int(os.environ.get("RECAP_SEED", "0")))
    quiet, disturbed = tmp_path / "quiet", tmp_path / "disturbed"
    for folder in (quiet, disturbed):
        shutil.copytree(finished_run, folder, symlinks=True)
        (folder / RUN / "config.yaml").unlink()
        fresh(folder / RUN)
    assert tiny("loop", *LONGER, "+iterations=1", "launcher=inline", cwd=quiet).code == 0
    done: list[str] = []
    while len(done) < FAULTS:  # a soak takes several rounds
        fresh(disturbed / RUN)
        done += disturb(disturbed, FAULTS - len(done))
        told = (disturbed / "console.txt").read_text()
        assert results(disturbed / RUN) == results(quiet / RUN), told
        assert summary(disturbed / RUN) == summary(quiet / RUN)
        for stage in ("value", "policy"):
            mine, other = (losses(folder / RUN / "iter_01" / stage) for folder in (disturbed, quiet))
            assert mine == other, "no step is lost or done otherwise"
        for stage in ("sft/eval", "iter_01/eval"):
            episodes = read(disturbed / RUN / stage / "result.json")["episodes"]
            assert [episode["index"] for episode in episodes] == list(range(24))
        assert "Traceback" not in told
    print(*done, sep="\n")


def fresh(run: Path) -> None:
    for name in ("iter_01", "sft/eval"):
        shutil.rmtree(run / name, ignore_errors=True)
    (run / "summary.json").unlink(missing_ok=True)


def disturb(cwd: Path, most: int) -> list[str]:
    """Runs the chain to its end and lets things happen meanwhile; which."""
    loop, done = command(*LONGER, "+iterations=1", "launcher=slurm"), list[str]()
    deadline = time.monotonic() + LIMIT + 60 * most
    with (cwd / "console.txt").open("ab") as console:
        follower = subprocess.Popen(loop, cwd=cwd, stdout=console, stderr=console)
        while follower.poll() != 0:
            assert time.monotonic() < deadline, (cwd / "console.txt").read_text()[-3000:]
            if follower.poll() is not None:
                follower = subprocess.Popen(loop, cwd=cwd, stdout=console, stderr=console)
            time.sleep(random.uniform(1, 6))
            busy = [job for job in running() if processes(job)]
            if len(done) == most or not busy or follower.poll() is not None:
                continue
            kind = random.choice([*KINDS, "follower killed"])
            if kind == "follower killed":
                follower.kill()
                follower.wait()
            else:
                try:
                    KINDS[kind](random.choice(busy))
                except (subprocess.CalledProcessError, ProcessLookupError):
                    continue  # the job had just ended
            done.append(kind)
    return done
