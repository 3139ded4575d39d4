"""Policies on disk: lerobot checkpoint folders (config.json, model.safetensors, processors), read strictly."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    NormalizerProcessorStep,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
    UnnormalizerProcessorStep,
)
from lerobot.processor.factory import make_policy_processor_pipelines
from lerobot.utils.constants import ACTION, OBS_STATE
from safetensors import SafetensorError, safe_open

from recap import config as schema
from recap.errors import RecapError
from recap.policies.pi0 import RecapPI0Config, RecapPI0Policy
from recap.policies.prompt import BUILTIN, PromptTokenizer, load_tokenizer
from recap.policies.value import RecapValueConfig, RecapValuePolicy

WEIGHTS = "model.safetensors"
Policy = RecapPI0Policy | RecapValuePolicy
POLICIES: dict[type[PreTrainedConfig], type[PreTrainedPolicy]] = {
    RecapPI0Config: RecapPI0Policy,
    RecapValueConfig: RecapValuePolicy,
}


def features(
    cameras: dict[str, tuple[int, int]], state_dim: int, action_dim: int
) -> dict[str, dict[str, PolicyFeature]]:
    """Input and output features of a policy from what the data set holds; cameras: key -> (height, width)."""
    inputs = {key: PolicyFeature(FeatureType.VISUAL, (3, height, width)) for key, (height, width) in cameras.items()}
    inputs[OBS_STATE] = PolicyFeature(FeatureType.STATE, (state_dim,))
    return {"input_features": inputs, "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (action_dim,))}}


def build_pi0(size: schema.PI0Config, spec: dict[str, Any], device: str) -> RecapPI0Policy:
    """A new π0 from numbers, seeded by torch's global generator; `spec` is the result of `features`."""
    tokenizer = load_tokenizer(size.tokenizer)
    config = RecapPI0Config(
        **spec,
        device=device,
        vision=size.vision,
        vlm=size.vlm,
        expert=size.expert,
        tokenizer=size.tokenizer,
        vocab_size=len(tokenizer) if size.tokenizer == BUILTIN else RecapPI0Config.vocab_size,
        tokenizer_max_length=size.tokenizer_max_length,
        image_resolution=(size.image_size, size.image_size),
        max_state_dim=size.max_state_dim,
        max_action_dim=size.max_action_dim,
        chunk_size=size.chunk_size,
        n_action_steps=size.n_action_steps,
        num_inference_steps=size.num_inference_steps,
        flow_samples=size.flow_samples,
        push_to_hub=False,
    )
    return RecapPI0Policy(config)


def build_value(size: schema.ValueConfig, spec: dict[str, Any], device: str) -> RecapValuePolicy:
    """A new value function from numbers; see `build_pi0`."""
    tokenizer = load_tokenizer(size.tokenizer)
    config = RecapValueConfig(
        input_features=spec["input_features"],
        output_features={},
        device=device,
        vision=size.vision,
        text=size.text,
        image_size=size.image_size,
        tokenizer=size.tokenizer,
        tokenizer_max_length=size.tokenizer_max_length,
        vocab_size=len(tokenizer) if size.tokenizer == BUILTIN else RecapValueConfig.vocab_size,
        bins=size.bins,
        use_state=size.use_state,
        push_to_hub=False,
    )
    return RecapValuePolicy(config)


