"""An operator takes over from the policy: from any state, by the episode's seed, recorded and counted apart."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from test_moka import CLEAN, config
from test_moka_choices import Clumsy
from test_rollout import ENV, EXECUTED, PLAN, contents, play
from tiny_run import ROOT

from recap.config import LoopJob, typed
from recap.data.frames import load_frames
from recap.data.interventions import attempts
from recap.data.lerobot_writer import assemble, finished
from recap.envs import make_env
from recap.envs.config import DemonstratorConfig
from recap.envs.moka.demonstrator import Demonstrator
from recap.envs.moka.tasks import TASKS
from recap.method.config import SourceKind
from recap.pipeline.graph import rollout
from recap.rollout.config import CorrectionsConfig, TakeOver
from recap.rollout.operator import Operator, ValueWatch, stands_by
from recap.utils.errors import RecapError

HALF = CorrectionsConfig(share=0.6, when=TakeOver.random)
*_, BURNERS, BOTTLES = TASKS


# ---------------------------------------------------------------------------------------------------- the operator
@pytest.fixture(scope="module")
def env():
    environment = make_env(config())
    yield environment
    environment.close()


def clumsy(env, task, index, steps, operator=None):
    """Up to `steps` of one who misses, dawdles and aims beside; until `operator` says that it is lost, if there is one.

    Returns (how many were made, whether the episode ended).
    """
    env.reset(task=task, split="collection", initial_state=index, seed=index, render=False)
    settings = DemonstratorConfig(episodes=1, max_steps=100, slow=0.3, hesitate=0.2, miss=0.5, noise=0.25)
    policy = Clumsy(settings, np.random.default_rng(index))
    policy.spread = 0.03
    policy.reset(env, task)
    for step in range(steps):
        if operator is not None and operator.lost(env, task):
            return step, False
        if env.step(policy.act(env), render=False)[2]:
            return step, True
    return steps, False


def finish(env, task, operator):
    """(success, steps) of the operator, who has 60."""
    operator.reset(env, task)
    for step in range(60):
        _, success, done = env.step(operator.act(env), render=False)
        if done:
            return success, step + 1
    return False, 60


@pytest.mark.parametrize("task", [task for task in TASKS if task != "put both moka pots on the stove"])
def test_the_operator_finishes_from_any_state(env, task):
    """With a pot in the hand, a hand beside it or low, a pot put down elsewhere: at any moment of a clumsy policy."""
    outcomes, held = [], 0
    for index in range(40):
        if clumsy(env, task, index, 1 + index % 30)[1]:
            continue
        held += Demonstrator._holds(env.unwrapped, 0)
        outcomes.append(finish(env, task, Demonstrator(CorrectionsConfig(), np.random.default_rng(index))))
    assert sum(success for success, _ in outcomes) >= 0.94 * len(outcomes)
    assert np.mean([steps for _, steps in outcomes]) < 28, "he goes on from there, and does not begin anew"
    assert held >= 2 or task == "turn on the stove"


def test_a_pot_in_the_hand_stays_there(env):
    task = "put the moka pot on the stove"
    expert = Demonstrator(DemonstratorConfig(episodes=1, max_steps=100, **CLEAN), np.random.default_rng(0))
    env.reset(task=task, split="collection", initial_state=3, seed=0, render=False)
    expert.reset(env, task)
    while env.unwrapped.pot_position(0)[2] < 0.08:
        env.step(expert.act(env), render=False)
    operator = Demonstrator(CorrectionsConfig(noise=0.0), np.random.default_rng(1))
    operator.reset(env, task)
    grips = []
    while not env.step(operator.act(env), render=False)[1]:
        grips.append(env.unwrapped.closed)
    assert grips == sorted(grips, reverse=True), "the hand opens once, over the stove"
    assert len(grips) < 16


def test_the_operator_takes_the_way_that_works_for_the_policy(env):
    for risky, ways in ((0.0, ("large", "high")), (1.0, ("small", "low"))):
        for task, way in zip((BURNERS, BOTTLES), ways, strict=True):
            env.reset(task=task, split="collection", initial_state=0, seed=0, render=False)
            operator = Demonstrator(CorrectionsConfig(risky=risky, noise=0.0), np.random.default_rng(0))
            assert finish(env, task, operator)[0]
            assert env.choice == way


@pytest.mark.parametrize("task", ["put the moka pot on the stove", BURNERS])
def test_the_watchdog(env, task):
    """A clean expert is never lost; a policy that does nothing is after 1.5 s, and a clumsy one now and then."""
    for index in range(10):
        env.reset(task=task, split="collection", initial_state=index, seed=index, render=False)
        expert = Demonstrator(DemonstratorConfig(episodes=1, max_steps=100, **CLEAN), np.random.default_rng(index))
        watcher, done = Demonstrator(CorrectionsConfig(), np.random.default_rng(0)), False
        expert.reset(env, task)
        while not done:
            assert not watcher.lost(env, task)
            done = env.step(expert.act(env), render=False)[2]
    env.reset(task=task, split="collection", initial_state=0, seed=0, render=False)
    watcher = Demonstrator(CorrectionsConfig(), np.random.default_rng(0))
    still = [watcher.lost(env, task) for _ in range(20) if env.step(np.zeros(7, np.float32), render=False)]
    assert still == [False] * 15 + [True] * 5
    watchers = [Demonstrator(CorrectionsConfig(), np.random.default_rng(0)) for _ in range(12)]
    lost = [clumsy(env, task, index, 50, watcher)[0] for index, watcher in enumerate(watchers)]
    assert sum(steps < 50 for steps in lost) >= 4
    assert min(lost) >= 15


def test_when_and_in_which_episodes():
    """By the seed alone: the share, and moments in the first 60 % of the policy's time, never before its first step."""
    seeds = range(400)
    watched = [seed for seed in seeds if stands_by(HALF, seed)]
    assert 0.5 < len(watched) / 400 < 0.7
    assert not any(stands_by(None, seed) or stands_by(replace(HALF, share=0.0), seed) for seed in seeds)
    moments = [Operator(HALF, "moka", seed, 50)._latest for seed in watched]
    assert (min(moments), max(moments)) == (1, 30)
    assert moments == [Operator(HALF, "moka", seed, 50)._latest for seed in watched]
    later = {when: Operator(replace(HALF, when=when), "moka", 0, 50)._latest for when in TakeOver}
    assert (later[TakeOver.start], later[TakeOver.watchdog]) == (0, 50)


