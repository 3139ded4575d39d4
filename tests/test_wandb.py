"""W&B: when it is used, that it can neither stop nor slow a run, and what arrives: read back by W&B's own tools."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from tiny_run import ROOT, RUN
from wandb_files import offline_runs

from recap.config import ConfigError, LoopJob, typed
from recap.tracking import Tracker
from recap.tracking.config import TrackingConfig, TrackingKind, TrackingMode
from recap.tracking.mode import decide

KEY = "0" * 40
DEFAULT = {"kind": TrackingKind.wandb, "mode": TrackingMode.auto, "tags": [], "videos": 4, "tensorboard": False}


# ---------------------------------------------------------------------------------------------------- when
@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a working directory in which nobody has ever logged in."""
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("mode", "environment", "decided"),
    [
        ("auto", {}, "disabled"),
        ("auto", {"WANDB_API_KEY": KEY}, "auto"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "online"}, "online"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, "disabled"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_DISABLED": "true"}, "disabled"),
        ("auto", {"WANDB_MODE": "dryrun"}, "offline"),
        ("auto", {"WANDB_MODE": "online"}, "offline"),
        ("online", {}, "offline"),
        ("online", {"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, "online"),
        ("offline", {}, "offline"),
        ("disabled", {"WANDB_API_KEY": KEY}, "disabled"),
    ],
)
def test_the_mode_follows_from_what_is_configured(
    home: Path, mode: str, environment: dict[str, str], decided: str
) -> None:
    wanted = TrackingConfig(**{**DEFAULT, "mode": TrackingMode[mode]})
    found, line = decide(wanted, environment)
    assert found.name == decided
    assert bool(line) == (("no key" in line) and "WANDB_API_KEY" not in environment)
    assert "\n" not in line
    assert decide(TrackingConfig(**{**DEFAULT, "kind": TrackingKind.local}), environment)[0] is TrackingMode.disabled


def test_keys_are_found_where_wandb_login_puts_them(home: Path) -> None:
    wanted = TrackingConfig(**DEFAULT)
    netrc = home / ".netrc"
    netrc.write_text("machine github.com login me password secret\n")
    assert decide(wanted, {})[0] is TrackingMode.disabled, "a key of another server is none"
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    assert decide(wanted, {})[0] is TrackingMode.auto
    assert decide(wanted, {"WANDB_BASE_URL": "https://wandb.example.org"})[0] is TrackingMode.disabled
    elsewhere = home / "elsewhere"
    elsewhere.write_text(f"machine wandb.example.org login user password {KEY}\n")
    own = {"WANDB_BASE_URL": "https://wandb.example.org", "NETRC": str(elsewhere)}
    assert decide(wanted, own)[0] is TrackingMode.auto
    (home / "wandb").mkdir()
    (home / "wandb/settings").write_text("[default]\nmode = offline\n")  # what `wandb offline` writes
    assert decide(wanted, own)[0] is TrackingMode.offline
    (home / "wandb/settings").write_text("no settings at all")
    assert decide(wanted, own)[0] is TrackingMode.auto


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["tracking=local", "tracking.mode=online"], "tracking.mode=online: tracking=local has no W&B"),
        (["tracking.mode=on_line"], "choose one of auto, online, offline, disabled. Nearest: online"),
        (["tracking.videos=-1"], "tracking.videos=-1: must be at least 0"),
        ([f"tracking.tags=[{'x' * 65}]"], "must have 1 to 64 characters"),
    ],
)
def test_contradictions(overrides: list[str], told: str) -> None:
    with (
        initialize_config_dir(str(ROOT / "conf"), version_base="1.3"),
        pytest.raises(ConfigError, match=re.escape(told)),
    ):
        typed(compose("loop", ["experiment=demo_small", "+iterations=1", *overrides]), LoopJob)


# ---------------------------------------------------------------------------------------------------- a small run
# What a run does with tracking, and nothing else: numbers go to metrics.jsonl as a training writes them.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from hydra import compose, initialize_config_dir
import psutil
from recap import tracking
from recap.config import LoopJob, typed
from recap.pipeline import shown
from recap.policies.roles import Role
from recap.pipeline.graph import by_hand
from recap.storage.manifest import claim, write_manifest

