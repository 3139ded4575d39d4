"""A policy that is no part of this package: the toy of docs/extending.md, in the whole loop."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tiny_run import ROOT, RUN, STAGES, TINY, Outcome, results, run, snapshot, summary

from recap.config import LoopJob, keys, plain, typed
from recap.export import main as export
from recap.policies.checkpoint import Checkpoint
from recap.policies.registry import adapter_of, keys_of
from recap.utils.errors import RecapError

TOY = ROOT / "tests/toy_policy"
DOCUMENT = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
OBSERVATION = {"observation.state": torch.linspace(-1, 1, 16).view(2, 8), "task": ["push", "push"]}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


def loop(*overrides: str, cwd: Path) -> Outcome:
    """`python loop.py policy=toy`, with the one line of configuration that the document gives."""
    folder = cwd / "my_conf/policy"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "toy.yaml").write_text(blocks("yaml")[0])
    return run("loop", f"--config-dir={folder.parent}", *TINY, "policy=toy", "+iterations=1", *overrides, cwd=cwd)


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a finished run. Not to be changed."""
    cwd = tmp_path_factory.mktemp("toy")
    done = loop(cwd=cwd)
    assert done.code == 0, done.out + done.err
    return cwd


@pytest.fixture
def work(toy_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_run, tmp_path / "work", symlinks=True))


def test_the_document_shows_the_code_that_runs() -> None:
    assert blocks("python")[:2] == [(TOY / name).read_text(encoding="utf-8") for name in ("config.py", "adapter.py")]
    assert len(blocks("yaml")[0].splitlines()) == 1
    assert not [path for path in (ROOT / "recap").rglob("*.py") if "toy" in path.read_text(encoding="utf-8").lower()]


def test_the_loop_runs_with_it(toy_run: Path) -> None:
    run_dir = toy_run / RUN
    assert all((run_dir / stage / "manifest.json").is_file() for stage in STAGES)
    trained = yaml.safe_load((run_dir / "iter_01/policy/config.yaml").read_text())["policy"]
    assert (trained["type"], trained["hidden"], "vlm" in trained) == ("toy_policy", 64, False)
    assert yaml.safe_load((run_dir / "iter_01/eval/config.yaml").read_text())["n_action_steps"] == 5
    assert summary(run_dir)
    told = (run_dir / "iter_01/policy/first_batch/prompts.jsonl").read_text()
    assert {line.strip('"') for line in told.splitlines()} <= {"indicator +1", "indicator -1", "indicator +0"}
    assert "indicator +1" in told
    assert "indicator -1" in told


