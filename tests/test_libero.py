"""LIBERO and other environments of lerobot: names, initial states, what a policy sees, and the whole loop on it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from libero_helpers import MOKA, moka_env, needs_assets, record
from tiny_run import STAGES, read, run

from recap.envs import instructions, make_env
from recap.envs.config import EnvConfig, Images
from recap.rollout.pool import egl_device
from recap.utils.errors import RecapError

SMALL = ("experiment=libero_small", "+iterations=1", "rollout.episodes=2", "eval.episodes=2", "env.max_steps=12")


# ---------------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize("task", ["8", MOKA, "KITCHEN_SCENE8_put_both_moka_pots_on_the_stove"])
def test_tasks_by_number_name_and_instruction(task: str) -> None:
    pytest.importorskip("libero")
    stove = "turn on the stove and put the moka pot on it"
    assert instructions(moka_env(tasks=[task, "2"])) == (MOKA, stove)
    assert instructions(moka_env(suite="libero_90", tasks=["46"]))[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"suite": "libero_1"}, "env.suite=libero_1: no such suite. Choose one of libero_spatial, libero_object"),
        ({"tasks": ["make tea"]}, r"env.tasks: 'make tea': no such task. env.suite=libero_10 has\n  0: put both"),
        ({"tasks": ["10"]}, "env.tasks: '10': no such task"),
        ({"tasks": ["8", MOKA]}, f"two of them have the instruction '{MOKA}'"),
        (
            {"suite": "libero_90", "tasks": ["turn on the stove"]},
            r"tasks \[\d+, .* have this instruction, name one by its",
        ),
    ],
)
def test_names_that_are_not_there(changes: dict[str, Any], says: str) -> None:
    pytest.importorskip("libero")
    with pytest.raises(RecapError, match=says):
        instructions(moka_env(**changes))


def test_a_wrong_task_is_told_with_all_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without the hub: one list, at once, and nothing is written."""
    pytest.importorskip("libero")
    for variable in ("RECAP_LIBERO_ASSETS", "HF_LEROBOT_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path))
    began = time.monotonic()
    seen = run("loop", "experiment=libero_moka", "+iterations=1", "env.tasks=[99]", "output=run", cwd=tmp_path)
    assert time.monotonic() - began < 20
    assert (seen.code, seen.err.count("error:")) == (1, 1)
    for line in (
        "device=auto: no GPU here",
        "env.tasks: '99': no such task",
        "policy.pretrained=lerobot/pi0_base: not on this machine",
        "hf download google/paligemma-3b-pt-224 (gated: accept its licence",
        "value.tokenizer=google/gemma-3-270m: not on this machine",
        "hf download --repo-type dataset lerobot/libero, or data.sources.libero.root=<its folder>",
        "hf download --repo-type dataset lerobot/libero-assets, or RECAP_LIBERO_ASSETS=<their folder>",
    ):
        assert line in seen.err, seen.err
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------- any other
def test_any_other_environment_of_lerobot() -> None:
    """PushT: what lerobot's own environment shows, its action range, and a time-out."""
    pytest.importorskip("gym_pusht", reason="pip install 'lerobot[pusht]'")
    from lerobot.envs.configs import PushtEnv
    from lerobot.envs.utils import preprocess_observation

    task = "push the T onto its target"
    config = EnvConfig(type="pusht", tasks=[task], image_size=96, recorded_images=Images.png, fps=10, max_steps=3)
    env = make_env(config)
    assert (env.tasks, env.cameras, env.state_dim, env.action_dim) == ((task,), ("observation.image",), 2, 2)
    assert [float(np.ravel(bound)[0]) for bound in env.action_range] == [0, 512]
    first = env.reset(task=task, split="collection", initial_state=3, seed=0)
    again = env.reset(task=task, split="collection", initial_state=3, seed=9)
    other = env.reset(task=task, split="evaluation", initial_state=3, seed=0)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not np.array_equal(first["observation.state"], other["observation.state"]), "no split shares a state"
    ends = [env.step(np.array([400, 100], np.float32))[1:] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)], "success and end: the time-out"

    from recap.envs.lerobot.env import state_seed

    stock = PushtEnv(observation_height=96, observation_width=96).create_envs(1)["pusht"][0]
    theirs = preprocess_observation(stock.reset(seed=[state_seed("collection", 0, 3)])[0])
    assert np.array_equal(theirs["observation.state"][0].numpy(), first["observation.state"])
    pixels = (theirs["observation.image"][0] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, first["observation.image"])
    for change, says in (({"fps": 20}, "env.fps=20: pusht runs at 10"), ({"type": "metaworld"}, "metaworld")):
        with pytest.raises(RecapError, match=says):
            make_env(EnvConfig(**{**vars(config), **change}))


def test_processes_take_turns_at_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID", raising=False)
    for visible, devices in (("2,5", ["2", "5", "2"]), ("", [None] * 3), ("MIG-1,MIG-2", [None] * 3)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert [egl_device(number).get("MUJOCO_EGL_DEVICE_ID") for number in range(3)] == devices
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "1")
    assert egl_device(0) == {}, "the user's choice"


