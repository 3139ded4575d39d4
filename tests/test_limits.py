"""What data, environment and given checkpoints need is known before the first stage, with the number that is needed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache, reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import CAMERAS
from hydra import compose, initialize_config_dir
from policy_helpers import new_pi0, new_value
from tiny_run import ROOT, RUN, TINY, read, run

from recap.config import AdvantageJob, Config, EvalJob, LoopJob, StageKind, TrainJob, typed
from recap.data.frames import Frames, load_frames
from recap.data.labels import THRESHOLDS, Thresholds
from recap.data.lerobot_writer import Episode, assemble, write_episode
from recap.envs import EpisodeSpec, make_env
from recap.jobs.config import Resources
from recap.method.config import Normalization, SourceKind
from recap.pipeline import graph
from recap.pipeline.limits import limits
from recap.policies.value.config import Aggregation
from recap.policies.words import builtin_words, prompt
from recap.rollout.config import Prompt
from recap.stages.advantage import advantage, doubts
from recap.stages.base import Stage
from recap.stages.value_inference import value_inference
from recap.training.config import IndicatorMode

POT, PAN = "put the moka pot on the stove", "put the red pan on the rack"
Made = Callable[..., Frames]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Data sets by their numbers: `lengths` of the episodes, positive for successes; each is written once."""
    folder = tmp_path_factory.mktemp("made")

    @cache
    def make(*lengths: int, tasks: tuple[str, ...] = (POT,), state: int = 8, action: int = 7, name: str = "") -> Frames:
        root = folder / (name or f"{lengths[:3]}{len(lengths)}{len(''.join(tasks))}{state}{action}")
        for index, length in enumerate(lengths):
            steps = abs(length)
            image = np.zeros((steps, 16, 16, 3), np.uint8)
            rng = np.random.default_rng(index)
            vectors = [rng.normal(size=(steps, size)).astype(np.float32) for size in (state, action)]
            spec = EpisodeSpec(index, tasks[index % len(tasks)], index, index)
            images = dict.fromkeys(CAMERAS, image)
            write_episode(root / "e", Episode(spec, "x", "demonstration", length > 0, images, *vectors))
        dataset = assemble(root / "e", root / "dataset", fps=10, source="demonstration")
        return load_frames(dataset, "mine", SourceKind.demonstration)

    return make


STOVE = ("env.tasks=[put the moka pot on the stove]", "env.max_steps=50", "advantage.c_fail=50")
OWN = ("data.demonstrator=null", "+data.sources.mine.root=mine")
TYPED: dict[type[Config], tuple[str, ...]] = {
    LoopJob: ("loop", "iterations=1"),
    TrainJob: ("train", "policy=pi0", "stage=sft"),
    EvalJob: ("eval", "checkpoint=ck"),
    AdvantageJob: ("advantage", "iteration=0"),
}


@cache
def _composed(kind: type[Config], own: bool) -> Any:
    entry, *more = TYPED[kind]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return typed(
            compose(entry, ["experiment=demo_small", "ablation=[]", *STOVE, *more, *(OWN if own else ())]), kind
        )


def job(kind: type[Config], changes: dict[str, Any], own: bool = True) -> Any:
    """A configuration with values at dotted keys; own: on a data set instead of the demonstrator."""
    cfg = deepcopy(_composed(kind, own))
    for key, value in changes.items():
        *path, last = key.split(".")
        setattr(reduce(getattr, path, cfg), last, value)
    return cfg


def loop(changes: dict[str, Any] | None = None, own: bool = True) -> LoopJob:
    return job(LoopJob, changes or {}, own)  # type: ignore[no-any-return]


def whole(cfg: Config) -> list[Stage]:
    return graph.run_stages(cfg, 1)[0]


def said(cfg: Config, *data: Frames, stages: Sequence[Stage] | None = None, jobs: Any = None) -> list[str]:
    return list(limits(cfg, whole(cfg) if stages is None else stages, jobs, data, make_env(cfg.env)))


# ---------------------------------------------------------------------------------------------------- sizes
def test_data_that_fits_is_not_stopped(made: Made) -> None:
    assert said(loop(), made(20, 30, -15)) == []
    assert said(loop(own=False)) == []


