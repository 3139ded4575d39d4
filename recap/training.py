"""The one training loop, for both policies and both stages, on 1..n processes.

Everything random is a function of (seed, step): the frames of a batch, the dropped indicators, the flow noise. So a training that was
killed goes on with the losses it would have had, and n processes see the batch that one process would have seen.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from recap.config import IndicatorMode, PI0Config, PolicyTrainConfig, Precision, TrainConfig
from recap.data.mixture import Mixture, Picked
from recap.errors import RecapError
from recap.policies.acting import to_tensor
from recap.policies.checkpoint import Checkpoint
from recap.progress import Progress
from recap.tracking import Tracker

Batch = dict[str, Any]
OPTIMIZER = "training_state.pt"


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up over `warmup_steps`, then a cosine down to `decay_to` × peak at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * (config.decay_to + (1 - config.decay_to) * 0.5 * (1 + math.cos(math.pi * done)))


def policy_batches(
    mixture: Mixture, size: PI0Config, train: PolicyTrainConfig, seed: int, labels: list[np.ndarray] | None
) -> Callable[[int], Batch]:
    """Batches of π0: action chunks, the indicator of each frame (after dropout), flow noise and time.

    Args:
        labels: with `indicator=use`, the indicator bool [frames] of every source of the mixture.
    """

    def indicators(picked: Picked, rng: np.random.Generator) -> list[bool | None]:
        if train.indicator is IndicatorMode.ignore:
            return [None] * len(picked.frame)
        if train.indicator is IndicatorMode.on:
            given = np.ones(len(picked.frame), dtype=bool)
        else:
            assert labels is not None
            given = np.array([labels[s][f] for s, f in zip(picked.source, picked.frame, strict=True)])
        dropped = rng.random(len(given)) < size.indicator_dropout
        return [None if gone else bool(positive) for gone, positive in zip(dropped, given, strict=True)]

    def batch(step: int) -> Batch:
        picked = mixture.pick(seed, step, train.batch_size)
        data = mixture.gather(picked, chunk=size.chunk_size)
        rng = np.random.default_rng([seed, step, 1])
        shape = (train.batch_size, size.flow_samples)
        data["indicator"] = indicators(picked, rng)
        data["noise"] = rng.standard_normal((*shape, size.chunk_size, size.max_action_dim), dtype=np.float32)
        data["time"] = (rng.beta(1.5, 1.0, shape) * 0.999 + 0.001).astype(np.float32)  # as lerobot's PI0Config
        return data

    return batch


def value_batches(
    mixture: Mixture, train: TrainConfig, seed: int, return_bins: list[np.ndarray]
) -> Callable[[int], Batch]:
    """Batches of the value function: observations and the bin of each frame's normalised return (int [frames] per source)."""

    def batch(step: int) -> Batch:
        picked = mixture.pick(seed, step, train.batch_size)
        data = mixture.gather(picked)
        data["return_bin"] = np.array(
            [return_bins[s][f] for s, f in zip(picked.source, picked.frame, strict=True)], dtype=np.int64
        )
        return data

    return batch


def train(
    checkpoint: Checkpoint,
    batches: Callable[[int], Batch],
    config: TrainConfig,
    out: Path,
    *,
    label: str,
    precision: Precision = Precision.no,
) -> Path:
    """Trains `checkpoint` in place up to `config.steps`, resuming from the newest checkpoint under `out`.

    Writes `metrics.jsonl` and `checkpoints/<step>/`, `checkpoints/last` under `out`; each checkpoint appears whole or not at all.

    Returns:
        `out/checkpoints/last`.

    Raises:
        RecapError: the loss is NaN or infinite, naming the step.
    """
    accelerator = Accelerator(
        mixed_precision=precision.value,
        cpu=checkpoint.policy.config.device == "cpu",
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True)
        ],  # π0's last prefix layer has unread outputs
    )
    policy = checkpoint.policy
    policy.train()
    trainable = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True
    )
    folder = out / "checkpoints"
    start = _resume(checkpoint, optimizer, folder)
    model, optimizer = accelerator.prepare(policy, optimizer)
    main = accelerator.is_main_process
    began, loss = time.perf_counter(), float("nan")
    with (
        Tracker(out / "metrics.jsonl" if main else Path(os.devnull), start) as tracker,
        Progress(label, config.steps, start, quiet=not main) as bar,
    ):
        for step in range(start, config.steps):
            rate = learning_rate(config, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = checkpoint.prepare(tensors(_share(batches(step), accelerator)))
            with accelerator.autocast():
                total, _ = model(batch)
            accelerator.backward(total)
            norm = accelerator.clip_grad_norm_(trainable, config.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
            done = step + 1
            last = done == config.steps
            if done % config.log_every == 0 or done % config.save_every == 0 or last:
                loss = accelerator.reduce(total.detach(), "mean").item()
                if not math.isfinite(loss):
                    raise RecapError(
                        f"{label}: the loss is {loss} at step {done}. Fix: lower learning_rate ({config.learning_rate:g}) or look for bad data."
                    )
                speed = (done - start) * config.batch_size / (time.perf_counter() - began)
                tracker.log(done, loss=loss, lr=rate, grad_norm=float(norm), samples_per_second=speed)
            if main and (last or done % config.save_every == 0):
                _save(checkpoint, optimizer, folder, done, config.keep_checkpoints, last=last)
            bar.advance(f"loss {loss:.4f}")
    accelerator.wait_for_everyone()
    policy.eval()
    return folder / "last"


def _share(batch: Batch, accelerator: Accelerator) -> Batch:
    """This process's rows of a global batch."""
    if accelerator.num_processes == 1:
        return batch
    rows = slice(accelerator.process_index, None, accelerator.num_processes)
    return {key: value[rows] for key, value in batch.items()}


def tensors(batch: Batch) -> Batch:
    """A batch of arrays as the preprocessor takes it."""
    return {key: to_tensor(value) if isinstance(value, np.ndarray) else value for key, value in batch.items()}


def _resume(checkpoint: Checkpoint, optimizer: torch.optim.Optimizer, folder: Path) -> int:
    """Loads the newest whole checkpoint into policy and optimizer; the step to go on from."""
    steps = sorted((int(path.name) for path in folder.glob("[0-9]*") if (path / OPTIMIZER).is_file()), reverse=True)
    if not steps:
        return 0
    path = folder / f"{steps[0]:07d}"
    saved = Checkpoint.load(path, type(checkpoint.policy), checkpoint.policy.config.device or "cpu")
    checkpoint.policy.load_state_dict(saved.policy.state_dict())
    try:
        optimizer.load_state_dict(torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True))
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise RecapError(
            f"{path / OPTIMIZER}: damaged ({error}). Fix: delete {path} and run the command again."
        ) from error
    return steps[0]


def _save(
    checkpoint: Checkpoint, optimizer: torch.optim.Optimizer, folder: Path, step: int, keep: int, *, last: bool
) -> None:
    """Writes a checkpoint beside its place, moves it there, points `last` at it, and prunes older ones.

    The optimiser's state is for resuming only: a finished training does not keep it.
    """
    final = folder / f"{step:07d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    checkpoint.save(temporary)
    torch.save(optimizer.state_dict(), temporary / OPTIMIZER)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    link = folder / ".last.tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(final.name)
    link.replace(folder / "last")
    numbered = sorted(folder.glob("[0-9]*"))
    for old in numbered[: -1 if last else -keep]:
        shutil.rmtree(old)
