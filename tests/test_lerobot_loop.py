"""The whole loop with lerobot's own π0.5 and SmolVLA: killed in the middle, it comes to what it would have come to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from lerobot_helpers import POLICIES
from tiny_run import ROOT, RUN, STAGES, TINY, results, run, summary

LOOP = [*TINY, "+iterations=1", "policy.indicator_dropout=0.3", "eval.beta=1.5", "policy.finetune.steps=12"]
VALUE = {"pi05": [], "smolvla": ["value.backbone=policy", "value.tokenizer=nobody/has-it"]}  # which is then not read
LIMIT = 300.0  # seconds for a moment to be reached


@pytest.mark.parametrize("policy", POLICIES)
def test_the_loop_and_a_kill(policy: str, tmp_path: Path) -> None:
    """Guidance and dropout included. Killed while the policy learns from experience, and begun again."""
    words = [*LOOP, f"policy={policy}", *VALUE[policy]]
    (tmp_path / "whole").mkdir()
    done = run("loop", *words, cwd=tmp_path / "whole")
    assert done.code == 0, done.out + done.err
    whole = tmp_path / "whole" / RUN
    assert all((whole / stage / "manifest.json").is_file() for stage in STAGES)
    assert yaml.safe_load((whole / "iter_01/policy/config.yaml").read_text())["policy"]["type"] == policy
    judged = json.loads((whole / "iter_01/value/checkpoints/last/config.json").read_text())
    assert judged["language"] == ("smolvlm" if VALUE[policy] else "gemma3")
    told = [json.loads(line) for line in (whole / "iter_01/policy/first_batch/prompts.jsonl").read_text().splitlines()]
    assert any("Advantage: positive\n" in text for text in told)

    killed = tmp_path / "killed" / RUN
    shutil.copytree(whole, killed, symlinks=True)
    for path in ("iter_01/policy", "iter_01/eval"):
        shutil.rmtree(killed / path)
    for path in ("summary.json", "report.html"):
        (killed / path).unlink()
    kill(words, killed / "iter_01/policy", tmp_path / "killed")
    done = run("loop", *words, cwd=tmp_path / "killed")
    assert done.code == 0, done.out + done.err
    assert summary(killed) == summary(whole)
    assert results(killed) == results(whole), "the same weights and the same episodes, byte by byte"


def kill(words: list[str], stage: Path, cwd: Path) -> None:
    """Starts the loop and kills it with its simulations once the stage has a checkpoint."""
    with (cwd / "console.txt").open("wb") as console:
        command = [sys.executable, str(ROOT / "loop.py"), *words]
        process = subprocess.Popen(command, cwd=cwd, stdout=console, stderr=console, start_new_session=True)
    deadline = time.monotonic() + LIMIT
    while not [*stage.glob("checkpoints/0*")]:
        assert process.poll() is None, (cwd / "console.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (stage / "manifest.json").exists(), "it came too late"
