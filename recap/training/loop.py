"""The one training loop, for both policies and both stages, on 1..n processes.

Everything random is a function of (seed, step): the frames of a batch, the dropped indicators, the flow noise. So a
training that was killed goes on with the losses it would have had, and n processes see the batch of one process.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recap.data.mixture import Mixture, Picked
from recap.jobs.preemption import NOTICE
from recap.method.advantage import awr_weights
from recap.policies.actor import to_tensor
from recap.policies.checkpoint import Checkpoint
from recap.policies.first_batch import save_first_batch
from recap.policies.pi0.config import PI0Config
from recap.tracking import Tracker
from recap.training.config import IndicatorMode, Optimizer, PolicyTrainConfig, Sharding, TrainConfig
from recap.training.distributed import OPTIMIZER, Store, make_accelerator, mean, place, prepare, wait_for_all, whole
from recap.utils.errors import RecapError
from recap.utils.progress import Progress

Batch = dict[str, Any]
ABSURD = (
    1000.0  # a loss from which on nothing is learned: one that knows nothing is about 2 for π0, ln(bins) = 5.3 for V
)
FAR = 100.0  # standard deviations that a number of a batch may lie from the mean before a high loss is its fault


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up over `warmup_steps`, then a cosine down to `decay_to` × peak at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * (config.decay_to + (1 - config.decay_to) * 0.5 * (1 + math.cos(math.pi * done)))


def policy_batches(
    mixture: Mixture, size: PI0Config, train: PolicyTrainConfig, seed: int, labels: list[dict[str, np.ndarray]] | None
) -> Callable[[int], Batch]:
    """Batches of π0: action chunks, the indicator of each frame (after dropout), flow noise and time.

    Args:
        labels: of every source of the mixture, "indicator" bool [frames] and "advantage" float64 [frames], where the
            training reads them.
    """
    weights = _awr(train.awr_temperature, labels) if train.awr_temperature is not None else None

    def indicators(picked: Picked, rng: np.random.Generator) -> list[bool | None]:
        if train.indicator is IndicatorMode.ignore:
            return [None] * len(picked.frame)
        if train.indicator is IndicatorMode.on:
            given = [True] * len(picked.frame)
        else:
            assert labels is not None
            given = [bool(labels[s]["indicator"][f]) for s, f in zip(picked.source, picked.frame, strict=True)]
        dropped = rng.random(len(given)) < size.indicator_dropout
        if train.indicator is IndicatorMode.positive_only:
            dropped |= ~np.array(given)
        return [None if gone else positive for gone, positive in zip(dropped, given, strict=True)]

    def batch(step: int) -> Batch:
        picked = mixture.pick(seed, step, train.batch_size)
        data = mixture.gather(picked, chunk=size.chunk_size)
        rng = np.random.default_rng([seed, step, 1])
        shift_images(data, train.image_shift, rng)
        shape = (train.batch_size, size.flow_samples)
        data["indicator"] = indicators(picked, rng)
        if weights is not None:
            chosen = [weights[s][f] for s, f in zip(picked.source, picked.frame, strict=True)]
            data["weight"] = np.array(chosen, dtype=np.float32)
        data["noise"] = rng.standard_normal((*shape, size.chunk_size, size.max_action_dim), dtype=np.float32)
        data["time"] = (rng.beta(1.5, 1.0, shape) * 0.999 + 0.001).astype(np.float32)  # as lerobot's PI0Config
        return data

    return batch


def _awr(temperature: float, labels: list[dict[str, np.ndarray]] | None) -> list[np.ndarray]:
    """Weights of the frames of every source, of mean 1 over all of them together."""
    assert labels is not None
    together = awr_weights(np.concatenate([source["advantage"] for source in labels]), temperature)
    return np.split(together, np.cumsum([len(source["advantage"]) for source in labels])[:-1])


def shift_images(batch: Batch, pixels: int, rng: np.random.Generator) -> None:
    """Moves every image [B, H, W, 3] by up to `pixels` in each direction, repeating the edge, in place.

    Which pixels a pot covers is then no longer worth remembering.
    """
    for key, images in batch.items():
        if pixels == 0 or not key.startswith("observation.images."):
            continue
        size, height, width = images.shape[:3]
        rows = np.arange(height) + rng.integers(-pixels, pixels + 1, (size, 1))
        columns = np.arange(width) + rng.integers(-pixels, pixels + 1, (size, 1))
        rows, columns = rows.clip(0, height - 1), columns.clip(0, width - 1)
        batch[key] = images[np.arange(size)[:, None, None], rows[:, :, None], columns[:, None, :]]


def value_batches(
    mixture: Mixture, train: TrainConfig, seed: int, return_bins: list[np.ndarray]
) -> Callable[[int], Batch]:
    """Batches of the value function: observations and the bin of each frame's return (int [frames] per source)."""

    def batch(step: int) -> Batch:
        picked = mixture.pick(seed, step, train.batch_size)
        data = mixture.gather(picked)
        shift_images(data, train.image_shift, np.random.default_rng([seed, step, 1]))
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
    key: str = "",
    sharding: Sharding = Sharding.none,
    tensorboard: bool = False,
) -> Path:
    """Trains `checkpoint` in place up to `config.steps`, resuming from the newest checkpoint under `out`.

    Writes `metrics.jsonl`, `first_batch/`, `checkpoints/<step>/` and `checkpoints/last` under `out`; each checkpoint
    appears whole or not at all. key: where `config` stands in the configuration, such as pi0.sft., for messages.
    tensorboard: the losses as event files too.

    Returns:
        `out/checkpoints/last`.

    Raises:
        RecapError: loss or gradient is NaN, infinite or absurd, naming the step; the newest checkpoint is damaged;
            there are more processes than samples in a batch.
    """
    accelerator = make_accelerator(sharding, checkpoint.policy.config.device, config)
    rank, processes = place()
    if processes > config.batch_size:
        raise RecapError(
            f"{label}: {key}batch_size={config.batch_size} cannot be shared by {processes} processes. "
            f"Fix: {key}batch_size={processes} or more, or fewer processes."
        )
    policy = checkpoint.policy
    policy.train()
    folder = out / "checkpoints"
    start = _newest(folder, config.steps)
    if start:
        checkpoint.restore(folder / f"{start:07d}")
    model, optimizer = prepare(accelerator, sharding, policy, lambda policy: make_optimizer(policy, config))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    store = Store(model, optimizer)
    if 0 < start < config.steps:
        store.resume(folder / f"{start:07d}")
    main = rank == 0
    if main and start:
        _tidy(folder, start, config)
    began, loss = time.perf_counter(), float("nan")
    unchecked: list[torch.Tensor] = []  # (loss, gradient norm) of steps whose numbers are still on the device
    with (
        Tracker(out / "metrics.jsonl" if main else None, start, tensorboard=tensorboard) as tracker,
        Progress(label, config.steps, start, quiet=not main) as bar,
        NOTICE.at_a_good_moment(),
    ):
        for step in range(start, config.steps):
            rate = learning_rate(config, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            rows, weight = _share(batches(step), rank, processes)
            batch = checkpoint.prepare(tensors(rows))
            if main and step == 0:
                save_first_batch(checkpoint, batch, out / "first_batch")
            total, _ = model(batch)
            total = total * weight
            accelerator.backward(total)
            norm = accelerator.clip_grad_norm_(trainable, config.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
            unchecked.append(torch.stack([total.detach().float(), whole(norm, total)]))
            done = step + 1
            last = done == config.steps
            leave = _notice_given(processes, total.device) and not last
            save = last or leave or done % config.save_every == 0
            if save or done % config.log_every == 0:
                numbers = mean(torch.stack(unchecked)).tolist()
                if bad := _fault(numbers, done, ABSURD):
                    raise RecapError(f"{label}: {bad}. Fix: {_remedy(batch, key, config)}")
                loss, size = numbers[-1]
                unchecked.clear()
                speed = (done - start) * config.batch_size / (time.perf_counter() - began)
                tracker.log(done, loss=loss, lr=rate, grad_norm=size, samples_per_second=speed)
            if save:
                _save(checkpoint, store, folder, done, config, main=main)
            if leave:
                NOTICE.leave()
            bar.advance("" if math.isnan(loss) else f"loss {loss:.4f}")  # none is known before the first logged step
    wait_for_all()
    policy.eval()
    return folder / "last"


def _notice_given(processes: int, device: torch.device) -> bool:
    """The same answer in all processes, after the same step."""
    given = NOTICE.given()
    if processes > 1 and NOTICE.requeues is not None:
        given = bool(mean(torch.tensor(float(given), device=device)).item())
    return given


def _fault(numbers: list[list[float]], done: int, absurd: float) -> str:
    """What is wrong with (loss, gradient norm) of the steps up to `done`, the last of `numbers`; "" if nothing is."""
    for step, (loss, norm) in enumerate(numbers, done - len(numbers) + 1):
        for what, value in (("loss", loss), ("gradient", norm)):
            if not math.isfinite(value):
                return f"the {what} is {value} at step {step}"
        if loss > absurd:
            return f"the loss is {loss:.3g} at step {step}, where below 10 is usual: nothing is learned from that"
    return ""


def _remedy(batch: Batch, key: str, config: TrainConfig) -> str:
    """batch: as the network saw it last, normalised."""
    for name in ("observation.state", "action"):
        if batch.get(name) is None:
            continue
        far = batch[name].float().abs().flatten(0, -2).amax(dim=0)  # of each number
        if (most := float(far.max())) > FAR:
            return (
                f"{name}, number {int(far.argmax())}, lies {most:.3g} standard deviations from the mean that the "
                "checkpoint normalises with. It was made for other data: train from SFT on with this data, without "
                "pretrained weights of another robot, or look for bad frames."
            )
    return f"lower {key}learning_rate ({config.learning_rate:g}) or look for bad data."


def _share(batch: Batch, process: int, processes: int) -> tuple[Batch, float]:
    """A process's rows of a global batch, and their weight: the mean of weighted losses is the loss of the whole."""
    if processes == 1:
        return batch, 1.0
    rows = slice(process, None, processes)
    size = len(batch["task"])
    pad = batch.get("action_is_pad", np.zeros((size, 1), dtype=bool))
    weight = processes * np.sum(~pad[rows]) / np.sum(~pad)
    return {key: value[rows] for key, value in batch.items()}, float(weight)


def tensors(batch: Batch) -> Batch:
    """A batch of arrays as the preprocessor takes it."""
    return {key: to_tensor(value) if isinstance(value, np.ndarray) else value for key, value in batch.items()}


def make_optimizer(policy: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over what learns; with 8-bit moments by bitsandbytes.

    Raises:
        RecapError: bitsandbytes is not installed.
    """
    trainable = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (0.9, 0.95),
        "weight_decay": config.weight_decay,
    }
    if config.optimizer is Optimizer.adamw:
        return torch.optim.AdamW(trainable, **options, fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise RecapError(
            "optimizer=adamw8bit: bitsandbytes is not installed. Fix: pip install bitsandbytes, or optimizer=adamw."
        ) from error
    return AdamW8bit(trainable, **options)


def _newest(folder: Path, steps: int) -> int:
    """The step to go on from: of the newest checkpoint that can be gone on from, or 0.

    Only a finished training needs no optimiser state: an earlier checkpoint without it is passed over.
    """
    found = {int(path.name): path for path in folder.glob("[0-9]*")}
    return max([0, *(step for step, path in found.items() if step == steps or (path / OPTIMIZER).is_file())])


def _save(checkpoint: Checkpoint, store: Store, folder: Path, step: int, config: TrainConfig, *, main: bool) -> None:
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
        _remove(final)  # nothing is lost: training got here from an older one, so this could not be gone on from
        temporary.rename(final)
        _tidy(folder, step, config)


def _tidy(folder: Path, newest: int, config: TrainConfig) -> None:
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
        _remove(path)
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path)


def _remove(path: Path) -> None:
    """Deletes a folder that is either there whole or not at all, whenever this is interrupted."""
    if path.is_dir():
        trash = path.with_name(f".{path.name}.old.tmp")
        shutil.rmtree(trash, ignore_errors=True)
        path.rename(trash)
        shutil.rmtree(trash)
