"""Every command that README, docs/, comments, docstrings, messages tell somebody to type has a rule here or a reason.

Those of the entrypoints and of `python -m recap…` are run in test_documented_runs.py, at small size. What a machine
without a GPU, a hub or hours cannot run is held against whatever reads its words: our schema, the tool's own parser.
"""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from itertools import zip_longest
from pathlib import Path

import documented
import pytest
from documented import ROOT, Command, commands, overrides
from hydra import compose, initialize_config_dir
from small_size import COMPLETED, arguments, entry
from test_config import CONF, GROUPS, SCHEMAS, load

from recap.config import ConfigError, LoopJob, keys, typed

# Commands that no rule takes, each with the reason.
MINE = "PYTHONPATH=~/mine python loop.py --config-dir=my_conf"
SPECIAL = {
    "$EDITOR conf/site/here.yaml": "the reader's editor",
    "apt-get install slurm-wlm munge": "Debian's own; whoever runs tests/test_slurm_runs.py has done it",
    "opentau-train --config_path=sft.json": "OpenTau's, in the column beside ours",
    "opentau-train --config_path=value.json": "OpenTau's, in the column beside ours",
    "sbatch --test-only": "what recap/jobs/slurm.py asks: tests/test_slurm.py",
    "python -m lerobot.scripts.convert_dataset_v21_to_v30": "lerobot's; it needs a data set of format 2.1",
    "python loop.py": "stands for the command that the run was started with: the message says with which settings",
    "accelerate launch … train.py": "says only that there is one",
    f"{MINE} policy=toy experiment=demo +iterations=1": "test_own_policy.py runs it, with the files that it needs",
    f"{MINE} experiment=stove env=reach +iterations=1": "test_extending.py runs it, with the files that it needs",
    "trackio show --project recap": "serves a page until it is stopped; test_trackio.py reads what it shows",
}
# Commands that fail here, and have to say so: the words of the refusal, each with the reason.
REFUSED = {
    "python loop.py +iterations=3 seed=0,1,2 follow=false -m": ("launcher=inline works in this process", "no SLURM"),
    "python loop.py +iterations=3 follow=false": ("launcher=inline works in this process", "no SLURM"),
    "python -m recap.dashboard robots/recap": ("error: ", "no W&B server"),
    "python -m recap.dashboard": ("error: ", "no W&B server"),
    "python -m recap.export outputs/libero/iter_01/policy/checkpoints/last --push USER/NAME": ("Fix: a net", "no hub"),
    "python -m recap.export outputs/libero/iter_01/rollout/dataset --push USER/NAME": ("Fix: a network", "no hub"),
    "python -m recap.export CHECKPOINT --push USER/NAME": ("Fix: a network", "no hub"),
    "python -m recap.export DATASET --push USER/NAME": ("Fix: a network", "no hub"),
}
# Inline overrides that are none of ours, each with the reason.
NO_OVERRIDE = {"dtype=bfloat16": "an argument of lerobot's PI0Policy"}
NAMED = ("", "…")  # values of an override that only names its key
BESIDE = {  # what an inline override needs beside it
    "env=pusht": ["data.action_freq=10"],
    "env.type=metaworld": ["env.suite=null"],
}
APART = {"sharding": "policy.sft.optimizer"}  # keys whose values contradict those of another
FIRST = {"make", "torchrun", "accelerate", "lerobot-eval", "wandb", "pip", "tensorboard", "pytest", "cp", "eval"}


def rule(command: Command) -> str | None:
    """What takes a command; None: nothing does."""
    program, *words = command.words
    if entry(command):
        return "entrypoint"
    if program == "python":
        module = words[0] == "-m" and words[1].startswith("recap.")
        return "module" if module else "script" if words[0].startswith(("bench/", "scripts/")) else None
    return program if program in {*FIRST, "tests/mini-slurm"} else None


def taken(*rules: str) -> list[Command]:
    return [command for command in commands() if command.text not in SPECIAL and rule(command) in rules]


# ---------------------------------------------------------------------------------------------------- none is left out
def test_every_command_has_a_rule_or_a_reason() -> None:
    untested = [f"{c.where}: {c.text}" for c in commands() if c.text not in SPECIAL and rule(c) is None]
    assert not untested, "\n".join(["no test runs these, and SPECIAL gives no reason:", *untested])
    assert len(taken("entrypoint")) > 60, "they are not found any more"


def test_no_exception_outlives_what_it_is_about() -> None:
    assert not (SPECIAL.keys() | REFUSED.keys()) - {command.text for command in commands()}
    assert not COMPLETED.keys() - {command.text for command in commands()}
    assert not (NO_OVERRIDE.keys() | BESIDE.keys()) - overrides().keys()
    assert [text for text in SPECIAL if rule(Command(text, ""))] == ["python loop.py", "accelerate launch … train.py"]


def test_what_somebody_adds_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "new.md"
    block = "```bash\nfresh --it && loop.py a=1 'b=[x, y]'   # or c=2: so\n```\n"
    page.write_text(f"`make tea`, `recap.new` and `eval.py a=b -m`; `d.e=1 f=g`\n{block}```\nno command\n```\n")
    monkeypatch.setattr(documented, "ROOT", tmp_path)
    monkeypatch.setattr(documented, "PAGES", [page])
    wanted = ["make tea", "eval.py a=b -m", "fresh --it && loop.py a=1 'b=[x, y]'"]
    assert list(documented._in_pages()) == [
        (text, f"new.md:{line}") for text, line in zip(wanted, (1, 1, 3), strict=True)
    ]
    assert overrides.__wrapped__() == {"d.e=1 f=g": "new.md:1", "c=2": "new.md:3"}
    assert rule(Command("fresh --it", "")) is None
    assert rule(Command("eval.py a=b -m", "")) == "entrypoint"


