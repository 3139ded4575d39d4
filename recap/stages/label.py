"""The advantage stage: values of all frames, N-step advantages, ε, and the indicator of every frame."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from recap import advantage as equations
from recap.config import Config, Normalization, Threshold
from recap.data.ahead import ahead
from recap.data.frames import Frames
from recap.data.labels import Thresholds, write_labels, write_thresholds
from recap.data.mixture import Mixture, Picked
from recap.device import device_name
from recap.errors import RecapError
from recap.policies.checkpoint import Checkpoint
from recap.policies.value import RecapValuePolicy
from recap.progress import Progress
from recap.returns import check_bin_range, check_c_fail, rewards
from recap.share import WHOLE, Share
from recap.stages.data import (
    Inputs,
    Say,
    checkpoint_of,
    episodes_of,
    normalized_returns,
    pooled_episodes,
    sources,
    task_normalizers,
)
from recap.stages.train import check_fit
from recap.training import tensors

VALUE_BATCH = 256  # frames in one pass of the value function
BLOCK = 16 * VALUE_BATCH  # frames in one file of values: what a killed stage loses at most, and what is shared out


def advantage(cfg: Config, inputs: Inputs, out: Path, say: Say, *, share: Share = WHOLE) -> None:
    """Values of all frames, N-step advantages, ε, and the indicator of every frame."""
    data = sources(cfg, inputs)
    norm = _normalizers(cfg, inputs["value"], data)
    folder = out / "values"
    _infer(cfg, inputs["value"], data, folder, share)
    if not share.whole:
        return
    settings = cfg.advantage
    tables = [
        _advantages(frames, _values(folder, frames), norm, settings.look_ahead, settings.c_fail) for frames in data
    ]
    pooled = {key: np.concatenate([table[key] for table in tables]) for key in tables[0]}
    tasks, kinds = pooled["task"].tolist(), pooled["source"].tolist()
    scope: Literal["per_task", "all"] = "per_task" if settings.threshold is Threshold.per_task else "all"
    epsilon = equations.thresholds(pooled["advantage"], tasks, settings.positive_fraction, scope)
    forced = [kind.name for kind in settings.force_positive]
    pooled["indicator"] = equations.indicator(pooled["advantage"], tasks, epsilon, kinds, forced)
    start = 0
    for frames, table in zip(data, tables, strict=True):
        table["indicator"] = pooled["indicator"][start : start + len(frames)]
        start += len(frames)
        (out / frames.name).mkdir(exist_ok=True)
        write_labels(out / frames.name, table, frames.fps)
    success = pooled["success"]
    thresholds = Thresholds(
        epsilon=epsilon,
        wanted_positive=settings.positive_fraction,
        achieved_positive=equations.positive_shares(pooled["indicator"], kinds, success),
        achieved_positive_per_task=equations.positive_shares_per_task(pooled["indicator"], tasks, kinds, success),
        look_ahead=settings.look_ahead,
        normalizer=norm,
        c_fail=settings.c_fail,
        percentiles=equations.percentiles(pooled["advantage"]),
    )
    write_thresholds(out, thresholds)
    shutil.rmtree(folder)  # they are in the labels now
    for warning in _warnings(cfg, data, norm):
        say(f"warning: {warning}")
    say(describe(thresholds))


def _normalizers(cfg: Config, value: Path, data: list[Frames]) -> dict[str, float]:
    """Those the value function was trained with."""
    path = value / "normalizers.json"
    norm = json.loads(path.read_text()) if path.is_file() else task_normalizers(cfg, data)
    missing = {task for frames in data for task in episodes_of(frames)[0]} - set(norm)
    if missing:
        raise RecapError(
            f"{path} has no normalizer for task {min(missing)!r}: the value function never saw it. "
            "Fix: fine-tune it on this data."
        )
    return norm


def _infer(cfg: Config, value: Path, data: list[Frames], folder: Path, share: Share) -> None:
    """Fills `folder` with this share of the values: a file for each block of frames, durable when it is there."""
    blocks = [(frames, start) for frames in data for start in range(0, len(frames), BLOCK)]
    missing = [(frames, start) for frames, start in share.of(blocks) if not _block(folder, frames, start).is_file()]
    if not missing:
        return
    folder.mkdir(exist_ok=True)
    checkpoint = Checkpoint.load(checkpoint_of(value), RecapValuePolicy, device_name(cfg.device))
    check_fit(checkpoint, data[0])
    with Progress("values", len(missing)) as bar:
        for frames, start in missing:
            path = _block(folder, frames, start)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            with temporary.open("wb") as file:
                np.save(file, values(checkpoint, frames, range(start, min(start + BLOCK, len(frames)))))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            bar.advance()


def _values(folder: Path, frames: Frames) -> np.ndarray:
    """V(o_t, l) of every frame, float64 [N], from the files of `_infer`."""
    return np.concatenate([np.load(_block(folder, frames, start)) for start in range(0, len(frames), BLOCK)])


def _block(folder: Path, frames: Frames, start: int) -> Path:
    return folder / f"{frames.name}_{start:09d}.npy"


@torch.no_grad()
def values(checkpoint: Checkpoint, frames: Frames, which: range | None = None) -> np.ndarray:
    """V(o_t, l) of every frame, or of a range of them: float64 [N]."""
    which = which or range(len(frames))
    mixture, found = Mixture([frames], 1.0), []
    parts = np.split(np.arange(which.start, which.stop), range(VALUE_BATCH, len(which), VALUE_BATCH))
    gather = ahead(lambda k: mixture.gather(Picked(np.zeros_like(parts[k]), parts[k])), len(parts))
    for k in range(len(parts)):
        batch = tensors(gather(k))
        found.append(checkpoint.policy.value(checkpoint.prepare(batch)).double().cpu().numpy())
    return np.concatenate(found)


def _advantages(
    frames: Frames, value: np.ndarray, norm: dict[str, float], look_ahead: int, c_fail: float
) -> dict[str, np.ndarray]:
    """The label columns of one data set, but for the indicator."""
    tasks, lengths, success = episodes_of(frames)
    found = [
        equations.advantages(rewards(length, won, c_fail), value[start : start + length], look_ahead, norm[task])
        for start, task, length, won in zip(frames.start, tasks, lengths, success, strict=True)
    ]
    of_episode = frames.episode
    return {
        "dataset": np.full(len(frames), frames.name, dtype=object),
        "episode_index": frames.episode_index,
        "frame_index": frames.frame_index,
        "value": value,
        "return": normalized_returns(frames, norm, c_fail),
        "advantage": np.concatenate(found),
        "source": np.full(len(frames), frames.kind.name, dtype=object),
        "success": frames.success[of_episode],
        "task": np.asarray(tasks, dtype=object)[of_episode],
    }


def _warnings(cfg: Config, data: list[Frames], norm: dict[str, float]) -> list[str]:
    tasks, lengths, success = pooled_episodes(data)
    found = [check_c_fail(tasks, lengths, success, cfg.advantage.c_fail)]
    if cfg.advantage.normalization is Normalization.constant:
        found.append(check_bin_range(tasks, lengths, success, cfg.advantage.c_fail, norm))
    return [text for text in found if text]


def describe(thresholds: Thresholds) -> str:
    """Percentiles, ε and achieved shares as they are printed."""

    def shares(achieved: Mapping[str, float | None]) -> str:
        return "  ".join(f"{name} {share:.0%}" for name, share in achieved.items() if share is not None)

    lines = ["advantage percentiles  " + "  ".join(f"{k}:{v:+.3f}" for k, v in thresholds.percentiles.items())]
    for task, epsilon in thresholds.epsilon.items():
        lines.append(f"ε = {epsilon:+.4f}  {task}: positive {shares(thresholds.achieved_positive_per_task[task])}")
    lines.append(f"positive {shares(thresholds.achieved_positive)} (wanted {thresholds.wanted_positive:.0%})")
    return "\n".join(lines)
