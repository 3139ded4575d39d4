"""The operator who takes over from the policy: in which episodes and when, all of it by the seed of the episode."""

from __future__ import annotations

from typing import Any

import numpy as np

from recap.envs import Env, registry
from recap.rollout.config import CorrectionsConfig, TakeOver

WHETHER, WHEN, HOW = range(1, 4)  # streams of an episode's seed; the policy's noise has its own
EARLY = 0.6  # share of the policy's time in which a take-over at a random step lies


def stands_by(corrections: CorrectionsConfig | None, seed: int) -> bool:
    """Whether an operator watches the episode of this seed."""
    return corrections is not None and np.random.default_rng([seed, WHETHER]).random() < corrections.share


class Operator:
    """The scripted demonstrator of environment `type_`, who watches one episode and finishes it when it is time.

    time: control steps that the policy has.
    """

    def __init__(self, corrections: CorrectionsConfig, type_: str, seed: int, time: int) -> None:
        self.demonstrator: Any = registry.demonstrator(type_)(corrections, np.random.default_rng([seed, HOW]))
        early = int(np.random.default_rng([seed, WHEN]).integers(1, max(2, round(EARLY * time) + 1)))
        self._latest = {TakeOver.start: 0, TakeOver.random: early, TakeOver.watchdog: time}[corrections.when]
        watches = corrections.when is TakeOver.watchdog
        self._lost = getattr(self.demonstrator, "lost", None) if watches else None

    def takes_over(self, env: Env, task: str, step: int) -> bool:
        """Whether it acts from this control step on; asked before every step of the policy."""
        return step >= self._latest or (self._lost is not None and bool(self._lost(env, task)))
