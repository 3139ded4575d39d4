"""From a command line to its jobs: sweeps become the runs that they should, and failures become messages."""

from __future__ import annotations

import errno
import io
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recap.cli import entrypoint as cli
from recap.cli import sweep
from recap.config import AdvantageJob, Config, EvalJob, LoopJob, StageKind, TrainJob
from recap.pipeline import runner as pipeline
from recap.stages.training import TrainPolicy
from recap.utils import home
from recap.utils.errors import RecapError

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
SCHEMAS: dict[str, type[Config]] = {"train": TrainJob, "eval": EvalJob, "advantage": AdvantageJob, "loop": LoopJob}
EXPERIMENTS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))


@dataclass
class Outcome:
    code: int
    jobs: list[Any]
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Run]:
    """The whole way of a command line through Hydra, in this process; `work` stands where the pipeline starts."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.chdir(tmp_path)

    def go(entry: str, *overrides: str, work: Callable[[Any], None] = lambda cfg: None) -> Outcome:
        jobs: list[Any] = []

        def record(cfg: Config) -> None:
            jobs.append(cfg)
            work(cfg)

        monkeypatch.setattr(sys, "argv", [f"{entry}.py", *overrides])
        code = cli._run(record, SCHEMAS[entry], CONF, entry)
        return Outcome(code, jobs, capsys.readouterr().err)

    yield go
    root.handlers[:], root.level = handlers, level


def test_iterations_follow_each_other_within_a_run(run: Run, tmp_path: Path) -> None:
    seen = run("loop", "experiment=demo", "+iterations=2", "seed=0,1", "-m")
    assert seen.code == 0
    assert [(job.output, job.seed, job.iteration, job.iterations) for job in seen.jobs] == [
        ("outputs/demo/seed=0", 0, 1, 2),
        ("outputs/demo/seed=0", 0, 2, 2),
        ("outputs/demo/seed=1", 1, 1, 2),
        ("outputs/demo/seed=1", 1, 2, 2),
    ]
    assert list(tmp_path.iterdir()) == [], "Hydra leaves nothing behind"


@pytest.mark.parametrize(
    ("overrides", "outputs"),
    [
        (
            ["advantage.positive_fraction=0.2,0.3"],
            [f"outputs/demo/advantage.positive_fraction={x}" for x in (0.2, 0.3)],
        ),
        (["name=a,b"], ["outputs/a", "outputs/b"]),
        (["output='some where'", "seed=range(2)"], ["some where/seed=0", "some where/seed=1"]),
    ],
)
def test_each_run_has_its_directory(run: Run, overrides: list[str], outputs: list[str]) -> None:
    seen = run("loop", "experiment=demo", "iterations=1", *overrides)
    assert (seen.code, [job.output for job in seen.jobs]) == (0, outputs)


def test_stages_of_one_run_share_its_directory(run: Run) -> None:
    seen = run("train", "experiment=demo", "policy=pi0,value")
    assert [(job.role.name, job.output) for job in seen.jobs] == [("policy", "outputs/demo"), ("value", "outputs/demo")]


def test_experiments_sweep(run: Run) -> None:
    seen = run("loop", "experiment=glob(*)", "iterations=1")
    assert [job.output for job in seen.jobs] == [f"outputs/{name}" for name in EXPERIMENTS]


def test_one_bad_run_stops_all_before_any_work(run: Run) -> None:
    seen = run("loop", "experiment=demo", "iterations=1", "policy.n_action_steps=5,50")
    assert (seen.code, seen.jobs) == (2, [])
    assert "policy.n_action_steps=50" in seen.err
    assert "Traceback" not in seen.err


def test_runs_may_not_share_a_directory(run: Run) -> None:
    seen = run("loop", "experiment=demo,two_pots", "iterations=1", "name=same")
    assert (seen.code, seen.jobs) == (2, [])
    assert "outputs/same" in seen.err


def test_loop_counts_by_itself(run: Run) -> None:
    seen = run("loop", "experiment=demo", "iterations=3", "iteration=2")
    assert (seen.code, seen.jobs) == (2, [])
    assert "iteration=2" in seen.err


def test_a_size_that_is_only_a_name(run: Run, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nsize: tiny\n")
    seen = run("train", "--config-dir", str(tmp_path), "experiment=mine")
    assert (seen.code, seen.jobs) == (2, [])
    assert "override /size: tiny" in seen.err


def test_broken_yaml(run: Run, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: [1\n")
    seen = run("train", "--config-dir", str(tmp_path), "experiment=mine")
    assert seen.code == 2
    assert "mine.yaml" in seen.err
    assert "Traceback" not in seen.err


def test_a_failed_run_leaves_the_others_alone(run: Run) -> None:
    def work(cfg: Any) -> None:
        if cfg.seed == 0:
            raise RecapError("the disk is full")
        if cfg.seed == 1:
            raise KeyError("a bug")

    seen = run("loop", "experiment=demo", "iterations=2", "seed=0,1,2", work=work)
    assert seen.code == 1
    assert [(job.seed, job.iteration) for job in seen.jobs] == [(0, 1), (1, 1), (2, 1), (2, 2)], "no second iteration"
    assert "error: outputs/demo/seed=0: the disk is full" in seen.err
    assert "seed=0: iteration 2 skipped" in seen.err
    assert seen.err.count("Traceback") == 1
    assert "KeyError: 'a bug'" in seen.err
    last = "error: 2 of 3 runs failed: outputs/demo/seed=0, outputs/demo/seed=1"
    assert seen.err.splitlines()[-1] == last, "what failed first may be far above"


def test_the_error_is_the_last_line(run: Run) -> None:
    """However many iterations follow, and whatever is left out because of it."""

    def work(cfg: Any) -> None:
        raise RecapError("the disk is full")

    seen = run("loop", "experiment=demo", "iterations=30", work=work)
    assert (seen.code, len(seen.jobs)) == (1, 1)
    assert seen.err.split("\n") == [
        "outputs/demo: iterations 2 to 30 skipped, because an earlier one failed",
        *("", "error: outputs/demo: the disk is full", ""),
    ]
    seen = run("train", "experiment=demo", "policy=pi0,value", work=work)
    assert (seen.code, [job.role.name for job in seen.jobs]) == (1, ["policy"])
    assert "outputs/demo: policy=value skipped, because an earlier one failed" in seen.err
    assert seen.err.splitlines()[-1] == "error: 1 of 1 runs failed: outputs/demo"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["+iterations=1000000"], "iterations=1000000: must be at least 1 and at most 1000"),
        (["+iterations=1", "seed=range(1000000000)"], "seed=range(1000000000): more than 300 runs"),
        (["+iterations=1", "seed=range(30)", "gate.min_auc=0.5,0.6", "eval.beta=1,2,3,4,5,6"], "more than 300 runs"),
    ],
)
def test_more_than_anybody_waits_for_is_refused_at_once(run: Run, overrides: list[str], says: str) -> None:
    began = time.process_time()
    seen = run("loop", "experiment=demo", *overrides)
    assert (seen.code, seen.jobs) == (2, [])
    assert says in seen.err
    assert time.process_time() - began < 10


def test_many_runs_are_counted_while_they_are_checked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "MANY", 2)
    seen = run("eval", "experiment=demo", "checkpoint=x", "seed=0,1")
    assert (seen.code, len(seen.jobs)) == (0, 2)
    assert "checking every run: 2/2" in seen.err


def test_home_in_every_path(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Bare, where the shell leaves it alone; in quotes; in a list; in a file."""
    monkeypatch.setenv("HOME", "/home/my robot")
    (tmp_path / "experiment").mkdir()
    own = "# @package _global_\ndefaults: [demo]\npolicy: {pretrained: ~/weights}\nvalue: {pretrained: owner/name}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(own)
    typed = [
        "output=~/runs/x",
        "+data.sources.mine.root='~/data set'",
        "value.pretrained_text=~",
        "policy.tokenizer=~/tokens",
    ]
    typed += ["launcher.python='apptainer exec --bind ~/x:/x ~/r.sif python'"]
    typed += ["launcher.options=['container-image=~/r.sqsh',exclusive]", "env.tasks=['turn ~ on']"]
    seen = run("train", "--config-dir", str(tmp_path), "experiment=mine", *typed)
    assert (seen.code, seen.err) == (0, "")
    (job,) = seen.jobs
    assert job.output == "/home/my robot/runs/x"
    assert job.data.sources["mine"].root == "/home/my robot/data set"
    assert (job.value.pretrained, job.value.pretrained_text) == ("owner/name", "/home/my robot")
    assert (job.policy.pretrained, job.policy.tokenizer) == ("/home/my robot/weights", "/home/my robot/tokens")
    assert job.launcher.python == "apptainer exec --bind '/home/my robot'/x:/x '/home/my robot'/r.sif python"
    assert job.launcher.options == ["container-image=/home/my robot/r.sqsh", "exclusive"]
    assert job.env.tasks == ["turn ~ on"]
    seen = run("eval", "experiment=demo", "checkpoint=~/a/last", "result='~/r'")
    assert [(job.checkpoint, job.result) for job in seen.jobs] == [("/home/my robot/a/last", "/home/my robot/r")]
    assert home.in_argument("checkpoint=~/a,~/b") == r"checkpoint=/home/my\ robot/a,/home/my\ robot/b"
    assert home.in_argument("~controls") == "~controls", "Hydra's own sign"
    seen = run("eval", "experiment=demo", "checkpoint=~someone-else/x")
    assert seen.code == 2
    assert "checkpoint=~someone-else/x: ~someone-else is nobody's home here. Fix: the whole path." in seen.err


