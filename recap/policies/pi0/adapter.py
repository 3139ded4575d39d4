"""π0 as the rest of the code meets it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from accelerate import init_empty_weights
from lerobot.policies.pi0.configuration_pi0 import PI0Config as LerobotPI0Config
from lerobot.policies.pi0.processor_pi0 import Pi0NewLineProcessor
from torch import Tensor

from recap.data.tensors import Batch
from recap.policies.adapter import Adapter, Spec
from recap.policies.compiled import compiles
from recap.policies.folder import ADAPTERS, WEIGHTS, has_adapters
from recap.policies.pi0 import lora
from recap.policies.pi0.config import PI0Config
from recap.policies.pi0.modeling_pi0 import RecapPI0Config, RecapPI0Policy
from recap.policies.prompt import BUILTIN, PromptTokenizer, load_tokenizer
from recap.policies.sizes import Trained
from recap.policies.weights import folder_of, load_weights
from recap.utils.errors import RecapError


class PI0Adapter(Adapter):
    keys = PI0Config
    model = RecapPI0Policy
    replaced = (Pi0NewLineProcessor,)

    def config(self, keys: PI0Config, spec: Spec) -> RecapPI0Config:
        tokenizer = load_tokenizer(keys.tokenizer)
        return RecapPI0Config(
            **spec,
            vision=keys.vision,
            vlm=keys.vlm,
            expert=keys.expert,
            tokenizer=keys.tokenizer,
            vocab_size=len(tokenizer) if keys.tokenizer == BUILTIN else RecapPI0Config.vocab_size,
            tokenizer_max_length=keys.tokenizer_max_length,
            image_resolution=(keys.image_size, keys.image_size),
            max_state_dim=keys.max_state_dim,
            max_action_dim=keys.max_action_dim,
            chunk_size=keys.chunk_size,
            n_action_steps=keys.n_action_steps,
            num_inference_steps=keys.num_inference_steps,
            flow_samples=keys.flow_samples,
        )

    def read(self, config: Any) -> RecapPI0Config:
        """A π0 of lerobot's as one of ours."""
        return RecapPI0Config.of(config) if type(config) is LerobotPI0Config else config

    def load(self, config: RecapPI0Config, folder: Path, keys: PI0Config | None) -> RecapPI0Policy:
        """Raises RecapError also if there are adapters where all weights shall be trained, or of another rank."""
        adapted, trainable = has_adapters(folder), keys.trainable if keys else None
        if adapted and keys and trainable is not Trained.lora:
            raise RecapError(
                f"checkpoint {folder} holds adapters, but trainable={keys.trainable.name}. "
                "Fix: policy.trainable=lora, or start from a checkpoint without."
            )
        if adapted and keys and (rank := lora.read_config(folder).r) != keys.lora_rank:
            raise RecapError(
                f"policy.lora_rank={keys.lora_rank}: the adapters in {folder} have rank {rank}. "
                f"Fix: policy.lora_rank={rank}."
            )
        config.freeze_vision_encoder = trainable is Trained.frozen_vision
        config.train_expert_only = trainable is Trained.expert
        config.use_peft = adapted or trainable is Trained.lora
        with init_empty_weights(include_buffers=False):
            policy = self.model(config)
        if trainable is None or trainable is Trained.lora:
            policy.requires_grad_(requires_grad=False)
        if not adapted:
            load_weights(policy, folder / WEIGHTS)
            if keys and trainable is Trained.lora:
                lora.add_adapters(policy, lora.new_adapters(keys.lora_rank, str(folder.absolute())))
            return policy
        adapters = lora.read_config(folder)
        load_weights(policy, folder_of(str(adapters.base_model_name_or_path), f"the base of {folder}") / WEIGHTS)
        lora.add_adapters(policy, adapters, folder)
        if trainable is None:
            policy.requires_grad_(requires_grad=False)
        return policy

    def save(self, policy: RecapPI0Policy, state: dict[str, Tensor], folder: Path) -> None:
        if policy.config.use_peft:
            lora.save_adapters(policy, state, folder)
        else:
            super().save(policy, state, folder)

    def restore(self, policy: RecapPI0Policy, folder: Path) -> None:
        if policy.config.use_peft:
            load_weights(policy, folder / ADAPTERS, adapters=True)
        else:
            super().restore(policy, folder)

    def export(self, source: Path, out: Path, indicator: bool | None, name: str) -> None:
        from recap.policies.pi0.export import export

        export(self, source, out, indicator, name)

    def exports(self, source: Path) -> bool:
        from recap.policies.checkpoint import read_config

        return read_config(source, self).plain() is not None

    def indicator_step(self, config: RecapPI0Config) -> PromptTokenizer:
        """I_t is text: RECAP, section IV-C."""
        return PromptTokenizer(
            tokenizer=load_tokenizer(config.tokenizer), max_length=config.tokenizer_max_length, default_indicator=True
        )

    def guide(self, policy: RecapPI0Policy, beta: float) -> None:
        policy.config.beta = beta

    def prepare_training(self, policy: RecapPI0Policy, keys: PI0Config) -> None:
        self.run_training(policy, keys)

    def training_noise(self, keys: PI0Config, rng: np.random.Generator, size: int) -> Batch:
        """Flow noise and time: [size, samples, chunk, max_action_dim] and [size, samples]."""
        shape = (size, keys.flow_samples)
        noise = rng.standard_normal((*shape, keys.chunk_size, keys.max_action_dim), dtype=np.float32)
        time = (rng.beta(1.5, 1.0, shape) * 0.999 + 0.001).astype(np.float32)  # as lerobot's PI0Config
        return {"noise": noise, "time": time}

    def prepare_acting(self, policy: RecapPI0Policy, keys: PI0Config) -> None:
        policy.config.num_inference_steps = keys.num_inference_steps
        policy.run_with(compiled=compiles(keys.compile, policy.config.device))

    def acting_noise(self, config: RecapPI0Config) -> tuple[int, ...]:
        return (config.chunk_size, config.max_action_dim)
