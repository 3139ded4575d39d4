"""Checkpoints of a training: each appears whole or not at all, and `last` leads to the newest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Protocol

from recap.data.tensors import Batch
from recap.training.config import OPTIMIZER, TrainConfig
from recap.training.distributed import Store, wait_for_all


class Trainee(Protocol):
    """What is trained: a network, how a batch becomes its input, and how it is kept (recap.policies.checkpoint)."""

    policy: Any

    def prepare(self, batch: Batch) -> Batch: ...

    def save(self, folder: Path, weights: dict[str, Any] | None = None) -> None: ...

    def restore(self, folder: Path) -> None: ...


def newest(folder: Path, steps: int) -> int:
    """The step to go on from: of the newest checkpoint that can be gone on from, or 0.

    Only a finished training needs no optimiser state: an earlier checkpoint without it is passed over.
    """
    found = {int(path.name): path for path in folder.glob("[0-9]*")}
    return max([0, *(step for step, path in found.items() if step == steps or (path / OPTIMIZER).is_file())])


def save(checkpoint: Trainee, store: Store, folder: Path, step: int, config: TrainConfig, *, main: bool) -> None:
    """Writes a checkpoint beside its place and moves it there at once; the last one without the optimiser's state.

    All processes bring their shares, the main one writes.
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
        remove(final)  # nothing is lost: training got here from an older one, so this could not be gone on from
        temporary.rename(final)
        tidy(folder, step, config)


def tidy(folder: Path, newest: int, config: TrainConfig) -> None:
    """Points `last` at checkpoint `newest` and deletes what is older than `keep_checkpoints` or was left behind.

    A finished training keeps its last checkpoint only.
    """
    final = folder / f"{newest:07d}"
    link = folder / ".last.tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(final.name)
    link.replace(folder / "last")
    keep = 1 if newest == config.steps else config.keep_checkpoints
    older = sorted(path for path in folder.glob("[0-9]*") if path.name <= final.name)
    for path in older[:-keep]:
        remove(path)
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path)


def remove(path: Path) -> None:
    """Deletes a folder that is either there whole or not at all, whenever this is interrupted."""
    if path.is_dir():
        trash = path.with_name(f".{path.name}.old.tmp")
        shutil.rmtree(trash, ignore_errors=True)
        path.rename(trash)
        shutil.rmtree(trash)