def test_success_is_silent(run: Run) -> None:
    seen = run("eval", "experiment=demo", "checkpoint=x", "episodes=3", "record=true")
    assert (seen.code, seen.err) == (0, "")
    assert [(job.checkpoint, job.episodes, job.record, job.output) for job in seen.jobs] == [
        ("x", 3, True, "outputs/demo")
    ]


def test_interrupted(run: Run) -> None:
    def work(cfg: Any) -> None:
        raise KeyboardInterrupt

    seen = run("loop", "experiment=demo", "iterations=2", work=work)
    assert (seen.code, len(seen.jobs)) == (130, 1)
    assert "continues" in seen.err


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["train.py", "policy.lr=abc"], 2, "policy.sft.learning_rate"),
        (["loop.py", "experiment=demo"], 2, "+iterations="),
        (["eval.py", "--cfg", "job", "experiment=demo"], 0, "n_action_steps: 5"),
    ],
)
def test_entrypoints_answer_without_torch(command: list[str], code: int, says: str, tmp_path: Path) -> None:
    spy = "import runpy, sys; sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv[0].rpartition('/')[0])\n"
    spy += "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    spy += "finally: assert 'torch' not in sys.modules and 'recap.pipeline.runner' not in sys.modules"
    arguments = [sys.executable, "-c", spy, str(ROOT / command[0]), *command[1:]]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_options_that_do_not_go_together(run: Run) -> None:
    seen = run("train", "-m", "--cfg", "job")
    assert (seen.code, seen.jobs) == (2, [])
    assert "Only one of" in seen.err


