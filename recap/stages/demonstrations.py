"""Recording of the scripted demonstrator's episodes."""

from __future__ import annotations

from dataclasses import dataclass

from recap.stages.base import Say, Stage
from recap.utils.ranks import WHOLE, Share


@dataclass(frozen=True, kw_only=True)
class Demonstrations(Stage):
    kind = "demonstrations"
    keys = ("env", "data")
    simulates = True

    def run(self, say: Say, share: Share = WHOLE) -> None:
        from recap.stages.simulate import demonstrations  # imports torch

        demonstrations(self.cfg, self.read, self.out, say)

    def progress(self) -> tuple[int, int]:
        assert self.cfg.data.demonstrator is not None
        return sum(1 for _ in (self.out / "episodes").glob("*.parquet")), self.cfg.data.demonstrator.episodes
