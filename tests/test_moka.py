"""The moka environment: repeatable, disjoint splits, success by real grasping only, headless rendering."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from recap.envs import make_env
from recap.envs.config import DemonstratorConfig, EnvConfig, Images
from recap.envs.moka.demonstrator import Demonstrator
from recap.envs.moka.env import MokaEnv
from recap.envs.moka.tasks import TASKS, initial_rng
from recap.utils.errors import RecapError

ONE, BOTH, TRIVET, LIGHT, *_ = TASKS
TESTS = str(Path(__file__).resolve().parent)
PATHS = f"import sys; sys.path[:0] = [{TESTS!r}, {str(Path(TESTS).parent)!r}]\n"
CLEAN = {"slow": 0.0, "hesitate": 0.0, "miss": 0.0, "noise": 0.0}
MIXED = {"slow": 0.5, "hesitate": 0.3, "miss": 0.3, "noise": 0.1}


def config(max_steps: int = 100, **changes) -> EnvConfig:
    return EnvConfig(
        **{
            "type": "moka",
            "tasks": list(TASKS),
            "image_size": 64,
            "recorded_images": Images.png,
            "fps": 10,
            "max_steps": max_steps,
        }
        | changes
    )


@pytest.fixture(scope="module")
def env():
    environment = make_env(config())
    yield environment
    environment.close()


def demonstrate(env, task, index, knobs, instruction=None):
    """One episode: (success, actions). With `instruction` the demonstrator does another task than the environment's."""
    env.reset(task=task, split="demonstration", initial_state=index, seed=index, render=False)
    demonstrator = Demonstrator(DemonstratorConfig(episodes=1, max_steps=100, **knobs), np.random.default_rng(index))
    demonstrator.reset(env, instruction or task)
    actions, done, success = [], False, False
    while not done:
        actions.append(demonstrator.act(env))
        _, success, done = env.step(actions[-1], render=False)
    return success, np.array(actions)


def digest(seed: int) -> str:
    """All bytes of an episode of 20 random actions, after another episode that moves everything about."""
    environment = make_env(config())
    demonstrate(environment, LIGHT, 1, CLEAN)
    rng, sha = np.random.default_rng(seed), hashlib.sha256()
    observation = environment.reset(task=BOTH, split="evaluation", initial_state=3, seed=seed)
    for _ in range(20):
        for key in sorted(observation):
            sha.update(observation[key].tobytes())
        observation = environment.step(rng.uniform(-1, 1, 7).astype(np.float32))[0]
    environment.close()
    return sha.hexdigest()


