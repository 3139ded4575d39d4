"""The one training loop, for both policies and both stages, on 1..n processes.

Everything random is a function of (seed, step): the frames of a batch, the dropped indicators, the flow noise. So a
training that was killed goes on with the losses it would have had, and n processes see the batch of one process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from recap.data.tensors import Batch, tensors
from recap.tracking.metrics import Tracker
from recap.training.checkpoints import Trainee, newest, save, tidy
from recap.training.config import Sharding, TrainConfig
from recap.training.distributed import Store, make_accelerator, mean, place, prepare, wait_for_all, whole
from recap.training.feed import ahead
from recap.training.optim import learning_rate, make_optimizer
from recap.utils.errors import RecapError
from recap.utils.notice import NOTICE
from recap.utils.progress import Progress

SHARE = "weight of the process's share"  # beside the tensors of its batch
ABSURD = 1000.0  # a loss that teaches nothing: a network that knows nothing has about 2 (π0) or ln(bins) = 5.3 (V)
FAR = 100.0  # standard deviations that a number of a batch may lie from the mean before a high loss is its fault


def train(
    checkpoint: Trainee,
    batches: Callable[[int], Batch],
    config: TrainConfig,
    out: Path,
    *,
    label: str,
    key: str = "",
    first_batch: Callable[[Batch], None] | None = None,
    sharding: Sharding = Sharding.none,
    tensorboard: bool = False,
) -> Path:
    """Trains `checkpoint` in place up to `config.steps`, resuming from the newest checkpoint under `out`.

    Writes `metrics.jsonl`, `checkpoints/<step>/` and `checkpoints/last` under `out`, and returns the last of them.

    key: where `config` stands in the configuration, such as policy.sft., for messages. first_batch: called with the
    first one, as the network sees it. tensorboard: writes event files too.

    Raises RecapError: loss or gradient is NaN, infinite or absurd, naming the step; the newest checkpoint is damaged;
    there are more processes than samples in a batch.
    """
    device = checkpoint.policy.config.device
    accelerator = make_accelerator(sharding, device, config)
    rank, processes = place()
    if processes > config.batch_size:
        raise RecapError(
            f"{label}: {key}batch_size={config.batch_size} cannot be shared by {processes} processes. "
            f"Fix: {key}batch_size={processes} or more, or fewer processes."
        )
    policy = checkpoint.policy
    policy.train()
    folder = out / "checkpoints"
    start = newest(folder, config.steps)
    if start:
        checkpoint.restore(folder / f"{start:07d}")
    model, optimizer = prepare(accelerator, sharding, policy, lambda policy: make_optimizer(policy, config))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    store = Store(model, optimizer)
    if 0 < start < config.steps:
        store.resume(folder / f"{start:07d}")
    main = rank == 0
    if main and start:
        tidy(folder, start, config)
    began, loss = time.perf_counter(), float("nan")

    def mine(step: int) -> Batch:
        """This process's part of a batch, on its device."""
        rows, weight = _share(batches(step), rank, processes)
        return {**checkpoint.prepare(tensors(rows, device)), SHARE: weight}

    feed = ahead(mine, range(start, config.steps), device)
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
            batch = next(feed)
            weight = batch.pop(SHARE)
            if main and step == 0 and first_batch:
                first_batch(batch)
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
            keep = last or leave or done % config.save_every == 0
            if keep or done % config.log_every == 0:
                numbers = mean(torch.stack(unchecked)).tolist()
                if bad := _fault(numbers, done, ABSURD):
                    raise RecapError(f"{label}: {bad}. Fix: {_remedy(batch, key, config)}")
                loss, size = numbers[-1]
                unchecked.clear()
                speed = (done - start) * config.batch_size / (time.perf_counter() - began)
                tracker.log(done, loss=loss, lr=rate, grad_norm=size, samples_per_second=speed)
            if keep:
                save(checkpoint, store, folder, done, config, main=main)
            if leave:
                NOTICE.leave()
            bar.advance("" if math.isnan(loss) else f"loss {loss:.4f}")  # none is known before the first logged step
    wait_for_all()
    policy.eval()
    return folder / "last"


def _notice_given(processes: int, device: torch.device) -> bool:
    """The same answer in all processes, after the same step."""
    given = NOTICE.given
    if processes > 1 and NOTICE.expected:
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
