"""The instructions of env=moka, and the initial states of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recap.utils.errors import RecapError

SPLITS = ("demonstration", "collection", "evaluation")


@dataclass(frozen=True)
class Task:
    """An instruction. `number` seeds its initial states and never changes; `length` multiplies the time-out.

    `layout`: a name in `scene.layouts`.
    """

    number: int
    layout: str
    length: int = 1


TASKS = {
    "put the moka pot on the stove": Task(0, "one pot"),
    "put both moka pots on the stove": Task(1, "two pots", length=2),
    "put the moka pot on the trivet": Task(2, "one pot"),
    "turn on the stove": Task(3, "one pot"),
    "put the moka pot on a burner": Task(4, "two burners"),
    "put the moka pot on the burner": Task(5, "bottles"),
}


def find_task(name: str) -> str:
    if name not in TASKS:
        raise RecapError(
            f"env.tasks: unknown instruction {name!r} for env=moka; choose from {', '.join(repr(t) for t in TASKS)}."
        )
    return name


def find_split(name: str) -> str:
    if name not in SPLITS:
        raise RecapError(f"Unknown split {name!r}; choose from {', '.join(SPLITS)}.")
    return name


def initial_rng(task: str, split: str, initial_state: int) -> np.random.Generator:
    """The random stream of one initial state: a pure function of its name, so the splits never share a state."""
    if initial_state < 0:
        raise RecapError(f"initial_state={initial_state}: an id is 0 or larger.")
    return np.random.default_rng([SPLITS.index(split), TASKS[task].number, initial_state])