def test_sizes_of_data_and_environment(made: Made) -> None:
    wide = made(20, 9, state=14, action=13)
    assert said(loop(), wide) == [
        "policy.max_state_dim=8: data.sources.mine has observation.state of dimension 14. Fix: policy.max_state_dim=14",
        "policy.max_action_dim=7: data.sources.mine has action of dimension 13. Fix: policy.max_action_dim=13",
    ]
    assert said(loop({"policy.max_state_dim": 14, "policy.max_action_dim": 13}), wide) == []
    narrow = loop({"policy.max_state_dim": 2, "policy.max_action_dim": 3}, own=False)
    assert said(narrow) == [
        "policy.max_state_dim=2: env=moka has observation.state of dimension 8. Fix: policy.max_state_dim=8",
        "policy.max_action_dim=3: env=moka has action of dimension 7. Fix: policy.max_action_dim=7",
    ]
    assert said(narrow, wide, stages=graph.train_value(narrow, 0)) == [], "a value function takes any"


# ---------------------------------------------------------------------------------------------------- returns
def constant(normalizer: float, **more: Any) -> LoopJob:
    settings = {"advantage.normalization": Normalization.constant, "advantage.normalizer": normalizer}
    return loop(settings | {key.replace("__", "."): value for key, value in more.items()})


def test_returns_reach_below_the_bins(made: Made) -> None:
    slow = made(400, 380, tasks=("open the drawer",))
    (text,) = said(constant(150, advantage__c_fail=351.0), slow)
    assert text.startswith("advantage.normalizer=150: the returns of 100% of 2 episodes")
    assert "down to -399 steps (the longest episode has 400)" in text
    assert "Fix: advantage.normalizer=401, or advantage.normalization=per_task advantage.normalizer=null" in text
    assert said(constant(401, advantage__c_fail=351.0), slow) == said(loop({"advantage.c_fail": 351.0}), slow) == []
    failed = made(-400, 380, tasks=("open the drawer",))
    assert "Fix: advantage.normalizer=449" in said(constant(400), failed)[0], "399 steps and C_fail = 50"
    assert said(constant(449), failed) == []


def test_a_few_episodes_may_lie_outside_as_the_gate_allows(made: Made) -> None:
    data = made(*[3] * 10, 120, tasks=("open the drawer",))
    assert "9% of 11 episodes" in said(constant(100, advantage__c_fail=71.0), data)[0]
    assert said(constant(100, gate__max_misplaced=0.1), data) == []


def test_c_fail_against_the_failures_of_the_data(made: Made) -> None:
    data = made(90, 20, -10, -12, tasks=("open the drawer",))  # the floor is 90 - 10 = 80
    (text,) = said(loop(), data)
    assert text.startswith("advantage.c_fail=50: the fastest failure of the data (10 steps) would score no worse than")
    assert text.endswith("the slowest success (90 steps) of 'open the drawer'. Fix: advantage.c_fail=81")
    assert said(loop({"advantage.c_fail": 81.0}), data) == []
    assert "Fix: advantage.c_fail=81 advantage.normalizer=131" in said(constant(100), data)[0]
    assert said(constant(131, advantage__c_fail=81.0), data) == []


def test_c_fail_against_the_time_out(made: Made) -> None:
    slow = made(160, 150)
    (text,) = said(loop(), slow)
    assert "a time-out of env.max_steps=50 would score no worse than the slowest success (160 steps)" in text
    assert text.endswith("Fix: advantage.c_fail=111")
    assert said(loop({"advantage.c_fail": 111.0}), slow) == []
    assert said(loop({"env.max_steps": 160}), slow) == []
    assert said(loop(), made(160, 150, tasks=("open the drawer",))) == [
        text.replace("put the moka pot on the stove", "open the drawer")
    ]


# ---------------------------------------------------------------------------------------------------- labels
def test_failures_alone_are_not_labelled(made: Made) -> None:
    lost, labelled = made(-10, -12), loop({"policy.sft.indicator": IndicatorMode.use})
    (text,) = said(labelled, lost)
    assert text.startswith("no episode of mine succeeded: 30% of the frames of failures would be labelled positive")
    assert "policy.sft.indicator=ignore" in text
    assert said(loop(), lost) == [], "rollouts may succeed"
    assert said(labelled, made(-10, 12)) == []
    assert said(loop({"ablations": {"paper": {"policy.sft.indicator": "use"}}}), lost)[0] == text
    by_hand = job(AdvantageJob, {})
    assert said(by_hand, lost, stages=[graph.advantage(by_hand, 0)])[0] == text


def test_a_fraction_for_a_task_that_is_not_there(made: Made) -> None:
    cfg = loop({"advantage.positive_fraction_by_task": {PAN: 0.1}})
    assert f"positive_fraction_by_task names '{PAN}', of which iter_01/advantage has no frame" in said(cfg, made(20))[0]
    assert not any("positive_fraction_by_task" in text for text in said(cfg, made(20, 25, tasks=(PAN,))))


