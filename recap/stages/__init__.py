"""What each stage does: a function of (configuration, input directories) that fills an output directory.

Called by `recap.pipeline.runner`; a stage called again on a half-filled directory goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

# Imported when they run: labels take seconds, and importing torch and lerobot takes longer.
STAGES = {
    "demonstrations": "simulate.demonstrations",
    "train": "train.train_stage",
    "rollout": "simulate.rollout",
    "value_inference": "value_inference.value_inference",
    "advantage": "advantage.advantage",
    "gate": "gate.gate_stage",
    "evaluate": "simulate.evaluate",
}


def stage(kind: str) -> Callable[..., None]:
    """The function of a kind of stage (`Node.kind`)."""
    module, name = STAGES[kind].split(".")
    found: Callable[..., None] = getattr(import_module(f"{__name__}.{module}"), name)
    return found
