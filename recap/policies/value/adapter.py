"""The value function as the rest of the code meets it."""

from __future__ import annotations

from typing import Any

from recap.policies.adapter import Adapter, Spec
from recap.policies.compiled import compiles
from recap.policies.folder import WEIGHTS
from recap.policies.prompt import BUILTIN, PromptTokenizer, load_tokenizer
from recap.policies.roles import Role
from recap.policies.value.config import ValueConfig
from recap.policies.value.modeling_value import RecapValueConfig, RecapValuePolicy
from recap.policies.weights import folder_of, load_part


class ValueAdapter(Adapter):
    role = Role.value
    keys = ValueConfig
    model = RecapValuePolicy

    def features(self, spec: Spec) -> Spec:
        """It does nothing."""
        return {**spec, "output_features": {}}

    def config(self, keys: ValueConfig, spec: Spec) -> RecapValueConfig:
        tokenizer = load_tokenizer(keys.tokenizer)
        return RecapValueConfig(
            **spec,
            vision=keys.vision,
            text=keys.text,
            image_size=keys.image_size,
            tokenizer=keys.tokenizer,
            tokenizer_max_length=keys.tokenizer_max_length,
            vocab_size=len(tokenizer) if keys.tokenizer == BUILTIN else RecapValueConfig.vocab_size,
            bins=keys.bins,
            use_state=keys.use_state,
            freeze_vision=keys.freeze_vision,
        )

    def new(self, config: RecapValueConfig, keys: ValueConfig) -> RecapValuePolicy:
        """Its vision tower and its Gemma may come from the hub."""
        policy = self.model(config)
        deeper = r"^encoder\.layers\.|^layers\."  # a part may have fewer layers than the file
        if keys.pretrained_vision is not None:
            file = folder_of(keys.pretrained_vision, "value.pretrained_vision") / WEIGHTS
            load_part(policy.vision_tower.vision_model, file, "vision_model.", rf"^head\.|{deeper}")
        if keys.pretrained_text is not None:
            file = folder_of(keys.pretrained_text, "value.pretrained_text") / WEIGHTS
            load_part(policy.language_model, file, "model.", deeper)
        return policy

    def indicator_step(self, config: RecapValueConfig) -> PromptTokenizer:
        """It reads the instruction alone."""
        return PromptTokenizer(
            tokenizer=load_tokenizer(config.tokenizer), max_length=config.tokenizer_max_length, default_indicator=None
        )

    def prepare_training(self, policy: Any, keys: ValueConfig) -> None:
        self.run_training(policy, keys)

    def prepare_acting(self, policy: Any, keys: ValueConfig) -> None:
        policy.run_with(compiled=compiles(keys.compile, policy.config.device))