root, start, stop, ending, *overrides = sys.argv[1:]
tracking.wandb.INIT_SECONDS, tracking.wandb.LEAVE_SECONDS = 3.0, 6.0
with initialize_config_dir(root + "/conf", version_base="1.3"):
    cfg = typed(compose("loop", ["experiment=demo_small", "+iterations=1", *overrides]), LoopJob)
(stage,) = by_hand(cfg, Role.value, 0)
out = stage.out
claim(out, stage.identity)
folder = Path(cfg.output) / "wandb"
before, began = set(folder.glob("offline-run-*/*.wandb")), time.perf_counter()
with tracking.tracked(shown.stage(stage)):
    with tracking.Tracker(out / "metrics.jsonl", int(start)) as tracker:
        for step in range(int(start) + 1, int(stop) + 1):
            tracker.log(step, loss=1 / step)
    print(f"seconds {time.perf_counter() - began} {'wandb' in sys.modules}", flush=True)
    while ending != "finish" and not set(folder.glob("offline-run-*/*.wandb")) - before:  # the thread is at it
        time.sleep(0.05)
    if ending == "preempted":
        tracking.preempting()
    if ending in ("kill", "preempted"):
        os.kill(os.getpid(), signal.SIGKILL)
    if ending == "broken":
        [service] = [child for child in psutil.Process().children() if child.name() == "wandb-core"]
        service.kill()
    write_manifest(out, node=stage.path, seed=0, inputs={}, began=time.time())
tracking.close()
"""


def small_run(cwd: Path, start: int, stop: int, ending: str, *overrides: str, **environment: str) -> str:
    """What it printed; `ending` is finish, kill, preempted, or broken: wandb's own process dies."""
    command = [sys.executable, "-c", PROGRAM, str(ROOT), str(start), str(stop), ending, *overrides]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**kept, "HOME": str(cwd), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == (0 if ending in ("finish", "broken") else -signal.SIGKILL), done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


def cost(told: str) -> float:
    """Seconds that the run spent, its numbers included."""
    line = next(line for line in told.splitlines() if line.startswith("seconds"))
    return float(line.split()[1])


