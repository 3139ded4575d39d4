"""Every configuration composes, every mistake is named, and sweeps become the runs that they should."""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from recap.cli import entrypoint as cli
from recap.config import (
    AdvantageJob,
    Config,
    ConfigError,
    EvalJob,
    LoopJob,
    StageKind,
    TrainJob,
    keys,
    leaves,
    plain,
    problems,
    shared,
    typed,
)
from recap.data.config import SourceConfig
from recap.jobs.config import Resources
from recap.method.config import Normalization, SourceKind
from recap.policies.roles import Role
from recap.rollout.config import Prompt
from recap.storage.manifest import difference
from recap.training.config import IndicatorMode
from recap.utils.errors import RecapError

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
SCHEMAS: dict[str, type[Config]] = {"train": TrainJob, "eval": EvalJob, "advantage": AdvantageJob, "loop": LoopJob}
REQUIRED = {"loop": ["iterations=1"], "eval": ["checkpoint=somewhere"]}
GROUPS = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())
OPTIONS = [(g, file.stem) for g in GROUPS if g != "experiment" for file in sorted((CONF / g).glob("*.yaml"))]
EXPERIMENTS = sorted(
    file.relative_to(CONF / "experiment").with_suffix("").as_posix() for file in (CONF / "experiment").rglob("*.yaml")
)


