"""Weights, gradients and optimiser state over several processes, and how they come together in one checkpoint."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs, is_deepspeed_available
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from recap.training.config import OPTIMIZER, Sharding, TrainConfig
from recap.utils.errors import RecapError
from recap.utils.ranks import announced, missing

LAYERS = (  # gathered one at a time
    "_PiGemmaDecoderLayerBase",
    "SiglipEncoderLayer",
    "Gemma3DecoderLayer",
    "GemmaDecoderLayer",
    "LlamaDecoderLayer",
)
PATIENCE: timedelta | None = None  # with the others, when training begins and later; None is torch's: 10 or 30 minutes
torch.serialization.set_crc32_options(compute_crc32=False)  # never read; 2 GB took 4.0 s with, 2.8 without
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def make_accelerator(sharding: Sharding, device: str, config: TrainConfig) -> Accelerator:
    """The processes that train together. Precision is the policy's own matter, the same for every sharding.

    Raises RecapError where deepspeed is not installed, and where the other processes never come.
    """
    options: dict[str, Any] = {"cpu": device == "cpu"}
    if sharding is Sharding.deepspeed:
        if not is_deepspeed_available():
            fix = "Fix: pip install deepspeed, or sharding=fsdp"
            raise RecapError(f"sharding=deepspeed: deepspeed is not installed. {fix}")
        settings = {
            "zero_optimization": {"stage": 2},
            "train_micro_batch_size_per_gpu": 1,  # required, but batches are made elsewhere
            "gradient_clipping": config.grad_clip,
        }
        options = {"deepspeed_plugin": DeepSpeedPlugin(hf_ds_config=settings)}
    if PATIENCE is not None:
        options["kwargs_handlers"] = [InitProcessGroupKwargs(timeout=PATIENCE)]
    together = "to begin training"
    try:
        with announced(together):
            return Accelerator(**options)
    except dist.DistError as error:
        raise missing(together) from error


def prepare(
    accelerator: Accelerator,
    sharding: Sharding,
    policy: nn.Module,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
) -> tuple[Any, Any]:
    """(model, optimizer) as these processes use them; replaces accelerate's `prepare`."""
    if sharding is not Sharding.fsdp or place()[1] == 1:
        return accelerator.prepare(policy, make_optimizer(policy))
    for module in [*policy.modules()]:
        if type(module).__name__ in LAYERS:
            fully_shard(module)
    fully_shard(policy)
    return policy, accelerator.prepare(make_optimizer(policy))


def place() -> tuple[int, int]:
    """(rank, processes) of this process. Asked of torch: accelerate miscounts DeepSpeed's processes without a GPU."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def wait_for_all() -> None:
    if place()[1] > 1:
        dist.barrier()


def mean(numbers: Tensor) -> Tensor:
    """Over all processes."""
    numbers, (_, processes) = numbers.clone(), place()
    if processes > 1:
        dist.all_reduce(numbers)
    return numbers / processes


def whole(number: Any, like: Tensor) -> Tensor:
    """A number of all processes together, whichever way a sharding gives it, as a plain tensor."""
    if isinstance(number, DTensor):
        number = number.full_tensor()
    return torch.as_tensor(number, dtype=torch.float32, device=like.device).detach()


class Store:
    """The states of a training, whole on the main process, from however many processes share them.

    All processes call these methods together.
    """

    def __init__(self, model: Any, optimizer: Any) -> None:
        self.model, self.optimizer = model, optimizer
        self.engine = hasattr(model, "save_checkpoint")  # DeepSpeed keeps weights and optimiser to itself

    def weights(self) -> dict[str, Tensor]:
        """name -> weight on the CPU; empty on other processes than the main one."""
        state: dict[str, Any] = get_model_state_dict(self.model.module if self.engine else self.model, options=WHOLE)
        return state

    def save(self, folder: Path, *, main: bool) -> None:
        """The optimiser's state."""
        if self.engine:
            self.model.save_checkpoint(str(folder), tag="deepspeed", exclude_frozen_parameters=True)
            if main:
                torch.save({}, folder / OPTIMIZER)
            return
        state = get_optimizer_state_dict(self.model, self.optimizer.optimizer, options=WHOLE)
        if main:
            try:
                torch.save(state, folder / OPTIMIZER)
            except RuntimeError as error:  # what torch makes of a disk that fills up within the file's last bytes
                if "inline_container" not in str(error):
                    raise
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / OPTIMIZER)) from error

    def resume(self, folder: Path) -> None:
        """Raises RecapError when the state is damaged."""
        path = folder / OPTIMIZER
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if self.engine:
                self.model.load_checkpoint(str(folder), tag="deepspeed", load_module_strict=False)
            else:
                set_optimizer_state_dict(self.model, self.optimizer.optimizer, state, options=WHOLE)
        except UnpicklingError as error:
            found = re.search(r"GLOBAL (\S+)", str(error))
            what = f"holds {found[1]}" if found else "is no plain state"
            raise RecapError(
                f"{path}: {what}, where only numbers are allowed. Fix: delete {folder} and run the command again."
            ) from error
        except Exception as error:  # torch.load raises many kinds for a damaged file
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise RecapError(f"{path}: damaged ({said}). Fix: delete {folder} and run the command again.") from error
