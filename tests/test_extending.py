"""An environment, a stage and an ablation of one's own, as docs/extending.md has them. A policy: test_own_policy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from test_own_policy import DOCUMENT, blocks
from tiny_run import ROOT, RUN, TINY, read, run, tiny
from toy_stage import Novelty

from recap.config import Config
from recap.pipeline import graph
from recap.stages.base import Stage

TESTS = ROOT / "tests"


def test_the_document_shows_the_code_that_runs() -> None:
    files = ("toy_env/env.py", "toy_env/demonstrator.py", "toy_stage.py")
    assert blocks("python")[2:] == [(TESTS / name).read_text(encoding="utf-8") for name in files]
    names = [path for path in (ROOT / "recap").rglob("*.py") if re.search(r"toy_env|[Nn]ovelty", path.read_text())]
    assert not names


def reach(*overrides: str, cwd: Path) -> str:
    folder = cwd / "my_conf/env"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reach.yaml").write_text(blocks("yaml")[1])
    small = [f"{role}.{stage}.steps=4" for role in ("policy", "value") for stage in ("sft", "finetune")]
    small += [f"{role}.{stage}.warmup_steps=1" for role in ("policy", "value") for stage in ("sft", "finetune")]
    small += [
        "name=demo_small",
        "gate.action=warn",
        "env.max_steps=12",
        "rollout.episodes=4",
        "eval.episodes=4",
        "data.demonstrator.episodes=3",
    ]
    command = [f"--config-dir={folder.parent}", "experiment=stove", "env=reach", "+iterations=1", "ablation=[]"]
    seen = run("loop", *command, *small, "workers.num_envs=4", *overrides, cwd=cwd)
    return seen.err if seen.code else ""


def test_an_environment_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded demonstrations, rollouts and evaluation in it, by its processes."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))  # of the simulation processes
    assert reach(cwd=tmp_path) == ""
    run_dir = tmp_path / RUN
    info = read(run_dir / "iter_01/rollout/dataset/meta/info.json")
    assert info["features"]["observation.images.top"]["shape"] == [64, 64, 3]
    assert info["features"]["action"]["names"] == ["dx", "dy"]
    assert {e["task"] for e in read(run_dir / "iter_01/eval/result.json")["episodes"]} == {"reach the target"}
    demonstrated = read(run_dir / "demonstrations/dataset/meta/recap.json")["episodes"]
    assert [episode["success"] for episode in demonstrated] == [True] * 3


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("env.type=toy_en", "env.type=toy_en: choose one of libero, moka, aloha"),
        ("env.type=mokka", "Nearest: moka"),
        ("env.type=json", "env.type=json: choose one of"),
        ("env.type=pusht", "env=pusht: has no scripted demonstrator"),
    ],
)
def test_environments_that_are_not_there(override: str, says: str, tmp_path: Path) -> None:
    assert says in reach(override, cwd=tmp_path)
    assert not (tmp_path / RUN).exists()


def test_a_stage_of_ones_own(finished_run: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It joins a finished run, is kept the second time, and belongs to the report's list of stages."""
    (line,) = re.findall(r"^\+ +(.*)$", blocks("diff")[0], re.MULTILINE)
    own = eval(f"lambda cfg, iteration: [{line}]", {**vars(graph), "Novelty": Novelty})
    before = graph.iteration_stages

    def stages(cfg: Config, iteration: int, *, gated: bool = True) -> list[Stage]:
        return [*before(cfg, iteration, gated=gated), *own(cfg, iteration)]

    monkeypatch.setattr(graph, "iteration_stages", stages)
    seen = tiny("loop", "+iterations=1", cwd=work)
    assert seen.code == 0, seen.err
    assert "iter_01/policy  kept" in seen.out
    assert read(work / RUN / "iter_01/novelty/novelty.json")["distance"] > 0
    assert set(read(work / RUN / "iter_01/novelty/manifest.json")["inputs"]) == {"demonstrations", "rollouts_01"}
    assert "iter_01/novelty" in read(work / RUN / "summary.json")["wall_seconds"]
    assert "iter_01/novelty  kept" in tiny("loop", "+iterations=1", cwd=work).out
    other = tiny("loop", "+iterations=1", "data.demonstrator.episodes=4", cwd=work)
    assert other.code == 1, "another configuration is refused"


def test_an_ablation_of_ones_own(work: Path) -> None:
    """The file and the command line of the document are the same ablation."""
    (override,) = re.findall(r"'(\+ablations\.eager=[^']*)'", DOCUMENT)
    folder = work / "my_conf/ablation"
    folder.mkdir(parents=True)
    (folder / "eager.yaml").write_text(blocks("yaml")[2])
    assert yaml.safe_load(blocks("yaml")[2]) == {"eager": {"advantage.positive_fraction": 0.6}}
    first = tiny("loop", "+iterations=1", override, cwd=work)
    assert first.code == 0, first.err
    own = [f"--config-dir={folder.parent}", *TINY, "+iterations=1", "ablation=[eager]"]
    again = run("loop", *own, cwd=work)
    assert "ablations/eager/iter_01/eval  kept" in again.out, again.err
