"""π0 as stock lerobot runs it with nothing of ours installed: its tokenizer says the indicator by itself."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from lerobot.policies.pi0.processor_pi0 import Pi0NewLineProcessor
from lerobot.processor import TokenizerProcessorStep
from safetensors.torch import save_file

from recap.policies.adapter import Adapter
from recap.policies.checkpoint import read_config
from recap.policies.folder import WEIGHTS, has_adapters
from recap.policies.pi0 import lora
from recap.policies.processors import indicator_step, keep_usable, read_processors
from recap.policies.prompt import prompt, with_indicator
from recap.policies.weights import names_of
from recap.utils.errors import RecapError

PROBES = (
    "put both moka pots on the stove",
    "turn on the stove and put the moka pot on it",
    "Pick up 3 cups, then stop.",
)


def export(adapter: Adapter, source: Path, out: Path, indicator: bool | None, name: str) -> None:
    """Writes a checkpoint as a plain π0 of lerobot's.

    The weights are linked where the disk allows it; adapters are added to the weights in float32.

    Args:
        name: what the processors call the folder of the tokenizer.

    Raises:
        RecapError: lerobot has no words for these sizes, or the checkpoint cannot be read.
    """
    config = read_config(source, adapter)
    plain = config.plain()
    if plain is None:
        raise RecapError(
            f"{source}: lerobot's π0 has one size, and this is another. Fix: leave it as it is, and where recap is "
            f"installed run lerobot-eval --env.discover_packages_path=recap.policies --policy.path={source} …"
        )
    before, after = read_processors(adapter, source, config, "cpu")
    keep_usable((before, after))
    step = indicator_step(before)
    tokenizer = _baked(step.input_tokenizer, indicator)
    out.mkdir(parents=True)
    plain.device, plain.use_peft = config.device, False
    plain.freeze_vision_encoder = plain.train_expert_only = False
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)
    if has_adapters(source):
        config.dtype = "float32"
        save_file(lora.merged(adapter.load(config, source, None)), out / WEIGHTS, metadata={"format": "pt"})
    else:
        names_of(source / WEIGHTS)  # which opens it: another file under this name would go out with the policy
        _link(source / WEIGHTS, out / WEIGHTS)
    stock = TokenizerProcessorStep(tokenizer_name=str(out), max_length=step.max_length, padding_side="right")
    stock.tokenizer_name = name
    at = before.steps.index(step)
    before.steps = [*before.steps[:at], Pi0NewLineProcessor(), stock, *before.steps[at + 1 :]]
    before.save_pretrained(out)
    after.save_pretrained(out)


def _baked(tokenizer: Any, indicator: bool | None) -> Any:
    """The tokenizer that says the indicator by itself, after it was seen to give the ids that training gave."""
    baked = with_indicator(tokenizer, indicator)
    for task in PROBES:
        if baked(prompt(task, None))["input_ids"] != tokenizer(prompt(task, indicator))["input_ids"]:
            raise RecapError(
                f"this tokenizer joins the instruction and the indicator into other tokens ({task!r}), so that nothing "
                "can be appended for it. Fix: use lerobot with recap installed."
            )
    return baked


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk
        shutil.copyfile(source, target)
