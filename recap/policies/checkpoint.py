"""Policies on disk: lerobot checkpoint folders (config.json, model.safetensors, processors), read strictly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import draccus
import numpy as np
import torch
from lerobot.configs import FeatureType, PreTrainedConfig
from lerobot.processor import PolicyProcessorPipeline
from lerobot.utils.constants import ACTION
from torch import Tensor

from recap.policies.adapter import EMPTY_CAMERA, Adapter, features
from recap.policies.config import ReadsText
from recap.policies.folder import CONFIG, held, read_json
from recap.policies.processors import indicator_step, keep_usable, new_processors, read_processors, seen
from recap.policies.prompt import load_tokenizer
from recap.policies.registry import adapter_of
from recap.policies.sizes import Precision
from recap.policies.weights import folder_of
from recap.utils.errors import RecapError
from recap.utils.files import follow_umask


def features_of(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """What a policy sees and does: key -> size; of cameras only the key, because images are resized.

    Without lerobot's placeholders, which a configuration names after a model was made of it.
    """
    return _sizes({**config.input_features, **(config.output_features or {})})


def _sizes(every: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    sizes = {key: () if one.type is FeatureType.VISUAL else tuple(one.shape) for key, one in every.items()}
    return {key: size for key, size in sizes.items() if not key.startswith(EMPTY_CAMERA)}


def tokenizer_of(keys: ReadsText, key: str, given: Path | None, robot: tuple[Sequence[str], int, int] | None) -> Any:
    """The tokenizer that the prompts of a policy go through.

    Args:
        key: where `keys.pretrained` stands. given: a checkpoint that is used as it is. robot: cameras, numbers of the
            state and of the action: weights made for these bring their tokenizer.

    Raises:
        RecapError: it is not there, or cannot be read.
    """
    adapter = adapter_of(keys)
    if given is None and keys.pretrained is not None and robot is not None:
        spec = adapter.features(features(dict.fromkeys(robot[0], (1, 1)), robot[1], robot[2]))
        folder = folder_of(keys.pretrained, key)
        wanted = _sizes(spec["input_features"] | spec["output_features"])
        if features_of(read_config(folder, adapter)) == wanted:
            given = folder
    if given is None:
        return load_tokenizer(keys.tokenizer)
    return indicator_step(read_processors(adapter, given, read_config(given, adapter), "cpu")[0]).input_tokenizer


class Checkpoint:
    """A policy with its processors.

    `prepare(batch)` turns what the data set holds into what the policy's `forward` and `predict_action_chunk` take;
    `postprocess(action)` undoes the action normalisation. `still`: by feature, which of its numbers never moved in what
    the statistics were made of, bool [D]; empty once they are bounded.
    """

    def __init__(
        self, adapter: Adapter, policy: Any, preprocess: PolicyProcessorPipeline, postprocess: PolicyProcessorPipeline
    ) -> None:
        self.adapter, self.policy, self.preprocess, self.postprocess = adapter, policy, preprocess, postprocess
        self.still = keep_usable((preprocess, postprocess))
        indicator_step(preprocess).of = adapter.role.name

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
    def new(cls, adapter: Adapter, policy: Any, stats: dict[str, dict[str, np.ndarray]]) -> Checkpoint:
        """`stats`: mean and std of state and action of the pre-training data; they stay with the policy for good."""
        return cls(adapter, policy, *new_processors(adapter, policy.config, stats))

    @classmethod
    def load(
        cls, path: Path, adapter: Adapter, device: str, precision: Precision | None = None, keys: Any | None = None
    ) -> Checkpoint:
        """Reads a checkpoint folder strictly.

        Args:
            precision: None: that of its training.
            keys: what it shall be trained with; None: it only acts.

        Raises:
            RecapError: it is missing, of another kind, truncated, or its weights do not fit by name and shape.
        """
        config = adapter.on(read_config(path, adapter), device, precision)
        policy = adapter.load(config, path, keys)
        return cls(adapter, policy, *read_processors(adapter, path, config, device))

    def save(self, path: Path, state: dict[str, Tensor] | None = None) -> None:
        """Writes the folder; state: the weights, if the policy itself holds only its share of them."""
        path.mkdir(parents=True, exist_ok=True)
        self.policy.config.save_pretrained(path)
        self.adapter.save(self.policy, self.policy.state_dict() if state is None else state, path)
        self.preprocess.save_pretrained(path)
        self.postprocess.save_pretrained(path)
        follow_umask(path)  # safetensors keeps its files to their owner

    def restore(self, path: Path) -> None:
        """Takes the weights that `save` wrote. Raises RecapError if they are damaged."""
        self.adapter.restore(self.policy, path)

    def sees(self, keys: Iterable[str]) -> list[str]:
        """What the policy calls observations of these names."""
        return seen(self.preprocess, keys)

    def set_prompt(self, indicator: bool | None, beta: float = 1.0) -> None:
        """What every observation is prompted with from now on, and the guidance β; saved with the checkpoint."""
        step = indicator_step(self.preprocess)
        step.default_indicator, step.beta = indicator, beta if indicator is not None else 1.0
        self.adapter.guide(self.policy, step.beta)


def read_config(path: Path, adapter: Adapter) -> Any:
    """The configuration of a checkpoint folder.

    Raises:
        RecapError: there is no whole checkpoint of this kind, or it holds what is not allowed.
    """
    named = f"checkpoint {path}"
    held(path, adapter.keys, named)
    content = read_json(path / CONFIG, named)
    try:
        config = draccus.decode(PreTrainedConfig.get_choice_class(content.pop("type")), content)
    except Exception as error:  # draccus raises many kinds
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecapError(f"{named}: config.json cannot be read ({said[:300]}). Fix: train it again.") from error
    return adapter.read(config)