# ---------------------------------------------------------------------------------------------------- ours
def test_every_word_is_a_key_of_its_command() -> None:
    """Without composing; test_documented_runs.py runs them."""
    inner = [Command(f"python {c.text[c.text.index(' train.py') + 1 :]}", c.where) for c in taken("torchrun")]
    wrong = [f"{c.where}: {word}" for c in [*taken("entrypoint"), *inner] for word in _unknown(c)]
    assert not wrong, "\n".join(wrong)
    assert _unknown(Command("python loop.py experiment=dmeo +ablatons.x.lr=1 seed=0,1 -m", "")) == [
        "experiment=dmeo",
        "+ablatons.x.lr=1",
    ]


def _unknown(command: Command) -> list[str]:
    name = entry(command)
    assert name
    own = keys(SCHEMAS[name])
    return [word for word in arguments(command) if "=" in word and not _is_known(word, own)]


def _is_known(word: str, own: list[str]) -> bool:
    key, _, value = word.lstrip("+").partition("=")
    if key in GROUPS and value not in NAMED:
        return all((CONF / key / f"{choice}.yaml").is_file() for choice in value.strip("[]").split(","))
    named = re.sub(r"^data\.sources\.\w+", "data.sources.<name>", re.sub(r"^ablations\..*", "ablations", key))
    return key in (*own, *GROUPS) or named in own


def test_every_inline_override_composes() -> None:
    """With its value; together, as far as no key comes twice, and alone where together they contradict each other."""
    offered: dict[str, list[list[str]]] = {}
    for text, where in overrides().items():
        words = text.split()
        known = text in NO_OVERRIDE or any(all(_is_known(w, keys(of)) for w in words) for of in SCHEMAS.values())
        assert known, f"{where}: {text}: no such key or choice"
        first, _, value = words[0].lstrip("+").partition("=")
        if text in BESIDE:
            assert _composes(*words, *BESIDE[text]) is None
        elif text not in NO_OVERRIDE and value not in NAMED and first not in (*GROUPS, "iterations", "iteration"):
            offered.setdefault(APART.get(first, first), []).append(words)
    rows = [[words for words in row if words] for row in zip_longest(*offered.values())]
    assert sum(map(len, rows)) > 10
    contrary = [row for row in rows if _composes(*(word for words in row for word in words))]
    wrong = [said for row in contrary for words in row if (said := _composes(*words))]
    assert not wrong, "\n".join(wrong)
    assert "gate.action=wran" in str(_composes("gate.action=wran"))


def _composes(*words: str) -> str | None:
    """What is wrong with them, if anything. Choices of a group by themselves: test_config.py composes each."""
    try:
        load("loop", "iterations=1", *words)
    except ConfigError as error:
        return str(error)
    return None


def test_the_site_file_is_written_as_the_readme_says(tmp_path: Path) -> None:
    (copy,) = taken("cp")
    shutil.copytree(CONF, tmp_path / "conf", ignore=shutil.ignore_patterns("here.yaml"))
    subprocess.run(copy.words, cwd=tmp_path, check=True)
    with initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
        cfg = typed(compose("loop", ["iterations=3"]), LoopJob)
    assert (cfg.launcher.partition, cfg.resources.policy.gpus_per_node) == ("gpu", 4)


def test_make_has_every_target() -> None:
    targets = [word for command in taken("make") for word in command.words[1:]]
    assert {"demo", "test", "study"} <= set(targets)
    done = subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "loop.py experiment=demo +iterations=1" in done.stdout


# ---------------------------------------------------------------------------------------------------- others' programs
def test_what_is_installed_by_hand_is_what_setup_knows() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = re.findall(r"^[\w-]+", "\n".join(setup["options.extras_require"].values()), re.MULTILINE)
    for command in taken("pip"):
        assert command.words[1] == "install"
        assert re.match(r"[\w-]+", command.words[2])[0] in extras, command  # type: ignore[index]


def test_scripts_and_tests_are_where_they_are_said_to_be() -> None:
    for command in taken("script"):
        text = (ROOT / command.words[1]).read_text()
        assert " ".join(["python", *command.words[1:3]]) in text, f"{command}: its own docstring says otherwise"
        assert ("sys.argv[1]" in text) == (len(command.words) > 2)
    for command in taken("pytest"):
        assert command.words[1:3] == ["-m", "slow"]
        assert "pytest.mark.slow" in (ROOT / command.words[3]).read_text()


def test_mini_slurm_takes_these_words(tmp_path: Path) -> None:
    script = str(ROOT / "tests/mini-slurm")
    assert [c.text for c in taken("eval")] == ['eval "$(tests/mini-slurm env DIR)"']
    asked = subprocess.run([script, "env", str(tmp_path)], capture_output=True, text=True, check=False)
    assert (asked.returncode, "holds no mini-slurm" in asked.stderr) == (1, True), "2 would be: no such word"
    usage = subprocess.run([script], capture_output=True, text=True, check=False).stderr
    for command in taken("tests/mini-slurm"):
        assert re.search(rf"mini-slurm {command.words[1]} +DIR", usage), command
