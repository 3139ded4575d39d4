"""The operator who takes over from the policy: in which episodes and when, by the seed of the episode or by V."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from recap.envs import Env, EpisodeSpec, registry
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
        self._latest = {TakeOver.start: 0, TakeOver.random: early}.get(corrections.when, time)
        watches = corrections.when is TakeOver.watchdog
        self._lost = getattr(self.demonstrator, "lost", None) if watches else None

    def takes_over(self, env: Env, task: str, step: int) -> bool:
        """Whether it acts from this control step on; asked before every step of the policy."""
        return step >= self._latest or (self._lost is not None and bool(self._lost(env, task)))


class ValueWatch:
    """Calls the operator where V has fallen by `corrections.drop` below the highest that it was in the episode.

    value: V(o, l) in (−1, 0) of a batch of observations, one a row; see `recap.rollout.rounds.ActFn`.
    """

    def __init__(self, value: Callable[[dict[str, Any]], np.ndarray], corrections: CorrectionsConfig) -> None:
        self.value, self.corrections = value, corrections
        self._highest: dict[int, float] = {}

    def begin(self, slots: Iterable[int]) -> None:
        """Slots in which a new episode starts."""
        self._highest |= dict.fromkeys(slots, -np.inf)

    def calls(self, observation: dict[str, Any], slots: Sequence[int], playing: Mapping[int, EpisodeSpec]) -> list[int]:
        """Of the `slots` whose observations these are, those in which the operator shall take over now."""
        watched = [slot for slot in slots if slot in playing and stands_by(self.corrections, playing[slot].seed)]
        if not watched:
            return []
        values = dict(zip(slots, self.value(observation), strict=False))  # behind the slots' there may be idle rows
        for slot in watched:
            self._highest[slot] = max(self._highest[slot], values[slot])
        return [slot for slot in watched if values[slot] < self._highest[slot] - self.corrections.drop]
