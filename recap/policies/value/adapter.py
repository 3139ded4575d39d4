"""The value function as the rest of the code meets it."""

from __future__ import annotations

from typing import Any

from recap.policies.adapter import Adapter, Spec
from recap.policies.checkpoint import tokenizer_of
from recap.policies.compiled import compiles
from recap.policies.config import ReadsText
from recap.policies.folder import WEIGHTS
from recap.policies.prompt import PromptTokenizer, load_tokenizer
from recap.policies.roles import Role
from recap.policies.value.config import StartedValueConfig, ValueConfig
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
        size = {name: value for name, value in vars(keys.built()).items() if name != "weights"}
        config = RecapValueConfig(
            **spec,
            **size,
            tokenizer_max_length=keys.tokenizer_max_length,
            bins=keys.bins,
            use_state=keys.use_state,
            freeze_vision=keys.freeze_vision,
        )
        if isinstance(keys, StartedValueConfig):
            assert isinstance(keys.policy, ReadsText)
            # no field of it: the tokenizer travels in the processors
            config.reads = tokenizer_of(keys.policy, "policy.pretrained", keys.folder, None)
        return config

    def new(self, config: RecapValueConfig, keys: ValueConfig) -> RecapValuePolicy:
        """Its vision tower and its Gemma may come from the hub, or all that sees and reads from a policy."""
        policy = self.model(config)
        if isinstance(keys, StartedValueConfig):
            assert keys.folder is not None
            for part, theirs in keys.built().weights.items():
                load_part(policy.get_submodule(part), keys.folder / WEIGHTS, f"{theirs}.", r"^head\.")
            return policy
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
        tokenizer = config.reads if hasattr(config, "reads") else load_tokenizer(config.tokenizer)
        return PromptTokenizer(tokenizer=tokenizer, max_length=config.tokenizer_max_length, default_indicator=None)

    def prepare_training(self, policy: Any, keys: ValueConfig) -> None:
        self.run_training(policy, keys)

    def prepare_acting(self, policy: Any, keys: ValueConfig) -> None:
        policy.run_with(compiled=compiles(keys.compile, policy.config.device))
