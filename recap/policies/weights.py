"""Weights from safetensors files, strictly: every name, every shape, nothing left over, no NaN."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from recap.policies.folder import checkpoint_of
from recap.utils.errors import RecapError
from recap.utils.hub import download, find

EMBEDDINGS = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
HEAD = "model.paligemma_with_expert.paligemma.lm_head.weight"


def folder_of(name: str, key: str) -> Path:
    """The folder of a checkpoint: `name`, its newest one, or what the local cache has of a hub id. Nothing is fetched.

    Raises:
        RecapError: there is neither; the message names the configuration's `key` and how to get it.
    """
    if folder := find(name, "model", files=("*model.safetensors", "*.json")):
        return checkpoint_of(folder)
    raise RecapError(f"{key}={name}: not on this machine. Fix: {download(name, 'model')}, or name a folder.")


def load_weights(policy: Any, file: Path, *, adapters: bool = False) -> None:
    """Loads a policy's weights, or only its `adapters`.

    Weights that learn stay float32 (bfloat16 would round small updates away); see `stored` for the others. A policy
    made without memory (on `meta`) takes the tensors as they are read, so that only one copy ever exists.

    Raises:
        RecapError: the file is damaged, does not fit by name and shape, or holds NaN.
    """
    own = {name: value for name, value in policy.state_dict().items() if not adapters or ".lora_" in name}
    learns = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    device = policy.config.device
    with _opened(file) as handle:
        keys = list(handle.keys())
        source = adapter_names(own) if adapters else lerobot_names(keys, own)
        _check(file, keys, source, {name: tuple(value.shape) for name, value in own.items()}, handle)
        state: dict[str, Tensor] = {}
        for name, key in source.items():
            value = _read(handle, key, file)
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise RecapError(f"{file}: NaN or infinite values in {key}. Fix: train it again, or copy it again.")
            state[name] = value.to(device, stored(policy, name, value, learns=name in learns))
    policy.load_state_dict(state, strict=False, assign=any(value.is_meta for value in own.values()))
    policy.to(device)  # the buffers, which no file holds


def load_part(module: nn.Module, file: Path, prefix: str, ignored: str) -> None:
    """Loads the weights below `prefix` of somebody else's file into a part of a policy.

    ignored: a pattern for names below the prefix that may be left over, such as layers beyond the part's depth.

    Raises:
        RecapError: as `load_weights`.
    """
    own = module.state_dict()
    with _opened(file) as handle:
        keys = [key for key in handle.keys() if key.startswith(prefix)]  # noqa: SIM118 (not a dict)
        names = {key: key.removeprefix(prefix) for key in keys}
        extra = [key for key, name in names.items() if name not in own and re.search(ignored, name)]
        source = {name: key for key, name in names.items() if key not in extra}
        source |= {name: prefix + name for name in own if name not in source}
        _check(file, [k for k in keys if k not in extra], source, {n: tuple(v.shape) for n, v in own.items()}, handle)
        module.load_state_dict({name: _read(handle, key, file).float() for name, key in source.items()})


def stored(policy: Any, name: str, value: Tensor, *, learns: bool) -> torch.dtype:
    """The type a weight is kept in: float32 if it learns.

    Of the rest, the factors of products that are computed in bfloat16 are kept in it, at no loss and half the memory.
    """
    exact = any(part in name for part in getattr(policy, "float32", ()))
    if learns or exact or value.ndim < 2 or getattr(policy.config, "dtype", "float32") != "bfloat16":
        return torch.float32
    return torch.bfloat16


def lerobot_names(keys: Iterable[str], own: Mapping[str, Tensor]) -> dict[str, str]:
    """Our name -> the file's. π0 and π0.5 also come with openpi's names, and with tied embeddings."""
    names = {}
    for key in keys:
        name = key
        if key not in own and not key.startswith("model."):
            name = f"model.{key}"
            if name not in own:
                name = f"model.{re.sub('^time_mlp_', 'action_time_mlp_', key)}"
        names[name] = key
    if EMBEDDINGS in own and EMBEDDINGS not in names and HEAD in names:
        names[EMBEDDINGS] = names[HEAD]
    return names


def adapter_names(own: Iterable[str]) -> dict[str, str]:
    """Our name -> peft's in a file of adapters."""
    return {name: f"base_model.model.{name.replace('.default.', '.')}" for name in own}


def names_of(file: Path) -> list[str]:
    """The names in a file of weights. Raises RecapError if it is damaged or no such file."""
    with _opened(file) as handle:
        return list(handle.keys())


# ---------------------------------------------------------------------------------------------------- reading
def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from error


def _read(handle: Any, key: str, file: Path) -> Tensor:
    try:
        return handle.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> RecapError:
    return RecapError(
        f"{file}: truncated or damaged ({error}). Fix: delete its stage folder and run the command again."
        if Path(file).is_file()
        else f"{file}: there is no such file. Fix: name a folder that holds it."
    )


def _check(
    file: Path, keys: list[str], source: dict[str, str], shapes: dict[str, tuple[int, ...]], handle: Any
) -> None:
    """Raises RecapError that lists every missing, unexpected and mis-shaped weight."""
    there = set(keys)
    problems = [f"missing {name}" for name in shapes if source.get(name) not in there]
    expected = {source[name] for name in shapes if name in source}
    problems += [f"unexpected {key}" for key in keys if key not in expected]
    for name, shape in shapes.items():
        found = tuple(handle.get_slice(source[name]).get_shape()) if source.get(name) in there else shape
        if found != shape:
            problems.append(f"{name} has shape {found}, expected {shape}")
    if problems:
        shown = "\n  ".join(problems[:10]) + (f"\n  … and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise RecapError(
            f"{file}: the weights do not fit this policy:\n  {shown}\nFix: use the size that it was trained with."
        )
