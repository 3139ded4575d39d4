"""tracking=trackio: what arrives in its database, read back by trackio itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image
from tiny_run import ROOT

from recap import tracking
from recap.config import ConfigError, LoopJob, typed
from recap.pipeline import preflight
from recap.pipeline.graph import gate
from recap.storage.manifest import write_manifest
from recap.tracking import wandb
from recap.tracking.config import TrackingConfig, TrackingKind, TrackingMode
from recap.utils.errors import RecapError

WANTED = TrackingConfig(
    kind=TrackingKind.trackio, mode=TrackingMode.disabled, tags=["first try"], videos=4, tensorboard=False
)


@pytest.fixture(autouse=True)
def lines_of_this_test() -> None:
    """Lines are said once a process."""
    wandb._say.cache_clear()


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type:
    """trackio's, empty; it reads TRACKIO_DIR when it is imported, which another test may have done."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    from trackio import sqlite_storage, utils

    folder = tmp_path / "trackio"
    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", folder)
    monkeypatch.setattr(utils, "MEDIA_DIR", folder / "media")
    return sqlite_storage.SQLiteStorage


def test_it_is_chosen_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        choice = ["experiment=demo_small", "+iterations=1", "tracking=trackio"]
        cfg = typed(compose("loop", choice), LoopJob)
        with pytest.raises(ConfigError, match=r"tracking\.mode=online: tracking=trackio has no W&B\. Fix"):
            typed(compose("loop", [*choice, "tracking.mode=online"]), LoopJob)
    assert (cfg.tracking.kind, cfg.tracking.videos) == (TrackingKind.trackio, 4)
    preflight.preflight(cfg, [gate(cfg, 1)])
    monkeypatch.setattr(preflight, "find_spec", lambda _: None)
    with pytest.raises(RecapError, match=r"tracking=trackio: is not installed\. Fix: pip install trackio"):
        preflight.preflight(cfg, [gate(cfg, 1)])


def shown(run: Path, name: str, kind: str) -> tracking.Shown:
    out = run / name
    out.mkdir(parents=True, exist_ok=True)
    return tracking.Shown(WANTED, run, out, name, "demo/seed=0", kind, kind in ("policy", "value"), {"seed": 0})


def logs(database: Any, name: str) -> list[dict[str, Any]]:
    """The rows of the only run of that name."""
    [run] = [run for run in database.get_run_records("recap") if run["name"] == f"demo/seed=0/{name}"]
    return database.get_logs("recap", run["name"], run_id=run["id"])


def train(stage: tracking.Shown, start: int, stop: int, *, killed: bool = False) -> None:
    """The same numbers for a step, however often it is trained; without its last line where it is killed."""
    with tracking.tracked(stage), tracking.Tracker(stage.out / "metrics.jsonl", start) as tracker:
        for step in range(start + 1, stop + 1):
            tracker.log(step, loss=1 / step)
        if killed:
            raise KeyboardInterrupt
        write_manifest(stage.out, node=stage.name, seed=0, inputs={}, began=time.time())


def test_a_stage_that_was_interrupted_has_each_step_once(
    tmp_path: Path, database: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    stage = shown(tmp_path / "run", "iter_01/policy", "policy")
    pictures = stage.out / "first_batch"
    pictures.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(pictures / "0.png")
    (pictures / "prompts.jsonl").write_text('"put the moka pot on the stove"\n')
    with pytest.raises(KeyboardInterrupt):
        train(stage, 0, 7, killed=True)
    tracking.close()
    assert [row["step"] for row in logs(database, stage.name)] == list(range(8))
    train(stage, 4, 9)  # from its checkpoint
    tracking.close()
    first, *rows = logs(database, stage.name)
    assert first["first_batch/0"]["caption"] == "put the moka pot on the stove"
    steps = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert steps == [(step, pytest.approx(1 / step)) for step in range(1, 10)]
    assert len([row["minutes"] for row in rows if "minutes" in row]) == 1
    config = database.get_run_config("recap", f"demo/seed=0/{stage.name}")
    assert (config["tags"], config["made_by"]["run_directory"]) == (["first try"], str(tmp_path / "run"))
    tracking.publish(stage)  # the same command again
    tracking.close()
    assert len(logs(database, stage.name)) == len(rows) + 1, "nothing is sent twice"
    assert capfd.readouterr().out == "trackio: trackio show --project recap, group demo/seed=0\n"


def test_results_of_a_stage_and_runs_of_one_name(tmp_path: Path, database: Any) -> None:
    for run in ("run", "another"):  # two folders with a run of the same name and seed
        stage = shown(tmp_path / run, "iter_01/value_inference", "value_inference")
        np.save(stage.out / "rollouts_01.npy", np.linspace(-1, 0, 100))
        write_manifest(stage.out, node=stage.name, seed=0, inputs={}, began=time.time())
        tracking.publish(stage)
    tracking.close()
    records = database.get_run_records("recap")
    assert [record["name"] for record in records] == ["demo/seed=0/iter_01/value_inference"] * 2
    for record in records:
        row = database.get_logs("recap", record["name"], run_id=record["id"])[0]
        assert row["value_mean/rollouts_01"] == pytest.approx(-0.5)
        assert sum(row["value/rollouts_01"]["values"]) == 100


def test_a_database_that_cannot_be_written_costs_a_line(
    tmp_path: Path, database: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trackio").write_text("in the way")
    stage = shown(tmp_path / "run", "sft", "policy")
    train(stage, 0, 3)
    tracking.close()
    told = capfd.readouterr()
    assert not told.err
    line = told.out.splitlines()[-1]
    assert line.startswith("trackio: sft was not sent (")
    assert (stage.out / "manifest.json").is_file()
    assert "trackio" not in (stage.out / ".wandb.json").read_text(), "it is sent by the next command"
