"""Documented commands of the four entrypoints at small size: the same words, and behind them what makes them short."""

from __future__ import annotations

import re
import shutil
from functools import reduce
from pathlib import Path

from documented import ENTRIES, Command
from tiny_run import RUN, TINY

# What the tiny run adds to experiment=demo; the demo's own ablations stay. Most of the time simulators take to start.
SHORT = [override for override in TINY if not override.startswith(("experiment=", "ablation="))]
SHORT += ["gate.action=warn", "workers.num_workers=1"]
# π0 at full size on LIBERO becomes a tiny one on the embedded task; data= and env= are changed in the command itself.
EMBEDDED = ["size=tiny", "env.suite=null", "env.tasks=[put both moka pots on the stove]", "policy.pretrained=null"]
EMBEDDED += ["env.fps=10", "data.action_freq=null"]
LIBERO = ("libero_moka", "libero_pi05", "libero_smolvla", "paper", "libero_small", "")  # experiments; "": none
FILLED = {  # what a reader puts in
    "<a folder of lerobot's π0>": "moka_pi0",
    "…/sft/checkpoints/last": "outputs/libero_moka/sft/checkpoints/last",
    "…/{before}/checkpoints/last": "outputs/libero/sft/checkpoints/last",
    "{iteration}": "1",
    "CHECKPOINT": "outputs/libero/sft/checkpoints/last",
    "DATASET": "outputs/libero/iter_01/rollout/dataset",
    "FOLDER": "plain_pi0",
    "theirs": "outputs/demo/sft/checkpoints/last",
    "env.type=…": "env.type=libero",
}
COMPLETED = {  # what the words beside a command say of it
    "eval.py eval.beta=1,1.5,2 -m": ["experiment=demo", "checkpoint=outputs/demo/sft/checkpoints/last"],
}


def entry(command: Command) -> str | None:
    """train, eval, advantage or loop; None for any other command."""
    words = command.words
    name = next((word for word in words[:2] if word.endswith(".py")), "").removesuffix(".py")
    return name if name in ENTRIES and words[0] in ("python", f"{name}.py") else None


def filled(command: Command) -> list[str]:
    """The command's words with something of ours in the place of what the reader puts in."""
    return [reduce(lambda text, blank: text.replace(*blank), FILLED.items(), word) for word in command.words]


def arguments(command: Command) -> list[str]:
    """What stands behind the name of the entrypoint."""
    return COMPLETED.get(command.text, []) + filled(command)[2 if command.words[0] == "python" else 1 :]


def small(command: Command) -> list[str]:
    """The command's arguments for a run of seconds; its `-m` stays where it stands, at the end or among the words."""
    given = arguments(command)
    keys = {word.lstrip("+").partition("=")[0]: word.partition("=")[2] for word in given}
    libero = keys.get("experiment", "") in LIBERO and not keys.get("data", "").startswith("moka")
    again = command.page == "README.md" and keys.get("experiment", "demo") == "demo"
    words = [_fewer(word, 2 if again else 1, 300 if libero else 150) for word in given]
    behind = [override for override in SHORT if override.partition("=")[0] not in keys]
    if libero:
        words = [re.sub(r"^(data|env)=libero", r"\1=moka", word) for word in words]
        behind = [*EMBEDDED, *behind]
        behind += [f"{key}=moka" for key in ("env", "data") if key not in keys]
        behind += ["name=libero"] if not keys.keys() & {"experiment", "name"} else []
    many = keys.get("experiment", "").startswith(("study", "ablation/settings"))
    behind += ["ablation=[awr,guided]"] if many else []  # of nine; test_ablations.py is about them
    behind += [
        f"output='outputs/${{name}}/{word}'" for word, long in zip(words, given, strict=True) if _cut(long, word)
    ]
    ending = ["-m"] if words[-1:] == ["-m"] else []
    return words[: len(words) - len(ending)] + behind + ending


def _fewer(word: str, iterations: int, usual: int) -> str:
    """Less of what takes long: iterations, values of a sweep, and episodes in proportion to what `usual` becomes."""
    key, _, value = word.partition("=")
    if key.lstrip("+") == "iterations":
        return f"{key}={min(int(value), iterations)}"
    if key == "episodes":
        return f"{key}={max(1, 4 * int(value) // usual)}"
    if key.endswith(".steps"):
        return f"{key}={int(value) // 100}"
    if "," in value and not value.startswith(("[", "{")):
        return f"{key}={','.join(value.split(',')[: 2 if value == '0,1' or key.startswith('eval.') else 1])}"
    return word


def _cut(long: str, word: str) -> bool:
    """Whether one value is left of a sweep: its run goes where that of the sweep would."""
    return "," in long and "," not in word


def make_world(finished: Path, world: Path) -> None:
    """A working directory where the demo has run at small size, and a data set of the reader's is."""
    demo = world / "outputs/demo"
    for copy in (world / RUN, demo):
        shutil.copytree(finished / RUN, copy, symlinks=True)
    config = demo / "config.yaml"
    config.write_text(config.read_text().replace("name: demo_small", "name: demo"))
    shutil.copytree(demo / "demonstrations/dataset", world / "my_data")