def test_a_single_episode_cannot_be_left_out(made: Made) -> None:
    folds = loop({"value.ensemble_size": 2, "value.aggregation": Aggregation.out_of_fold})
    (text,) = said(folds, made(20, name="one"))
    assert "value.aggregation=out_of_fold: of 1 episode value would train on none. Fix: more episodes" in text
    assert said(folds, made(20, 30, -15)) == []
    assert said(loop({"value.held_out": 0.0}), made(20, name="one")) == []


# ---------------------------------------------------------------------------------------------------- prompts
def tokens(task: str, indicator: bool | None) -> int:
    return len(builtin_words().encode(prompt(task, indicator)).ids)


QUIET = {"policy.finetune.indicator": IndicatorMode.ignore, "eval.prompt": Prompt.none, "rollout.prompt": Prompt.none}


def test_prompts_of_every_stage(made: Made) -> None:
    pan = made(20, 25, tasks=(PAN,))
    assert [tokens(PAN, indicator) for indicator in (None, True, False)] == [15, 33, 34]
    (text,) = said(loop(), pan)
    negative = "the prompt 'put the red pan on the rack\\nAdvantage: negative\\n' of iter_01/policy has 34 tokens"
    assert text == f"policy.tokenizer_max_length=32: {negative}. Fix: policy.tokenizer_max_length=34"
    assert said(loop({"policy.tokenizer_max_length": 34}), pan) == []
    positive = loop({"policy.finetune.indicator": IndicatorMode.positive_only})
    assert said(positive, pan)[0].endswith("has 33 tokens. Fix: policy.tokenizer_max_length=33")
    assert said(loop(QUIET), pan) == []
    assert said(loop({"value.tokenizer_max_length": 14}), pan)[-1].endswith("Fix: value.tokenizer_max_length=15")


def test_prompts_of_the_environment(made: Made) -> None:
    """The data's instruction is short, that of the environment is not; and what is not collected is evaluated."""
    drawer = made(20, tasks=("open",))
    need = tokens(POT, indicator=True)
    cfg = loop({**QUIET, "eval.prompt": Prompt.positive, "policy.finetune.indicator": IndicatorMode.always_positive})
    assert said(cfg, drawer) == []
    cfg.policy.tokenizer_max_length = need - 1
    (text,) = said(cfg, drawer)
    assert f"'{POT}\\nAdvantage: positive\\n' of iter_01/policy has {need} tokens" in text


def test_prompts_of_ablations(made: Made) -> None:
    labelled = {"policy.finetune.indicator": "use", "eval.prompt": "negative"}
    (text,) = said(loop({**QUIET, "ablations": {"labelled": labelled}}), made(20, 25, tasks=(PAN,)))
    assert "of ablations/labelled/iter_01/policy has 34 tokens" in text


def test_a_training_by_hand_knows_what_later_stages_will_say(made: Made) -> None:
    cfg = job(TrainJob, {})
    assert cfg.policy.sft.indicator.name == "ignore"
    (text,) = said(cfg, made(20, 25, tasks=(PAN,)), stages=[graph.train_policy(cfg, 0)])
    assert text.endswith("Fix: policy.tokenizer_max_length=34")


def test_a_given_checkpoint_reads_what_it_was_made_for(tmp_path: Path) -> None:
    need = tokens(POT, indicator=True)
    new_pi0(tokenizer_max_length=need - 1).save(tmp_path / "ck")
    new_value(tokenizer_max_length=5).save(tmp_path / "value")
    cfg = job(EvalJob, {"policy.tokenizer_max_length": 90, "checkpoint": str(tmp_path / "ck")}, own=False)
    stage = replace(graph.evaluation(cfg, 1), path="eval/ck", inputs={"policy": cfg.checkpoint})
    (text,) = said(cfg, stages=[stage])
    assert f"/ck: reads {need - 1} tokens, and the prompt '{POT}\\nAdvantage: positive\\n' of eval/ck has" in text
    assert text.endswith(f"or a policy trained with policy.tokenizer_max_length={need}")
    assert said(cfg, stages=[replace(stage, prompt=Prompt.none)]) == []
    asked = job(AdvantageJob, {"checkpoint": str(tmp_path / "value")}, own=False)
    stages = [
        replace(graph.value_inference(asked, 0), inputs={"value": asked.checkpoint, "demonstrations": "demonstrations"})
    ]
    assert "/value: reads 5 tokens" in said(asked, stages=stages)[0]


