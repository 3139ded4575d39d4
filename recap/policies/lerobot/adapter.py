"""Any policy of lerobot's that reads an instruction and makes its actions from noise, as the rest of the code sees it.

Its class, its configuration, its processors and the names of its weights are lerobot's. A folder of its own says how
its configuration is made of our keys (`config`), and whatever is special in building it (`made`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from accelerate import init_empty_weights
from lerobot.configs import NormalizationMode
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import tokenizer_processor
from torch import Tensor, nn

from recap.data.tensors import Batch
from recap.policies.adapter import Adapter, Spec
from recap.policies.backbone import init_from_scratch
from recap.policies.folder import WEIGHTS
from recap.policies.lerobot.keys import UNUSABLE, LerobotConfig
from recap.policies.lerobot.policy import instead
from recap.policies.prompt import load_tokenizer
from recap.policies.registry import unusable
from recap.policies.sizes import Precision, Trained
from recap.policies.weights import load_weights
from recap.utils.errors import RecapError

NO_LOSS = "its forward has no reduction='none', so no sample can be weighed. Fix: a policy of docs/policies.md"


class LerobotAdapter(Adapter):
    """`model` is `class Policy(Steered, <lerobot's class>)`; `steps` the key of lerobot's for `num_inference_steps`."""

    keys: ClassVar[type[LerobotConfig]]
    steps: ClassVar[str] = "num_inference_steps"

    def __init__(self) -> None:
        """Raises RecapError for a policy that cannot be told the advantage."""
        lerobots: Any = self.model.__bases__[-1]
        name = self.model.name
        if name in UNUSABLE or "reduction" not in inspect.signature(lerobots.forward).parameters:
            raise RecapError(f"policy.type={name}: {unusable(name) or NO_LOSS}")

    # ------------------------------------------------------------------------------------------------ making
    def common(self, keys: LerobotConfig, spec: Spec) -> dict[str, Any]:
        """What every configuration of lerobot's of this kind has."""
        mode = NormalizationMode[keys.normalization.name.upper()]
        names = "chunk_size n_action_steps max_state_dim max_action_dim tokenizer_max_length empty_cameras"
        return {
            "input_features": dict(spec["input_features"]),  # lerobot adds its placeholders in place
            "output_features": spec["output_features"],
            "device": "cpu",  # until `on`
            "normalization_mapping": {"VISUAL": NormalizationMode.IDENTITY, "STATE": mode, "ACTION": mode},
            **{name: getattr(keys, name) for name in names.split()},
            **self._frozen(keys),
            self.steps: keys.num_inference_steps,
        }

    def _frozen(self, keys: LerobotConfig) -> dict[str, bool]:
        expert = keys.trainable is Trained.expert
        return {
            "train_expert_only": expert,
            "freeze_vision_encoder": expert or keys.trainable is Trained.frozen_vision,
        }

    def made(self, config: Any, folder: Path | None) -> AbstractContextManager[None]:
        """Surroundings in which lerobot's class is built of a configuration; folder: of its checkpoint, if any."""
        return nullcontext()

    def unread(self, policy: Any) -> Iterator[nn.Module]:
        """Parts of a model that no loss depends on: they never learn. lerobot's class may have frozen them itself."""
        yield from ()

    def _model(self, config: Any, folder: Path | None = None) -> Any:
        with self.made(config, folder), redirect_stdout(StringIO()):
            policy: Any = self.model(config)
        for part in self.unread(policy):
            part.requires_grad_(requires_grad=False)
        return policy

    def new(self, config: Any, keys: Any) -> Any:
        policy = self._model(config)
        init_from_scratch(policy.model)
        return policy.to(config.device)

    def on(self, config: Any, device: str, precision: Precision | None = None) -> Any:
        """Weights stay float32; bfloat16 is how they are multiplied."""
        half = config.use_amp or getattr(config, "dtype", None) == "bfloat16"
        config.device, config.use_amp = device, half if precision is None else precision is Precision.bfloat16
        if hasattr(config, "dtype"):
            config.dtype = "float32"
        return config

    def load(self, config: Any, folder: Path, keys: LerobotConfig | None) -> Any:
        for name, value in self._frozen(keys).items() if keys else ():
            setattr(config, name, value)
        with init_empty_weights(include_buffers=False):
            policy = self._model(config, folder)
        if keys is None:
            policy.requires_grad_(requires_grad=False)
        load_weights(policy, folder / WEIGHTS)
        return policy

    # ------------------------------------------------------------------------------------------------ reading
    def tokenizer(self, name: str) -> Any:
        return load_tokenizer(name)

    def stock(self, config: Any) -> Any:
        """A configuration as one of lerobot's own class, whatever the sizes of its networks."""
        return config

    def processors(self, config: Any, stats: dict[str, dict[str, Tensor]]) -> tuple[Any, Any]:
        """lerobot's own for this policy, but with the tokenizer of our configuration (`config.tokenizer`)."""
        named = SimpleNamespace(from_pretrained=lambda *_, **__: self.tokenizer(config.tokenizer))
        with instead(tokenizer_processor, AutoTokenizer=named):
            made: tuple[Any, Any] = make_pre_post_processors(self.stock(config), dataset_stats=stats)
        return made

    def guide(self, policy: Any, beta: float) -> None:
        policy.beta = beta

    def plain(self, config: Any, folder: str) -> Any | None:
        """A configuration as lerobot reads it without us, None if it has no words for it; folder: of the export."""
        return config

    def exports(self, source: Path) -> bool:
        from recap.policies.checkpoint import read_config

        return self.plain(read_config(source, self), str(source)) is not None

    def export(self, source: Path, out: Path, indicator: bool | None, name: str) -> None:
        from recap.policies.checkpoint import read_config
        from recap.policies.lerobot.export import export_processors, export_weights

        config = read_config(source, self)
        plain = self.plain(config, name)
        if plain is None:
            return super().export(source, out, indicator, name)
        export_processors(self, source, config, out, indicator, name)
        plain.save_pretrained(out)
        return export_weights(source / WEIGHTS, out / WEIGHTS)

    # ------------------------------------------------------------------------------------------------ noise
    def training_noise(self, keys: LerobotConfig, rng: np.random.Generator, size: int) -> Batch:
        """Flow noise and time: [size, chunk, max_action_dim] and [size], distributed as lerobot draws them."""
        noise = rng.standard_normal((size, keys.chunk_size, keys.max_action_dim), dtype=np.float32)
        return {"noise": noise, "time": (rng.beta(1.5, 1.0, size) * 0.999 + 0.001).astype(np.float32)}

    def prepare_acting(self, policy: Any, keys: LerobotConfig) -> None:
        setattr(policy.config, self.steps, keys.num_inference_steps)

    def acting_noise(self, config: Any) -> tuple[int, ...]:
        return (config.chunk_size, config.max_action_dim)
