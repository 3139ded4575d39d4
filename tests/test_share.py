"""A stage's work split among processes: together they do what one does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_run import ROOT, RUN, TINY, results, snapshot, tiny

from recap.config import LoopJob
from recap.pipeline.graph import iteration_stages
from recap.pipeline.runner import run_stage
from recap.storage.manifest import note_share
from recap.utils.ranks import WHOLE, Share, process

STAGES = {"iter_01/rollout": 4, "iter_01/value_inference": 2, "iter_01/eval": 3}


def test_shares_cover_everything_once() -> None:
    items = list(range(17))
    for count in (1, 2, 5, 20):
        parts = [list(Share(index, count).of(items)) for index in range(count)]
        assert sorted(item for part in parts for item in part) == items
    assert Share(1, 2).among(2, 3) == Share(5, 6)
    assert {Share(a, 2).among(b, 3).index for a in range(2) for b in range(3)} == set(range(6))
    assert WHOLE.whole
    assert str(Share(3, 8)) == "3of8"


def test_a_process_knows_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process() == WHOLE
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert process() == Share(2, 4)


def test_the_last_share_is_told(tmp_path: Path) -> None:
    assert [note_share(tmp_path, Share(index, 3)) for index in (2, 0, 2, 1, 0)] == [False, False, False, True, True]
    (tmp_path / ".shares").write_text("0of2\n1o")  # killed while writing
    assert not note_share(tmp_path, Share(0, 2))
    assert note_share(tmp_path, Share(1, 2))


@pytest.fixture
def loop(work: Path, monkeypatch: pytest.MonkeyPatch) -> LoopJob:
    """The configuration of a finished run in the working directory."""
    from hydra import compose, initialize_config_dir

    from recap.config import typed

    monkeypatch.chdir(work)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return typed(compose("loop", [*TINY, "+iterations=1"]), LoopJob)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_shards_make_what_one_makes(stage: str, loop: LoopJob, finished_run: Path) -> None:
    """In any order, one of them again, and the last one puts it together."""
    run, count = Path(loop.output), STAGES[stage]
    shutil.rmtree(run / stage)
    one = next(one for one in iteration_stages(loop, 1) if one.path == stage)
    for index in [count - 1, *reversed(range(count)), 0]:
        run_stage(one, Share(index, count))
        assert (run / stage / "manifest.json").exists() == (index == 0)
    assert results(run)[stage] == results(finished_run / RUN)[stage]
    left = {path.name for path in (run / stage).iterdir()}
    assert not left & {".shares", "values", "episodes"}
    assert not [name for name in left if "of" in name and name.endswith(".jsonl")]


@pytest.mark.slow
def test_a_split_can_be_changed_in_the_middle(loop: LoopJob, finished_run: Path) -> None:
    """What two of four have played, the whole does not play again."""
    run, stage = Path(loop.output), "iter_01/eval"
    shutil.rmtree(run / stage)
    one = next(one for one in iteration_stages(loop, 1) if one.path == stage)
    for index in (1, 3):
        run_stage(one, Share(index, 4))
    lines = [json.loads(path.read_text()) for path in sorted((run / stage).glob("episodes.*of4.jsonl"))]
    assert [line["index"] for line in lines] == [1, 3]
    run_stage(one)
    assert [json.loads(line)["index"] for line in (run / stage / "episodes.jsonl").read_text().splitlines()] == [0, 2]
    assert results(run)[stage] == results(finished_run / RUN)[stage]


def test_a_killed_value_inference_goes_on(loop: LoopJob, finished_run: Path) -> None:
    run, stage = Path(loop.output), "iter_01/value_inference"
    shutil.rmtree(run / stage)
    one = next(one for one in iteration_stages(loop, 1) if one.path == stage)
    run_stage(one, Share(0, 2))
    before = snapshot(run / stage / "blocks")
    assert len(before) == 1
    run_stage(one, Share(0, 2))
    assert snapshot(run / stage / "blocks") == before, "what is there is not made again"
    run_stage(one)
    assert results(run)[stage] == results(finished_run / RUN)[stage]


@pytest.mark.slow
def test_two_processes_label_and_evaluate_as_one(finished_run: Path, work: Path) -> None:
    together = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    together += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    checkpoint = f"checkpoint={RUN}/iter_01/policy/checkpoints/last"
    for stage, (entry, *overrides) in {
        "iter_01/value_inference": ("advantage", "data=moka+rollouts"),
        "iter_01/eval": ("eval", checkpoint, "episodes=4"),
    }.items():
        shutil.rmtree(work / RUN / stage)
        command = [*together, str(ROOT / f"{entry}.py"), *TINY, *overrides]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=work, capture_output=True, text=True, timeout=900, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("done in") == 1
    assert results(work / RUN) == results(finished_run / RUN)
    assert tiny("loop", "+iterations=1", cwd=work).code == 0


def test_shares_of_processes_weigh_as_much_as_they_hold() -> None:
    from recap.training.loop import _share

    batch = {"task": list("abcde"), "x": np.arange(5)}
    shares = [_share(batch, process, 2) for process in (0, 1)]
    assert [share["x"].tolist() for share, _ in shares] == [[0, 2, 4], [1, 3]]
    assert [weight for _, weight in shares] == pytest.approx([2 * 3 / 5, 2 * 2 / 5])
    losses = np.array([1.0, 2.0, 3.0, 4.0, 10.0])
    weighted = [losses[share["x"]].mean() * weight for share, weight in shares]
    assert np.mean(weighted) == pytest.approx(losses.mean())
    batch["action_is_pad"] = np.array([[0, 0], [0, 1], [1, 1], [0, 0], [0, 1]], dtype=bool)
    assert [weight for _, weight in (_share(batch, p, 2) for p in (0, 1))] == pytest.approx([2 * 3 / 6, 2 * 3 / 6])
