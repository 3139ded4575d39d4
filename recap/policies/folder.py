"""What a checkpoint folder holds, and whether it may be read: checked here alone, before torch or lerobot see a file.

People send each other checkpoints, and the libraries that read them run what their JSON files name: lerobot the class
of a processor step, transformers the code beside a tokenizer, peft the module of an adapter. So these files are read
here first, and only what is listed here passes. Imports no torch: commands check before they start anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recap.policies.config import NetworkConfig
from recap.training.config import OPTIMIZER
from recap.utils.errors import RecapError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
ADAPTER_CONFIG, ADAPTERS = "adapter_config.json", "adapter_model.safetensors"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
TOKENIZER = "tokenizer_processor"
VLM = "vlm"  # the folder of a SmolVLA's VLM without weights: its configuration, its tokenizer
PRETRAINED = "pretrained_model"  # the folder of a checkpoint in that of a step, as lerobot-train has it
CODED = ("processor", "preprocessor", "video_preprocessor")  # whose files may name code too
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
STATE_FILE = re.compile(r"\w[\w.-]*\.safetensors")

_PROMPT = {"max_length", "task_key", "padding_side", "padding", "truncation"}
_NORMALIZER = {"eps", "features", "norm_map", "normalize_observation_keys"}
STEPS = {
    "rename_observations_processor": {"rename_map"},
    "to_batch_processor": set(),
    TOKENIZER: {"tokenizer_name", *_PROMPT},
    "recap_prompt": {"default_indicator", "beta", "before", *_PROMPT},
    "recap_indicator": {"default_indicator", "beta"},
    "device_processor": {"device", "float_dtype"},
    "relative_actions_processor": {"enabled", "exclude_joints", "action_names"},
    "normalizer_processor": _NORMALIZER,
    "unnormalizer_processor": _NORMALIZER,
    "absolute_actions_processor": {"enabled"},
}
LORA = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "base_model_name_or_path")
# What peft writes besides, and what changes nothing of adapters that are there. Any other key must be empty.
LORA_SAYS = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "megatron_core": ("megatron.core",),
    "inference_mode": (True, False),
    "init_lora_weights": (True, False),
    "qalora_group_size": (16,),
}
LORA_IGNORED = ("peft_version", "task_type", "auto_mapping")
LARGEST_RANK = 1024


@dataclass(frozen=True)
class Held:
    """What a checkpoint folder holds.

    type: of policy, in its config.json. weights: their file. base: folder or hub id of the weights that its
    adapters change. tokenizer: the hub id of one that does not lie in the folder.
    """

    type: str
    weights: str
    base: str | None = None
    tokenizer: str | None = None

    @property
    def adapters(self) -> bool:
        return self.weights == ADAPTERS


def checkpoint_of(path: Path) -> Path:
    """The folder of the newest checkpoint of a training, ours or lerobot's; a checkpoint folder stands for itself."""
    if (path / "checkpoints" / "last").is_dir():
        path = path / "checkpoints" / "last"
    inside = path / PRETRAINED
    return inside if not (path / CONFIG).is_file() and (inside / CONFIG).is_file() else path