def load(entry: str, *overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return typed(compose(entry, list(overrides)), SCHEMAS[entry])


def complaint(entry: str, *overrides: str) -> str:
    """What the command line would say."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  Hydra's, OmegaConf's and ours; `explain` tells them apart
        load(entry, *overrides)
    with mock.patch("sys.argv", [f"{entry}.py", *overrides]):
        return cli.explain(caught.value, SCHEMAS[entry])


# -------------------------------------------------------------------------------- what is there composes
@pytest.mark.parametrize("entry", SCHEMAS)
def test_the_default_is_the_guide(entry: str) -> None:
    cfg = load(entry, *REQUIRED.get(entry, []))
    assert (cfg.size, cfg.env.type, cfg.name, cfg.output) == ("full", "libero", "libero", "outputs/libero")
    assert (cfg.advantage.n_step, cfg.value.bins, cfg.advantage.c_fail, cfg.advantage.normalizer) == (
        50,
        201,
        1000,
        1600,
    )
    assert (cfg.advantage.positive_fraction, cfg.advantage.threshold.name) == (0.3, "all")
    assert (cfg.policy.sft.indicator, cfg.policy.finetune.indicator) == (
        IndicatorMode.always_positive,
        IndicatorMode.use,
    )
    assert (cfg.policy.indicator_dropout, cfg.rollout.beta, cfg.rollout.episodes) == (0, 1, 300)
    assert cfg.policy.finetune.demo_fraction == 0.5


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments(name: str) -> None:
    text = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert text[0] == "# @package _global_"
    assert text[1].startswith(f"# python loop.py experiment={name} ")
    command = [word.split(",")[0] for word in text[1].removeprefix("# python loop.py ").split()]  # of a sweep, one run
    assert load("loop", *command).name == name


@pytest.mark.parametrize("entry", ["train", "eval", "advantage"])
def test_experiments_serve_every_entrypoint(entry: str) -> None:
    assert load(entry, "experiment=demo", *REQUIRED.get(entry, [])).output == "outputs/demo"


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_choice(group: str, option: str) -> None:
    data = {"moka": ["data=moka"], "pusht": ["data.action_freq=10"]}.get(option, [])
    stage = ["stage=finetune"] if "+rollouts" in option else []
    more = ["experiment=demo"] if group == "ablation" else []  # some contradict the guide's settings
    assert isinstance(load("train", *more, f"{group}={option}", *data, *stage), TrainJob)


def test_every_value_says_what_it_does() -> None:
    files = [CONF / f"{entry}.yaml" for entry in ("base", *SCHEMAS)]
    groups = ("data", "env", "size", "launcher", "site", "tracking")
    files += [file for group in groups for file in (CONF / group).glob("*.yaml")]
    for file in files:
        for line in file.read_text().splitlines():
            assert ": " not in line or "#" in line, f"{file.name}: {line}"


def test_data_brings_its_environment_and_size() -> None:
    cfg = load("train", "policy=value", "data=moka", "stage=sft")
    assert (cfg.role, cfg.stage) == (Role.value, StageKind.sft)
    assert (cfg.env.type, cfg.size, cfg.policy.vision.width, cfg.name) == ("moka", "tiny", 64, "moka")
    assert cfg.advantage.normalization is Normalization.per_task
    assert load("train", "data=moka", "size=full").policy.vision.width == 1152, "the command line wins"
    assert load("train", "data=moka+rollouts", "stage=finetune").data.rollouts
    assert load("train", "data=moka+rollouts", "stage=finetune").env.type == "moka"


@pytest.mark.parametrize("given", ["iterations=3", "+iterations=3", "++iterations=3"])
def test_iterations_with_and_without_plus(given: str) -> None:
    assert load("loop", "experiment=demo", given).iterations == 3


def test_lists_and_nulls() -> None:
    cfg = load("loop", "experiment=demo", "iterations=1", "advantage.force_positive=[demonstration,correction]")
    assert cfg.advantage.force_positive == [SourceKind.demonstration, SourceKind.correction]
    cfg = load("train", "data=moka", "data.demonstrator=null", "+data.sources.mine={root: x, episodes: [0, 2]}")
    assert cfg.data.demonstrator is None
    assert cfg.data.sources == {"mine": SourceConfig(root="x", episodes=[0, 2])}


def test_full_size_is_lerobots() -> None:
    cfg = load("train").policy
    assert (cfg.vlm.width, cfg.vlm.depth, cfg.vlm.mlp_dim, cfg.vlm.head_dim) == (2048, 18, 16384, 256)
    assert (cfg.expert.width, cfg.expert.depth, cfg.expert.mlp_dim, cfg.expert.head_dim) == (1024, 18, 4096, 256)
    assert (cfg.vision.width, cfg.vision.depth, cfg.vision.mlp_dim, cfg.image_size) == (1152, 27, 4304, 224)


def test_plain_and_back() -> None:
    cfg = load("train", "experiment=demo")
    assert typed(OmegaConf.create(OmegaConf.to_yaml(plain(cfg))), TrainJob) == cfg


def test_keys_that_came_later_leave_runs_of_before_alone() -> None:
    """At their defaults they are not there: runs, stages and files of before stay what they are."""
    plain_run = load("loop", "experiment=demo", "iterations=1")
    changed = load("loop", "experiment=demo", "iterations=1", "rollout.tries=2", "advantage.within=value_bin")
    values = plain(plain_run)
    assert not {"within", "value_bins", "correction_prefix"} & values["advantage"].keys()
    assert not {"tries", "corrections"} & values["rollout"].keys()
    assert "correction_fraction" not in values["policy"]["finetune"]
    assert difference(values, plain(changed)) == [
        "advantage.within: (absent) -> value_bin",
        "rollout.tries: (absent) -> 2",
    ]
    for cfg in (plain_run, changed):
        assert typed(OmegaConf.create(plain(cfg)), LoopJob) == cfg


def test_shared_and_difference() -> None:
    sft = load("train", "experiment=stove")
    tune = load(*DEMO, "data=moka+rollouts", "stage=finetune", "iteration=2")
    assert difference(shared(sft), shared(tune)) == []
    other = load("train", "experiment=stove", "advantage.c_fail=60", "data.demonstrator.episodes=7")
    assert difference(shared(sft), shared(other)) == [
        f"data.demonstrator.episodes: {sft.data.demonstrator.episodes} -> 7",
        f"advantage.c_fail: {sft.advantage.c_fail} -> 60.0",
    ]
    assert difference({"a": 1}, {"b": {"c": 2}}) == ["a: 1 -> (absent)", "b: (absent) -> {'c': 2}"]


def test_leaves_and_keys_agree() -> None:
    names = [key for key, _ in leaves(load("train", "experiment=demo"))]
    assert {re.sub(r"^ablations\..*", "ablations", name) for name in names} <= set(keys(TrainJob))
    assert "policy.sft.learning_rate" in names


# -------------------------------------------------------------------------------- what is wrong is named
DEMO = ("train", "experiment=stove")
LOOP = ("loop", "experiment=stove", "iterations=1")
BAD: list[tuple[tuple[str, ...], list[str]]] = [
    # keys
    ((*DEMO, "polcy=value"), ["polcy", "Nearest: policy"]),
    ((*DEMO, "seeed=1"), ["seeed", "Nearest: seed"]),
    ((*DEMO, "+seeed=1"), ["seeed=1", "Nearest: seed"]),
    ((*DEMO, "++seeed=1"), ["seeed=1", "Nearest: seed"]),
    ((*DEMO, "+seed=1"), ["seed", "exists already"]),
    ((*DEMO, "policy.lr=1"), ["policy.lr", "policy.sft.learning_rate"]),
    ((*DEMO, "+policy.sft.lr=1"), ["policy.sft.lr=1", "Nearest: policy.sft.learning_rate"]),
    ((*DEMO, "data.demonstrator.epsiodes=3"), ["Nearest: data.demonstrator.episodes"]),
    (("loop", "experiment=demo", "itertions=3"), ["itertions", "Nearest: iterations"]),
    ((*LOOP, "policy=value"), ["role=value", "policy=value", "no such choice"]),
    ((*LOOP, "+policy=value"), ["policy", "without +"]),
    ((*DEMO, "+policy=value"), ["policy", "without +"]),
    ((*DEMO, "seed"), ["seed", "key=value"]),
    ((*DEMO, "env.tasks=[put the pot, on"), ["cannot be read", "quote"]),
    # choices
    ((*DEMO, "policy=pi1"), ["policy=pi1", "pi0, pi05, smolvla, value", "Nearest: pi0"]),
    ((*DEMO, "pi0.sft.steps=3"), ["pi0.sft.steps=3: renamed to policy.sft.steps"]),
    ((*DEMO, "resources.pi0.cpus=3"), ["renamed to resources.policy.cpus_per_task"]),
    ((*DEMO, "+value.read=mean"), ["value.read=mean: renamed to value.aggregation"]),
    ((*DEMO, "+policy.gradient_checkpointing=true"), ["policy.gradient_checkpointing=true: renamed to policy.memory"]),
    ((*DEMO, "policy.memory=2"), ["policy.memory=2: must be auto, or a number between 0 and 1"]),
    ((*DEMO, "value.compile=perhaps"), ["value.compile=perhaps: must be auto, true or false"]),
    (("loop", "experiment=dmo"), ["experiment=dmo", "two_pots", "Nearest: demo"]),
    ((*DEMO, "data=mka"), ["data=mka", "libero+rollouts", "Nearest: moka"]),
    ((*DEMO, "size=tny"), ["size=tny", "full, tiny", "Nearest: tiny"]),
    ((*DEMO, "launcher=slrum"), ["launcher=slrum", "auto, inline, local, slurm", "Nearest: slurm"]),
    (
        (*DEMO, "resources.policy.gpu_per_node=4"),
        ["resources.policy.gpu_per_node", "Nearest: resources.policy.gpus_per_node"],
    ),
    ((*DEMO, "+launcher.partitoin=x"), ["Nearest: launcher.partition"]),
    ((*DEMO, "action=stop"), ["action=stop", "run, status, cancel"]),
    ((*DEMO, "launcher.setup=ls"), ["launcher.setup=ls", "list"]),
    ((*DEMO, "device=gpu"), ["device=gpu", "auto, cpu, cuda, mps"]),
    (
        (*DEMO, "policy.sft.indicator=onn"),
        ["policy.sft.indicator=onn", "always_positive, use, positive_only, ignore"],
    ),
    ((*DEMO, "policy.sft.indicator=true"), ["policy.sft.indicator=true", "choose one of always_positive"]),
    ((*LOOP, "ablation=continued"), ["ablation=continued", "continued_sft"]),
    ((*LOOP, "controls=[continued_sft]"), ["controls=[continued_sft]: renamed to ablation"]),
    # types
    ((*DEMO, "policy.sft.learning_rate=abc"), ["policy.sft.learning_rate=abc", "number"]),
    ((*DEMO, "policy.sft.steps=1e3"), ["policy.sft.steps=1000.0", "whole number"]),
    (("train", "data.sources.libero.all_succeed=maybe"), ["data.sources.libero.all_succeed=maybe", "true or false"]),
    ((*DEMO, "+data.sources.mine.rot=x"), ["data.sources.mine.rot=x", "Nearest: data.sources.<name>.root"]),
    ((*DEMO, "+data.sources.mine=x"), ["data.sources.mine=x", "repo_id, root"]),
    ((*DEMO, "+data.sources.mine.kind=rollout"), ["data.sources.mine: names no data set", "data.sources.mine.root="]),
    (
        (*DEMO, "+data.sources.mine.root=x", "data.sources.mine.cameras=[a]"),
        ["is not there yet. Fix: '+data.sources.mine.cam"],
    ),
    ((*DEMO, "++data.sources.mine.cameras=a"), ["data.sources.mine.cameras=a", "must be a list: [a, b]"]),
    ((*DEMO, "++data.sources.mine.camera=[a]"), ["data.sources.mine.camera=[a]", "Nearest: data.sources.<name>.cam"]),
    ((*DEMO, "seed=null"), ["seed=null", "must not be null"]),
    ((*DEMO, "env.tasks=foo"), ["env.tasks=foo", "list"]),
    ((*DEMO, "policy.sft=3"), ["policy.sft=3", "steps, batch_size"]),
    ((*DEMO, "output=${nme}"), ["output", "nme", "Nearest: name"]),
    # missing
    (("loop", "experiment=demo"), ["iterations: missing", "+iterations="]),
    (("eval", "experiment=demo"), ["checkpoint: missing", "checkpoint=outputs/"]),
    ((*DEMO, "~value"), ["value: missing"]),
    # values
    (("loop", "experiment=demo", "iterations=0"), ["iterations=0", "at least 1"]),
    (("train", "advantage.normalizer=400"), ["advantage.normalizer=400", "-1520", "Fix: advantage.normalizer=1520"]),
    (("train", "env=moka"), ["data.sources.libero.repo_id=lerobot/libero", "Fix: data=moka"]),
    (("eval", "checkpoint=x", "policy=value"), ["policy=value", "Fix: policy=pi0"]),
]


@pytest.mark.parametrize(("command", "says"), BAD, ids=[" ".join(command) for command, _ in BAD])
def test_a_bad_command(command: tuple[str, ...], says: list[str]) -> None:
    message = complaint(*command)
    for words in says:
        assert words in message
    assert len(message) < 700, "one screen"


WRONG: list[tuple[str, Any, list[str]]] = [
    # ranges
    ("policy.sft.steps", 0, ["at least 1"]),
    ("value.finetune.batch_size", -4, ["at least 1"]),
    ("eval.episodes", 0, ["at least 1"]),
    ("advantage.n_step", 0, ["at least 1"]),
    ("value.bins", 1, ["at least 2"]),
    ("seed", -1, ["at least 0"]),
    ("rollout.beta", -1.0, ["at least 0"]),
    ("advantage.c_fail", -5.0, ["at least 0"]),
    ("policy.sft.learning_rate", 0.0, ["greater than 0"]),
    ("policy.sft.learning_rate", float("nan"), ["finite"]),
    ("policy.sft.grad_clip", float("inf"), ["finite"]),
    ("advantage.positive_fraction", 30.0, ["between 0 and 1"]),
    ("advantage.positive_fraction", 0.0, ["between 0 and 1"]),
    ("policy.indicator_dropout", 1.0, ["below 1"]),
    ("policy.finetune.demo_fraction", 1.5, ["between 0 and 1"]),
    ("data.demonstrator.miss", 1.1, ["between 0 and 1"]),
    ("name", "a/b", ["directory"]),
    ("name", "..", ["directory"]),
    ("output", " ", ["directory"]),
    ("env.tasks", [], ["at least one"]),
    ("env.tasks", ["a", " "], ["at least one"]),
    ("env.tasks", ["a", "a"], ["twice"]),
    ("resources.policy.timeout_min", 0, ["at least 1"]),
    ("resources.value.mem_gb", 0.0, ["greater than 0"]),
    ("launcher.max_requeues", -1, ["at least 0"]),
    ("launcher.options", ["--nice"], ["without their dashes"]),
    # contradictions
    (
        "resources.policy",
        Resources(gpus_per_node=4, tasks_per_node=2, cpus_per_task=1, mem_gb=1, timeout_min=60),
        ["Fix: leave it out, or", "gpus_per_node=2"],
    ),
    ("resources.value.shards", 2, ["one job", "resources.value.gpus_per_node"]),
    ("resources.demonstrations.nodes", 2, ["workers.num_workers"]),
    ("resources.eval.shards", 151, ["eval.episodes=150"]),
    (
        "launcher.grace_period_s",
        3600,
        ["resources.demonstrations.timeout_min=60", "Fix: a longer job, or launcher.grace_period_s=3570"],
    ),
    ("policy.n_action_steps", 11, ["policy.chunk_size=10", "Fix: policy.n_action_steps=10"]),
    ("policy.image_size", 65, ["policy.vision.patch_size=16"]),
    ("value.vision.width", 65, ["value.vision.num_heads=2"]),
    ("value.text.head_dim", 15, ["even"]),
    ("value.text.num_kv_heads", 3, ["value.text.num_heads=2"]),
    ("policy.expert.depth", 5, ["policy.vlm.depth=2"]),
    ("policy.expert.head_dim", 16, ["policy.vlm.head_dim=32"]),
    ("policy.vlm.num_heads", 8, ["policy.expert.num_heads=2"]),
    ("policy.sft.warmup_steps", 9999, ["policy.sft.steps=2500"]),
    ("policy.sft.demo_fraction", 0.5, ["Fix: 1, or policy.finetune"]),
    ("workers.num_workers", 99, ["workers.num_envs=50"]),
    ("eval.videos", 999, ["eval.episodes=150"]),
    ("advantage.normalization", Normalization.constant, ["advantage.normalizer=null", "Fix: advantage.normalizer=150"]),
    ("advantage.normalizer", 100.0, ["per_task", "Fix: advantage.normalizer=null"]),
    ("data.rollouts", True, ["stage=sft", "data.rollouts=true", "Fix: stage=finetune"]),
    ("env.type", "libero", ["Fix: env=moka"]),
    ("data.demonstrator", None, ["data.sources={}", "Fix: data=moka"]),
    ("data.action_freq", 20, ["data.action_freq=20", "env.fps=10"]),
    ("data.sources", {"rollouts_9": SourceConfig(root="x")}, ["data.sources.rollouts_9", "letters"]),
    ("data.sources", {"mine": {"root": "x", "weight": 0.0}}, ["data.sources.mine.weight=0.0", "greater than 0"]),
    ("data.sources", {"mine": SourceConfig(root="x", episodes=[1, 1])}, ["data.sources.mine.episodes=[1, 1]"]),
    ("data.sources", {"mine": {"root": "x", "cameras": []}}, ["data.sources.mine.cameras=[]", "null takes all"]),
    ("data.sources", {"mine": SourceConfig(root="x", cameras=["a", "a"])}, ["mine.cameras=[a,a]", "each once"]),
    ("rollout.prompt", Prompt.none, ["rollout.beta=1.5", "Fix: rollout.beta=1"]),
    ("policy.indicator_dropout", 0.0, ["rollout.beta=1.5", "policy.indicator_dropout=0.3"]),
    ("policy.finetune.indicator", IndicatorMode.ignore, ["indicator=ignore", "Fix: eval.prompt=none"]),
]


@pytest.fixture(scope="module")
def demo() -> Any:
    return load("train", "experiment=stove", "rollout.beta=1.5", "policy.sft.indicator=ignore")


@pytest.mark.parametrize(("key", "value", "says"), WRONG, ids=[f"{key}={value}" for key, value, _ in WRONG])
def test_a_wrong_value(demo: Any, key: str, value: Any, says: list[str]) -> None:
    assert problems(demo) == []
    cfg = copy.deepcopy(demo)
    *path, last = key.split(".")
    setattr(functools.reduce(getattr, path, cfg), last, value)
    message = "; ".join(problems(cfg))
    for words in says:
        assert words in message
    assert last in message or path[-1] in message


def test_all_problems_at_once() -> None:
    message = complaint("train", "experiment=demo", "+typo=1", "seed=x", "policy.sft.steps=y")
    assert message.count("\n- ") == 3
    for words in ("typo=1", "seed=x", "policy.sft.steps=y"):
        assert words in message


def test_keys_in_files_are_checked_too(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nadvantage: {c_fial: 3}\n")
    mine = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]
    assert "Nearest: advantage.c_fail" in complaint("train", *mine)


def test_config_error_is_a_recap_error() -> None:
    assert issubclass(ConfigError, RecapError)
    assert str(ConfigError(["only one"])) == "only one"
    assert str(ConfigError([str(i) for i in range(20)])).endswith("... and 8 more")
