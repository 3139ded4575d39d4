"""A policy in the environment: rollouts, which become data, and evaluation on held-out initial states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recap.rollout.collect import journals
from recap.rollout.config import CorrectionsConfig, Prompt
from recap.stages.base import Say, Stage
from recap.utils.ranks import WHOLE, Share


@dataclass(frozen=True, kw_only=True)
class Acting(Stage):
    keys = ("env", "workers")
    simulates = acts = computes = shardable = resumes = True

    episodes: int
    videos: int
    prompt: Prompt
    beta: float

    @property
    def how(self) -> dict[str, Any]:
        """The settings that any acting takes."""
        return {key: getattr(self, key) for key in ("episodes", "videos", "prompt", "beta")}

    def refined(self, used: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        return used | self.cfg.policy.acting()


@dataclass(frozen=True, kw_only=True)
class Rollout(Acting):
    """Experience: the current policy on placements that are never evaluated, time-outs kept."""

    kind = "rollout"

    iteration: int
    tasks: list[str] | None = None
    tries: int | None = None  # None: one from each initial state
    corrections: CorrectionsConfig | None = None

    def run(self, say: Say, share: Share = WHOLE) -> None:
        from recap.stages.simulate import rollout  # imports torch

        own = {"iteration": self.iteration, "tasks": self.tasks, "corrections": self.corrections, **self.how}
        rollout(self.cfg, self.read, self.out, say, tries=self.tries or 1, share=share, **own)

    def progress(self) -> tuple[int, int]:
        return sum(1 for _ in (self.out / "episodes").glob("*.parquet")), self.episodes


@dataclass(frozen=True, kw_only=True)
class Evaluation(Acting):
    """Held-out initial states, the same ones and the same noise for every policy of the run."""

    kind = "eval"

    def run(self, say: Say, share: Share = WHOLE) -> None:
        from recap.stages.simulate import evaluate  # imports torch

        evaluate(self.cfg, self.read, self.out, say, share=share, **self.how)

    def progress(self) -> tuple[int, int]:
        lines = (path.read_bytes().count(b"\n") for path in journals(self.out / "episodes.jsonl") if path.is_file())
        return sum(lines), self.episodes
