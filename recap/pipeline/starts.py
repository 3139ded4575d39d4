"""The checkpoints that a configuration starts from or runs: looked into before the first stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from recap.config import Config, EvalJob
from recap.policies.config import NetworkConfig
from recap.policies.folder import ADAPTER_CONFIG, HUB_ID, WEIGHTS, Held, checkpoint_of, held
from recap.policies.roles import Role
from recap.stages.base import Stage
from recap.utils.errors import RecapError
from recap.utils.hub import Need, find

READABLE = ("*.json", "*.safetensors", "tokenizer*")  # no pickles: nothing would read them
RUN = "checkpoint"  # the key of the one that eval.py runs


def starts(cfg: Config, stages: Sequence[Stage]) -> dict[str, tuple[str, NetworkConfig]]:
    """key -> (folder or hub id, the network that it has to be of)."""
    found: dict[str, tuple[str, NetworkConfig]] = {}
    for role in Role if any(stage.trains for stage in stages) else ():
        keys: NetworkConfig = getattr(cfg, role.name)
        if keys.pretrained:
            found[f"{role.name}.pretrained"] = (keys.pretrained, keys)
    if isinstance(cfg, EvalJob) and any(stage.acts for stage in stages):
        found[RUN] = (cfg.checkpoint, cfg.policy)
    return found


def start_problems(cfg: Config, stages: Sequence[Stage]) -> Iterator[str]:
    """What is wrong with those that are on this machine."""
    for key, (name, keys) in starts(cfg, stages).items():
        try:
            if (found := _look(key, name, keys)) and key != RUN:
                yield from keys.start_problems(key, name, found[1])
        except RecapError as error:
            yield str(error)


def start_needs(cfg: Config, stages: Sequence[Stage]) -> Iterator[Need]:
    """What of them is not on this machine and may be on the hub; also weights and tokenizers that they name."""
    for key, (name, keys) in starts(cfg, stages).items():
        with suppress(RecapError):  # see `start_problems`
            found = _look(key, name, keys)
            if found is None:  # a repository holds weights or adapters; which, is known when it is here
                yield Need(key, name, "model", (f"*{WEIGHTS}", "config.json"))
                continue
            folder, holds = found
            if holds.base is not None and HUB_ID.fullmatch(holds.base):
                instead = f"write the folder that holds them as base_model_name_or_path in {folder / ADAPTER_CONFIG}"
                yield Need(f"the base of {key}", holds.base, "model", (WEIGHTS,), only=READABLE, instead=instead)
            if holds.tokenizer is not None and key == RUN:
                instead = f"copy its tokenizer.json and tokenizer_config.json to {folder}"
                only = ("*.json", "tokenizer*")
                yield Need(
                    "the tokenizer of checkpoint", holds.tokenizer, "model", ("tokenizer*",), None, only, instead
                )


def _look(key: str, name: str, keys: NetworkConfig) -> tuple[Path, Held] | None:
    """The folder and what it holds, None if it is not on this machine."""
    folder = find(name, "model", files=(f"*{WEIGHTS}", "*.json"))
    if folder is None:
        return None
    if not Path(name).expanduser().is_dir() and not any(folder.glob(f"*{WEIGHTS}")):
        return None  # of a repository, other files were fetched
    folder = checkpoint_of(folder)
    return folder, held(folder, type(keys), f"{key}={name}")
