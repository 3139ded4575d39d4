from dataclasses import dataclass, field

import torch
from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import nn

from recap.policies.adapter import Adapter
from recap.policies.prompt import INDICATOR_NUMBER
from toy_policy.config import ToyConfig


@PreTrainedConfig.register_subclass("toy")
@dataclass
class ToyModelConfig(PreTrainedConfig):
    hidden: int = 64
    chunk_size: int = 5
    n_action_steps: int = 5
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {"STATE": NormalizationMode.MEAN_STD, "ACTION": NormalizationMode.MEAN_STD}
    )
    observation_delta_indices = action_delta_indices = reward_delta_indices = None

    def validate_features(self): ...
    def get_optimizer_preset(self): ...
    def get_scheduler_preset(self): ...


class ToyPolicy(PreTrainedPolicy):
    config_class = ToyModelConfig
    name = "toy"

    def __init__(self, config, **_):
        super().__init__(config)
        state, action = config.robot_state_feature.shape[0], config.action_feature.shape[0]
        self.net = nn.Sequential(
            nn.Linear(state + 1, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.chunk_size * action)
        )

    def predict_action_chunk(self, batch, **_):
        seen = torch.cat([batch["observation.state"], batch[INDICATOR_NUMBER][:, None]], dim=1)
        return self.net(seen).unflatten(1, (self.config.chunk_size, -1))

    def forward(self, batch):
        error = (self.predict_action_chunk(batch) - batch["action"]).square().mean(-1)
        real = (~batch["action_is_pad"]) * batch.get("weight", torch.ones(len(error)))[:, None]
        return (error * real).sum() / (~batch["action_is_pad"]).sum().clamp(min=1), {}

    def reset(self):
        self.queue = []

    def select_action(self, batch, **_):
        self.queue = self.queue or [*self.predict_action_chunk(batch)[:, : self.config.n_action_steps].unbind(1)]
        return self.queue.pop(0)

    def get_optim_params(self):
        return self.parameters()


class ToyAdapter(Adapter):
    keys = ToyConfig
    model = ToyPolicy

    def config(self, keys, spec):
        names = ("hidden", "chunk_size", "n_action_steps")
        return ToyModelConfig(**spec, **{name: getattr(keys, name) for name in names})
