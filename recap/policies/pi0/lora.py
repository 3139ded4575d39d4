"""LoRA through peft: small trainable adapters beside frozen weights, saved in the form that lerobot reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor

from recap.policies.folder import ADAPTER_CONFIG, ADAPTERS, lora_settings
from recap.policies.pi0.config import TARGETS, PI0Config
from recap.policies.weights import adapter_names, load_weights


def new_adapters(rank: int, base: str) -> LoraConfig:
    """base: the folder or hub id of the frozen weights."""
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, base_model_name_or_path=base)


def read_config(folder: Path) -> LoraConfig:
    """Raises RecapError when the file cannot be read, asks for more than LoRA, or names no base."""
    return LoraConfig(**lora_settings(folder, PI0Config.lora_targets))


def add_adapters(policy: Any, config: LoraConfig, folder: Path | None = None) -> None:
    """Puts adapters into a policy with frozen weights: new ones that change nothing yet, or those of a checkpoint."""
    inject_adapter_in_model(config, policy)
    policy.adapters = config
    for name, parameter in policy.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    policy.model.paligemma_with_expert.freeze_unread()
    if folder is not None:
        load_weights(policy, folder / ADAPTERS, adapters=True)


def save_adapters(policy: Any, state: dict[str, Tensor], folder: Path) -> None:
    names = adapter_names(name for name in state if ".lora_" in name)
    save_file({names[name]: state[name].contiguous() for name in names}, folder / ADAPTERS)
    policy.adapters.save_pretrained(str(folder))
    path = folder / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2, sort_keys=True) + "\n")  # sets have no order


@torch.no_grad()
def merged(policy: Any) -> dict[str, Tensor]:
    """All weights with the adapters added to them, in float32, under the names of a policy without adapters."""
    result = {}
    layers = {name: module for name, module in policy.named_modules() if hasattr(module, "lora_A")}
    for name, value in policy.state_dict().items():
        if ".lora_" in name:
            continue
        owner, _, last = name.rpartition(".base_layer.")
        delta = layers[owner].get_delta_weight("default").float() if last == "weight" and owner in layers else 0
        result[name.replace(".base_layer.", ".")] = (value.float() + delta).contiguous()
    return result
