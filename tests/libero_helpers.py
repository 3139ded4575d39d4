"""The real LIBERO for tests: where its assets are, and a data set recorded in it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from recap.data.lerobot_writer import assemble
from recap.envs import EpisodeSpec
from recap.envs.config import EnvConfig, Images
from recap.envs.libero.env import ASSETS, assets_here
from recap.rollout.collect import Pool, roll

MOKA = "put both moka pots on the stove"
BESIDE = Path(__file__).resolve().parents[2] / "shared/libero-assets"  # of the two moka-pot scenes


def needs_assets() -> None:
    """Skips the test where LIBERO cannot run."""
    pytest.importorskip("libero", reason="hf-libero is not installed (pip install -e '.[libero]')")
    if ASSETS not in os.environ and BESIDE.is_dir():
        os.environ[ASSETS] = str(BESIDE)
    if not assets_here():
        pytest.skip(f"LIBERO's assets are neither in {BESIDE}, nor in the hub's cache, nor named in {ASSETS}")


def moka_env(**changes: object) -> EnvConfig:
    values = {"type": "libero", "suite": "libero_10", "tasks": ["8"], "image_size": 128, "fps": 20}
    return EnvConfig(**{**values, "recorded_images": Images.video, "max_steps": 30, **changes})  # type: ignore[arg-type]


def record(folder: Path, episodes: int, steps: int) -> Path:
    """A data set of random movements in the moka-pot scene, which nobody says the outcomes of, as others record it."""

    def act(observation: dict[str, np.ndarray], noise_keys: list[tuple[int, int]]) -> np.ndarray:
        actions = [np.random.default_rng(key).uniform(-1, 1, (10, 7)) for key in noise_keys]
        return np.stack(actions).astype(np.float32)

    plan = [EpisodeSpec(i, MOKA, i, i) for i in range(episodes)]
    with Pool(moka_env(max_steps=steps), 1, 1) as pool:
        roll(pool, plan, "demonstration", act, 10, record=folder / "episodes", progress=None)
    assemble(folder / "episodes", folder / "dataset", fps=20, source="rollout")
    (folder / "dataset/meta/recap.json").unlink()
    return folder / "dataset"