class Checkpoint:
    """A policy with its processors.

    `prepare(batch)` turns what the data set holds into what the policy's `forward` and `predict_action_chunk` take;
    `postprocess(action)` undoes the action normalisation.
    """

    def __init__(
        self, policy: Policy, preprocess: PolicyProcessorPipeline, postprocess: PolicyProcessorPipeline
    ) -> None:
        self.policy, self.preprocess, self.postprocess = policy, preprocess, postprocess

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Images in [0, 1], raw state and action, `task`, maybe `indicator` (True | False | None each) -> model inputs.

        lerobot's pipeline keeps only the keys that it knows; what else training needs (flow noise, return bins) goes
        around it.
        """
        known = {
            key: value
            for key, value in batch.items()
            if key.startswith("observation.") or key in ("task", ACTION, "action_is_pad")
        }
        info = {"indicator": batch["indicator"]} if "indicator" in batch else {}
        extra = {key: value for key, value in batch.items() if key not in known and isinstance(value, torch.Tensor)}
        device = self.policy.config.device
        return {**self.preprocess({**known, "info": info}), **{key: value.to(device) for key, value in extra.items()}}

    @classmethod
    def new(cls, policy: Policy, stats: dict[str, dict[str, np.ndarray]]) -> Checkpoint:
        """`stats`: mean and std of state and action of the pre-training data; they stay with the policy for good."""
        config = policy.config
        is_pi0 = isinstance(config, RecapPI0Config)
        tensors = {
            key: {k: torch.as_tensor(v, dtype=torch.float32) for k, v in value.items()} for key, value in stats.items()
        }
        prompt = PromptTokenizer(
            tokenizer_name=config.tokenizer,
            max_length=config.tokenizer_max_length,
            default_indicator=True if is_pi0 else None,
        )
        all_features = {**config.input_features, **(config.output_features or {})}
        normalize = NormalizerProcessorStep(features=all_features, norm_map=config.normalization_mapping, stats=tensors)
        unnormalize = UnnormalizerProcessorStep(
            features=config.output_features or {}, norm_map=config.normalization_mapping, stats=tensors
        )
        pre, post = make_policy_processor_pipelines(
            input_steps=[
                RenameObservationsProcessorStep(rename_map={}),
                AddBatchDimensionProcessorStep(),
                prompt,
                DeviceProcessorStep(device=config.device),
                normalize,
            ],
            output_steps=[unnormalize, DeviceProcessorStep(device="cpu")],
        )
        return cls(policy, pre, post)

    @classmethod
    def load(cls, path: Path, kind: type[Policy], device: str) -> Checkpoint:
        """Reads a checkpoint folder strictly.

        Raises:
            RecapError: it is missing, of another kind, truncated, or its weights do not fit by name and shape.
        """
        config = _read_config(path, kind)
        config.device = device
        policy = kind(config)
        load_weights(policy, path / WEIGHTS)
        try:
            from lerobot.policies.factory import make_pre_post_processors

            pre, post = make_pre_post_processors(
                config, str(path), preprocessor_overrides={"device_processor": {"device": device}}
            )
        except Exception as error:  # lerobot raises many kinds here; all mean that the processor files are bad
            raise RecapError(
                f"checkpoint {path}: its processors cannot be read ({error}). "
                "Fix: train it again, or copy it again whole."
            ) from error
        return cls(policy, pre, post)

    def save(self, path: Path) -> None:
        self.policy.save_pretrained(path)
        self.preprocess.save_pretrained(path)
        self.postprocess.save_pretrained(path)

    def set_prompt(self, indicator: bool | None, beta: float = 1.0) -> None:
        """What every observation is prompted with from now on, and the guidance β; saved with the checkpoint."""
        step = next(step for step in self.preprocess.steps if isinstance(step, PromptTokenizer))
        step.default_indicator, step.beta = indicator, beta if indicator is not None else 1.0
        if isinstance(self.policy.config, RecapPI0Config):
            self.policy.config.beta = step.beta


def _read_config(path: Path, kind: type[Policy]) -> Any:
    if not path.is_dir():
        raise RecapError(
            f"checkpoint {path}: there is no such folder. Fix: name a folder that holds config.json and {WEIGHTS}."
        )
    missing = [name for name in ("config.json", WEIGHTS) if not (path / name).is_file()]
    if missing:
        raise RecapError(
            f"checkpoint {path}: {' and '.join(missing)} missing. "
            "Fix: name the folder of one step, such as …/checkpoints/last."
        )
    try:
        config = PreTrainedConfig.from_pretrained(path)
    except Exception as error:  # draccus and json raise many kinds
        raise RecapError(
            f"checkpoint {path}: config.json cannot be read ({str(error).splitlines()[0]}). Fix: train it again."
        ) from error
    if POLICIES.get(type(config)) is not kind:
        raise RecapError(
            f"checkpoint {path} is a '{config.type}', but a '{kind.name}' is needed here. "
            "Fix: name the other checkpoint."
        )
    return config


def load_weights(policy: torch.nn.Module, file: Path) -> None:
    """Strict: every weight by name and shape, in float32 (bfloat16 would round small updates away).

    Raises:
        RecapError: the file is damaged, does not fit, or holds NaN.
    """
    try:
        with safe_open(file, framework="pt") as handle:
            state = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise RecapError(
            f"{file}: truncated or damaged ({error}). Fix: delete its stage folder and run the command again."
        ) from error
    own = policy.state_dict()
    tied = {
        key
        for key in own
        if key not in state and any(own[key].data_ptr() == own[k].data_ptr() for k in state if k in own)
    }
    problems = [f"missing {key}" for key in own if key not in state and key not in tied]
    problems += [f"unexpected {key}" for key in state if key not in own]
    problems += [
        f"{key} has shape {tuple(value.shape)}, expected {tuple(own[key].shape)}"
        for key, value in state.items()
        if key in own and own[key].shape != value.shape
    ]
    if problems:
        shown = "\n  ".join(problems[:10]) + (f"\n  … and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise RecapError(
            f"{file}: the weights do not fit this policy:\n  {shown}\nFix: use the size that it was trained with."
        )
    bad = [key for key, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise RecapError(f"{file}: NaN or infinite values in {bad[0]} ({len(bad)} tensors). Fix: train it again.")
    policy.load_state_dict(state, strict=False)


def sizes_of(policy: Policy) -> dict[str, Any]:
    """The configuration as plain values, for manifests."""
    return asdict(policy.config)