# ---------------------------------------------------------------------------------------------------- recordings
@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corrected")
    return play(4, 1, record=folder, corrections=HALF), folder


def test_what_is_recorded(recorded, tmp_path):
    results, folder = recorded
    corrected = [result for result in results if result.corrected_from is not None]
    assert 2 <= len(corrected) < len(results)
    assert {result.index for result in corrected} <= {spec.index for spec in PLAN if stands_by(HALF, spec.seed)}
    assert all(1 <= result.corrected_from <= 0.6 * ENV.max_steps for result in corrected)
    assert all(result.success for result in corrected), "he has as much time as the policy, after it"
    assert max(result.steps for result in results if result not in corrected) == ENV.max_steps
    assert not any(result.alone for result in corrected)
    assert {index: facts.get("corrected_from") for index, facts in finished(folder).items()} == {
        result.index: result.corrected_from for result in results
    }
    for result in results:
        marks = pq.read_table(folder / f"{result.index:06d}.parquet")["intervention"].to_pylist()
        begin = result.steps if result.corrected_from is None else result.corrected_from
        assert marks == [step >= begin for step in range(result.steps)]

    root = assemble(folder, tmp_path / "set", fps=10, source="rollout")
    frames = load_frames(root, "rollouts_01", SourceKind.rollout)
    assert frames.files.features["intervention"] == {"dtype": "bool", "shape": [1], "names": None}, "as lerobot has it"
    assert frames.corrected.sum() == sum(result.steps - result.corrected_from for result in corrected)
    parts = attempts(frames, cut=True)
    assert len(parts.start) == len(results) + len(corrected)
    assert parts.success.tolist() == [
        won for result in results for won in ([] if result.corrected_from is None else [False]) + [result.success]
    ]
    assert (attempts(frames, cut=False).of_frames() == frames.success[frames.episode]).all()


