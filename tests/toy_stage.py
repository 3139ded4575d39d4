import json
from dataclasses import dataclass

import numpy as np

from recap.stages.base import Say, Stage
from recap.stages.inputs import sources
from recap.utils.files import write_text
from recap.utils.ranks import WHOLE, Share


@dataclass(frozen=True, kw_only=True)
class Novelty(Stage):
    """How far the newest rollouts' states lie from the demonstrations', in their standard deviations."""

    kind = "novelty"  # its name in paths, W&B and messages
    keys = ("data",)  # the configuration that decides its result: another value is another stage
    asks_as = "advantage"  # whose resources its job asks for
    reads_data = True

    def run(self, say: Say, share: Share = WHOLE) -> None:
        demonstrations, *_, rollouts = sources(self.cfg, self.read)
        mean, std = demonstrations.state.mean(0), demonstrations.state.std(0) + 1e-3
        distance = np.abs((rollouts.state - mean) / std).mean()
        write_text(self.out / "novelty.json", json.dumps({"distance": float(distance)}) + "\n")
        say(f"rollouts lie {distance:.2f} standard deviations from the demonstrations")
