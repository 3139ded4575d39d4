"""The loop and a real SLURM, as far as no job has to run: what is submitted, adopted, refused, and shown."""

from __future__ import annotations

import fcntl
import re
import shutil
from pathlib import Path

import pytest
from cluster import jobs, sh, wait
from tiny_run import ROOT, RUN, STAGES, Outcome, tiny

from recap.jobs import slurm as commands
from recap.jobs import snapshot as code
from recap.jobs.job import automatic, submitted

LATER = "launcher.options=['begin=now+1hour']"  # jobs stay in the queue
SUBMIT = ("loop", "+iterations=1", "launcher=slurm", LATER, "follow=false")


def submit(cwd: Path, *overrides: str) -> Outcome:
    seen = tiny(*SUBMIT, *overrides, cwd=cwd)
    assert seen.code == 0, seen.out + seen.err
    return seen


# ---------------------------------------------------------------------------------------------------- which launcher
def test_without_a_cluster_it_is_inline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commands.answers() == (False, "there is no sbatch here")
    for name, text in {"sbatch": "", "sinfo": "sleep 30"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\nexec /bin/{text or 'true'}\n")
        (tmp_path / name).chmod(0o755)
    found, why = commands.answers()
    assert not found
    assert "no SLURM controller answered within 2 s" in why


def test_processes_started_together_stay_together(monkeypatch: pytest.MonkeyPatch, slurm: None) -> None:
    assert automatic()[0].name == "slurm"
    automatic.cache_clear()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert automatic()[0].name == "inline"


def test_auto_says_which_and_why(work: Path, slurm: None) -> None:
    seen = tiny("loop", "+iterations=1", "action=status", cwd=work)
    assert seen.out.splitlines()[0].startswith("launcher=auto: slurm, because a SLURM controller answers")
    assert seen.out.count("finished") == len(STAGES)


# ---------------------------------------------------------------------------------------------------- the chain
def test_the_whole_chain_is_submitted_at_once(tmp_path: Path, slurm: None) -> None:
    seen = submit(tmp_path, "resources.rollout.shards=4", "resources.policy.timeout_min=7")
    queued = jobs()
    assert set(queued) == set(STAGES)
    assert {row["state"] for row in queued.values()} == {"PENDING"}
    assert {stage for stage, row in queued.items() if row["limit"] == "7:00"} == {"sft", "iter_01/policy"}
    number = {row["job"]: stage for stage, row in queued.items()}
    after = {
        stage: {number[job] for job in re.findall(r"afterok:(\d+)", row["after"])} for stage, row in queued.items()
    }
    assert after["demonstrations"] == set()
    assert after["sft"] == after["value"] == {"demonstrations"}
    assert after["iter_01/policy"] == {"sft", "demonstrations", "iter_01/rollout", "iter_01/advantage", "iter_01/gate"}
    assert after["iter_01/eval"] == {"iter_01/policy"}
    assert len(sh("squeue", "-h", "-r", "-j", queued["iter_01/rollout"]["job"]).splitlines()) == 4, "an array"
    assert f"{len(STAGES)} jobs submitted" in seen.out
    assert "To follow: python" in seen.out

    again = submit(tmp_path, "resources.rollout.shards=4", "resources.policy.timeout_min=7")
    assert {stage: row["job"] for stage, row in jobs().items()} == {s: row["job"] for s, row in queued.items()}, (
        "adopted"
    )
    assert f"0 jobs submitted, {len(STAGES)} already in the queue" in again.out
    assert "jobs keep" not in again.out
    settings = ("resources.policy.timeout_min=8", "resources.eval.mem_gb=3", "launcher.setup=['export TOKEN=secret']")
    changed = submit(tmp_path, "resources.rollout.shards=4", *settings).out
    assert {stage: row["job"] for stage, row in jobs().items()} == {s: row["job"] for s, row in queued.items()}
    assert "jobs keep what they were submitted with:\n" in changed
    (sft,) = [line for line in changed.splitlines() if line.startswith(f"  sft (job {queued['sft']['job']}): ")]
    assert "resources.policy.timeout_min: 7, now 8" in sft
    assert "launcher.setup (hash): " in sft
    assert "resources.eval.mem_gb" not in sft
    assert "To apply what is asked now: the same command with action=cancel, then again without." in changed
    assert not [path for path in (tmp_path / RUN).rglob("jobs.jsonl") if "secret" in path.read_text()]
    ended = tiny(*SUBMIT, "action=cancel", cwd=tmp_path)
    assert f"{len(STAGES)} jobs cancelled" in ended.out
    wait(lambda: not jobs(), 30, "cancelled jobs stay")


def test_what_vanished_is_submitted_again_with_what_follows_it(tmp_path: Path, slurm: None) -> None:
    submit(tmp_path)
    first = jobs()
    sh("scancel", first["iter_01/rollout"]["job"])
    submit(tmp_path)
    second = jobs()
    changed = {stage for stage in STAGES if second[stage]["job"] != first[stage]["job"]}
    assert changed == {stage for stage in STAGES if stage.startswith("iter_01/")}
    assert len(jobs()) == len(STAGES), "no job twice"


def test_a_submission_that_was_killed_in_the_middle(tmp_path: Path, slurm: None) -> None:
    """A job is held until its files are there, and written down then; one that was not is replaced."""
    submit(tmp_path)
    first = jobs()
    sh("scontrol", "hold", first["sft"]["job"])
    (tmp_path / RUN / "sft/job/jobs.jsonl").unlink()
    (tmp_path / RUN / "value/job/jobs.jsonl").write_text('{"job": "1')
    submit(tmp_path)
    second = jobs()
    assert len(second) == len(STAGES)
    kept = {stage for stage in STAGES if second[stage]["job"] == first[stage]["job"]}
    assert kept == {"demonstrations"}
    assert set(submitted(tmp_path / RUN / "value")) == {second["value"]["job"]}


def test_a_run_that_somebody_else_has_submitted(tmp_path: Path, slurm: None) -> None:
    (tmp_path / RUN / "sft/job").mkdir(parents=True)
    (tmp_path / RUN / "sft/job/jobs.jsonl").write_text('{"job": "17", "shards": 1, "user": "alice"}\n')
    seen = tiny(*SUBMIT, cwd=tmp_path)
    assert seen.code == 1
    assert "sft was submitted by alice (job 17). Fix: name=<another>" in seen.err
    assert not jobs()


def test_other_runs_are_left_alone(tmp_path: Path, slurm: None) -> None:
    """The same name in another clone, and a sweep: nothing is mistaken for something else."""
    for place in ("mine", "yours"):
        (tmp_path / place).mkdir()
        submit(tmp_path / place)
    submit(tmp_path / "mine", "seed=0,1")
    names = sh("squeue", "-h", "-o", "%j").split()
    assert len(names) == len(set(names)) == 4 * len(STAGES)
    assert f"{len(STAGES)} jobs cancelled" in tiny(*SUBMIT, "action=cancel", cwd=tmp_path / "yours").out
    wait(lambda: len(sh("squeue", "-h").splitlines()) == 3 * len(STAGES), 30, "other jobs were cancelled")
    seen = tiny(*SUBMIT, "rollout.episodes=5", cwd=tmp_path / "mine")
    assert seen.code == 1
    assert "rollout.episodes: 4 -> 5" in seen.err


def test_queued_jobs_keep_their_code(tmp_path: Path, slurm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repository"
    for part in (*code.PARTS, *(path.name for path in ROOT.glob("*.py"))):
        (repository / part).parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, repository / part)
    monkeypatch.setattr(code, "ROOT", repository)
    submit(tmp_path)
    (kept,) = (tmp_path / RUN / "code").iterdir()
    (repository / "recap/method/returns.py").write_text("raise SystemExit('edited')")
    script = next((tmp_path / RUN / "sft/job").glob("*_submission.sh")).read_text()
    assert f"PYTHONPATH={kept}" in script
    assert "PYTHONSAFEPATH=1" in script, "nor is the working directory's code seen"
    assert "edited" not in (kept / "recap/method/returns.py").read_text()
    submit(tmp_path)
    assert [*(tmp_path / RUN / "code").iterdir()] == [kept], "all jobs were adopted"
    sh("scancel", jobs()["iter_01/eval"]["job"])
    submit(tmp_path)
    assert len([*(tmp_path / RUN / "code").iterdir()]) == 2
    assert {row["code"] for row in submitted(tmp_path / RUN / "sft").values()} == {kept.name}


def test_what_setup_holds_is_read_by_its_owner_alone(tmp_path: Path, slurm: None) -> None:
    submit(tmp_path, "launcher.setup=['export TOKEN=sesame','export OTHER=$TOKEN']", "resources.rollout.shards=2")
    holding = [path for path in (tmp_path / RUN).rglob("*") if path.is_file() and b"sesame" in path.read_bytes()]
    assert {path.parent.parent.relative_to(tmp_path / RUN).as_posix() for path in holding} == set(STAGES)
    assert {path.stat().st_mode & 0o777 for path in holding} == {0o600}
    assert "sesame" not in sh("scontrol", "write", "batch_script", jobs()["sft"]["job"], "-")
    script = next((tmp_path / RUN / "sft/job").glob("*_submission.sh")).read_text()
    line = next(line for line in script.splitlines() if line.startswith(". "))
    assert script.index(line) < script.index("srun")
    assert sh("sh", "-c", f"{line}\necho $OTHER") == "sesame\n"


def test_jobs_submitted_from_a_job_are_their_own(tmp_path: Path, slurm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"SLURM_MEM_PER_NODE": "100", "SLURM_JOB_ID": "1", "SBATCH_PARTITION": "short"}.items():
        monkeypatch.setenv(key, value)
    submit(tmp_path, "resources.rollout.timeout_min=60")
    partitions = set(sh("squeue", "-h", "-o", "%P").split())
    assert partitions == {"main"}
    script = sh("scontrol", "show", "job", jobs()["sft"]["job"])
    assert "MinMemoryNode=4G" in script


# ---------------------------------------------------------------------------------------------------- refused
def test_everything_wrong_is_told_before_the_first_job(tmp_path: Path, slurm: None) -> None:
    wrong = [
        *("launcher.partition=short", "resources.policy.timeout_min=99", "resources.value.nodes=5"),
        *("resources.value.timeout_min=4", "resources.rollout.gpus_per_node=99", "resources.rollout.timeout_min=4"),
        *("resources.advantage.mem_gb=9000", "resources.advantage.timeout_min=4", "env.tasks=['make tea']"),
        *("policy.pretrained=nowhere", "resources.demonstrations.timeout_min=4", "resources.eval.timeout_min=4"),
    ]
    seen = tiny(*SUBMIT, *wrong, cwd=tmp_path)
    assert seen.code == 1
    for words in (
        "resources.policy.timeout_min=99: partition short allows 5. Fix: resources.policy.timeout_min=5",
        "resources.value: SLURM refuses its job: Node count specification invalid (nodes=5",
        "resources.rollout: SLURM refuses its job: ",
        "resources.advantage: SLURM refuses its job",
        "make tea",
        "policy.pretrained=nowhere",
    ):
        assert words in seen.err
    assert "resources.eval" not in seen.err
    assert re.search(r"warning: output=\S+: lies on a file system of this machine alone", seen.err)
    assert not jobs()
    assert not (tmp_path / RUN).exists()


def test_an_unknown_partition(tmp_path: Path, slurm: None) -> None:
    seen = tiny(*SUBMIT, "launcher.partition=gpu", "seed=0,1", cwd=tmp_path)
    assert seen.code == 1
    assert re.search(r"launcher.partition=gpu: no such partition. Choices: \S+", seen.err)
    assert "nothing was submitted" not in seen.out
    assert not jobs()


def test_a_run_is_submitted_by_one_at_a_time(tmp_path: Path, slurm: None) -> None:
    (tmp_path / RUN).mkdir(parents=True)
    with (tmp_path / RUN / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        seen = tiny(*SUBMIT, cwd=tmp_path)
    assert seen.code == 1
    assert "is busy" in seen.err
    assert not jobs()


def test_actions_need_a_cluster(tmp_path: Path) -> None:
    seen = tiny("loop", "+iterations=1", "launcher=local", "action=cancel", cwd=tmp_path)
    assert (seen.code, "Fix: launcher=slurm" in seen.err) == (1, True)
    seen = tiny("loop", "+iterations=1", "launcher=inline", "follow=false", cwd=tmp_path)
    assert (seen.code, "follow=false" in seen.err) == (1, True)


def test_a_setting_of_all_jobs_that_is_wrong_is_told_once(tmp_path: Path, slurm: None) -> None:
    """In sbatch's own words, with the others that are right beside it."""
    wrong = "launcher.options=['begin=now+1hour','reservaton=robots','distribution=nonsense']"
    seen = tiny("loop", "+iterations=1", "launcher=slurm", wrong, "launcher.constraint=a100", cwd=tmp_path)
    assert seen.code == 1
    told = [line for line in seen.err.splitlines() if "SLURM refuses" in line]
    assert [line.partition(":")[0] for line in told] == [
        "- launcher.options=['reservaton=robots']",
        "- launcher.options=['distribution=nonsense']",
        "- launcher.constraint=a100",
    ]
    assert "unrecognized option '--reservaton=robots'" in told[0]
    assert "Invalid feature specification" in told[2]
    assert "Try " not in seen.err
    assert not jobs()
