"""Variables that are wrong or left over, consoles without letters: one clear error, or the run goes on."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shlex
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import wandb
from demo_keys import demo
from tiny_run import ROOT, RUN, TINY, _main, tiny

from recap import export, study
from recap.config import LoopJob, typed
from recap.jobs.job import python
from recap.report.__main__ import main as report
from recap.tracking.config import TrackingConfig, TrackingKind, TrackingMode
from recap.tracking.mode import problem
from recap.tracking.wandb import _first_line
from recap.utils import environment
from recap.utils import ranks as share
from recap.utils.console import spell
from recap.utils.errors import RecapError

TOGETHER = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def given(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in (*TOGETHER, "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


# ---------------------------------------------------------------------------------------------------- what is wrong
@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, []),
        ({"WORLD_SIZE": "1", "RANK": "0"}, []),
        (TOGETHER, []),
        ({"OMP_NUM_THREADS": "4,2", "CUDA_VISIBLE_DEVICES": "0,1", "MUJOCO_GL": "EGL"}, []),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8932f937-d72c,MIG-GPU-1/0/0"}, []),
        ({"CUDA_VISIBLE_DEVICES": "", "MUJOCO_GL": ""}, []),
        ({"WORLD_SIZE": "abc"}, ["WORLD_SIZE=abc: must be a whole number. Fix: unset WORLD_SIZE"]),
        ({"WORLD_SIZE": ""}, ["WORLD_SIZE=: must be a whole number"]),
        ({**TOGETHER, "LOCAL_RANK": "x"}, ["LOCAL_RANK=x: must be a whole number"]),
        ({**TOGETHER, "MASTER_PORT": "http"}, ["MASTER_PORT=http: must be a whole number"]),
        ({"RANK": "1"}, ["RANK=1: RANK must be at least 0 and below WORLD_SIZE, which is 1. Fix: unset RANK;"]),
        ({**TOGETHER, "RANK": "2"}, ["RANK must be at least 0 and below WORLD_SIZE, which is 2"]),
        ({"WORLD_SIZE": "0"}, ["below WORLD_SIZE, which is 0"]),
        (
            {"WORLD_SIZE": "2"},
            ["WORLD_SIZE=2 without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT", "Fix: unset WORLD_SIZE; or start them"],
        ),
        ({**TOGETHER, "MASTER_ADDR": ""}, ["without MASTER_ADDR: it would wait for processes that nobody started"]),
        ({"LOCAL_RANK": "0"}, ["LOCAL_RANK=0 without WORLD_SIZE, RANK"]),
        ({"OMP_NUM_THREADS": "abc"}, ["OMP_NUM_THREADS=abc: must be a whole number. Fix: OMP_NUM_THREADS=1"]),
        ({"CUDA_VISIBLE_DEVICES": "abc"}, ["CUDA_VISIBLE_DEVICES=abc: must be numbers of GPUs"]),
        ({"MUJOCO_GL": "foo"}, ["MUJOCO_GL=foo: must be one of egl, osmesa, glfw. Fix: MUJOCO_GL=egl"]),
        ({"MUJOCO_EGL_DEVICE_ID": "cuda:0"}, ["MUJOCO_EGL_DEVICE_ID=cuda:0: must be a whole number"]),
    ],
)
def test_variables(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], says: list[str]) -> None:
    given(monkeypatch, variables)
    found = [*environment.problems()]
    assert len(found) == bool(says)
    for text in says:
        assert text in found[0]


def test_they_are_told_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given(monkeypatch, {"WORLD_SIZE": "abc", "MUJOCO_GL": "foo"})
    seen = tiny("loop", "+iterations=1", cwd=tmp_path)
    assert (seen.code, seen.err.count("error:"), "Traceback" in seen.err) == (2, 1, False)
    assert "WORLD_SIZE=abc" in seen.err
    assert "MUJOCO_GL=foo" in seen.err
    assert not [*tmp_path.iterdir()]
    with pytest.raises(RecapError, match="WORLD_SIZE=abc"):
        share.process()


def wanted(mode: TrackingMode = TrackingMode.auto, kind: TrackingKind = TrackingKind.wandb) -> TrackingConfig:
    return replace(demo().tracking, kind=kind, mode=mode)


def test_a_mode_of_wandb_that_there_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    own = {"WANDB_MODE": "onlin", "WANDB_CONFIG_DIR": str(tmp_path)}
    assert problem(wanted(), own).startswith("WANDB_MODE=onlin: must be one of online, run, offline, dryrun, disabled.")
    assert problem(wanted(TrackingMode.offline), own) == problem(wanted(kind=TrackingKind.local), own) == ""
    for mode in ("online", "offline", "disabled", "shared"):
        assert problem(wanted(), own | {"WANDB_MODE": mode}) == ""
    (tmp_path / "settings").write_text("[default]\nmode = onlin\n")
    assert "mode = onlin in W&B's settings file: must be one of online" in problem(wanted(), own | {"WANDB_MODE": ""})
    monkeypatch.setenv("WANDB_MODE", "onlin")
    seen = tiny("loop", "+iterations=1", "tracking=wandb", cwd=tmp_path)
    assert (seen.code, "WANDB_MODE=onlin: must be one of" in seen.err) == (2, True)


def test_what_wandb_says_of_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "soon")
    with pytest.raises(ValueError, match="validation error") as seen:
        wandb.Settings(init_timeout="soon")
    told = _first_line(seen.value)
    assert told.startswith("WANDB_INIT_TIMEOUT=soon: Input should be a valid number")
    assert told.endswith("Fix: unset WANDB_INIT_TIMEOUT")
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "abc")
    assert _first_line(ValueError("invalid literal for int() with base 10: 'abc'")).startswith(
        "WANDB_HTTP_TIMEOUT=abc: "
    )
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert _first_line(ValueError("bad key 'secret'")) == "bad key 'secret'"


# ---------------------------------------------------------------------------------------------------- who never comes
def test_who_is_waited_for_is_said_and_in_the_end_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given(monkeypatch, TOGETHER)
    for name, seconds in {"LOOK": 0.01, "NOTE": 0.05, "PEER": 0.3, "MAIN": 60.0}.items():
        monkeypatch.setattr(share, f"{name}_SECONDS", seconds)
    lock = tmp_path / ".lock"
    who = "RANK=0 of WORLD_SIZE=2: waits for the other process to finish sft"
    with pytest.raises(RecapError, match=f"{who}, and no sign of it. Fix: unset WORLD_SIZE RANK"):
        share.wait(lambda: False, lock, "to finish sft")
    said = capsys.readouterr().err
    assert said.startswith(f"{who}. If there is none: Ctrl-C. Fix: unset WORLD_SIZE RANK LOCAL_RANK MASTER_ADDR")
    assert len(said.splitlines()) == 1
    with lock.open("w") as file:  # somebody is at work: however long that takes
        file.write("process 7")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_SH)
        looks = iter([False] * 60 + [True])
        share.wait(lambda: next(looks), lock, "to finish sft")
    assert (capsys.readouterr().err, lock.read_text()) == ("", "process 7")


def test_training_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from accelerate.state import AcceleratorState, PartialState

    from recap.training import distributed as sharding
    from recap.training.config import Sharding

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given(monkeypatch, TOGETHER | {"MASTER_PORT": port, "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"})
    monkeypatch.setattr(sharding, "PATIENCE", timedelta(seconds=0.5))
    monkeypatch.setattr(share, "NOTE_SECONDS", 0.1)
    states = dict(PartialState._shared_state), dict(AcceleratorState._shared_state)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with pytest.raises(RecapError, match=r"waits for the other process to begin training, and no sign of it\. Fix"):
            sharding.make_accelerator(Sharding.none, "cpu", demo().policy.sft)
    finally:
        PartialState._shared_state.clear()
        PartialState._shared_state.update(states[0])
        AcceleratorState._shared_state.clear()
        AcceleratorState._shared_state.update(states[1])
    assert "to begin training. If there is none: Ctrl-C. Fix: unset WORLD_SIZE" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- consoles
def shown(encoding: str, command: Callable[[], object]) -> str:
    """What a console of that encoding gets to see."""
    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    with contextlib.redirect_stdout(console), contextlib.redirect_stderr(console):
        command()
    assert isinstance(console.buffer, io.BytesIO)
    return console.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_letters_that_a_console_lacks(encoding: str) -> None:
    def command() -> None:
        spell()
        print("── π0 › ε → 30\u00a0% ‘a’ \udce9")

    told = shown(encoding, command)
    assert told.startswith("-- pi0 ")
    assert " epsilon -> 30" in told
    assert told.endswith("\\udce9\n")


def test_commands_on_an_ascii_console(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)

    def loop() -> None:
        monkeypatch.setattr("sys.argv", ["loop.py", *TINY, "+iterations=1", "launcher=inline"])
        with pytest.raises(SystemExit, match="0"):
            _main("loop")()

    told = shown("ascii", loop)
    assert "-- sft  kept" in told
    assert "report.html" in told
    assert "report.html" in shown("ascii", lambda: report([str(RUN)]))
    for command in (report, export.main):
        with pytest.raises(SystemExit, match="0"):
            shown("ascii", lambda command=command: command(["--help"]))
    assert "python -m recap.study" in shown("ascii", lambda: study.main([]))


def test_jobs_write_what_is_read_here(tmp_path: Path) -> None:
    """Whatever the locale of the node they run on."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = typed(compose("loop", ["experiment=demo", "+iterations=1", "launcher=local"]), LoopJob)
    code = f"print('── ε', open({str(tmp_path / 'é')!r}, 'w').encoding)"
    job = f"{python(cfg, tmp_path)} -c {shlex.quote(code)}"
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(job, shell=True, capture_output=True, env=plain, check=True, timeout=60)
    assert done.stdout.decode() == "── ε utf-8\n"


# ---------------------------------------------------------------------------------------------------- ~
def test_home_in_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for main, arguments, path in (
        (report, ["~/run"], "run"),
        (export.main, ["~/checkpoint", "~/out"], "checkpoint"),
        (study.main, ["~/study", "~/docs"], "study"),
    ):
        assert main(arguments) == 1
        assert str(tmp_path / path) in capsys.readouterr().err
        assert main(["~nobody-here/x", *arguments[1:]]) == 1
        assert (
            "error: ~nobody-here/x: ~nobody-here is nobody's home here. Fix: the whole path." in capsys.readouterr().err
        )