def test_no_key_is_one_line_and_no_process(tmp_path: Path) -> None:
    told = small_run(tmp_path, 0, 5, "finish")
    assert cost(told) < 1
    assert told.splitlines()[1].endswith(" False"), "wandb is not even imported"
    assert [line for line in told.splitlines() if "W&B" in line] == [
        "W&B: no key (wandb login), so the record is local: metrics.jsonl and report.html"
    ]
    assert not (tmp_path / RUN / "wandb").exists()
    assert "W&B" not in small_run(tmp_path, 5, 9, "finish", WANDB_MODE="disabled", WANDB_API_KEY=KEY)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_never_answers(tmp_path: Path, silent_server: str) -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as short:  # wandb puts sockets there, whose names have a limit
        own = {"TMPDIR": short, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": silent_server}
        told = small_run(tmp_path, 0, 5, "finish", **own)
        assert not [*Path(short).iterdir()], "nothing is left in the temporary folder"
    assert cost(told) < 1
    assert time.monotonic() - began < 30
    assert [line for line in told.splitlines() if "W&B" in line] == [
        f"W&B: {silent_server} does not answer; offline files, for later: wandb sync {RUN}/wandb/offline-run-*"
    ]
    (run,) = offline_runs(tmp_path / RUN)
    assert run.steps == [1, 2, 3, 4, 5]
    assert (run.name, run.job, run.exit_code) == ("value", "value", 0)


@pytest.mark.slow
def test_a_server_that_falls_silent(tmp_path: Path) -> None:
    """It answers once and then never: wandb.init does not come back by itself."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"

        def answer() -> None:
            asked, _ = server.accept()
            asked.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        told = small_run(tmp_path, 0, 5, "finish", WANDB_API_KEY=KEY, WANDB_BASE_URL=url)
    assert cost(told) < 1
    [line] = [line for line in told.splitlines() if "W&B" in line]
    assert f"offline files, for later: wandb sync {RUN}/wandb/offline-run-*" in line
    (run,) = offline_runs(tmp_path / RUN)
    assert (run.steps, run.exit_code) == ([1, 2, 3, 4, 5], 0)


class Refusing(http.server.BaseHTTPRequestHandler):
    """A server that knows no key."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b'{"errors": [{"message": "no such key"}]}')

    do_GET = do_POST  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Nothing."""


def test_a_wrong_key_leaves_offline_files(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        told = small_run(tmp_path, 0, 5, "finish", WANDB_API_KEY=KEY, WANDB_BASE_URL=url)
        server.shutdown()
    assert cost(told) < 1
    [line] = [line for line in told.splitlines() if "W&B" in line]
    assert "401" in line
    assert line.endswith(f"offline files, for later: wandb sync {RUN}/wandb/offline-run-*")
    (run,) = offline_runs(tmp_path / RUN)
    assert (run.steps, run.exit_code) == ([1, 2, 3, 4, 5], 0)


def test_files_that_cannot_be_written_cost_a_line(tmp_path: Path) -> None:
    (tmp_path / RUN).mkdir(parents=True)
    (tmp_path / RUN / "wandb").write_text("in the way")
    told = small_run(tmp_path, 0, 5, "finish", "tracking.mode=offline")
    assert cost(told) < 1
    said = [line for line in told.splitlines() if "was not sent" in line]
    assert len(said) == 1
    assert "File exists" in said[0]
    assert (tmp_path / RUN / "value/manifest.json").is_file()
    assert "Traceback" not in told


@pytest.mark.slow
def test_killed_and_resumed(tmp_path: Path) -> None:
    """Each step once, in one folder, under one id; a second time nothing happens."""
    small_run(tmp_path, 0, 7, "kill", "tracking.mode=offline")
    (first,) = offline_runs(tmp_path / RUN)
    assert first.steps == list(range(1, len(first.steps) + 1)), "what wandb had written by then"
    id = first.folder.name.rpartition("-")[2]
    small_run(tmp_path, 4, 9, "preempted", "tracking.mode=offline")
    (second,) = offline_runs(tmp_path / RUN)
    assert (second.id, second.preempting, second.exit_code) == (id, True, 1)
    small_run(tmp_path, 6, 12, "finish", "tracking.mode=offline")
    (third,) = offline_runs(tmp_path / RUN)
    assert third.steps == list(range(1, 13))
    assert [row["train/loss"] for row in third.rows] == pytest.approx([1 / step for step in range(1, 13)])
    assert (third.id, third.preempting, third.exit_code) == (id, False, 0)


@pytest.mark.slow
def test_wandbs_own_process_dies(tmp_path: Path) -> None:
    """That costs a line; the same command again sends all."""
    told = small_run(tmp_path, 0, 7, "broken", "tracking.mode=offline")
    assert "value was not sent" in told
    assert (tmp_path / RUN / "value/manifest.json").is_file()
    small_run(tmp_path, 7, 7, "finish", "tracking.mode=offline")
    (run,) = offline_runs(tmp_path / RUN)
    assert (run.steps, run.exit_code) == ([1, 2, 3, 4, 5, 6, 7], 0)


@pytest.mark.slow
def test_tensorboard_drops_what_is_written_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Tracker(tmp_path / "metrics.jsonl", tensorboard=True) as tracker:
        for step in range(1, 8):
            tracker.log(step, loss=float(step))
    with Tracker(tmp_path / "metrics.jsonl", 4, tensorboard=True) as tracker:  # it was killed after its checkpoint 4
        for step in range(5, 10):
            tracker.log(step, loss=float(step))
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(s, s) for s in range(1, 10)]


# ---------------------------------------------------------------------------------------------------- metrics.jsonl
def test_tracker_drops_what_will_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "deep/metrics.jsonl"
    with Tracker(path) as tracker:
        for step in (1, 2, 3):
            tracker.log(step, loss=step / 10)
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    with Tracker(path, resume_step=2) as tracker:
        tracker.log(3, loss=7.0)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 0.1},
        {"step": 2, "loss": 0.2},
        {"step": 3, "loss": 7.0},
    ]
    with Tracker(None) as tracker:
        tracker.log(1, loss=0.0)