def has_adapters(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def weights_of(folder: Path) -> str:
    """The file that a checkpoint's weights are in."""
    return ADAPTERS if has_adapters(folder) else WEIGHTS


def held(path: Path, keys: type[NetworkConfig], named: str) -> Held:
    """Looks into a checkpoint folder. keys: those of the network that is wanted; named: how messages call the folder.

    Raises:
        RecapError: it is not there or not whole, is of another kind, or holds what could run code or lead elsewhere.
    """
    if not path.is_dir():
        raise RecapError(
            f"{named}: there is no such folder. Fix: name one that holds {CONFIG} and {WEIGHTS}, "
            "such as outputs/demo/sft/checkpoints/last."
        )
    if missing := [name for name in (CONFIG, weights_of(path)) if not (path / name).is_file()]:
        raise RecapError(f"{named}: {_missing(path, missing)}")
    found = type_of(path, named)
    if found not in keys.checkpoints:
        wanted = " or lerobot's ".join(f"'{name}'" for name in keys.checkpoints)
        raise RecapError(f"{named}: is a '{found}', not a {wanted}. Fix: name {keys.readable}.")
    if has_adapters(path) and not keys.has_adapters:
        raise RecapError(f"{named}: {ADAPTER_CONFIG} is there, but {keys.named} has no adapters. Fix: delete it.")
    base = lora_settings(path, keys.lora_targets)["base_model_name_or_path"] if has_adapters(path) else None
    files = (path / PREPROCESSOR, path / POSTPROCESSOR)
    steps = [processor_steps(file, named, keys) if file.is_file() else [] for file in files]
    return Held(found, weights_of(path), base, tokenizer_name(path, steps[0]))


def type_of(path: Path, named: str) -> str:
    """`type` in a checkpoint's config.json. Raises RecapError if that is damaged."""
    return str(read_json(path / CONFIG, named).get("type"))


def _missing(path: Path, missing: list[str]) -> str:
    """The message about a folder without these files."""
    pickles = [file.name for file in sorted(path.iterdir()) if file.suffix in PICKLES and file.name != OPTIMIZER]
    if WEIGHTS in missing and pickles:
        return (
            f"{WEIGHTS} missing; {pickles[0]} is a pickle, which can run code and is not read. "
            f"Fix: ask for the weights as {WEIGHTS}."
        )
    found = sorted(path.glob("**/checkpoints/*/config.json"))
    found += sorted(path.glob(f"**/checkpoints/*/{PRETRAINED}/config.json"))
    hint = f"checkpoint={found[0].parent}" if found else "the folder of one step, such as …/checkpoints/last"
    return f"{' and '.join(missing)} missing there. Fix: name {hint}."


def read_json(path: Path, named: str) -> dict[str, Any]:
    """The object in a file of a checkpoint. Raises RecapError if it is damaged or is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError("it holds no JSON object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        said = f"{type(error).__name__}: {error}"[:200]
        raise RecapError(
            f"{named}: {path.name} is damaged ({said}). Fix: copy it again whole, or train it again."
        ) from error
    return content


def _refused(path: Path, what: str, fix: str) -> RecapError:
    return RecapError(f"{path}: {what}, which is not allowed in a checkpoint. Fix: {fix}.")


# ---------------------------------------------------------------------------------------------------- processors
def processor_steps(path: Path, named: str, keys: type[NetworkConfig]) -> list[dict[str, Any]]:
    """The steps of a processor file, each with `registry_name`, `config` and maybe `state_file`.

    Raises:
        RecapError: it is damaged, or has a step, an argument or a file that is not among those that the network needs.
    """
    try:
        steps = [dict(step) for step in read_json(path, named)["steps"]]
        configs = [dict(step.setdefault("config", {})) for step in steps]
    except (RecapError, KeyError, TypeError, ValueError) as error:
        raise RecapError(
            f"{named}: its processors cannot be read ({path.name}: {str(error)[:200]}). "
            "Fix: train it again, or copy it again whole."
        ) from error
    allowed = STEPS | {name: set() for name in keys.extra_steps}
    for step, config in zip(steps, configs, strict=True):
        if problem := _problem(step, config, allowed):
            raise _refused(
                path,
                problem,
                "ask for a checkpoint whose steps are all of "
                f"{', '.join(allowed)}, with the arguments that lerobot gives them",
            )
        file = step.get("state_file")
        if file is not None and not (path.parent / file).is_file():
            raise RecapError(f"{named}: its processors cannot be read ({file} missing). Fix: copy it again whole.")
    return steps


def _problem(step: dict[str, Any], config: dict[str, Any], allowed: dict[str, set[str]]) -> str | None:
    """What is not allowed in a step; None for a step that may run."""
    name = step.get("registry_name")
    if not isinstance(name, str):
        return f"a step of the class {step.get('class')!r}"
    if name not in allowed:
        return f"the step {name!r}"
    if unknown := {*step} - {"registry_name", "config", "state_file"}:
        return f"{min(unknown)!r} of the step {name!r}"
    if unknown := {*config} - allowed[name]:
        return f"the argument {min(unknown)}={config[min(unknown)]!r} of the step {name!r}"[:300]
    file = step.get("state_file")
    if file is not None and not (isinstance(file, str) and STATE_FILE.fullmatch(file)):
        return f"the state_file {file!r} of the step {name!r}"
    return None


# ---------------------------------------------------------------------------------------------------- tokenizers
def tokenizer_name(path: Path, steps: list[dict[str, Any]]) -> str | None:
    """The hub id of a tokenizer that the steps want and that is not in the folder.

    Raises:
        RecapError: they name another folder, or the folder's own tokenizer is one with code.
    """
    check_tokenizer(path)
    check_tokenizer(path / VLM)
    if (path / "tokenizer.json").is_file():
        return None
    for step in steps:
        if step["registry_name"] != TOKENIZER:
            continue
        name = step["config"].get("tokenizer_name")
        if not isinstance(name, str) or not HUB_ID.fullmatch(name):
            fix = f"copy its tokenizer.json and tokenizer_config.json to {path}"
            raise _refused(path / PREPROCESSOR, f"tokenizer_name={name!r} outside the folder", fix)
        return name
    return None


def check_tokenizer(folder: Path) -> None:
    """Raises RecapError for a tokenizer that brings code, which transformers would ask for, or run."""
    for name in ("tokenizer_config.json", CONFIG, *(f"{kind}_config.json" for kind in CODED)):
        if not (folder / name).is_file():
            continue
        content = read_json(folder / name, str(folder))
        if key := next((key for key in ("auto_map", "trust_remote_code") if content.get(key)), None):
            fix = f"remove {key} from it; what is left is read without code of its own"
            raise _refused(folder / name, f"{key}={content[key]!r}"[:300], fix)


# ---------------------------------------------------------------------------------------------------- adapters
def lora_settings(folder: Path, targets: Collection[str]) -> dict[str, Any]:
    """What peft's LoraConfig is made of, from a checkpoint's adapter_config.json.

    targets: the patterns of layers that adapters may be for; names alone may be any.

    Raises:
        RecapError: it is damaged, is another method than LoRA, asks for more than LoRA, or names no base.
    """
    path = folder / ADAPTER_CONFIG
    content = read_json(path, str(folder))
    for problem in _lora_problems(content, targets):
        raise _refused(path, problem, "ask for plain LoRA, as policy.trainable=lora or lerobot-train make it")
    base = content.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise RecapError(f"{path} does not name the weights that it adapts. Fix: train it again.")
    if not HUB_ID.fullmatch(base) and not (Path(base).expanduser() / WEIGHTS).is_file():
        raise RecapError(
            f"{path}: it adapts the weights in {base}, where no {WEIGHTS} is. "
            "Fix: write the folder that holds them as base_model_name_or_path in that file."
        )
    return {key: content[key] for key in LORA if key in content}


def _lora_problems(content: dict[str, Any], patterns: Collection[str]) -> Iterator[str]:
    for key, value in content.items():
        said = f"{key}={value!r}"[:300]
        if key in LORA_SAYS:
            if value not in LORA_SAYS[key]:
                yield said
        elif key == "auto_mapping" and value is not None:
            library = value.get("parent_library") if isinstance(value, dict) else None
            if not (isinstance(library, str) and library.startswith(("lerobot.policies.", "recap.policies."))):
                yield said
        elif key not in LORA and key not in LORA_IGNORED and value:
            yield said
    rank, alpha, dropout = content.get("r", 8), content.get("lora_alpha", 8), content.get("lora_dropout", 0)
    if type(rank) is not int or not 1 <= rank <= LARGEST_RANK:
        yield f"r={rank!r}"
    if type(alpha) not in (int, float) or type(dropout) not in (int, float):
        yield f"lora_alpha={alpha!r}, lora_dropout={dropout!r}"
    targets = content.get("target_modules")
    named = isinstance(targets, list) and all(
        isinstance(name, str) and re.fullmatch(r"[\w.]+", name) for name in targets
    )
    if not named and targets not in patterns:  # another pattern could take for ever
        yield f"target_modules={targets!r}"[:300]