def python(code: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **{k: v for k, v in changes.items() if v is not None}}
    for key in (k for k, v in changes.items() if v is None):
        environment.pop(key, None)
    command = [sys.executable, "-c", PATHS + code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("task", TASKS)
def test_clean_expert_succeeds_everywhere(env, task):
    outcomes = [demonstrate(env, task, index, CLEAN) for index in range(20)]
    assert all(success for success, _ in outcomes)
    assert np.mean([len(actions) for _, actions in outcomes]) < 30 * TASKS[task].length


def test_mixed_demonstrator_is_slower_but_recovers(env):
    outcomes = [demonstrate(env, ONE, index, MIXED) for index in range(20)]
    lengths = [len(actions) for success, actions in outcomes if success]
    assert len(lengths) >= 17
    assert 40 < np.mean(lengths) < 70


@pytest.mark.parametrize(("knob", "value"), [("slow", 1.0), ("hesitate", 1.0), ("noise", 0.3)])
def test_each_knob_changes_the_actions(env, knob, value):
    clean, changed = (demonstrate(env, ONE, 5, CLEAN | {knob: v})[1] for v in (0.0, value))
    assert clean.shape != changed.shape or not np.allclose(clean, changed)
    if knob == "slow":
        assert np.abs(changed[:, :3]).max() <= 0.41 < np.abs(clean[:, :3]).max()
    if knob == "hesitate":
        assert (np.abs(changed[:5, :6]) < 1e-6).all()


def test_a_miss_is_followed_by_a_second_grasp(env):
    def closings(actions):
        return int((np.diff(actions[:, 6]) > 0).sum())

    missed = [demonstrate(env, ONE, index, CLEAN | {"miss": 0.5}) for index in range(12)]
    assert {closings(demonstrate(env, ONE, index, CLEAN)[1]) for index in range(12)} == {1}
    again = [success for success, actions in missed if closings(actions) >= 2]
    assert 2 <= len(again) < len(missed)
    assert sum(again) >= len(again) - 1  # a miss may knock the pot over, but rarely


def test_demonstrator_repeats_itself(env):
    first, second = (demonstrate(env, ONE, 7, MIXED)[1] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_the_instruction_decides(env):
    """The one-pot tasks share a scene, and doing another instruction's work is no success."""
    for asked, done in ((ONE, TRIVET), (TRIVET, ONE), (LIGHT, ONE), (ONE, LIGHT)):
        assert not demonstrate(env, asked, 0, CLEAN, done)[0], (asked, done)


def test_one_pot_of_two_is_no_success(env):
    env.reset(task=BOTH, split="demonstration", initial_state=0, seed=0, render=False)
    demonstrator = Demonstrator(DemonstratorConfig(episodes=1, max_steps=100, **CLEAN), np.random.default_rng(0))
    demonstrator.reset(env, BOTH)
    world = env.unwrapped
    for _ in range(200):
        _, success, _ = env.step(demonstrator.act(env), render=False)
        on = [world.on_stove(0), world.on_stove(1)]
        assert success == all(on)
        if success:
            return
    pytest.fail("the expert did not finish")


def test_success_needs_release(env):
    """A pot that the gripper holds on the burner does not count."""
    env.reset(task=ONE, split="demonstration", initial_state=0, seed=0, render=False)
    demonstrator = Demonstrator(DemonstratorConfig(episodes=1, max_steps=100, **CLEAN), np.random.default_rng(0))
    demonstrator.reset(env, ONE)
    grasped = False
    for _ in range(60):
        action = demonstrator.act(env)
        if grasped and action[6] < 0:  # the expert lets go here; hold on instead
            break
        grasped = grasped or action[6] > 0
        assert not env.step(action, render=False)[1]
    world, hold = env.unwrapped, np.array([0, 0, -0.2, 0, 0, 0, 1], np.float32)
    assert not any(env.step(hold, render=False)[1] for _ in range(5))
    assert np.hypot(*(world.burners - world.pot_position(0)[:2]).T).min() < 0.01
    assert any(env.step(-hold, render=False)[1] for _ in range(5))


def test_closing_beside_the_pot_does_not_lift_it(env):
    """Nothing but contact holds a pot: closing 6 cm beside it and lifting leaves it on the table."""
    env.reset(task=ONE, split="evaluation", initial_state=1, seed=0, render=False)
    world = env.unwrapped
    for height, gripper in ((0.12, -1), (0.041, -1), (0.041, 1), (0.15, 1)):
        for _ in range(14):
            goal = [world.pot_position(0)[0] - 0.06, world.pot_position(0)[1], height]
            move = np.clip((goal - world.eef) / 0.028, -1, 1)
            env.step(np.array([*move, 0, 0, 0, gripper], np.float32), render=False)
    assert world.eef[2] > 0.12
    assert world.pot_position(0)[2] == pytest.approx(0.035, abs=0.002)


def test_same_bytes_in_another_process():
    other = python("from test_moka import digest; print(digest(4))")
    assert other.stdout.strip() == digest(4), other.stderr
    assert digest(4) != digest(5)


def test_splits_and_ids_never_share_an_initial_state(env):
    splits = ("demonstration", "collection", "evaluation")
    names = itertools.product(TASKS, splits, range(200))
    draws = {initial_rng(task, split, index).random() for task, split, index in names}
    assert len(draws) == len(TASKS) * 3 * 200
    first = env.reset(task=ONE, split="collection", initial_state=1, seed=0)
    again = env.reset(task=ONE, split="collection", initial_state=1, seed=99)
    other = env.reset(task=ONE, split="evaluation", initial_state=1, seed=0)
    for key, value in first.items():
        np.testing.assert_array_equal(value, again[key])
        assert not np.array_equal(value, other[key])


def test_observations_and_time_out():
    env = make_env(config(max_steps=4, image_size=48))
    observation = env.reset(task=ONE, split="evaluation", initial_state=0, seed=0)
    assert set(observation) == {*env.cameras, "observation.state"}
    assert all(observation[key].shape == (48, 48, 3) and observation[key].dtype == np.uint8 for key in env.cameras)
    assert observation["observation.state"].shape == (env.state_dim,)
    assert observation["observation.state"].dtype == np.float32
    still = np.zeros(env.action_dim, np.float32)
    steps = [env.step(still, render=False) for _ in range(4)]
    assert [done for _, _, done in steps] == [False, False, False, True]
    assert set(steps[0][0]) == {"observation.state"}
    assert env.max_steps(BOTH) == 2 * env.max_steps(ONE) == 8
    env.close()


def test_cameras_see_the_pots_and_the_lit_stove(env):
    """Colours at 64 pixels: the red pot is always seen, the blue one only with two pots, lit burners glow."""

    def count(image, low, high):
        return int(((image >= low) & (image <= high)).all(-1).sum())

    red, blue, glow = ((120, 0, 0), (255, 130, 110)), ((0, 30, 150), (130, 190, 255)), ((220, 70, 0), (255, 130, 40))
    for index in range(10):
        one = env.reset(task=ONE, split="evaluation", initial_state=index, seed=0)[env.cameras[0]]
        two = env.reset(task=BOTH, split="evaluation", initial_state=index, seed=0)[env.cameras[0]]
        assert count(one, *red) >= 10
        assert count(one, *blue) == 0
        assert count(two, *blue) >= 10
    demonstrate(env, LIGHT, 0, CLEAN)
    assert count(env.unwrapped.observe()[env.cameras[0]], *glow) > 20
    assert count(env.reset(task=LIGHT, split="evaluation", initial_state=0, seed=0)[env.cameras[0]], *glow) == 0


def test_gymnasium():
    env = gymnasium.make("recap.envs.moka:recap/Moka-v0", max_steps=6)
    check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=1)
    truncated = [env.step(np.zeros(7, np.float32))[3] for _ in range(6)]
    assert truncated == [False] * 5 + [True]
    assert env.render().shape == (64, 64, 3)
    env.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type": "libero"}, "env.suite"),
        ({"tasks": ["put the mokka pot on the stove"]}, ONE),
        ({"tasks": []}, "env.tasks"),
        ({"fps": 7}, "env.fps=7"),
        ({"image_size": 2}, "env.image_size=2"),
    ],
)
def test_bad_configurations(changes, words):
    with pytest.raises(RecapError, match=words):
        make_env(config(**changes))