def test_a_run_goes_on(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that stopped continues from its last checkpoint to the same weights; what is finished is left."""
    run_dir = work / RUN
    steps: list[int] = []
    before, made = snapshot(run_dir / "sft"), results(run_dir)["iter_01/policy"]
    shutil.rmtree(run_dir / "iter_01/policy")

    def until(last: int) -> Callable[..., dict[str, Any]]:
        def noise(*_: Any) -> dict[str, Any]:
            if len(steps) == last:
                raise RecapError("the power is out")
            steps.append(1)
            return {}

        return noise

    monkeypatch.setattr(type(adapter_of(keys_of("toy_policy"))), "training_noise", until(2))
    assert "the power is out" in loop(cwd=work).err
    monkeypatch.setattr(type(adapter_of(keys_of("toy_policy"))), "training_noise", until(99))
    again = loop(cwd=work)
    assert again.code == 0, again.out + again.err
    assert len(steps) == 4, "two before, two after"
    assert snapshot(run_dir / "sft") == before
    weights = "checkpoints/0000004/model.safetensors"
    assert results(run_dir)["iter_01/policy"][weights] == made[weights]


def test_the_indicator_reaches_it(toy_run: Path) -> None:
    last = toy_run / RUN / "iter_01/policy/checkpoints/last"
    checkpoint = Checkpoint.load(last, adapter_of(keys_of("toy_policy")), "cpu")

    def actions(indicator: bool | None) -> torch.Tensor:
        checkpoint.set_prompt(indicator)
        return checkpoint.policy.predict_action_chunk(checkpoint.prepare(dict(OBSERVATION)))

    positive, negative, none = (actions(indicator) for indicator in (True, False, None))
    assert positive.shape == (2, 5, 7)
    assert min((positive - negative).abs().max(), (positive - none).abs().max()) > 1e-4
    given = checkpoint.policy.predict_action_chunk(checkpoint.prepare({**OBSERVATION, "indicator": [True, False]}))
    torch.testing.assert_close(given, torch.stack([positive[0], negative[1]]))


def test_its_configuration_is_typed(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/toy.yaml").write_text(blocks("yaml")[0])
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        beside = f"hydra.searchpath=['file://{tmp_path}']"
        cfg = typed(
            compose("loop", [beside, "experiment=demo", "policy=toy", "+policy.hidden=8", "iterations=1"]), LoopJob
        )
    assert type(cfg.policy) is keys_of("toy_policy")
    assert typed(OmegaConf.create(plain(cfg)), LoopJob) == cfg
    assert cloudpickle.loads(cloudpickle.dumps(cfg)) == cfg
    assert {"policy.hidden", "policy.vlm.width", "policy.sft.steps"} <= set(keys(LoopJob))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["policy.type=toy_polcy"], ["policy.type=toy_polcy: choose one of pi0, pi05, smolvla, or a package of yours"]),
        (["policy.type=pi1", "seed=-1"], ["policy.type=pi1: choose one of pi0", "Nearest: pi0", "seed=-1"]),
        (["policy.type=json"], ["policy.type=json: choose one of pi0"]),
        (["policy.type=broken"], ["policy.type=broken: broken.config cannot be imported", "No module named 'absent'"]),
        (["policy.type=empty"], ["empty.config defines no subclass of PolicyConfig", "docs/extending.md"]),
        (["policy.hidden=8"], ["policy.hidden=8: is not there yet. Fix: '+policy.hidden=8'"]),
        (["+policy.hiden=8"], ["policy.hiden=8: no such key. Nearest: policy.hidden"]),
        (["+policy.hidden=0"], ["policy.hidden=0: must be at least 1"]),
        (["+policy.flow_samples=2"], ["policy.flow_samples=2: is a key of policy.type=pi0, not of toy_policy"]),
        (["+policy.n_action_steps=6"], ["policy.n_action_steps=6: only policy.chunk_size=5", "Fix:"]),
        (["eval.beta=2"], ["eval.beta=2: policy.type=toy_policy has no guidance. Fix: eval.beta=1"]),
    ],
)
def test_what_is_wrong_is_said_at_once(
    overrides: list[str], says: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys_of("toy_policy")
    package(tmp_path / "broken", "import absent\n")
    package(tmp_path / "empty", "")
    monkeypatch.syspath_prepend(str(tmp_path))
    done = loop(*overrides, cwd=tmp_path)
    assert done.code == 2
    assert done.err.count("error:") == 1
    assert "Traceback" not in done.err
    for text in says:
        assert text in done.err
    assert not (tmp_path / "outputs").exists()


def test_an_adapter_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path / "half_toy", (TOY / "config.py").read_text())
    (tmp_path / "half_toy/adapter.py").write_text("import absent\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    done = loop("policy.type=half_toy", cwd=tmp_path)
    assert done.code == 1
    assert "policy.type=half_toy: half_toy.adapter cannot be imported (ModuleNotFoundError: No module" in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / RUN / "demonstrations").exists()


def test_it_has_no_form_for_lerobot_alone(toy_run: Path, tmp_path: Path, capsys: Any) -> None:
    last = toy_run / RUN / "sft/checkpoints/last"
    assert export([str(last), str(tmp_path / "out"), "--type=toy_policy"]) == 1
    error = capsys.readouterr().err
    assert "has no form that lerobot runs by itself" in error
    assert f"--env.discover_packages_path=toy_policy --policy.path={last}" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def package(folder: Path, config: str) -> None:
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "config.py").write_text(config)
    for name in [name for name in sys.modules if name.partition(".")[0] == folder.name]:
        del sys.modules[name]
