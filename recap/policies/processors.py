"""What stands before and behind a policy: lerobot's processor steps, with our prompt in the place of its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import NormalizationMode
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    NormalizerProcessorStep,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
    TokenizerProcessorStep,
    UnnormalizerProcessorStep,
)
from lerobot.processor.factory import make_policy_processor_pipelines
from lerobot.utils.constants import ACTION

from recap.data.statistics import SPREAD, adopted, bounded
from recap.policies.adapter import Adapter
from recap.policies.folder import POSTPROCESSOR, PREPROCESSOR, TOKENIZER, processor_steps, tokenizer_name
from recap.policies.prompt import IndicatorStep, PromptTokenizer, load_tokenizer, own_indicator, with_indicator
from recap.utils.errors import RecapError

Processors = tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]


def new_processors(adapter: Adapter, config: Any, stats: dict[str, dict[str, np.ndarray]]) -> Processors:
    """For a new policy; `stats` as in `Checkpoint.new`."""
    read = {"mean", "std"}.union(*(SPREAD.get(mode.value, ()) for mode in config.normalization_mapping.values()))
    tensors = {
        key: {k: torch.as_tensor(v, dtype=torch.float32) for k, v in value.items() if k in read}
        for key, value in stats.items()
    }
    if made := adapter.processors(config, tensors):
        return _told(adapter, *made)
    features, mapping = {**config.input_features, **(config.output_features or {})}, config.normalization_mapping
    return make_policy_processor_pipelines(
        input_steps=[
            RenameObservationsProcessorStep(rename_map={}),
            AddBatchDimensionProcessorStep(),
            adapter.indicator_step(config),
            DeviceProcessorStep(device=config.device),
            NormalizerProcessorStep(features=features, norm_map=mapping, stats=tensors),
        ],
        output_steps=[
            UnnormalizerProcessorStep(features=config.output_features or {}, norm_map=mapping, stats=tensors),
            DeviceProcessorStep(device="cpu"),
        ],
    )


def read_processors(adapter: Adapter, path: Path, config: Any, device: str) -> Processors:
    """Those of a checkpoint folder, ours or lerobot's.

    Raises:
        RecapError: they cannot be read, hold what is not allowed, or their tokenizer is not there.
    """
    overrides: dict[str, Any] = {"device_processor": {"device": device}}
    again = "Fix: train it again, or copy it again whole."
    steps = processor_steps(path / PREPROCESSOR, f"checkpoint {path}", adapter.keys)
    processor_steps(path / POSTPROCESSOR, f"checkpoint {path}", adapter.keys)
    if any(step["registry_name"] == TOKENIZER for step in steps):
        overrides[TOKENIZER] = {"tokenizer": load_tokenizer(tokenizer_name(path, steps) or str(path))}
    try:
        before, after = make_pre_post_processors(config, str(path), preprocessor_overrides=overrides)
    except RecapError:
        raise
    except Exception as error:  # lerobot raises many kinds here; all mean that the processor files are bad
        raise RecapError(f"checkpoint {path}: its processors cannot be read ({str(error)[:500]}). {again}") from error
    _told(adapter, before, after)
    if not any(isinstance(step, IndicatorStep) for step in before.steps):
        raise RecapError(f"checkpoint {path}: its processors cannot be read (no step makes tokens). {again}")
    return before, after


def seen(before: PolicyProcessorPipeline, keys: Iterable[str]) -> list[str]:
    """What a policy's first step makes of the names of observations: cameras that it calls otherwise."""
    found = list(keys)
    for step in before.steps:
        if isinstance(step, RenameObservationsProcessorStep):
            found = [step.rename_map.get(key, key) for key in found]
    return found


def _told(adapter: Adapter, before: PolicyProcessorPipeline, after: PolicyProcessorPipeline) -> Processors:
    """lerobot's processors with a tokenizer that takes indicators; until told otherwise it says what it said before."""
    before.steps = [_ours(adapter, step) for step in before.steps if not isinstance(step, adapter.replaced)]
    return before, after


def _ours(adapter: Adapter, step: Any) -> Any:
    if type(step) is not TokenizerProcessorStep:
        return step
    tokenizer = step.input_tokenizer
    return PromptTokenizer(
        tokenizer=with_indicator(tokenizer, None, adapter.before),
        max_length=step.max_length,
        default_indicator=own_indicator(tokenizer),
        before=adapter.before,
    )


def indicator_step(before: PolicyProcessorPipeline) -> Any:
    """The one step that tells the policy the indicator."""
    return next(step for step in before.steps if isinstance(step, IndicatorStep))


def keep_usable(processors: Processors) -> dict[str, np.ndarray]:
    """Bounds the statistics of both processors where a number never moves, in place (`recap.data.statistics`).

    Returns which numbers these are, by feature: bool [D].
    """
    found = {}
    for step, key, mode in _normalized(processors):
        step.stats[key], still = bounded(key, step.stats[key], mode.value)
        if still.any():
            found[key] = still
        step.to(device=step.device)
    return found


def adopt(processors: Processors, action: dict[str, np.ndarray]) -> np.ndarray:
    """Gives actions that never moved before the statistics of the data in which they do; which these are, bool [D].

    action: {"mean", "std"} of what will be trained on.
    """
    moves = np.zeros(len(action["std"]), bool)
    for step, key, mode in _normalized(processors):
        if key == ACTION and mode is NormalizationMode.MEAN_STD and len(step.stats[key]["std"]) == len(moves):
            step.stats[key], found = adopted(step.stats[key], action)
            moves |= found
            step.to(device=step.device)
    return moves


def _normalized(processors: Processors) -> Iterator[tuple[Any, str, NormalizationMode]]:
    """(step, feature, mode) of everything that has statistics, on the way in and on the way out."""
    for step in [*processors[0].steps, *processors[1].steps]:
        if isinstance(step, NormalizerProcessorStep | UnnormalizerProcessorStep):
            for key, feature in step.features.items():
                if step.stats and key in step.stats:
                    yield step, key, step.norm_map.get(feature.type, NormalizationMode.IDENTITY)
