"""Policies on disk: lerobot checkpoint folders (config.json, model.safetensors, processors), read strictly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import draccus
import numpy as np
import torch
from accelerate import init_empty_weights
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.processor import PolicyProcessorPipeline
from lerobot.utils.constants import ACTION, OBS_STATE
from safetensors.torch import save_file
from torch import Tensor

from recap.policies import lora as adapters
from recap.policies.folder import ADAPTERS, CONFIG, WEIGHTS, has_adapters, held, read_json
from recap.policies.pi0 import config as pi0_keys
from recap.policies.pi0.modeling_pi0 import RecapPI0Config, RecapPI0Policy
from recap.policies.processors import keep_usable, new_processors, prompt_step, read_processors, seen
from recap.policies.prompt import BUILTIN, load_tokenizer
from recap.policies.roles import Role
from recap.policies.sizes import Precision, Trained
from recap.policies.value.config import ValueConfig
from recap.policies.value.modeling_value import RecapValueConfig, RecapValuePolicy
from recap.policies.weights import folder_of, load_part, load_weights
from recap.utils.errors import RecapError
from recap.utils.files import follow_umask

DTYPES = {Precision.float32: "float32", Precision.bfloat16: "bfloat16"}
Policy = RecapPI0Policy | RecapValuePolicy
KINDS: dict[type, Role] = {RecapPI0Policy: Role.policy, RecapValuePolicy: Role.value}


def features(
    cameras: dict[str, tuple[int, int]], state_dim: int, action_dim: int
) -> dict[str, dict[str, PolicyFeature]]:
    """Input and output features of a policy from what the data set holds; cameras: key -> (height, width)."""
    inputs = {key: PolicyFeature(FeatureType.VISUAL, (3, height, width)) for key, (height, width) in cameras.items()}
    inputs[OBS_STATE] = PolicyFeature(FeatureType.STATE, (state_dim,))
    return {"input_features": inputs, "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (action_dim,))}}


def features_of(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """What a policy sees and does: key -> size; of cameras only the key, because images are resized."""
    every = {**config.input_features, **(config.output_features or {})}
    sizes = {key: tuple(feature.shape) for key, feature in every.items() if feature.type is not FeatureType.VISUAL}
    return {**sizes, **dict.fromkeys(config.image_features, ())}


def tokenizer_of(
    size: pi0_keys.PI0Config | ValueConfig,
    key: str,
    given: Path | None,
    robot: tuple[Sequence[str], int, int] | None,
) -> Any:
    """The tokenizer that the prompts of a policy go through.

    Args:
        key: where `size.pretrained` stands. given: a checkpoint that is used as it is. robot: cameras, numbers of the
            state and of the action: weights made for these bring their tokenizer.

    Raises:
        RecapError: it is not there, or cannot be read.
    """
    kind: type[Policy] = RecapPI0Policy if isinstance(size, pi0_keys.PI0Config) else RecapValuePolicy
    if given is None and size.pretrained is not None and robot is not None:
        spec = features(dict.fromkeys(robot[0], (1, 1)), robot[1], robot[2])
        folder = folder_of(size.pretrained, key)
        made_for = features_of(read_config(folder, kind))
        wanted = spec["input_features"] | (spec["output_features"] if kind is RecapPI0Policy else {})
        if made_for == {k: () if f.type is FeatureType.VISUAL else tuple(f.shape) for k, f in wanted.items()}:
            given = folder
    if given is None:
        return load_tokenizer(size.tokenizer)
    return prompt_step(read_processors(given, read_config(given, kind), "cpu")[0]).input_tokenizer


def build_pi0(
    size: pi0_keys.PI0Config, spec: dict[str, Any], device: str, precision: Precision = Precision.float32
) -> RecapPI0Policy:
    """A new π0 from numbers, with the weights of `size.pretrained`, or random ones of torch's global generator.

    Args:
        spec: the result of `features`.

    Raises:
        RecapError: the tokenizer or the weights are not there, or do not fit.
    """
    tokenizer = load_tokenizer(size.tokenizer)
    config = RecapPI0Config(
        **spec,
        device=device,
        dtype=DTYPES[precision],
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
    if size.pretrained is None:
        return RecapPI0Policy(config)
    folder = _start(size.pretrained, Role.policy)
    return loaded(RecapPI0Policy, config, folder, size.trainable, size.lora_rank)


def build_value(
    size: ValueConfig, spec: dict[str, Any], device: str, precision: Precision = Precision.float32
) -> RecapValuePolicy:
    """A new value function from numbers; see `build_pi0`. Its vision tower and its Gemma may come from the hub."""
    tokenizer = load_tokenizer(size.tokenizer)
    config = RecapValueConfig(
        input_features=spec["input_features"],
        output_features={},
        device=device,
        dtype=DTYPES[precision],
        vision=size.vision,
        text=size.text,
        image_size=size.image_size,
        tokenizer=size.tokenizer,
        tokenizer_max_length=size.tokenizer_max_length,
        vocab_size=len(tokenizer) if size.tokenizer == BUILTIN else RecapValueConfig.vocab_size,
        bins=size.bins,
        use_state=size.use_state,
        freeze_vision=size.freeze_vision,
        push_to_hub=False,
    )
    if size.pretrained is not None:
        return loaded(RecapValuePolicy, config, _start(size.pretrained, Role.value), Trained.all)
    policy = RecapValuePolicy(config)
    deeper = r"^encoder\.layers\.|^layers\."  # a part may have fewer layers than the file
    if size.pretrained_vision is not None:
        file = folder_of(size.pretrained_vision, "value.pretrained_vision") / WEIGHTS
        load_part(policy.vision_tower.vision_model, file, "vision_model.", rf"^head\.|{deeper}")
    if size.pretrained_text is not None:
        file = folder_of(size.pretrained_text, "value.pretrained_text") / WEIGHTS
        load_part(policy.language_model, file, "model.", deeper)
    return policy


def _start(name: str, kind: Role) -> Path:
    """The folder of `policy.pretrained` or `value.pretrained`, looked into."""
    folder = folder_of(name, f"{kind.name}.pretrained")
    held(folder, kind, f"{kind.name}.pretrained={name}")
    return folder


def loaded[P: Policy](
    kind: type[P], config: PreTrainedConfig, folder: Path, trainable: Trained | None, lora_rank: int = 0
) -> P:
    """A policy with the weights of a checkpoint folder; never in memory twice.

    Args:
        trainable: what learns; None: nothing, it only acts.

    Raises:
        RecapError: they do not fit, or are adapters where all weights shall be trained.
    """
    adapted = has_adapters(folder)
    if adapted and trainable not in (None, Trained.lora):
        raise RecapError(
            f"checkpoint {folder} holds adapters, but trainable={trainable.name if trainable else ''}. "
            "Fix: policy.trainable=lora, or start from a checkpoint without."
        )
    if adapted and lora_rank and (rank := adapters.read_config(folder).r) != lora_rank:
        raise RecapError(
            f"policy.lora_rank={lora_rank}: the adapters in {folder} have rank {rank}. Fix: policy.lora_rank={rank}."
        )
    if isinstance(config, RecapPI0Config):
        config.freeze_vision_encoder = trainable is Trained.frozen_vision
        config.train_expert_only = trainable is Trained.expert
        config.use_peft = adapted or trainable is Trained.lora
    with init_empty_weights(include_buffers=False):
        policy = kind(config)
    if trainable is None or trainable is Trained.lora:
        policy.requires_grad_(requires_grad=False)
    if not adapted:
        load_weights(policy, folder / WEIGHTS)
        if trainable is Trained.lora:
            adapters.add_adapters(policy, adapters.new_adapters(lora_rank, str(folder.absolute())))
        return policy
    lora = adapters.read_config(folder)
    load_weights(policy, folder_of(str(lora.base_model_name_or_path), f"the base of {folder}") / WEIGHTS)
    adapters.add_adapters(policy, lora, folder)
    if trainable is None:
        policy.requires_grad_(requires_grad=False)
    return policy


class Checkpoint:
    """A policy with its processors.

    `prepare(batch)` turns what the data set holds into what the policy's `forward` and `predict_action_chunk` take;
    `postprocess(action)` undoes the action normalisation. `still`: by feature, which of its numbers never moved in what
    the statistics were made of, bool [D]; empty once they are bounded.
    """

    def __init__(
        self, policy: Policy, preprocess: PolicyProcessorPipeline, postprocess: PolicyProcessorPipeline
    ) -> None:
        self.policy, self.preprocess, self.postprocess = policy, preprocess, postprocess
        self.still = keep_usable((preprocess, postprocess))
        prompt_step(preprocess).of = "policy" if isinstance(policy, RecapPI0Policy) else "value"

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
        return cls(policy, *new_processors(policy.config, stats))

    @classmethod
    def load(
        cls,
        path: Path,
        kind: type[Policy],
        device: str,
        precision: Precision | None = None,
        trainable: Trained | None = None,
        lora_rank: int = 0,
    ) -> Checkpoint:
        """Reads a checkpoint folder strictly: ours, or for π0 any of lerobot's.

        Args:
            precision: None: that of its training.
            trainable: what of it shall learn; None: it only acts.

        Raises:
            RecapError: it is missing, of another kind, truncated, or its weights do not fit by name and shape.
        """
        config = read_config(path, kind)
        config.device = device
        config.dtype = config.dtype if precision is None else DTYPES[precision]
        policy = loaded(kind, config, path, trainable, lora_rank)
        return cls(policy, *read_processors(path, config, device))

    def save(self, path: Path, state: dict[str, Tensor] | None = None) -> None:
        """Writes the folder; state: the weights, if the policy itself holds only its share of them."""
        state = self.policy.state_dict() if state is None else state
        path.mkdir(parents=True, exist_ok=True)
        self.policy.config.save_pretrained(path)
        if self.policy.config.use_peft:
            adapters.save_adapters(self.policy, state, path)
        else:
            whole = {name: value.contiguous() for name, value in state.items()}
            save_file(whole, path / WEIGHTS, metadata={"format": "pt"})
        self.preprocess.save_pretrained(path)
        self.postprocess.save_pretrained(path)
        follow_umask(path)  # safetensors keeps its files to their owner

    def restore(self, path: Path) -> None:
        """Takes the weights that `save` wrote. Raises RecapError if they are damaged."""
        if self.policy.config.use_peft:
            load_weights(self.policy, path / ADAPTERS, adapters=True)
        else:
            load_weights(self.policy, path / WEIGHTS)

    def sees(self, keys: Iterable[str]) -> list[str]:
        """What the policy calls observations of these names."""
        return seen(self.preprocess, keys)

    def set_prompt(self, indicator: bool | None, beta: float = 1.0) -> None:
        """What every observation is prompted with from now on, and the guidance β; saved with the checkpoint."""
        step = prompt_step(self.preprocess)
        step.default_indicator, step.beta = indicator, beta if indicator is not None else 1.0
        if isinstance(self.policy.config, RecapPI0Config):
            self.policy.config.beta = step.beta


def read_config(path: Path, kind: type[Policy]) -> Any:
    """The configuration of a checkpoint folder; a π0 of lerobot's as one of ours.

    Raises:
        RecapError: there is no whole checkpoint of this kind, or it holds what is not allowed.
    """
    named = f"checkpoint {path}"
    held(path, KINDS[kind], named)
    content = read_json(path / CONFIG, named)
    try:
        config = draccus.decode(PreTrainedConfig.get_choice_class(content.pop("type")), content)
    except Exception as error:  # draccus raises many kinds
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecapError(f"{named}: config.json cannot be read ({said[:300]}). Fix: train it again.") from error
    return RecapPI0Config.of(config) if type(config) is PI0Config else config
