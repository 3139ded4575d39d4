"""Recording of the scripted demonstrator's episodes. Imports no torch: nothing here computes with networks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recap.method.config import SourceKind
from recap.rollout.collect import demonstrate
from recap.rollout.pool import Pool
from recap.stages.base import Say, Stage
from recap.stages.inputs import plan, publish, published
from recap.utils.ranks import WHOLE, Share


@dataclass(frozen=True, kw_only=True)
class Demonstrations(Stage):
    kind = "demonstrations"
    keys = ("env", "data")
    simulates = True

    def run(self, say: Say, share: Share = WHOLE) -> None:
        cfg, out, scripted = self.cfg, self.out, self.cfg.data.demonstrator
        assert scripted is not None
        if published(out):
            return
        env = type(cfg.env)(**{**vars(cfg.env), "max_steps": scripted.max_steps})
        with Pool(env, cfg.workers.num_workers, cfg.workers.num_workers) as pool:
            results = demonstrate(pool, plan(cfg, scripted.episodes, 0, stream=0), scripted, record=out / "episodes")
        say(f"{len(results)} demonstrations, {np.mean([r.steps for r in results]):.0f} steps on average")
        publish(cfg, out, SourceKind.demonstration, None)

    def progress(self) -> tuple[int, int]:
        assert self.cfg.data.demonstrator is not None
        return sum(1 for _ in (self.out / "episodes").glob("*.parquet")), self.cfg.data.demonstrator.episodes
