"""What the user sees of jobs: the table at the widths of real terminals, and what is said of a failure."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from tiny_run import ROOT, TINY

from recap.config import LoopJob, typed
from recap.jobs.chain import Chain, OnSlurm, Seen, State
from recap.jobs.slurm import Row, _minutes
from recap.jobs.watch import failure, table
from recap.pipeline.graph import run_stages
from recap.pipeline.runner import run_job


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    """A run of one iteration and an ablation, of which nothing is there."""
    from hydra import compose, initialize_config_dir

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "loop.py"), "+iterations=1", "action=status"])
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = typed(compose("loop", [*TINY[:1], *TINY[2:], "+iterations=1"]), LoopJob)
    (stages,) = run_stages(cfg, 1)
    return Chain(cfg, stages, run_job, lambda: None, {stage.path: Seen(State.missing) for stage in stages})


def shown(chain: Chain, width: int) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=width).print(table([chain], width))
    return [line.rstrip() for line in text.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_fits(chain: Chain, width: int) -> None:
    metrics = chain.directory / "sft/metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    metrics.write_text('{"step": 2, "loss": 1.0}\n{"step": 3, "loss": 0.5}\n{"st')
    chain.seen["demonstrations"] = Seen(State.finished, "12345677", "1:02")
    chain.seen["sft"] = Seen(State.running, "12345678", "1-02:03:04", "2 of 4 shards")
    chain.seen["value"] = Seen(State.queued, "12345679", note="Resources")
    lines = shown(chain, width)
    assert max(map(len, lines)) <= width
    assert not [line for line in lines if "…" in line], "nothing is cut off"
    (sft,) = [line for line in lines if line.startswith("sft ")]
    assert sft.split("  ")[1:] != []
    for words in ("12345678", "running", "2 of 4 shards", "1-02:03:04"):
        assert words in sft
    assert any(line.startswith("value") and "queued" in line and "Resources" in line for line in lines)
    log = (
        "outputs/demo_small/sft/job/12345678_0_log.err"
        if width == 160
        else "outputs/demo_small/<stage>/job/<job>_0_log"
    )
    assert any(log in line for line in lines)


def test_a_half_written_line_is_no_progress(chain: Chain) -> None:
    metrics = chain.directory / "sft/metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    chain.seen["sft"] = Seen(State.running, "1")
    for text, progress in {'{"step": 3}\n': "3/6", "": "0/6", '{"st': "0/6"}.items():
        metrics.write_text(text)
        (line,) = [line for line in shown(chain, 80) if line.startswith("sft ")]
        assert progress in line


def write(chain: Chain, error: str, log: str) -> None:
    folder = chain.directory / "sft/job"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.jsonl").write_text(json.dumps({"job": "7", "shards": 1}) + "\n")
    (folder / "error.txt").write_text(error)
    (folder / "7_0_log.err").write_text(log)


def judged(chain: Chain, *rows: Row) -> Seen:
    stage = next(stage for stage in chain.stages if stage.path == "sft")
    chain.seen["demonstrations"] = Seen(State.finished)
    return OnSlurm()._see(chain, stage, list(rows))


def row(state: str, job: str = "7") -> Row:
    return Row(job, state, "name", "None", "0:10")


def test_a_failure_is_told_once(chain: Chain) -> None:
    write(chain, "7 RecapError\nthe disk is full. Fix: free some.\n", "Traceback (most recent call last):\n  …\n")
    chain.seen["sft"] = judged(chain, row("FAILED"))
    assert str(failure(chain)).splitlines() == [
        "sft failed: the disk is full. Fix: free some.",
        "Log: outputs/demo_small/sft/job/7_0_log.err",
        "To go on from there: python loop.py +iterations=1",
    ]


def test_a_bug_comes_with_the_end_of_its_log(chain: Chain) -> None:
    write(chain, "7 Exception\nKeyError: 'a bug'\n", "\n".join(f"line {n}" for n in range(100)))
    chain.seen["sft"] = judged(chain, row("FAILED"))
    told = str(failure(chain))
    assert "sft failed: KeyError: 'a bug'" in told
    assert "  | line 99" in told
    assert "line 80" not in told


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("TIMEOUT", "resources.policy.timeout_min=…"),
        ("OUT_OF_MEMORY", "resources.policy.mem_gb=…"),
        ("CANCELLED", "was cancelled"),
        ("NODE_FAIL", "lost its node"),
        ("FAILED", "ended without a report (failed: killed?)"),
    ],
)
def test_endings_without_a_word(chain: Chain, state: str, says: str) -> None:
    """The report of an older job does not count."""
    write(chain, "6 RecapError\nsomething else\n", "")
    seen = judged(chain, row(state))
    assert seen.state is State.failed
    assert says in seen.problem


def test_what_the_queue_says_of_a_job(chain: Chain) -> None:
    write(chain, "", "")
    assert judged(chain, row("PENDING")).state is State.queued
    assert judged(chain, row("REQUEUE_HOLD")).state is State.queued
    assert judged(chain, row("COMPLETING")).state is State.running
    assert judged(chain, row("FAILED", "6"), row("RUNNING")).state is State.running
    assert judged(chain, row("COMPLETED")).note == "ending", "its results may be on their way"
    assert judged(chain).note == "ending"
    chain.seen["demonstrations"] = Seen(State.failed)
    stage = next(stage for stage in chain.stages if stage.path == "sft")
    assert OnSlurm()._see(chain, stage, []).state is State.stopped
    (chain.directory / "sft/manifest.json").write_text("{}")
    assert judged(chain, row("FAILED")).state is State.finished, "the manifest counts, not the cluster"


@pytest.mark.parametrize(
    ("limit", "minutes"), [("5:00", 5), ("1:30:00", 90), ("2-00:10:00", 2890), ("infinite", None), ("n/a", None)]
)
def test_time_limits(limit: str, minutes: int | None) -> None:
    assert _minutes(limit) == minutes
