"""Episodes an hour, by us and by the loop of lerobot-eval with environments in processes of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.envs import make_env, make_env_pre_post_processors
from lerobot.envs.configs import LiberoEnv
from lerobot.scripts import lerobot_eval

from recap.config import LoopJob
from recap.envs import EpisodeSpec, instructions
from recap.envs import make_env as make_our_env
from recap.envs.config import EnvConfig, Images
from recap.envs.libero.env import ASSETS, assets_here, find_assets, import_libero, use_assets
from recap.envs.rendering import choose_gl
from recap.policies.actor import ActionChunks
from recap.rollout.collect import roll
from recap.rollout.pool import Pool
from recap.utils.device import threads_beside
from rows.moka_in_lerobot import MokaConfig
from rows.networks import pair
from rows.row import Bench, Row

BESIDE = Path(__file__).resolve().parents[3] / "shared/libero-assets"
HOUR, CHUNK, CORES, LOOP = 3600, 10, 2, "lerobot-eval"
VLM = {"width": 64, "depth": 2, "mlp_dim": 128, "num_heads": 8, "num_kv_heads": 1, "head_dim": 8}
VISION = {"width": 64, "depth": 2, "mlp_dim": 128, "num_heads": 2, "patch_size": 16}
LIBERO = EnvConfig(
    type="libero", suite="libero_10", tasks=["8"], image_size=256, recorded_images=Images.video, fps=20, max_steps=50
)
NUMBERS = {"vision": VISION, "vlm": VLM, "expert": VLM}


def rows(bench: Bench, demo: LoopJob) -> Iterator[Row]:
    """All episodes end by their time-out, so the work is the same; that ours refill ended slots does not show."""
    if ASSETS not in os.environ and BESIDE.is_dir():
        os.environ[ASSETS] = str(BESIDE)
    libero = find_spec("libero") is not None and assets_here()
    if libero:
        import_libero()  # with its configuration, which processes of lerobot's inherit
    choose_gl()
    os.environ.setdefault("MUJOCO_EGL_DEVICE_ID", "0")  # robosuite does not read the empty CUDA_VISIBLE_DEVICES
    steps = 20 if bench.quick else demo.env.max_steps
    env = EnvConfig(**{**vars(demo.env), "max_steps": steps})
    options = {"task": env.tasks[0], "image_size": env.image_size, "fps": env.fps, "max_steps": steps}
    yield from compared(bench, "embedded task", env, MokaConfig(options=options), slots=4, waves=2)
    if not libero:
        bench.notes.append(
            f"LIBERO was left out: it is not installed, or its assets are not here and {ASSETS} names none"
        )
        return
    steps = 10 if bench.quick else 50
    size = {"observation_height": 256, "observation_width": 256, "episode_length": steps}
    env = replace(LIBERO, max_steps=steps)
    their = LiberoEnv(task="libero_10", task_ids=[8], hard_reset=False, **size)
    yield from compared(bench, "LIBERO, moka pots", env, their, slots=2, waves=1)


def compared(bench: Bench, name: str, env: EnvConfig, their: Any, slots: int, waves: int) -> Iterator[Row]:
    """slots: environments side by side; waves: episodes of each in one measurement."""
    vars(lerobot_eval)["inside_slurm"] = lambda: True  # no bars
    checkpoint, policy = pair(NUMBERS, env.image_size, 64, CHUNK)
    (suite,) = make_env(their, n_envs=slots, use_async_envs=True).values()
    (vector,) = suite.values()
    if env.type == "libero":
        vector._env_fns = [partial(with_assets, make) for make in vector._env_fns]  # noqa: SLF001
    processors = *make_env_pre_post_processors(their, policy.config), checkpoint.preprocess, checkpoint.postprocess
    folders = (bench.folder / env.type / str(number) for number in count())

    def theirs(*, record: bool) -> float:
        played = partial(lerobot_eval.eval_policy, vector, policy, *processors, start_seed=0)

        def work() -> None:
            if not record:
                played(slots * waves)
            for _ in range(waves if record else 0):  # it fails where it goes on in a folder
                played(slots, recording_dir=next(folders), env_features=their.features)

        return HOUR * slots * waves / seconds(work)

    with Pool(env, CORES, slots) as pool, Pool(env, 1, slots) as single:
        act, task = ActionChunks(checkpoint, indicator=True), instructions(env)[0]

        def ours(*, record: bool, times: int = 1, on: Pool = pool) -> float:
            plan = [EpisodeSpec(i, task, i, i) for i in range(slots * waves * times)]
            into = next(folders) if record else None
            work = partial(roll, on, plan, "evaluation", act, CHUNK, record=into, progress=None)
            with threads_beside(on.processes):
                return HOUR * len(plan) / seconds(work)

        plain, recorded = partial(ours, record=False), partial(ours, record=True)
        limit, filmed = (HOUR * CORES / episode_seconds(env, act, task, slots, every) for every in (CHUNK, 1))
        yield Row(f"rollouts, {name}", "episodes/h", plain, partial(theirs, record=False), LOOP, goal=2, limit=limit)
        if env.type == "moka":
            peer = partial(theirs, record=True)
            yield Row(f"rollouts, {name}, recorded", "episodes/h", recorded, peer, LOOP, goal=2, limit=filmed)
        one = partial(ours, record=False, on=single)
        yield Row(f"two simulators, {name}", "episodes/h", plain, one, "ours with one")
        yield Row(f"recording, {name}", "episodes/h", recorded, plain, "ours without", goal=0.9, limit=filmed)
        processes = [os.getpid(), *(worker.process.pid for worker in pool.workers)]
        held, times = megabytes(processes), 1 if bench.quick else 5
        ours(record=True, times=times)
        more = megabytes(processes) - held
    vector.close()
    bench.notes.append(
        f"{name}: {slots} environments side by side, {env.max_steps} steps an episode; "
        f"{slots * waves * times} more recorded episodes take {more:+.0f} MB of {held:.0f} MB, all processes together"
    )


def episode_seconds(env: EnvConfig, act: ActionChunks, task: str, slots: int, every: int) -> float:
    """One core's for an episode: reset, physics, the images of every so many steps, and its share of the policy."""
    bare = make_our_env(env)
    place = {"task": task, "split": "evaluation", "seed": 0}
    seen = bare.reset(**place, initial_state=0)
    batch = {key: np.stack([value] * slots) for key, value in seen.items()} | {"task": [task] * slots}

    def play() -> None:
        bare.reset(**place, initial_state=1)
        for step in range(1, env.max_steps + 1):
            bare.step(np.zeros(bare.action_dim, np.float32), render=step % every == 0)

    keys = [(0, 0)] * slots
    act(batch, keys)
    chunks = env.max_steps / CHUNK
    played, acted = (min(seconds(work) for _ in range(3)) for work in (play, lambda: act(batch, keys)))
    found = played + chunks * acted * torch.get_num_threads() / slots
    bare.close()
    return found


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def megabytes(processes: list[int]) -> float:
    pages = (int(Path(f"/proc/{number}/statm").read_text().split()[1]) for number in processes)
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def with_assets(make: Callable[[], Any]) -> Any:
    """An environment of lerobot's, which would fetch LIBERO's assets from the hub."""
    use_assets(find_assets())
    return make()
