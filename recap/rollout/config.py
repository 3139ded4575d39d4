"""Keys of acting in the environment: collection, evaluation, simulation processes."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from recap.envs.config import Skill
from recap.utils.typed import Amount, Count, Fraction, Index, later, part


class Prompt(Enum):
    positive = "positive"
    negative = "negative"
    none = "none"


class Collector(Enum):
    last = "last"
    best = "best"  # of those evaluated so far


class TakeOver(Enum):
    watchdog = "watchdog"  # when the policy is stuck or its time is up
    value_drop = "value_drop"  # when V falls, or its time is up
    random = "random"  # at a step of the first 60 % of its time
    start = "start"  # at once: a demonstration instead of a rollout


@part
class CorrectionsConfig(Skill):
    """In a share of the rollouts an operator takes over from the policy and finishes the episode."""

    share: Fraction = 0.0
    when: TakeOver = TakeOver.watchdog
    drop: Fraction = later(0.15)
    slow: Fraction = 0.0
    hesitate: Fraction = 0.0
    miss: Fraction = 0.0
    noise: Amount = 0.05
    risky: Fraction = 0.0


@part
class EvalConfig:
    episodes: Count
    prompt: Prompt
    beta: Amount
    videos: Index

    def problems(self, key: str) -> Iterator[str]:
        if self.videos > self.episodes:
            yield f"{key}.videos={self.videos}: more than {key}.episodes={self.episodes}"
        if self.beta != 1 and self.prompt is Prompt.none:
            yield f"{key}.beta={self.beta:g}: guidance needs a prompt. Fix: {key}.beta=1, or {key}.prompt=positive"


@part
class RolloutConfig(EvalConfig):
    tasks: list[str] | None = None  # None: all of the environment
    policy: Collector
    tries: Count = later(1)
    corrections: CorrectionsConfig = later(CorrectionsConfig)

    def problems(self, key: str) -> Iterator[str]:
        yield from EvalConfig.problems(self, key)
        if self.tries > self.episodes:
            fix = f"Fix: at most {key}.episodes={self.episodes}"
            yield f"{key}.tries={self.tries}: one initial state takes as many episodes. {fix}"


@part
class WorkersConfig:
    """Simulation processes, and the environments that all of them hold together (= rows of one policy call)."""

    num_workers: Count
    num_envs: Count

    def problems(self, key: str) -> Iterator[str]:
        if self.num_workers > self.num_envs:
            fix = f"Fix: at most {key}.num_envs={self.num_envs}"
            yield f"{key}.num_workers={self.num_workers}: each needs an environment. {fix}"
