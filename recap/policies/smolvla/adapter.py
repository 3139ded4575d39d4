"""SmolVLA as the rest of the code sees it: lerobot's class, and the folder of its VLM beside the weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig as LerobotSmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from torch import Tensor

from recap.policies.adapter import Spec
from recap.policies.checkpoint import read_config
from recap.policies.folder import HUB_ID, VLM, check_tokenizer
from recap.policies.lerobot.adapter import LerobotAdapter
from recap.policies.lerobot.policy import Steered
from recap.policies.prompt import BUILTIN
from recap.policies.smolvla.config import SmolVLAConfig
from recap.policies.smolvla.vlm import write_small
from recap.policies.weights import folder_of
from recap.utils.errors import RecapError


class Policy(Steered, SmolVLAPolicy):
    pass


class SmolVLAAdapter(LerobotAdapter):
    keys = SmolVLAConfig
    model = Policy
    steps = "num_steps"

    def config(self, keys: SmolVLAConfig, spec: Spec) -> LerobotSmolVLAConfig:
        names = "num_vlm_layers self_attn_every_n_layers expert_width_multiplier"
        config = LerobotSmolVLAConfig(
            **self.common(keys, spec),
            **{name: getattr(keys, name) for name in names.split()},
            vlm_model_name=keys.tokenizer,
            resize_imgs_with_padding=(keys.image_size, keys.image_size),
            pad_language_to="max_length",  # a prompt's numbers do not depend on its neighbours in the batch
        )
        config.tokenizer, config.small = keys.tokenizer, keys  # no fields of it: the VLM's folder says both later
        return config

    @contextmanager
    def made(self, config: LerobotSmolVLAConfig, folder: Path | None) -> Iterator[None]:
        """lerobot builds the VLM from a folder's files: a checkpoint's own, the hub's, or those of a small one."""
        name = config.vlm_model_name
        with TemporaryDirectory() as small:
            if folder is not None and (folder / VLM).is_dir():
                config.vlm_model_name = str(folder / VLM)
            elif name == BUILTIN and hasattr(config, "small"):
                config.vlm_model_name = str(write_small(Path(small), config.small))
            elif HUB_ID.fullmatch(name) or hasattr(config, "small"):
                config.vlm_model_name = str(found := folder_of(name, "policy.tokenizer"))
                check_tokenizer(found)
            else:
                raise RecapError(
                    f"{folder}: its VLM is {name}, outside the folder. Fix: copy that folder to {folder}/{VLM}"
                )
            try:
                yield
            finally:
                config.vlm_model_name = name

    def new(self, config: LerobotSmolVLAConfig, keys: Any) -> Any:
        """SmolVLA multiplies what it reads by √width."""
        policy = super().new(config, keys)
        model = policy.model.vlm_with_expert.get_vlm_model()
        with torch.no_grad():
            for part in (model.text_model.embed_tokens, model.connector.modality_projection.proj):
                part.weight.mul_(model.config.text_config.hidden_size**-0.5)
        return policy

    def plain(self, config: LerobotSmolVLAConfig, folder: str) -> LerobotSmolVLAConfig | None:
        """lerobot finds the VLM in a folder of this machine, or in a repository of its own."""
        if Path(folder).is_absolute():
            config.vlm_model_name = f"{folder}/{VLM}"
        return config if Path(folder).is_absolute() or HUB_ID.fullmatch(config.vlm_model_name) else None

    def exports(self, source: Path) -> bool:
        """To the hub."""
        return HUB_ID.fullmatch(read_config(source, self).vlm_model_name) is not None

    def export(self, source: Path, out: Path, indicator: bool | None, name: str) -> None:
        super().export(source, out, indicator, name)
        shutil.copytree(source / VLM, out / VLM)

    def save(self, policy: Any, state: dict[str, Tensor], folder: Path) -> None:
        super().save(policy, state, folder)
        vlm = policy.model.vlm_with_expert
        vlm.config.save_pretrained(folder / VLM)
        vlm.processor.save_pretrained(folder / VLM)