def test_the_policy_acts_as_without_an_operator(recorded, tmp_path):
    """Up to the take-over, and in all other episodes; without corrections files are as they always were."""
    results, folder = recorded
    alone = play(4, 1, record=tmp_path)
    for result, other in zip(results, alone, strict=True):
        one, two = (pq.read_table(path / f"{result.index:06d}.parquet") for path in (folder, tmp_path))
        assert "intervention" not in two.column_names
        same = min(result.steps if result.corrected_from is None else result.corrected_from, other.steps)
        assert one["action"].to_pylist()[:same] == two["action"].to_pylist()[:same]
        assert result == other or result.corrected_from is not None


def test_other_slots_and_processes_give_the_same_files(recorded, tmp_path):
    results, folder = recorded
    assert play(7, 2, record=tmp_path, corrections=HALF) == results
    assert contents(tmp_path) == contents(folder)


def test_a_corrected_rollout_is_killed_and_resumed(recorded, tmp_path, repository):
    """SIGKILL: nothing lost, nothing played twice, and the same bytes."""
    results, folder = recorded
    first = min(result.index for result in results if result.corrected_from is not None)
    script = f"""
import pathlib, sys, time
sys.path[:0] = [{str(repository)!r}, {str(repository / "tests")!r}]
from test_corrections import HALF
from test_rollout import act, play
slow = lambda *seen: (time.sleep(0.05), act(*seen))[1]
play(2, 1, record=pathlib.Path({str(tmp_path)!r}), corrections=HALF, act=slow)
"""
    with subprocess.Popen([sys.executable, "-c", script]) as main:
        deadline = time.monotonic() + 60
        while not (tmp_path / f"{first:06d}.parquet").exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        main.send_signal(signal.SIGKILL)
    kept, again = finished(tmp_path), []
    assert first in kept
    assert len(kept) < len(PLAN)
    assert play(3, 1, record=tmp_path, corrections=HALF, on_done=again.append) == results
    assert sorted([*kept, *(result.index for result in again)]) == list(range(len(PLAN)))
    assert contents(tmp_path) == contents(folder)


def falling(batch):
    """A V of the state alone: it falls as the hand leaves the middle, to either side."""
    return -0.1 - 0.5 * np.abs(batch["observation.state"][:, 0])


def test_a_drop_of_v_calls_him(tmp_path):
    """In watched episodes, at the first chunk whose V lies deep enough below the highest; the same in other slots."""
    often = replace(HALF, when=TakeOver.value_drop, drop=0.01)
    results = play(4, 1, record=tmp_path / "a", corrections=often, watch=ValueWatch(falling, often))
    watched = {spec.index for spec in PLAN if stands_by(often, spec.seed)}
    for result in results:
        table = pq.read_table(tmp_path / "a" / f"{result.index:06d}.parquet")
        v = falling({"observation.state": np.array(table["observation.state"].to_pylist())})[::EXECUTED]
        fell = EXECUTED * np.flatnonzero(v < np.maximum.accumulate(v) - often.drop)
        due = [step for step in (*fell.tolist(), ENV.max_steps) if step <= ENV.max_steps]
        if result.index in watched and result.corrected_from is not None:
            assert result.corrected_from == due[0]
        else:
            assert result.corrected_from is None
            assert result.index not in watched or result.success
    calls = [result.corrected_from for result in results if result.corrected_from not in (None, ENV.max_steps)]
    assert calls, "V fell somewhere"
    assert play(3, 2, record=tmp_path / "b", corrections=often, watch=ValueWatch(falling, often)) == results
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_v_is_that_of_the_policy_who_collects():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = ["experiment=demo", "iterations=2", "rollout.corrections={share: 0.5, when: value_drop}"]
        cfg = typed(compose("loop", overrides), LoopJob)
    assert rollout(cfg, 1).inputs == {"policy": "sft", "value": "value"}
    assert rollout(cfg, 2).inputs == {"policy": "iter_01/policy", "value": "iter_01/value"}


def test_from_the_start_it_is_a_demonstration(tmp_path):
    results = play(4, 1, record=tmp_path, corrections=CorrectionsConfig(share=1.0, when=TakeOver.start))
    assert [(result.corrected_from, result.success) for result in results] == [(0, True)] * len(PLAN)
    marks = [pq.read_table(path)["intervention"].to_pylist() for path in sorted(tmp_path.glob("*.parquet"))]
    assert all(all(one) for one in marks)


def test_an_operator_whom_the_environment_does_not_have():
    with pytest.raises(RecapError, match="env=pusht has no scripted demonstrator"):
        Operator(HALF, "pusht", 0, 10)