def test_an_entrypoint_is_short() -> None:
    for entry in SCHEMAS:
        assert len((ROOT / f"{entry}.py").read_text().splitlines()) <= 60


# ---------------------------------------------------------------------------------------------------- the console
@contextmanager
def full_console(at_once: bool) -> Iterator[None]:
    """Standard output goes to a full disk, as with `> /dev/full`; at once: with PYTHONUNBUFFERED, which keeps nothing.

    In the end it is flushed, as Python does, which must not say it again.
    """
    raw = open("/dev/full", "wb", buffering=0 if at_once else -1)  # noqa: SIM115
    with io.TextIOWrapper(raw, write_through=at_once) as stream, redirect_stdout(stream):
        yield


def shown(cfg: Config) -> None:
    print("the result", flush=True)


def shown_in_a_stage(cfg: Config) -> None:
    Path(cfg.output).mkdir(parents=True)
    stage = TrainPolicy(cfg=cfg, path="", inputs={}, training=StageKind.sft)
    with pipeline._reported(stage, io.StringIO()):
        shown(cfg)


@pytest.mark.parametrize(("work", "at_once"), [(shown, True), (shown_in_a_stage, False)])
def test_a_full_console_is_not_the_run_directory(run: Run, work: Callable[[Any], None], at_once: bool) -> None:
    with full_console(at_once):
        seen = run("loop", "experiment=demo", "+iterations=1", "launcher=inline", work=work)
    assert seen.code == 1
    assert "cannot write to standard output: No space left on device. Fix: send it elsewhere" in seen.err
    assert "choose output=" not in seen.err
    assert "Traceback" not in seen.err


def test_what_is_still_to_be_written_counts(run: Run) -> None:
    """`--cfg job`, or a run whose last words stand in the buffer."""
    with full_console(at_once=False):
        seen = run("loop", "experiment=demo", "+iterations=1", "--cfg", "job")
        assert cli._written(seen.code) == 1


def test_a_full_disk_is_still_named(run: Run, tmp_path: Path) -> None:
    def work(cfg: Config) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    seen = run("loop", "experiment=demo", "+iterations=1", "launcher=inline", work=work)
    assert (seen.code, "cannot use outputs/demo: No space left on device" in seen.err) == (1, True)
