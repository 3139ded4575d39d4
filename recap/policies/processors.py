"""What stands before and behind a policy: lerobot's processor steps, with our prompt in the place of its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.pi0.processor_pi0 import Pi0NewLineProcessor
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

from recap.errors import RecapError
from recap.policies.pi0 import RecapPI0Config
from recap.policies.prompt import PromptTokenizer, load_tokenizer, own_indicator, with_indicator

Processors = tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]
PREPROCESSOR, TOKENIZER = "policy_preprocessor.json", "tokenizer_processor"


def new_processors(config: Any, stats: dict[str, dict[str, np.ndarray]]) -> Processors:
    """For a new policy; `stats` as in `Checkpoint.new`."""
    tensors = {
        key: {k: torch.as_tensor(v, dtype=torch.float32) for k, v in value.items()} for key, value in stats.items()
    }
    prompt = PromptTokenizer(
        tokenizer=load_tokenizer(config.tokenizer),
        max_length=config.tokenizer_max_length,
        default_indicator=True if isinstance(config, RecapPI0Config) else None,
    )
    features, mapping = {**config.input_features, **(config.output_features or {})}, config.normalization_mapping
    return make_policy_processor_pipelines(
        input_steps=[
            RenameObservationsProcessorStep(rename_map={}),
            AddBatchDimensionProcessorStep(),
            prompt,
            DeviceProcessorStep(device=config.device),
            NormalizerProcessorStep(features=features, norm_map=mapping, stats=tensors),
        ],
        output_steps=[
            UnnormalizerProcessorStep(features=config.output_features or {}, norm_map=mapping, stats=tensors),
            DeviceProcessorStep(device="cpu"),
        ],
    )


def read_processors(path: Path, config: Any, device: str) -> Processors:
    """Those of a checkpoint folder, ours or lerobot's.

    Raises:
        RecapError: they cannot be read, or their tokenizer is not there.
    """
    overrides: dict[str, Any] = {"device_processor": {"device": device}}
    try:
        steps = json.loads((path / PREPROCESSOR).read_text("utf-8"))["steps"]
        names = [step["config"].get("tokenizer_name") for step in steps if step.get("registry_name") == TOKENIZER]
        if names:
            here = (path / "tokenizer.json").is_file()
            overrides[TOKENIZER] = {"tokenizer": load_tokenizer(str(path) if here else names[0])}
        before, after = make_pre_post_processors(config, str(path), preprocessor_overrides=overrides)
    except RecapError:
        raise
    except Exception as error:  # lerobot raises many kinds here; all mean that the processor files are bad
        raise RecapError(
            f"checkpoint {path}: its processors cannot be read ({error}). Fix: train it again, or copy it again whole."
        ) from error
    before.steps = [_ours(step) for step in before.steps if not isinstance(step, Pi0NewLineProcessor)]
    return before, after


def _ours(step: Any) -> Any:
    """lerobot's tokenizer as one that takes indicators; until told otherwise it says what it said before."""
    if type(step) is not TokenizerProcessorStep:
        return step
    tokenizer = step.input_tokenizer
    return PromptTokenizer(
        tokenizer=with_indicator(tokenizer, None),
        max_length=step.max_length,
        default_indicator=own_indicator(tokenizer),
    )


def prompt_step(before: PolicyProcessorPipeline) -> PromptTokenizer:
    return next(step for step in before.steps if isinstance(step, PromptTokenizer))
