"""The documented commands of the entrypoints, of `python -m recap…` and of what reads their results, run at small size.

In the order of the page, on a finished run of the demo: what a page says has to work one after the other.
"""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from documented import ROOT, Command
from policy_helpers import numbers_of
from small_size import entry, filled, make_world, small
from test_config import load
from test_documented_commands import REFUSED, rule, taken
from tiny_run import RUN, Outcome, call, read, run, tiny

pytestmark = pytest.mark.slow

PENDING = {"python eval.py env=libero checkpoint=<a folder of lerobot's π0> eval.prompt=none"}
COMPOSED = "conf/experiment/"  # test_config.py composes what these say; ablations: test_ablations.py
ORDER = ("entrypoint", "module", "lerobot-eval", "wandb", "tensorboard")
PAGES: dict[str, list[Command]] = {}
for one in sorted(taken(*ORDER), key=lambda command: ORDER.index(str(rule(command)))):
    if one.text not in PENDING and not one.page.startswith(COMPOSED):
        PAGES.setdefault(one.page, []).append(one)


@pytest.fixture(scope="module")
def world(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which somebody has typed what the README says."""
    world = tmp_path_factory.mktemp("readme")
    make_world(finished_run, world)
    assert not failures("README.md", world)
    return world


def failures(page: str, cwd: Path) -> str:
    """Types the commands of a page; what went wrong."""
    said = []
    for command in PAGES[page]:
        seen, (wanted, _) = typed(command, cwd), REFUSED.get(command.text, ("", ""))
        if (seen.code != 0) != bool(wanted) or wanted not in seen.err:
            said.append(f"{command.where}: {command.text}: exit {seen.code}\n{seen.out[-300:]}{seen.err[-1500:]}")
    return "\n".join(said)


def typed(command: Command, cwd: Path) -> Outcome:
    kind, words = rule(command), filled(command)
    if kind == "module":
        return of_module(words[2], words[3:], cwd)
    if kind == "lerobot-eval" and not any(word.startswith("--env.type") for word in words):
        words.append("--env.type=libero")  # which "…" stands for
    if kind == "entrypoint":
        name, given = str(entry(command)), small(command)
        if "launcher=local" in given:  # a process for the last stage; those before it take no less long
            first = run(name, *given, "launcher=inline", cwd=cwd)
            assert first.code == 0, first.err
            shutil.rmtree(cwd / "outputs" / given[0].partition("=")[2] / "iter_01/eval")
        return run(name, *given, cwd=cwd)
    return call(partial(THEIRS[kind or ""], words[1:], cwd), words, cwd)


# ---------------------------------------------------------------------------------------------------- other programs
def of_module(module: str, words: list[str], cwd: Path) -> Outcome:
    needs = module in ("recap.report", "recap.export") and not words  # named, not given as a command
    with as_lerobots_size(cwd / words[0] if module == "recap.export" and words else None):
        return call(
            partial(runpy.run_module, module, run_name="__main__"), [module, *(["--help"] if needs else words)], cwd
        )


@contextmanager
def as_lerobots_size(checkpoint: Path | None) -> Iterator[None]:
    """The one size that lerobot's π0 has becomes that of this checkpoint."""
    if checkpoint is None or not (checkpoint / "config.json").is_file():
        yield
        return
    from recap.policies.checkpoint import read_config
    from recap.policies.pi0 import modeling_pi0 as pi0
    from recap.policies.pi0.adapter import PI0Adapter

    numbers = numbers_of(config := read_config(checkpoint, PI0Adapter()))
    variants = {"gemma_2b": config.vlm, "gemma_300m": config.expert}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pi0.modeling_pi0, "get_gemma_config", variants.__getitem__)
        patch.setattr(pi0, "SIGLIP", config.vision)
        patch.setattr(pi0, "VOCABULARY", numbers["vocab_size"])
        yield


def lerobot_eval(words: list[str], cwd: Path) -> None:
    """lerobot reads all of it, the policy's folder too; it runs policies of ours in test_stock_lerobot.py."""
    from lerobot.configs import parser
    from lerobot.configs.eval import EvalPipelineConfig

    def main(cfg: EvalPipelineConfig) -> None:
        assert cfg.policy is not None
        assert Path(str(cfg.policy.pretrained_path)).is_dir()
        assert cfg.env.type == "libero"

    main.__annotations__["cfg"] = EvalPipelineConfig  # lerobot wants the class, not its name
    parser.wrap()(main)()


def wandb(words: list[str], cwd: Path) -> None:
    from wandb.cli.cli import cli

    found = [str(path) for word in words[1:] for path in Path().glob(word)]
    assert bool(found) == bool(words[1:]), f"{words}: there is nothing to send"
    cli.commands[words[0]].make_context(words[0], found)


def tensorboard(words: list[str], cwd: Path) -> None:
    from tensorboard.program import TensorBoard

    board = TensorBoard()
    board.configure(argv=["tensorboard", *words])
    assert Path(board.flags.logdir).is_dir()


THEIRS: dict[str, Any] = {"lerobot-eval": lerobot_eval, "wandb": wandb, "tensorboard": tensorboard}


def test_processes_by_hand() -> None:
    """The launchers' own parsers leave us our words; test_training.py and test_share.py start such processes."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    for command in taken("torchrun", "accelerate"):
        launched = command.words[0] == "accelerate"
        parser = launch_command_parser() if launched else get_args_parser()
        given = parser.parse_args(command.words[2 if launched else 1 :])
        name = given.training_script.removesuffix(".py")
        assert (ROOT / given.training_script).is_file(), command
        beside = ["checkpoint=there"] if name == "eval" else []
        assert load(name, *given.training_script_args, *beside).output


# ---------------------------------------------------------------------------------------------------- the pages
def test_the_readme(world: Path) -> None:
    made = {str(path.parent.relative_to(world / "outputs")) for path in world.glob("outputs/**/summary.json")}
    assert {"demo", "demo/seed=1", "wide/advantage.positive_fraction=0.2", "guided", "two_pots", "paper"} <= made
    assert (world / "moka_pi0/config.json").is_file()


@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md"])
def test_a_page(page: str, world: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(world, tmp_path / "again", symlinks=True))
    shutil.rmtree(again / "moka_pi0")
    said = failures(page, again)
    shutil.rmtree(again)
    assert not said, said


def test_a_policy_of_lerobots(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `python -m recap.export` wrote is one."""
    (command,) = [command for command in taken("entrypoint") if command.text in PENDING]
    with as_lerobots_size(world / "outputs/libero_moka/iter_01/policy/checkpoints/last"):
        seen = typed(command, world)
    assert seen.code == 0, seen.err


def test_adapters_of_ours(work: Path) -> None:
    (work / RUN).rename(work / "outputs/demo")
    lora = ["policy.trainable=lora", "policy.pretrained=outputs/demo/sft/checkpoints/last", "name=lora"]
    trained = tiny("train", "policy=pi0", "stage=sft", *lora, cwd=work)
    assert trained.code == 0, trained.err
    seen = tiny("eval", "checkpoint=outputs/lora/sft/checkpoints/last", *lora, cwd=work)
    assert seen.code == 0, seen.err
    assert read(work / "outputs/lora/sft/eval/result.json")["n"] == 4
