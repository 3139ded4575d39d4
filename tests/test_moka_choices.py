"""The moka tasks with a choice: both ways succeed for the demonstrator, and centimetres do for one of them only."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_moka import CLEAN, config

from recap.data.lerobot_writer import assemble
from recap.envs import EpisodeSpec, make_env
from recap.envs.config import DemonstratorConfig, MokaConfig
from recap.envs.moka.demonstrator import Demonstrator
from recap.envs.moka.tasks import TASKS
from recap.rollout import collect
from recap.rollout.pool import Pool

ONE, *_, BURNERS, BOTTLES = TASKS
CHOICES = [(BURNERS, "large", "small"), (BOTTLES, "high", "low")]  # task, safe, risky


@pytest.fixture(scope="module")
def env():
    environment = make_env(config())
    yield environment
    environment.close()


class Clumsy(Demonstrator):
    """Aims beside the burner, each time it tries: by a Gaussian of `spread` metres in x and in y."""

    spread = 0.0

    def _burner(self, env, pot, risky):
        return super()._burner(env, pot, risky) + self.rng.normal(0.0, self.spread, 2)


def choose(env, task, indices, risky, spread=0.0, **knobs):
    """[(choice, success, how far from the nearest burner the pot ends, m)] of one episode an index."""
    settings, outcomes = DemonstratorConfig(episodes=1, max_steps=100, risky=risky, **CLEAN | knobs), []
    for index in indices:
        env.reset(task=task, split="demonstration", initial_state=index, seed=index, render=False)
        assert env.choice is None
        demonstrator, done, success = Clumsy(settings, np.random.default_rng(index)), False, False
        demonstrator.spread = spread
        demonstrator.reset(env, task)
        while not done:
            _, success, done = env.step(demonstrator.act(env), render=False)
        world = env.unwrapped
        outcomes.append((env.choice, success, np.hypot(*(world.burners - world.pot_position(0)[:2]).T).min()))
    return outcomes


@pytest.mark.parametrize(("task", "safe", "risky"), CHOICES)
def test_the_demonstrator_masters_both_ways(env, task, safe, risky):
    """With the noise of the recordings nearly every attempt succeeds (a failed one is repeated), within millimetres."""
    for probability, way in ((0.0, safe), (1.0, risky)):
        outcomes = choose(env, task, range(40), probability, noise=0.05)
        assert {choice for choice, _, _ in outcomes} == {way}
        assert sum(success for _, success, _ in outcomes) >= 37
        assert np.quantile([distance for _, success, distance in outcomes if success], 0.9) < 0.008


@pytest.mark.parametrize(("task", "safe", "risky"), CHOICES)
def test_shares_of_the_choices(env, task, safe, risky):
    first, again = (choose(env, task, range(60), 0.7) for _ in range(2))
    assert first == again
    chosen = [choice for choice, _, _ in first]
    assert set(chosen) == {safe, risky}
    assert 0.55 < chosen.count(risky) / 60 < 0.85


@pytest.mark.parametrize(("task", "safe", "risky"), CHOICES)
def test_centimetres_do_for_the_safe_way_only(env, task, safe, risky):
    """What a policy that aims two centimetres beside the burner finds out, and no demonstration shows."""
    rates = {}
    for probability, way in ((0.0, safe), (1.0, risky)):
        outcomes = choose(env, task, range(40), probability, spread=0.02)
        assert [choice for choice, _, _ in outcomes].count(way) >= 36
        rates[way] = np.mean([success for _, success, _ in outcomes])
    assert rates[safe] > 0.8
    assert rates[risky] < 0.5


@pytest.mark.parametrize(("task", "safe", "risky"), CHOICES)
def test_the_ways_part_at_the_frame_of_the_choice(env, task, safe, risky):
    """The same episode, once each way: the hand has done the same until then, and half a second later it has not."""
    for index in range(10):
        paths, frames = [], []
        for probability in (0.0, 1.0):
            env.reset(task=task, split="demonstration", initial_state=index, seed=index, render=False)
            settings = DemonstratorConfig(episodes=1, max_steps=100, risky=probability, **CLEAN)
            demonstrator, done, path = Demonstrator(settings, np.random.default_rng(index)), False, []
            demonstrator.reset(env, task)
            while not done:
                path.append(env.unwrapped.eef.copy())
                assert env.choice_frame is None or env.choice_frame < len(path)
                _, _, done = env.step(demonstrator.act(env), render=False)
            paths.append(np.array(path))
            frames.append(env.choice_frame)
        frame = frames[0]
        assert frame == frames[1]
        apart = np.linalg.norm(paths[0][: frame + 6] - paths[1][: frame + 6], axis=1)
        assert apart[: frame + 1].max() < 0.002
        assert apart[frame + 5] > 0.04


def test_each_burner_has_its_tolerance(env):
    """15 mm beside the centre is on the large burner and beside the small one; the key widens that."""
    env.reset(task=BURNERS, split="evaluation", initial_state=0, seed=0, render=False)
    wide = make_env(config(moka=MokaConfig(small_burner=0.02)))
    wide.reset(task=BURNERS, split="evaluation", initial_state=0, seed=0, render=False)

    def stands(environment, burner, beside):
        world = environment.unwrapped
        x, y = world.burners[burner] + beside
        address, dof = world.sim.pot_qpos[0], world.sim.pot_dof[0]
        world.sim.data.qpos[address : address + 7] = [x, y, 0.059, 1, 0, 0, 0]
        world.sim.data.qvel[dof : dof + 6] = 0
        return environment.step(np.zeros(7, np.float32), render=False)[1], environment.choice

    assert env.choice_frame is None  # it was never lifted
    assert stands(env, 0, (0.0, 0.0)) == stands(env, 0, (-0.015, 0.0)) == (True, "large")
    assert stands(env, 1, (0.0, 0.0)) == (True, "small")
    assert stands(env, 1, (-0.015, 0.0)) == (False, "small")
    assert stands(wide, 1, (-0.015, 0.0)) == (True, "small")
    wide.close()


def test_a_bottle_knocked_over_is_a_failure(env):
    """Also where the pot then stands on the burner; another key leaves more room between the bottles."""
    env.reset(task=BOTTLES, split="demonstration", initial_state=0, seed=0, render=False)
    world = env.unwrapped
    body, address = world.sim.bottle_body[0], world.sim.bottle_qpos[0]
    demonstrator = Demonstrator(DemonstratorConfig(episodes=1, max_steps=100, **CLEAN), np.random.default_rng(0))
    demonstrator.reset(env, BOTTLES)
    world.sim.data.qpos[address] -= 0.015
    while not world.on_stove(0):
        assert not env.step(demonstrator.act(env), render=False)[2]
    assert not world.success()
    assert world.sim.data.xmat[body][8] > 0.99  # it stands, but elsewhere
    wide = make_env(config(moka=MokaConfig(bottle_clearance=0.024)))
    wide.reset(task=BOTTLES, split="demonstration", initial_state=0, seed=0, render=False)
    gap, wider = (np.ptp(one.unwrapped.bottles[:, 0]) for one in (env, wide))
    assert wider - gap == pytest.approx(0.04)
    wide.close()


def test_a_recorded_episode_says_which_way_it_took(tmp_path):
    """In the results of a roll, in the recorded data set, and after an interruption; other tasks say nothing of it."""
    settings = DemonstratorConfig(episodes=3, max_steps=100, risky=1.0, **CLEAN)
    plan = [EpisodeSpec(index, task, index, index) for index, task in enumerate((BURNERS, BOTTLES, ONE))]
    with Pool(config(), 1, 1) as pool:
        played = collect.demonstrate(pool, plan, settings, record=tmp_path / "episodes", progress=None)
        again = collect.demonstrate(pool, plan, settings, record=tmp_path / "episodes", progress=None)
    assert [result.choice for result in played] == ["small", "low", None]
    assert again == played
    out = assemble(tmp_path / "episodes", tmp_path / "dataset", fps=10, source="demonstration")
    episodes = json.loads((out / "meta/recap.json").read_text())["episodes"]
    assert [episode.get("choice") for episode in episodes] == ["small", "low", None]
    assert "choice" not in episodes[2]
    frames = [episode.get("choice_frame") for episode in episodes]
    assert frames[2] is None
    assert all(0 < frame < episode["steps"] - 5 for frame, episode in zip(frames[:2], episodes, strict=False))
