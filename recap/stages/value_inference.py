"""Values of every frame by every member of the value function: the part of labelling that needs networks."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recap.config import Config
from recap.data.frames import Frames
from recap.data.mixture import Mixture, Picked
from recap.data.prefetch import prefetch
from recap.policies.folder import checkpoint_of
from recap.policies.registry import adapter_of
from recap.stages.base import Inputs, Say, Stage
from recap.stages.inputs import NORMALIZERS, episodes_of, read_normalizers, sources
from recap.utils.device import device_name
from recap.utils.errors import RecapError
from recap.utils.files import appearing, sync, write_text
from recap.utils.progress import Progress
from recap.utils.ranks import WHOLE, Share

if TYPE_CHECKING:
    from recap.policies.checkpoint import Checkpoint

VALUE_BATCH = 256  # frames in one pass of the value function
BLOCK = 16 * VALUE_BATCH  # frames in one file of values: what a killed stage loses at most, and what is shared out


@dataclass(frozen=True, kw_only=True)
class ValueInference(Stage):
    kind = "value_inference"
    keys = ("data",)
    reads_data = computes = shardable = resumes = True

    def run(self, say: Say, share: Share = WHOLE) -> None:
        value_inference(self.cfg, self.read, self.out, say, share=share)


def value_inference(cfg: Config, inputs: Inputs, out: Path, say: Say, *, share: Share = WHOLE) -> None:
    """Writes `<data set>.npy`, float64 [members, N], and the normalizers that the values are in units of."""
    data = sources(cfg, inputs)
    members = [path for role, path in inputs.items() if role == "value" or role.startswith("value_")]
    for member in members:
        check_tasks(member, data)
    blocks = out / "blocks"
    for number, member in enumerate(members):
        _infer(cfg, member, data, blocks / str(number), share)
    if not share.whole:
        return
    for frames in data:
        found = np.stack([_joined(blocks / str(number), frames) for number in range(len(members))])
        _save(out / f"{frames.name}.npy", found)
    write_text(out / NORMALIZERS, (members[0] / NORMALIZERS).read_text(encoding="utf-8"))
    shutil.rmtree(blocks)
    say(f"{sum(map(len, data))} frames, {len(members)} value function{'s' if len(members) > 1 else ''}")


def check_tasks(value: Path, data: list[Frames]) -> None:
    """Raises RecapError for a task that the value function never saw: it has no normalizer."""
    missing = {task for frames in data for task in episodes_of(frames)[0]} - set(read_normalizers(value))
    if missing:
        raise RecapError(
            f"{value / NORMALIZERS} has no normalizer for task {min(missing)!r}: the value function never saw it. "
            "Fix: fine-tune it on this data."
        )


def _infer(cfg: Config, value: Path, data: list[Frames], folder: Path, share: Share) -> None:
    """Fills `folder` with this share of the values: a file for each block of frames, durable when it is there."""
    blocks = [(frames, start) for frames in data for start in range(0, len(frames), BLOCK)]
    missing = [(frames, start) for frames, start in share.of(blocks) if not _block(folder, frames, start).is_file()]
    if not missing:
        return
    from recap.policies.checkpoint import Checkpoint  # imports torch
    from recap.stages.train import check_fit

    folder.mkdir(parents=True, exist_ok=True)
    adapter = adapter_of(cfg.value)
    checkpoint = Checkpoint.load(checkpoint_of(value), adapter, device_name(cfg.device))
    adapter.prepare_acting(checkpoint.policy, cfg.value)
    for frames in data:
        check_fit(checkpoint, frames)
    with Progress("values", len(missing)) as bar:
        for frames, start in missing:
            block = range(start, min(start + BLOCK, len(frames)))
            _save(_block(folder, frames, start), values(checkpoint, frames, block))
            bar.advance()


def _save(path: Path, array: np.ndarray) -> None:
    with appearing(path) as temporary:
        with temporary.open("wb") as file:
            np.save(file, array)
        sync(temporary)


def _joined(folder: Path, frames: Frames) -> np.ndarray:
    """V(o_t, l) of every frame, float64 [N], from the files of `_infer`."""
    blocks = [_block(folder, frames, start) for start in range(0, len(frames), BLOCK)]
    try:
        return np.concatenate([np.load(path) for path in blocks])
    except (OSError, ValueError) as error:
        raise RecapError(f"the values in {folder} cannot be read ({error}). Fix: delete it, run it again.") from error


def _block(folder: Path, frames: Frames, start: int) -> Path:
    return folder / f"{frames.name}_{start:09d}.npy"


def values(checkpoint: Checkpoint, frames: Frames, which: range | None = None) -> np.ndarray:
    """V(o_t, l) of every frame, or of a range of them: float64 [N]."""
    import torch

    from recap.data.tensors import tensors
    from recap.training.feed import ahead

    which = which or range(len(frames))
    device, mixture = checkpoint.policy.config.device, Mixture([frames], 1.0)
    parts = np.split(np.arange(which.start, which.stop), range(VALUE_BATCH, len(which), VALUE_BATCH))
    if device != "cpu":  # a shorter batch would be compiled for
        parts[-1] = np.pad(parts[-1], (0, VALUE_BATCH - len(parts[-1])), mode="edge")
    gather = prefetch(lambda k: mixture.gather(Picked(np.zeros_like(parts[k]), parts[k])), len(parts))
    feed = ahead(lambda k: checkpoint.prepare(tensors(gather(k), device)), range(len(parts)), device)
    with torch.no_grad():
        found = torch.cat([checkpoint.policy.value(batch) for batch in feed])
    return found.cpu().double().numpy()[: len(which)]
