"""Training stages: SFT and fine-tuning of the policy and of the value function."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recap.config import Config, StageKind
from recap.data.cameras import choice
from recap.data.episodes import ACTION
from recap.data.frames import Frames
from recap.data.labels import Labels, read_labels, read_thresholds
from recap.data.mixture import Mixture, merged_stats
from recap.data.prefetch import prefetch
from recap.data.statistics import listed
from recap.method.config import Prefix
from recap.method.returns import Bins
from recap.policies.adapter import cameras_of, features
from recap.policies.batches import policy_batches
from recap.policies.checkpoint import Checkpoint, features_of, read_config
from recap.policies.config import NetworkConfig, ReadsText
from recap.policies.first_batch import save_first_batch
from recap.policies.folder import checkpoint_of
from recap.policies.processors import adopt, indicator_step, read_processors
from recap.policies.registry import adapter_of
from recap.policies.roles import Role
from recap.policies.value.batches import value_batches
from recap.policies.value.splits import left_out
from recap.policies.weights import folder_of
from recap.stages.base import Inputs, Say
from recap.stages.inputs import NORMALIZERS, episodes_of, normalized_returns, sources, task_normalizers
from recap.storage.manifest import is_main_process
from recap.training.config import IndicatorMode, PolicyTrainConfig
from recap.training.loop import train
from recap.utils.device import device_name
from recap.utils.errors import RecapError
from recap.utils.files import write_text

MEMBER_SEEDS = 1_000_003  # between the members of a value function: none of them is another run's


def train_stage(
    cfg: Config,
    inputs: Inputs,
    out: Path,
    say: Say,
    *,
    role: Role,
    stage: StageKind,
    member: int = 0,
) -> None:
    """SFT or fine-tuning of either policy; fine-tuning restarts from a checkpoint. member: of the value function."""
    data = sources(cfg, inputs)
    settings: PolicyTrainConfig | Any = getattr(getattr(cfg, role.name), stage.name)
    seed = cfg.seed + member * MEMBER_SEEDS
    keys = cfg.network(role)
    if "backbone" in inputs:
        keys = cfg.value.of(cfg.policy, checkpoint_of(inputs["backbone"]))
    adapter, device = adapter_of(keys), device_name(cfg.device)
    if "pretrained" in inputs:
        checkpoint = Checkpoint.load(checkpoint_of(inputs["pretrained"]), adapter, device, cfg.precision, keys)
    else:
        checkpoint = _new(cfg, keys, data, seed)
    check_fit(checkpoint, data[0])
    moves = adopt((checkpoint.preprocess, checkpoint.postprocess), merged_stats(data)["action"])
    for text in _of_statistics(checkpoint, moves, data[0]):
        say(text)
    adapter.prepare_training(checkpoint.policy, keys)
    share = settings.demo_fraction if len(data) > 1 else 1.0
    if role is Role.policy:
        checkpoint.set_prompt(None if settings.indicator is IndicatorMode.ignore else True)
        cut, fraction = cfg.advantage.correction_prefix is Prefix.failure, settings.correction_fraction
        mixture = Mixture(data, share, settings.episode_filter, fps=cfg.env.fps, cut=cut, correction_fraction=fraction)
        lost = sum(int((~source.success).sum()) for source in data)
        if settings.indicator is IndicatorMode.always_positive and lost:
            say(f"warning: {lost} failed episodes are imitated as 'positive'. Fix: policy.{stage.name}.indicator=use")
        labels = [of_frames(inputs, source) for source in data] if "labels" in inputs else None
        batches = policy_batches(mixture, cfg.policy, settings, seed, labels)
    else:
        norm = task_normalizers(cfg, data)
        if is_main_process():
            write_text(out / NORMALIZERS, json.dumps(norm, indent=2) + "\n")
        bins = Bins(cfg.value.bins)
        targets = [bins.encode(normalized_returns(source, norm, cfg.advantage)) for source in data]
        unseen = [left_out(source, cfg.value, cfg.seed, member) for source in data]
        mixture = Mixture(data, share, left_out=unseen, fps=cfg.env.fps)
        batches = value_batches(mixture, settings, seed, targets)
    if any(frames.videos for frames in data):  # others are in memory, and two cores have no time for threads
        batches = prefetch(batches, settings.steps)
    last = train(
        checkpoint,
        batches,
        settings,
        out,
        first_batch=lambda batch: save_first_batch(checkpoint, batch, out / "first_batch"),
        label=out.name if role.name == out.name else f"{role.name} {stage.name}",
        key=f"{role.name}.{stage.name}.",
        sharding=cfg.sharding,
        tensorboard=cfg.tracking.tensorboard,
    )
    say(f"{settings.steps} steps on {', '.join(f'{len(s.length)} {s.name}' for s in data)} -> {last}")


def _of_statistics(checkpoint: Checkpoint, moves: np.ndarray, data: Frames) -> Iterator[str]:
    """What a reader of the log should know of numbers that never move, or did not before."""
    for key, still in checkpoint.still.items():
        used = key == ACTION or getattr(checkpoint.policy.config, "use_state", True)
        if used and (rows := still & ~moves if key == ACTION else still).any():
            names = listed(rows, data.files.features.get(key, {}).get("names"))
            yield f"warning: {key} never moves in {names}: normalised as if it had a spread, see docs/method.md"
    if moves.any():
        names = listed(moves, data.files.features.get(ACTION, {}).get("names"))
        yield f"warning: {ACTION} did not move before in {names}, and does here: normalised by this data"


def _new(cfg: Config, keys: NetworkConfig, data: list[Frames], seed: int) -> Checkpoint:
    """A network to pre-train, of the configuration's numbers, from given weights or from random ones.

    Weights of a checkpoint for the same cameras, state and action keep its statistics and its tokenizer; any other
    start, such as a base model of many robots, takes those of this data.
    """
    adapter = adapter_of(keys)
    sizes = {key: (height, width) for key, (height, width, _) in data[0].image_shapes.items()}
    spec = features(sizes, data[0].state.shape[1], data[0].action.shape[1])
    torch.manual_seed(seed)
    device = device_name(cfg.device)
    model = adapter.build(keys, spec, device, cfg.precision)
    if keys.pretrained is not None:
        folder = folder_of(keys.pretrained, f"{adapter.role.name}.pretrained")
        if features_of(read_config(folder, adapter)) == features_of(model.config):
            processors = read_processors(adapter, folder, model.config, device)
            if isinstance(keys, ReadsText):
                indicator_step(processors[0]).max_length = keys.tokenizer_max_length
            return Checkpoint(adapter, model, *processors)
    return Checkpoint.new(adapter, model, merged_stats(data))


def check_fit(checkpoint: Checkpoint, data: Frames) -> None:
    """Raises RecapError where the data set has other cameras, state or action sizes than the policy."""
    config = checkpoint.policy.config
    wanted = {
        key: feature.shape for key, feature in {**config.input_features, **(config.output_features or {})}.items()
    }
    for key, size in (("observation.state", data.state.shape[1]), ("action", data.action.shape[1])):
        if key in wanted and wanted[key] != (size,):
            raise RecapError(
                f"data set '{data.name}' has {key} of dimension {size}, the checkpoint was trained with "
                f"{wanted[key][0]}. Fix: use data of the same robot, or train from SFT on."
            )
    missing = [key for key in cameras_of(config) if key not in checkpoint.sees(data.cameras)]
    if missing:
        there = set(missing) <= set(data.files.features)
        fix = choice(data.name, cameras_of(config)) if there else "data of the same robot"
        raise RecapError(
            f"data set '{data.name}' lacks camera {missing[0]} of the checkpoint; it has {', '.join(data.cameras)}. "
            f"Fix: train from SFT on, or {fix}."
        )


def of_frames(inputs: Inputs, frames: Frames) -> dict[str, np.ndarray]:
    """I_t, the advantage and the task's ε of every frame of a data set, from the advantage stage's files."""
    labels: Labels = read_labels(inputs["labels"] / frames.name)
    thresholds = read_thresholds(inputs["labels"])
    epsilon = np.array([thresholds.epsilon_of(task) for task in episodes_of(frames)[0]])[frames.episode]
    return labels.lookup(frames.episode_index, frames.frame_index) | {"epsilon": epsilon}