# ---------------------------------------------------------------------------------------------------- LIBERO itself
@pytest.mark.slow
def test_initial_states_and_what_is_seen_of_them() -> None:
    """States are a function of split and number, whatever came before; unseen steps change nothing that is seen."""
    needs_assets()
    env: Any = make_env(moka_env(image_size=64))

    def start(split: str, state: int) -> dict[str, np.ndarray]:
        first = env.reset(task=MOKA, split=split, initial_state=state, seed=0)
        simulation = env._env.unwrapped._env.sim
        return {**first, "qpos": simulation.data.qpos.copy(), "bodies": simulation.model.body_pos.copy()}

    def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray], *keys: str) -> bool:
        return all(np.array_equal(a[key], b[key]) for key in keys or a)

    collected, standard = start("collection", 3), start("evaluation", 3)
    assert equal(start("collection", 3), collected)
    assert equal(start("evaluation", 53), standard), "there are 50: number 53 is number 3 again"
    shipped = env._env.unwrapped._init_states
    assert len(shipped) == 50
    for other in (start("collection", 4), start("demonstration", 3), start("evaluation", 4), standard):
        assert not np.allclose(other["qpos"][9:], collected["qpos"][9:])
    assert standard["qpos"][9:12] == pytest.approx(shipped[3][1 + 9 : 1 + 12], abs=0.02), (
        "set after the reset, then settled"
    )

    def play(*, render: bool) -> list[np.ndarray]:
        start("evaluation", 3)
        actions = np.random.default_rng(0).uniform(-1, 1, (6, 7)).astype(np.float32)
        seen = [env.step(action, render=render or i == 5)[0] for i, action in enumerate(actions)]
        assert (env.cameras[0] in seen[0]) is render
        return [seen[-1][key] for key in (*env.cameras, "observation.state")]

    assert all(np.array_equal(a, b) for a, b in zip(play(render=True), play(render=False), strict=True))
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("visible", ["", "GPU-8f6a2b1c", "0"])
def test_gpus_that_are_not_numbers(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    """Without a GPU to see, and with names as SLURM gives parts of one, robosuite would end at `int("")`."""
    needs_assets()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID", raising=False)
    code = (
        "from libero_helpers import MOKA, moka_env; from recap.envs import make_env; env = make_env(moka_env()); "
        "seen = env.reset(task=MOKA, split='evaluation', initial_state=0, seed=0); print(seen[env.cameras[0]].std())"
    )
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) > 1


@pytest.mark.slow
def test_the_whole_loop_on_libero(tmp_path: Path) -> None:
    """Real hf-libero, tiny networks: demonstrations as others record them, rollouts as video, labels and policy."""
    needs_assets()
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data = record(tmp_path, episodes=2, steps=15)
    seen = run("loop", *SMALL, f"data.sources.libero.root={data}", cwd=tmp_path)
    assert seen.code == 0, seen.err
    done = tmp_path / "outputs/libero_small"
    assert all((done / stage / "manifest.json").is_file() for stage in STAGES if stage != "demonstrations")

    stock = LeRobotDataset("recap/rollouts", root=done / "iter_01/rollout/dataset", video_backend="pyav")
    assert (stock.num_episodes, stock.num_frames, stock.fps) == (2, 24, 20), "time-outs are kept"
    item = stock[23]
    assert item["task"] == MOKA
    assert item["observation.images.image2"].shape == (3, 128, 128)
    recorded = read(done / "iter_01/rollout/dataset/meta/recap.json")
    assert (recorded["env"]["type"], {episode["split"] for episode in recorded["episodes"]}) == (
        "libero",
        {"collection"},
    )
    evaluated = read(done / "iter_01/eval/result.json")["episodes"]
    assert [episode["initial_state"] for episode in evaluated] == [0, 1]
    labels = sorted(path.parent.name for path in (done / "iter_01/advantage").rglob("advantages.parquet"))
    assert labels == ["libero", "rollouts_01"]
    assert read(done / "summary.json")["policies"][1]["eval"]["episodes"] == 2

    again = run("loop", *SMALL, f"data.sources.libero.root={data}", cwd=tmp_path)
    assert again.out.count("kept") == len(STAGES) - 1, "the same command again does nothing"
    other = run("loop", *SMALL, f"data.sources.libero.root={data}", "env.tasks=[2]", cwd=tmp_path)
    assert "env.tasks" in other.err, "another configuration in the same directory"


@pytest.mark.slow
def test_data_of_another_robot_stops_before_any_work(finished_run: Path, tmp_path: Path) -> None:
    needs_assets()
    data = finished_run / "outputs/demo_small/demonstrations/dataset"
    seen = run("loop", *SMALL, f"data.sources.libero.root={data}", "data.sources.libero.fps=null", cwd=tmp_path)
    assert seen.code == 1
    assert "data.sources.libero: has images of [(64, 64, 3)], but env=libero has [(128, 128, 3)]" in seen.err
    assert not (tmp_path / "outputs").exists()
