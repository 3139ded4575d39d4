"""Checkpoints of a training: each appears whole or not at all, and `last` leads to the newest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Protocol

from recap.data.tensors import Batch
from recap.training.config import OPTIMIZER, TrainConfig
from recap.training.distributed import Store, wait_for_all
from recap.utils.files import appearing, remove


class Trainee(Protocol):
    """What is trained: a network, how a batch becomes its input, and how it is kept (recap.policies.checkpoint)."""

    policy: Any

    def prepare(self, batch: Batch) -> Batch: ...

    def save(self, folder: Path, weights: dict[str, Any] | None = None) -> None: ...

    def restore(self, folder: Path) -> None: ...


def newest(folder: Path, steps: int) -> int:
    """The step of the newest checkpoint to resume from, or 0: one with an optimiser state, or that of the last step."""
    found = {int(path.name): path for path in folder.glob("[0-9]*")}
    return max((step for step, path in found.items() if step == steps or (path / OPTIMIZER).is_file()), default=0)


def save(checkpoint: Trainee, store: Store, folder: Path, step: int, config: TrainConfig, *, main: bool) -> None:
    """Writes a checkpoint beside its place, then moves it there; the last one without the optimiser's state.

    All processes call it: they bring their shares, and the main one writes.
    """
    final = folder / f"{step:07d}"
    temporary = folder / f".{final.name}.tmp"
    if main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    wait_for_all()
    weights = store.weights()
    if step < config.steps:
        store.save(temporary, main=main)
    wait_for_all()
    if main:
        checkpoint.save(temporary, weights)
        if final.is_dir():
            remove(final)  # nothing is lost: training got here from an older one, so this had no optimiser state
        temporary.rename(final)
        tidy(folder, step, config)


def tidy(folder: Path, newest: int, config: TrainConfig) -> None:
    """Points `last` at checkpoint `newest` and deletes what is older than `keep_checkpoints` or was left behind.

    A finished training keeps its last checkpoint only.
    """
    name = f"{newest:07d}"
    with appearing(folder / "last") as link:
        link.symlink_to(name)
    keep = 1 if newest == config.steps else config.keep_checkpoints
    for path in sorted(path for path in folder.glob("[0-9]*") if path.name <= name)[:-keep]:
        remove(path)
    for path in folder.glob(".*.tmp"):
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