def test_bad_calls(env):
    with pytest.raises(RecapError, match="evaluation"):
        env.reset(task=ONE, split="test", initial_state=0, seed=0)
    with pytest.raises(RecapError, match="initial_state=-1"):
        env.reset(task=ONE, split="evaluation", initial_state=-1, seed=0)
    env.reset(task=ONE, split="evaluation", initial_state=0, seed=0, render=False)
    for bad in (np.zeros(6), np.full(7, np.nan)):
        with pytest.raises(RecapError, match="7 finite numbers"):
            env.step(bad)
    assert isinstance(env.unwrapped, MokaEnv)


RENDER = """
import sys
from test_moka import ONE, config, make_env, RecapError
try:
    env = make_env(config())
    env.reset(task=ONE, split="evaluation", initial_state=0, seed=0)
    print("rendered", "torch" in sys.modules)
except RecapError as error:
    print("error:", error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the choice of OpenGL is Linux's")
def test_headless_rendering_and_its_errors():
    """It renders without a display, also when mujoco was imported first; without a driver the error names the fix."""
    headless = {"DISPLAY": None, "MUJOCO_GL": None, "PYOPENGL_PLATFORM": None}
    early = python("import mujoco\n" + RENDER, **headless)
    assert early.stdout.strip() == "rendered False", early.stderr
    no_driver = python(RENDER, **headless, __EGL_VENDOR_LIBRARY_DIRS="/nonexistent").stdout
    assert "apt-get install libegl1" in no_driver or "rendered" in no_driver  # OSMesa may be there
    wrong = python(RENDER, **headless | {"MUJOCO_GL": "eggl"}).stdout
    assert "MUJOCO_GL=eggl" in wrong
    assert "osmesa" in wrong
