"""What each stage does: a function of (configuration, input directories) that fills an output directory.

Called by `recap.pipeline`, which knows when; a stage called again on a half-filled directory goes on where it was.
"""

from collections.abc import Callable

from recap.stages.act import demonstrations, evaluate, rollout
from recap.stages.data import checkpoint_of
from recap.stages.label import advantage
from recap.stages.train import train_stage
from recap.stages.values import values_stage

__all__ = ["STAGES", "checkpoint_of"]

STAGES: dict[str, Callable[..., None]] = {
    "demonstrations": demonstrations,
    "train": train_stage,
    "rollout": rollout,
    "values": values_stage,
    "advantage": advantage,
    "evaluate": evaluate,
}