def test_pretrained_weights_of_the_same_robot_bring_their_tokenizer(made: Made, tmp_path: Path) -> None:
    """That of the checkpoint has one token for a word that the built-in one spells out."""
    from recap.policies.processors import indicator_step
    from recap.policies.prompt import builtin_tokenizer, same_tokenizer

    checkpoint = new_pi0()
    own = same_tokenizer(builtin_tokenizer())
    own.add_tokens(["Advantage: negative", "Advantage: positive"])
    indicator_step(checkpoint.preprocess).input_tokenizer = own
    checkpoint.save(tmp_path / "ck")
    pan = made(20, 25, tasks=(PAN,))
    cfg = loop()
    kept = replace(cfg, policy=replace(cfg.policy, pretrained=str(tmp_path / "ck")))
    assert said(cfg, pan)
    assert said(kept, pan) == []
    other = made(20, tasks=(PAN,), state=6, action=5)
    assert any("has 34 tokens" in text for text in said(kept, other)), "of another robot"


# ---------------------------------------------------------------------------------------------------- memory
def test_batches_against_memory(made: Made) -> None:
    cfg = loop({"policy.sft.batch_size": 50_000_000, "value.finetune.batch_size": 50_000_000}, own=False)
    texts = said(cfg)
    assert [text.split(":")[0] for text in texts] == [
        "policy.sft.batch_size=50000000",
        "value.finetune.batch_size=50000000",
    ]
    for text in texts:
        assert "for 2 cameras, and this machine has" in text
        key, _, fits = text.split("Fix: ")[1].removesuffix(" or less").partition("=")
        assert said(loop({key: int(fits)}, own=False)) == []
    jobs = {stage: Resources(cpus_per_task=1, mem_gb=1.0, timeout_min=5) for stage in vars(cfg.resources)}
    assert (
        "resources.policy.mem_gb asks for 1 GB" in said(loop({"policy.sft.batch_size": 5000}, own=False), jobs=jobs)[0]
    )
    assert said(loop(own=False), jobs=jobs) == []


# ---------------------------------------------------------------------------------------------------- as commands
def test_a_command_stops_with_all_of_it_before_any_work(made: Made, tmp_path: Path) -> None:
    pan = made(20, 25, tasks=(PAN,))
    shutil.copytree(pan.root, tmp_path / "mine")
    seen = run("loop", "+iterations=1", *TINY, *OWN, "policy.max_action_dim=3", "env.image_size=16", cwd=tmp_path)
    assert seen.code == 1
    assert seen.err.count("error:") == 1
    for text in ("before the first stage", "policy.max_action_dim=7", "Fix: policy.tokenizer_max_length=34"):
        assert text in seen.err
    assert not (tmp_path / "outputs").exists()


def test_labels_say_where_they_mean_little(work: Path) -> None:
    """At iteration 0, of three episodes of one task: the run's own values, and no gate."""
    folder = work / RUN
    cfg = job(AdvantageJob, {"output": str(folder), "advantage.sft.n_step": 1}, own=False)
    inputs = {"value": folder / "value", "demonstrations": folder / "demonstrations"}
    for name in ("value_inference", "labels"):
        (work / name).mkdir()
    heard: list[str] = []
    value_inference(cfg, inputs, work / "value_inference", heard.append)
    values = work / "value_inference/demonstrations.npy"
    np.save(values, np.zeros_like(np.load(values)) - 0.5)  # a value function that tells nothing apart
    advantage(
        cfg,
        {"value_inference": work / "value_inference", "demonstrations": inputs["demonstrations"]},
        work / "labels",
        heard.append,
        stage=StageKind.sft,
    )
    achieved = read(work / "labels" / THRESHOLDS)["achieved_positive"]["all"]
    assert achieved < 0.28
    assert any("30% were wanted: many advantages are equal" in text for text in heard)


def test_labels_of_tasks_that_tell_little(made: Made) -> None:
    data = made(20, -15, 12, -9, 8, tasks=(POT, PAN))
    shares = {POT: {"all": 0.3}, PAN: {"all": 0.31}}
    thresholds = Thresholds({}, 0.3, {"all": 0.3}, shares, None, {}, 50.0, {})  # type: ignore[arg-type]
    (text,) = doubts([data], thresholds, 0.02)
    assert text.startswith(f"none of 2 episodes of {PAN!r} succeeded: its 31% positive frames are those of failures.")
    alone = made(20, name="one")
    assert "has one episode" in next(doubts([alone], thresholds, 0.02))
