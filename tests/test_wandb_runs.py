"""A whole run as W&B gets it, killed on the way; and the dashboard of it."""

from __future__ import annotations

import fnmatch
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny_run import ROOT, RUN, STAGES, TINY, read, snapshot
from wandb_files import OfflineRun, by_name

from recap.dashboard import LAYOUT, workspace

LOOP = [
    *[sys.executable, str(ROOT / "loop.py"), *TINY, "+iterations=1", "tracking.mode=offline", "rollout.videos=1"],
    *["ablation=[negative_prompt]", "policy.sft.steps=24", "policy.finetune.steps=12"],
]
ABLATION = "ablations/negative_prompt/iter_01/eval"
TRAININGS = {"sft": 24, "value": 4, "iter_01/value": 4, "iter_01/policy": 12}


def kill_at(cwd: Path, stage: str, lines: int, everybody: bool) -> None:
    """Starts the loop and kills it when the stage has written so many steps; everybody: W&B's process too."""
    record = cwd / RUN / stage / "metrics.jsonl"
    process = subprocess.Popen(LOOP, cwd=cwd, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not (record.is_file() and record.read_bytes().count(b"\n") >= lines):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (os.killpg if everybody else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    assert not (cwd / RUN / stage / "manifest.json").exists()


@pytest.mark.slow
def test_a_whole_run_killed_twice(tmp_path: Path) -> None:
    run_dir = tmp_path / RUN
    kill_at(tmp_path, "sft", 9, everybody=True)
    kill_at(tmp_path, "iter_01/policy", 5, everybody=False)
    done = subprocess.run(LOOP, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("W&B") == 1, "one line, which says how to sync"
    assert "everything was sent" not in done.stdout

    runs = by_name(run_dir)
    assert sorted(runs) == sorted([*STAGES, ABLATION, "loop"])
    assert {run.group for run in runs.values()} == {"demo_small/seed=0"}
    assert {run.project for run in runs.values()} == {"recap"}
    assert {run.exit_code for run in runs.values()} == {0}
    assert {name: run.job for name, run in runs.items()} == {
        name: {"sft": "policy", "loop": "loop"}.get(name, name.rpartition("/")[2]) for name in runs
    }
    for name, run in runs.items():
        assert run.steps == sorted(set(run.steps)), f"{name}: each step once, in order"
        assert all(path.stat().st_size for path in run.media()), "every file that a row names is there"
        assert run.commit == run.config["made_by"]["git_commit"].removesuffix("-dirty")
        own = [made for made in run.artifacts if made.type != "run_table"]
        assert all(entry.ref for made in own for entry in made.manifest.contents), "no weights, no data are uploaded"
    for name, steps in TRAININGS.items():
        check_training(runs[name], run_dir / name, steps)
    for name in [*STAGES, ABLATION]:
        stage = yaml.safe_load((run_dir / name / "config.yaml").read_text())
        assert stage.items() <= runs[name].config.items()
        made_from = {entry["path"]: entry["run"] for entry in runs[name].config["made_from"].values()}
        assert made_from == {path: runs[path].id for path in made_from}, "lineage leads to W&B runs"
    assert set(runs["iter_01/policy"].config["made_from"]) == {
        "pretrained",
        "demonstrations",
        "rollouts_01",
        "labels",
        "gate",
    }
    assert runs[ABLATION].tags == ["ablation negative_prompt"]
    assert len(runs["sft/eval"].media()) == len(runs["iter_01/rollout"].media()) == 1
    check_advantage(runs["iter_01/advantage"], read(run_dir / "iter_01/advantage/thresholds.json"))
    (gate,) = runs["iter_01/gate"].rows
    checks = {check["name"]: check for check in read(run_dir / "iter_01/gate/gate.json")["checks"]}
    assert {f"gate/{name}/passed": int(check["passed"]) for name, check in checks.items()}.items() <= gate.items()
    assert [path.suffix for path in runs["iter_01/gate"].media()] == [".png"]
    check_loop(runs["loop"], read(run_dir / "summary.json"))
    assert "launcher" not in runs["loop"].config, "launcher.setup may hold secrets"
    logged = {key for run in runs.values() for row in run.rows for key in row}
    for panel in (panel for panels in LAYOUT.values() for panel in panels):
        for key in panel.keys:
            assert fnmatch.filter(logged, key), f"the dashboard shows {key}, which nobody logs"

    before = snapshot(run_dir)
    again = subprocess.run(LOOP, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=600)
    assert "W&B" not in again.stdout
    assert snapshot(run_dir) == before, "a second time nothing is sent"


def check_training(run: OfflineRun, stage: Path, steps: int) -> None:
    """The rows are those of metrics.jsonl, after one of what the first batch looked like."""
    first, *rows = run.rows
    assert run.steps == list(range(steps + 1))
    assert len(run.media()) == len(first["first_batch"]["captions"]) == 4
    assert first["first_batch"]["captions"][0].startswith("put the moka pot on the burner")
    record = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    for row, numbers in zip(rows, record, strict=True):
        for key in ("loss", "lr", "grad_norm"):
            assert row[f"train/{key}"] == pytest.approx(numbers[key], rel=1e-12), f"step {numbers['step']}"


def check_advantage(run: OfflineRun, thresholds: dict) -> None:
    (row,) = run.rows
    ((task, epsilon),) = thresholds["epsilon"].items()
    assert row[f"epsilon/{task.replace(' ', '_')}"] == pytest.approx(epsilon)
    assert row["positive/all"] == pytest.approx(thresholds["achieved_positive"]["all"])
    assert row["advantage/demonstration"]["_type"] == "histogram"
    assert sum(row["advantage/demonstration"]["values"]) > 0
    assert [path for path in run.media() if path.suffix == ".json"], "the table of a value curve"


def check_loop(run: OfflineRun, summary: dict) -> None:
    assert run.metrics["*"] == "iteration"
    assert [row["iteration"] for row in run.rows] == [0, 1]
    for row, policy in zip(run.rows, summary["policies"], strict=True):
        assert row["loop/success/rate"] == policy["eval"]["success_rate"]
        assert [row["loop/success/low"], row["loop/success/high"]] == pytest.approx(policy["eval"]["ci95"])
        assert row["loop/data/rollouts"] == policy["data"]["rollouts"]
        assert row["loop/minutes/iteration"] > 0
    (ablation,) = summary["ablations"]
    assert run.summary["loop/ablations/negative_prompt/rate"] == ablation["eval"]["success_rate"]


@pytest.mark.slow
def test_the_dashboard_is_a_view_of_these_panels() -> None:
    view = json.loads(workspace("robots", "recap")._to_model().model_dump_json(by_alias=True))
    assert (view["entity"], view["project"], view["displayName"]) == ("robots", "recap", "RECAP")
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == list(LAYOUT)
    shown = [panel["config"] for section in sections for panel in section["panels"]]
    wanted = [panel for panels in LAYOUT.values() for panel in panels]
    for panel, config in zip(wanted, shown, strict=True):
        pattern = config.get("metricRegex")
        found = [pattern.replace(".*", "*")] if pattern else config.get("metrics") or config.get("mediaKeys")
        assert tuple(found) == panel.keys
