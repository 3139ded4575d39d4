"""A disk that cannot be written, is full, or fills up: one clear error, and nothing earlier is touched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_bad_inputs import check, refuses
from tiny_run import ROOT, RUN, TINY, Outcome, call, results, snapshot

from recap.cli.entrypoint import _run
from recap.config import LoopJob
from recap.pipeline.graph import run_stages
from recap.pipeline.runner import run_stage


def test_an_output_that_cannot_be(tmp_path: Path) -> None:
    refuses(tmp_path, "loop", "+iterations=1", "output=/proc/nowhere", says=["output=/proc/nowhere: 0.0 GB free"])
    (tmp_path / "file").write_text("mine")
    refuses(tmp_path, "loop", "+iterations=1", "output=file/run", says=["output=file/run", "is a file"])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts file systems in memory, for those who may."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        path = tmp_path / "disk"
        path.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        if mounted:
            command = ["mount", "-o", f"remount,{options}", str(path)]
        if sys.platform != "linux" or os.geteuid() != 0:
            pytest.skip("mounting a file system needs root on Linux")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(path)
        return path

    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", str(mounted[0])], check=True)


def test_a_read_only_disk(small_disk: Callable[[str], Path], finished_run: Path) -> None:
    disk = small_disk("size=100m")
    shutil.copytree(finished_run / RUN, disk / "run", symlinks=True)
    shutil.rmtree(disk / "run/iter_01/eval")
    small_disk("ro")
    refuses(disk, "loop", "+iterations=1", "output=run", says=["output=run", "cannot be written"])
    refuses(disk, "loop", "+iterations=1", "output=new", says=["output=new", "cannot be written"])


def test_too_little_space_to_begin(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("size=10m")
    refuses(disk, "loop", "+iterations=1", "output=run", says=["output=run: 0.0 GB free", "needs about 1.0 GB"])


@pytest.mark.parametrize(
    ("stage", "left"),
    [
        ("sft", 200),  # the weights do not fit
        ("sft", 2400),  # the optimiser's state does not
        ("iter_01/advantage", 8),
        pytest.param("sft", 0, marks=pytest.mark.slow),
        pytest.param("demonstrations", 100, marks=pytest.mark.slow),  # an episode does not fit
        pytest.param("demonstrations", 600, marks=pytest.mark.slow),  # the data set does not
        pytest.param("iter_01/rollout", 100, marks=pytest.mark.slow),
        pytest.param("iter_01/value", 20, marks=pytest.mark.slow),
        pytest.param("iter_01/advantage", 0, marks=pytest.mark.slow),
        pytest.param("iter_01/eval", 0, marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_fills_up(small_disk: Callable[[str], Path], finished_run: Path, stage: str, left: int) -> None:
    """The stage finds `left` KB; with more space it ends as it should have."""
    disk = small_disk("size=200m")
    shutil.copytree(finished_run / RUN, disk / "run", symlinks=True)
    shutil.rmtree(disk / "run" / stage)
    with (disk / "filler").open("wb") as file:
        while chunk := min(2**20, shutil.disk_usage(disk).free - left * 1024):
            if chunk < 0:
                break
            file.write(b"\0" * chunk)
            file.flush()
    before = snapshot(disk / "run")
    check(_stage_alone(stage, disk), 1, "space", "again")
    assert before.items() <= snapshot(disk / "run").items()
    assert not (disk / "run" / stage / "manifest.json").exists()
    (disk / "filler").unlink()
    seen = _stage_alone(stage, disk)
    assert seen.code == 0, seen.err
    assert results(disk / "run")[stage] == results(finished_run / RUN)[stage]


def _stage_alone(stage: str, cwd: Path) -> Outcome:
    """A stage without what is checked before, which would have seen that the disk is full."""

    def main(cfg: LoopJob) -> None:
        run_stage(next(one for one in run_stages(cfg, 1)[0] if one.path == stage))

    def command() -> None:
        sys.exit(_run(main, LoopJob, ROOT / "conf", "loop"))

    return call(command, ["loop.py", *TINY, "+iterations=1", "output=run"], cwd)
