"""A run directory that somebody else made or changed: nothing outside of it is touched, and nothing in it believed."""

from __future__ import annotations

import json
import os
import py_compile
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_run import RUN, STAGES, call, read, snapshot, tiny

from recap.jobs import snapshot as code
from recap.report.__main__ import main as report
from recap.report.summary import write_atomic
from recap.storage.inside import stay_inside
from recap.storage.manifest import begin, sha256, verify
from recap.utils.errors import RecapError
from recap.utils.files import follow_umask, write_text


# ---------------------------------------------------------------------------------------------------- links
@pytest.fixture
def victims(tmp_path: Path) -> Path:
    """What no run may touch: a file, and checkpoints with a `.tmp` that a run would tidy away."""
    folder = tmp_path / "victims"
    for name in ("file", "checkpoints/0000001/model", "checkpoints/.0000002.tmp/model"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("precious")
    return folder


def plant(run: Path, victims: Path) -> list[Path]:
    """Links in the places of what a run appends to, truncates, replaces or deletes."""
    places = {
        ".lock": "file",
        "summary.json.tmp": "file",
        ".report": "checkpoints",
        "wandb": "checkpoints",
        "iter_01/eval/log.txt": "file",
        "iter_01/policy/checkpoints": "checkpoints",
        "iter_01/eval/job": "absent",
    }
    for place, target in places.items():
        path = run / place
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(victims / target)
    return [run / place for place in places]


def test_nothing_is_written_through_links_that_lead_out(work: Path, victims: Path) -> None:
    planted, before = plant(work / RUN, victims), snapshot(victims)
    (work / RUN / "iter_01/policy/manifest.json").unlink()  # so that there is something to do
    everything = snapshot(work)
    seen = tiny("loop", "+iterations=1", cwd=work)
    assert seen.code == 1
    assert snapshot(victims) == before
    assert snapshot(work) == everything, "nor is anything written elsewhere"
    assert not (victims / "absent").exists()
    for path in planted:
        assert f"{path.relative_to(work)} is a link to {victims}" in seen.err
    assert len(seen.err.strip().splitlines()) <= 15
    removes = next(line for line in seen.err.splitlines() if line.startswith("Fix: ")).removeprefix("Fix: ")
    subprocess.run(shlex.split(removes), cwd=work, check=True)
    assert snapshot(victims) == before
    stay_inside(work / RUN)


@pytest.mark.parametrize("command", ["result", "report"])
def test_other_commands_write_through_no_link_either(work: Path, victims: Path, command: str) -> None:
    before = snapshot(victims)
    if command == "report":
        (work / RUN / "report.html.tmp").symlink_to(victims / "file")
        seen = call(lambda: sys.exit(report([RUN.as_posix()])), ["report"], work)
    else:
        (work / "mine").mkdir()
        (work / "mine/log.txt").symlink_to(victims / "file")
        seen = tiny("eval", f"checkpoint={RUN}/sft", "episodes=1", "result=mine", cwd=work)
    assert seen.code == 1
    assert f"is a link to {victims / 'file'}" in seen.err
    assert snapshot(victims) == before


def test_a_text_beside_several_runs_replaces_a_link(victims: Path, tmp_path: Path) -> None:
    """comparison.html lies beside run directories, in a folder that nobody looks through."""
    for write in (write_atomic, write_text):
        for name in ("page", "page.tmp", f".page.{os.getpid()}.tmp"):
            (tmp_path / name).unlink(missing_ok=True)
            (tmp_path / name).symlink_to(victims / "file")
        write(tmp_path / "page", "new")
        assert (tmp_path / "page").read_text() == "new"
    assert (victims / "file").read_text() == "precious"


Maker = Callable[[Path], object]


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.symlink_to("../../out"), "is a link to"),
        (lambda path: path.symlink_to("../.."), "is a link to"),
        (lambda path: path.symlink_to("not/../../../nowhere"), "is a link to"),
        (lambda path: path.symlink_to("/dev/full"), "is a link to /dev/full"),
        (lambda path: path.symlink_to(path.name), "is a link that leads in a circle"),
        (lambda path: (path.symlink_to("b"), path.with_name("b").symlink_to(path.name)), "in a circle"),
        (lambda path: (path.symlink_to("b"), path.with_name("b").symlink_to("/tmp")), "is a link to"),
        (os.mkfifo, "is a pipe"),
        (_socket, "is a socket"),
    ],
)
def test_what_leads_out_or_waits_is_refused(
    tmp_path: Path, make: Maker, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    run = Path("run")
    (run / "sft").mkdir(parents=True)
    make(run / "sft/a")
    with pytest.raises(RecapError, match=says) as told:
        stay_inside(run)
    assert "run/sft/a" in str(told.value)


def test_links_that_stay_inside_are_fine(tmp_path: Path) -> None:
    run = tmp_path / "disk/run"
    (run / "sft/checkpoints/0000006").mkdir(parents=True)
    (run / "sft/checkpoints/last").symlink_to("0000006")
    (run / "best").symlink_to("sft/checkpoints/last")
    (run / "sft/absolute").symlink_to(run / "best")
    (run / "sft/later").symlink_to("not/there/yet")
    (run / "wandb/offline-run-1/logs").mkdir(parents=True)
    (run / "wandb/offline-run-1/logs/debug-core.log").symlink_to(tmp_path / "cache.log")
    (run / "sft/job").mkdir()
    (run / "sft/job/.submission_file_0123.sh").symlink_to("/where/it/was/submitted/17_submission.sh")
    (tmp_path / "outputs").symlink_to("disk")  # the whole is where its owner wants it
    for place in (run, tmp_path / "outputs/run", tmp_path / "not/there"):
        stay_inside(place)


def test_outputs_that_leads_nowhere(work: Path) -> None:
    (work / "outputs").rename(work / "away")
    (work / "outputs").symlink_to("unmounted/disk")
    seen = tiny("loop", "+iterations=1", cwd=work)
    assert seen.code == 1
    assert f"outputs is a link that leads to {work}/unmounted/disk, which does not exist" in seen.err
    typed = seen.err.partition("Fix: ")[2].partition(", mount")[0]
    subprocess.run(shlex.split(typed), check=True)
    stay_inside(work / RUN)
    (work / "outputs").unlink()
    (work / "outputs").symlink_to("outputs")
    with pytest.raises(RecapError, match=r"outputs is a link that leads in a circle\. Fix: rm "):
        stay_inside(work / RUN)
    (work / "outputs").unlink()
    (work / "outputs").symlink_to("away")
    seen = tiny("loop", "+iterations=1", cwd=work)
    assert seen.out.count("  kept") == len(STAGES)


# ---------------------------------------------------------------------------------------------------- stored values
def quietly(path: Path, content: bytes) -> None:
    """Other contents of the same size, in the same file, with the time of the old ones."""
    state = path.stat()
    assert len(content) == state.st_size
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_every_result_is_compared(work: Path) -> None:
    """Of every stage: whatever its kind, and also in a process that has seen it before."""
    kinds = set()
    for stage in (work / RUN / name for name in STAGES):
        listed = read(stage / "manifest.json")["outputs"]
        there = {path.relative_to(stage) for path in stage.rglob("*") if path.is_file()}
        assert {Path(name) for name in listed} <= there
        verify(stage)
        for name in listed:
            path = stage / name
            kinds.add(path.suffix)
            old = path.read_bytes()
            quietly(path, old[:-1] + bytes([old[-1] ^ 1]))
            with pytest.raises(RecapError, match=f"{path.name} was changed"):
                verify(stage)
            quietly(path, old)
        verify(stage)
    assert kinds == {".json", ".md", ".mp4", ".npy", ".parquet", ".png", ".safetensors"}


def test_values_are_not_believed(work: Path) -> None:
    path = work / RUN / "iter_01/value_inference/rollouts_01.npy"
    for stage in ("advantage", "gate", "policy", "eval"):
        shutil.rmtree(work / RUN / "iter_01" / stage)
    old = path.read_bytes()
    quietly(path, old[:-8] + np.float64(-0.5).tobytes())
    seen = tiny("loop", "+iterations=1", cwd=work)
    assert seen.code == 1
    assert "iter_01/value_inference/rollouts_01.npy was changed (its SHA-256 differs)" in seen.err
    assert "`python advantage.py iteration=1`" in seen.err
    assert not (work / RUN / "iter_01/advantage").exists()


def _point_elsewhere(stage: Path) -> None:
    shutil.copytree(stage / "checkpoints/0000006", stage / "other")
    (stage / "other/config.json").write_text((stage / "other/config.json").read_text() + " ")
    (stage / "checkpoints/last").unlink()
    (stage / "checkpoints/last").symlink_to("../other")


def _add_adapters(stage: Path) -> None:
    (stage / "checkpoints/0000006/adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("change", "says"),
    [(_point_elsewhere, "last/config.json has "), (_add_adapters, "adapter_config.json was put there after")],
)
def test_the_results_are_those_that_the_stage_made(work: Path, change: Maker, says: str) -> None:
    stage = work / RUN / "sft"
    change(stage)
    with pytest.raises(RecapError, match=says):
        verify(stage)


def test_what_people_do_with_a_stage(work: Path) -> None:
    stage = work / RUN / "sft"
    (stage / "notes.json").write_text("my own")
    (stage / "checkpoints/.DS_Store").write_text("a Mac's")
    shutil.copytree(stage / "checkpoints/last", stage / "exported")
    last = stage / "checkpoints/last"
    last.unlink()
    shutil.copytree(stage / "checkpoints/0000006", last)  # a copy that knows no links
    verify(stage)
    manifest = read(stage / "manifest.json")
    del manifest["links"]  # an older version's
    (stage / "manifest.json").write_text(json.dumps(manifest))
    verify(stage)


def test_the_hash_of_a_file_is_that_of_its_contents(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = sha256(path)
    quietly(path, b"two")
    assert sha256(path) != first


def test_a_stage_goes_on_with_what_it_was_begun_with(work: Path, tmp_path: Path) -> None:
    inputs = {"policy": work / RUN / "sft/checkpoints/last", "given": tmp_path / "given"}
    (tmp_path / "given").mkdir()
    (tmp_path / "given/config.json").write_text("{}")
    for _ in range(2):
        begin(tmp_path, inputs)
    (tmp_path / "given/config.json").write_text("{ }")
    with pytest.raises(RecapError, match=r"was begun with another given than there is now\. Fix: delete"):
        begin(tmp_path, inputs)


def test_a_killed_evaluation_of_another_policy_is_not_gone_on_with(work: Path) -> None:
    """Its journal holds the episodes that the other one played."""
    stages = work / RUN / "iter_01"
    (stages / "eval/manifest.json").unlink()
    weights = stages / "policy/checkpoints/last/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    manifest = read(stages / "policy/manifest.json")
    manifest["outputs"]["checkpoints/0000004/model.safetensors"]["sha256"] = sha256(weights)
    (stages / "policy/manifest.json").write_text(json.dumps(manifest))
    seen = tiny("loop", "+iterations=1", cwd=work)
    assert seen.code == 1
    assert "iter_01/eval was begun with another ../policy than there is now. Fix: delete" in seen.err


# ---------------------------------------------------------------------------------------------------- code
EVIL = "\nopen({!r}, 'w')\n"


def _source(folder: Path, evil: str) -> None:
    path = folder / "recap/utils/errors.py"
    path.write_text(path.read_text() + evil)


def _compiled(folder: Path, evil: str) -> None:
    """Which Python takes for the source's, without a look at it."""
    path, kept = folder / "recap/utils/errors.py", (folder / "recap/utils/errors.py").read_text()
    path.write_text(kept + evil)
    py_compile.compile(str(path), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    path.write_text(kept)


def _added(folder: Path, evil: str) -> None:
    (folder / "sitecustomize.py").write_text(evil)


def _linked(folder: Path, evil: str) -> None:
    outside = folder.parents[2] / "outside"
    shutil.copytree(folder / "recap", outside)
    (outside / "errors.py").write_text(evil)
    shutil.rmtree(folder / "recap")
    (folder / "recap").symlink_to(outside)


def _all_of_it(folder: Path, evil: str) -> None:
    shutil.rmtree(folder)
    folder.write_text(evil)


@pytest.mark.parametrize("change", [_source, _compiled, _added, _linked, _all_of_it])
def test_jobs_run_no_code_that_somebody_put_there(
    tmp_path: Path, change: Callable[[Path, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    made = code.snapshot(tmp_path / "run")
    told = tmp_path / "told"
    change(made, EVIL.format(str(told)))
    assert code.snapshot(tmp_path / "run") == made, "the place is the same"
    command = [sys.executable, "-c", "import recap.utils.errors; print(recap.utils.errors.__file__)"]
    environment = {"PYTHONPATH": str(made), "PYTHONSAFEPATH": "1"}
    seen = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == str(made / "recap/utils/errors.py")
    assert not told.exists()
    assert ("is made anew" in capsys.readouterr().err) == (change is not _compiled)
    again = {path: path.stat().st_mtime_ns for path in made.rglob("*.py")}
    assert code.snapshot(tmp_path / "run") == made
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*.py")} == again, "kept where it is what it says"


def test_the_snapshot_has_no_copy_of_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("recap/utils/errors.py", "conf/base.yaml", "conf/site/here.yaml", "conf/site/here.yaml~", "loop.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("sesame" if "site" in name else "")
    monkeypatch.setattr(code, "ROOT", tmp_path)
    made = code.snapshot(tmp_path / "run")
    assert {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()} == {
        *("recap/utils/errors.py", "conf/base.yaml", "loop.py", "COMMIT"),
    }


# ---------------------------------------------------------------------------------------------------- permissions
def test_files_are_as_readable_as_the_umask_says(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    plain = (tmp_path / "plain").stat().st_mode
    made = [path for path in (finished_run / RUN).rglob("*") if path.is_file()]
    assert {path.suffix for path in made} >= {".safetensors", ".npy", ".parquet", ".json", ".mp4", ".png"}
    assert {path.stat().st_mode for path in made} == {plain}


def test_other_names_of_a_file_are_left_alone(tmp_path: Path) -> None:
    """A weight that is linked from the hub's cache is not opened to everybody there."""
    for name in ("own", "cached"):
        (tmp_path / name).touch(0o600)
    os.link(tmp_path / "cached", tmp_path / "linked")
    (tmp_path / "elsewhere").symlink_to("cached")
    follow_umask(tmp_path)
    plain = tmp_path.stat().st_mode & 0o666
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("own", "cached")] == [plain, 0o600]
