"""The configuration of one stove, of which tests change what matters to them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir

from recap.config import LoopJob, typed

CONF = Path(__file__).resolve().parents[1] / "conf"


@cache
def demo() -> LoopJob:
    """Not to be changed in place: `replace(demo().policy, …)`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return typed(compose("loop", ["experiment=stove", "iterations=1"]), LoopJob)
