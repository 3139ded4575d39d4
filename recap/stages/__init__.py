"""What each stage does: a function of (configuration, input directories) that fills an output directory.

Called by `recap.pipeline`, which knows when; a stage called again on a half-filled directory goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

# Imported when they run: labels take seconds, and importing torch and lerobot takes longer.
STAGES = {
    "demonstrations": "act.demonstrations",
    "train": "train.train_stage",
    "rollout": "act.rollout",
    "values": "values.values_stage",
    "advantage": "label.advantage",
    "gate": "gate.gate_stage",
    "evaluate": "act.evaluate",
}


def stage(kind: str) -> Callable[..., None]:
    """The function of a kind of stage (`Node.kind`)."""
    module, name = STAGES[kind].split(".")
    found: Callable[..., None] = getattr(import_module(f"{__name__}.{module}"), name)
    return found
