"""lerobot as it is runs our policies, in processes that know nothing of this package or know it as a plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from policy_helpers import act, numbers_of, pi0_size, take_for_full_size

from recap.export import export
from recap.policies.adapter import features
from recap.policies.checkpoint import Checkpoint
from recap.policies.pi0.adapter import PI0Adapter
from recap.policies.prompt import prompt
from recap.rollout.config import Prompt
from recap.utils.errors import RecapError

TASK = "put both moka pots on the stove"
PUSHT = {"cameras": {"observation.image": (96, 96)}, "state_dim": 2, "action_dim": 2}
EVALUATE = ["--env.type=pusht", "--env.episode_length=12", "--eval.n_episodes=2", "--eval.batch_size=2"]
EVALUATE += [
    "--eval.use_async_envs=false",
    "--env.observation_height=96",
    "--env.observation_width=96",
    "--policy.device=cpu",
    "--seed=1",
]
needs_pusht = pytest.mark.skipif(find_spec("gym_pusht") is None, reason="gym-pusht is not installed (make setup)")


def pusht_policy() -> Checkpoint:
    """A small π0 for the environment that comes with lerobot; its prompt fits the padding of PaliGemma."""
    torch.manual_seed(7)
    policy = PI0Adapter().build(pi0_size(n_action_steps=4, tokenizer_max_length=48), features(**PUSHT), "cpu")
    stats = {key: {"mean": [1.0, -2.0], "std": [3.0, 0.5]} for key in ("observation.state", "action")}
    return Checkpoint.new(PI0Adapter(), policy, stats)


def batch(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "observation.image": torch.rand(2, 3, 96, 96, generator=generator),
        "observation.state": torch.randn(2, 2, generator=generator),
        "task": [TASK, "push"],
    }


@pytest.fixture
def as_full_size(monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """A small policy that this package takes for lerobot's one size."""
    checkpoint = pusht_policy()
    take_for_full_size(checkpoint, monkeypatch)
    return checkpoint


def python(*arguments: str, cwd: Path, **environment: str) -> str:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=cwd, env=env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def stock(out: Path, noise: torch.Tensor, numbers: Any, repository: Path, cwd: Path) -> dict[str, Any]:
    """{"tokens", "actions"} of lerobot with an export, in a process that cannot import recap; and lerobot-eval."""
    torch.save({**batch(), "noise": noise}, cwd / "batch.pt")
    job = {
        "checkpoint": str(out),
        "batch": str(cwd / "batch.pt"),
        "actions": str(cwd / "actions.pt"),
        "numbers": numbers,
        "evaluate": [*EVALUATE, f"--output_dir={cwd / 'eval'}"],
    }
    (cwd / "job.json").write_text(json.dumps(job))
    python("-I", str(repository / "bench/stock_lerobot.py"), "job.json", cwd=cwd)
    assert json.loads((cwd / "eval/eval_info.json").read_text())["overall"]["n_episodes"] == 2
    found: dict[str, Any] = torch.load(cwd / "actions.pt", weights_only=True)
    return found


@needs_pusht
@pytest.mark.slow
def test_stock_lerobot_runs_an_exported_policy(as_full_size: Checkpoint, repository: Path, tmp_path: Path) -> None:
    """Strictly the same weights, tokens and actions as ours with the positive indicator; and lerobot-eval takes it."""
    as_full_size.save(tmp_path / "ours")
    out = export(tmp_path / "ours", tmp_path / "stock")
    assert json.loads((out / "config.json").read_text())["type"] == "pi0"
    assert os.path.samefile(out / "model.safetensors", tmp_path / "ours/model.safetensors"), "no second copy"
    noise = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(1))
    theirs = stock(out, noise, numbers_of(as_full_size.policy.config), repository, tmp_path)
    inputs = as_full_size.prepare(batch())
    length = inputs["observation.language.tokens"].shape[1]
    assert torch.equal(theirs["tokens"][:, :length], inputs["observation.language.tokens"])
    ours = as_full_size.postprocess(act(as_full_size, batch(), noise))
    torch.testing.assert_close(ours, theirs["actions"], atol=1e-4, rtol=0)
    as_full_size.set_prompt(None)
    plain = as_full_size.postprocess(act(as_full_size, batch(), noise))
    assert (plain - theirs["actions"]).abs().max() > 1e-2, "the comparison would be empty"


@needs_pusht
@pytest.mark.slow
def test_lerobot_eval_runs_any_size_with_this_package_as_the_plugin(repository: Path, tmp_path: Path) -> None:
    pusht_policy().save(tmp_path / "ours")
    arguments = ["--policy.path=ours", "--env.discover_packages_path=recap.policies", *EVALUATE]
    script = "from lerobot.scripts.lerobot_eval import main; main()"
    python("-c", script, *arguments, "--output_dir=eval", cwd=tmp_path, PYTHONPATH=str(repository))
    assert json.loads((tmp_path / "eval/eval_info.json").read_text())["overall"]["n_episodes"] == 2


@pytest.mark.parametrize("told", Prompt)
def test_an_exported_policy_is_read_again(told: Prompt, as_full_size: Checkpoint, tmp_path: Path) -> None:
    """Also from another place: our reader finds the tokenizer beside the weights."""
    as_full_size.save(tmp_path / "ours")
    moved = export(tmp_path / "ours", tmp_path / "stock", told).rename(tmp_path / "moved")
    (tmp_path / "plain").touch()
    assert {path.stat().st_mode for path in moved.iterdir()} == {(tmp_path / "plain").stat().st_mode}, "the umask's"
    again = Checkpoint.load(moved, PI0Adapter(), "cpu")
    noise = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(1))
    indicator = {Prompt.positive: True, Prompt.negative: False, Prompt.none: None}[told]
    as_full_size.set_prompt(indicator)
    assert torch.equal(act(again, batch(), noise), act(as_full_size, batch(), noise)), "it says what it was told"
    for checkpoint in (again, as_full_size):
        checkpoint.set_prompt(True)
    assert torch.equal(act(again, batch(), noise), act(as_full_size, batch(), noise)), "and only once"


def test_what_cannot_be_exported(as_full_size: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_full_size.save(tmp_path / "ours")
    (tmp_path / "there").mkdir()
    with pytest.raises(RecapError, match=r"there exists already\. Fix"):
        export(tmp_path / "ours", tmp_path / "there")
    monkeypatch.undo()
    with pytest.raises(RecapError, match=r"has one size, and this is another\. Fix: .*discover_packages_path"):
        export(tmp_path / "ours", tmp_path / "stock")


def test_the_indicator_in_a_tokenizer_survives_truncation() -> None:
    from recap.policies.prompt import builtin_tokenizer, own_indicator, with_indicator

    plain = builtin_tokenizer()
    for indicator in (True, False):
        baked = with_indicator(plain, indicator)
        assert own_indicator(baked) is indicator
        assert baked(prompt(TASK, None))["input_ids"] == plain(prompt(TASK, indicator))["input_ids"]
        suffix = plain(prompt("", indicator).removeprefix("\n"))["input_ids"]
        short = baked(TASK * 9, truncation=True, max_length=30)["input_ids"]
        assert (len(short), short[-len(suffix) :]) == (30, suffix)
    assert own_indicator(with_indicator(baked, None)) is None
    assert with_indicator(baked, None)(TASK)["input_ids"] == plain(TASK)["input_ids"]
