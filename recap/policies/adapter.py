"""What the rest of the code asks of a kind of network: the base class of adapter.py beside a network's config.py.

A policy needs `keys`, `model` and `config`; everything else has a default that suits a policy that is a plain function
of its observation. docs/extending.md writes one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from accelerate import init_empty_weights
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from safetensors.torch import save_file
from torch import Tensor

from recap.data.tensors import Batch
from recap.policies.compiled import compiles, free_bytes, share_kept
from recap.policies.config import NetworkConfig
from recap.policies.folder import WEIGHTS, held
from recap.policies.memory import MOMENTS
from recap.policies.prompt import IndicatorNumber, IndicatorStep
from recap.policies.roles import Role
from recap.policies.sizes import Precision
from recap.policies.weights import folder_of, load_weights
from recap.utils.errors import RecapError
from recap.utils.ranks import process

Spec = dict[str, Any]  # input_features and output_features of lerobot
EMPTY_CAMERA = f"{OBS_IMAGES}.empty_camera_"  # lerobot's placeholders for cameras that a robot does not have


class Adapter:
    """One kind of network.

    The model is a lerobot policy. Its `forward(batch)` returns (loss, anything), where `weight` [B], if it is in the
    batch, weighs the samples; `predict_action_chunk(batch)` returns normalised actions [B, chunk, A].
    """

    role: ClassVar[Role] = Role.policy
    keys: ClassVar[type[NetworkConfig]]
    model: ClassVar[type[PreTrainedPolicy]]
    replaced: ClassVar[tuple[type, ...]] = ()  # lerobot's steps that `indicator_step` does the work of
    before: ClassVar[str] = ""  # where the indicator stands, if not at the end of the text: see `prompt`

    # ------------------------------------------------------------------------------------------------ making
    def features(self, spec: Spec) -> Spec:
        """What it sees and does, of all that the data holds."""
        return spec

    def config(self, keys: Any, spec: Spec) -> PreTrainedConfig:
        """lerobot's configuration of a new model.

        Args:
            keys: as configured. spec: "input_features" and "output_features", to be given to it as they are.
        """
        raise NotImplementedError

    def new(self, config: Any, keys: Any) -> Any:
        """A model with random weights, of torch's global generator, or with parts from the hub (`keys.needs`)."""
        return self.model(config).to(config.device)

    def build(self, keys: Any, spec: Spec, device: str, precision: Precision = Precision.float32) -> Any:
        """A new model, with the weights of `keys.pretrained` if there are any. Raises RecapError if they do not fit."""
        config = self.on(self.config(keys, self.features(spec)), device, precision)
        config.push_to_hub = False
        if keys.pretrained is None:
            return self.new(config, keys)
        key = f"{self.role.name}.pretrained"
        folder = folder_of(keys.pretrained, key)
        held(folder, self.keys, f"{key}={keys.pretrained}")
        return self.load(config, folder, keys)

    def on(self, config: Any, device: str, precision: Precision | None = None) -> Any:
        """The configuration for a device; precision: of the matrix products, where it has a `dtype`, None as it is."""
        config.device = device
        if precision is not None and hasattr(config, "dtype"):
            config.dtype = precision.name
        return config

    # ------------------------------------------------------------------------------------------------ checkpoints
    def read(self, config: Any) -> Any:
        """The configuration of a checkpoint as one of `model`; for those that another class has written."""
        return config

    def load(self, config: Any, folder: Path, keys: Any | None) -> Any:
        """A model with the weights of a checkpoint folder; never in memory twice.

        Args:
            keys: what it shall be trained with; None: it only acts.

        Raises:
            RecapError: they do not fit.
        """
        with init_empty_weights(include_buffers=False):
            policy: Any = self.model(config)
        if keys is None:
            policy.requires_grad_(requires_grad=False)
        load_weights(policy, folder / WEIGHTS)
        return policy

    def save(self, policy: Any, state: dict[str, Tensor], folder: Path) -> None:
        """Writes what `load` reads beside config.json."""
        whole = {name: value.contiguous() for name, value in state.items()}
        save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})

    def restore(self, policy: Any, folder: Path) -> None:
        """Takes the weights that `save` wrote. Raises RecapError if they are damaged."""
        load_weights(policy, folder / WEIGHTS)

    def export(self, source: Path, out: Path, indicator: bool | None, name: str) -> None:
        """Writes a checkpoint for lerobot alone into the new folder `out`, which will be called `name`."""
        package = self.keys.__module__.rpartition(".")[0]
        plugin = "recap.policies" if package.startswith("recap.") else package
        raise RecapError(
            f"{source}: {self.keys.named} has no form that lerobot runs by itself. Fix: leave it as it is, and where "
            f"recap is installed run lerobot-eval --env.discover_packages_path={plugin} --policy.path={source} …"
        )

    def exports(self, source: Path) -> bool:
        """Whether lerobot alone has words for this checkpoint."""
        return False

    # ------------------------------------------------------------------------------------------------ the indicator
    def indicator_step(self, config: Any) -> IndicatorStep:
        """The step of a new preprocessor that tells the model I_t; a number, `prompt.INDICATOR_NUMBER` in the batch."""
        return IndicatorNumber()

    def processors(self, config: Any, stats: dict[str, dict[str, Tensor]]) -> tuple[Any, Any] | None:
        """New processors before and behind it; None: those of any policy."""
        return None

    def guide(self, policy: Any, beta: float) -> None:
        """Sets the guidance β of its actions, if `keys.has_guidance`."""

    # ------------------------------------------------------------------------------------------------ training, acting
    def prepare_training(self, policy: Any, keys: Any) -> None:
        """How it is computed, such as `compile`; not what."""

    def run_training(self, policy: Any, keys: Any) -> None:
        """Compiles a policy that has `run_with`, and keeps of its activations what fits its device, as its keys say."""
        device = policy.config.device
        stages, samples = (keys.sft, keys.finetune), max(keys.sft.batch_size, keys.finetune.batch_size)
        learned = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
        moments = learned * max(MOMENTS[stage.optimizer] for stage in stages)
        sizes = keys.activations(samples / process().count, len(policy.config.image_features))
        compiled, free = compiles(keys.compile, device), free_bytes(device)
        policy.run_with(compiled=compiled, memory=share_kept(keys.memory, free, moments, *sizes))

    def training_noise(self, keys: Any, rng: np.random.Generator, size: int) -> Batch:
        """What else of a batch is random, by key, [size, …] each."""
        return {}

    def prepare_acting(self, policy: Any, keys: Any) -> None:
        """Takes over keys that a trained policy acts by (`keys.acting`)."""

    def acting_noise(self, config: Any) -> tuple[int, ...] | None:
        """Shape of the normal noise that one chunk of actions is made from, `noise` in the batch; None: of none."""
        return None


def cameras_of(config: Any) -> list[str]:
    """The cameras that a policy has to be shown."""
    return [key for key in config.image_features if not key.startswith(EMPTY_CAMERA)]


def features(cameras: dict[str, tuple[int, int]], state_dim: int, action_dim: int) -> Spec:
    """Input and output features of a policy from what the data set holds; cameras: key -> (height, width)."""
    inputs = {key: PolicyFeature(FeatureType.VISUAL, (3, height, width)) for key, (height, width) in cameras.items()}
    inputs[OBS_STATE] = PolicyFeature(FeatureType.STATE, (state_dim,))
    return {"input_features": inputs, "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (action_dim,))}}
