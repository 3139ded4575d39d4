"""A policy as stock lerobot runs it with nothing of ours installed: its tokenizer says the indicator by itself."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from lerobot.processor import ProcessorStep, TokenizerProcessorStep

from recap.policies.adapter import Adapter
from recap.policies.processors import indicator_step, keep_usable, read_processors
from recap.policies.prompt import PromptTokenizer, prompt, with_indicator
from recap.policies.weights import names_of
from recap.utils.errors import RecapError

PROBES = (
    "put both moka pots on the stove",
    "turn on the stove and put the moka pot on it",
    "Pick up 3 cups, then stop.",
)


def export_processors(
    adapter: Adapter, source: Path, config: Any, out: Path, indicator: bool | None, name: str, *first: ProcessorStep
) -> None:
    """Writes the tokenizer that says the indicator by itself, and the processors that read it, into the new `out`.

    Args:
        name: what the processors call the folder of the tokenizer. first: steps in front of the tokenizer.
    """
    before, after = read_processors(adapter, source, config, "cpu")
    keep_usable((before, after))
    step: PromptTokenizer = indicator_step(before)
    tokenizer = _baked(step, indicator)
    out.mkdir(parents=True)
    tokenizer.save_pretrained(out)
    stock = TokenizerProcessorStep(tokenizer_name=str(out), max_length=step.max_length, padding_side="right")
    stock.tokenizer_name = name
    at = before.steps.index(step)
    before.steps = [*before.steps[:at], *first, stock, *before.steps[at + 1 :]]
    before.save_pretrained(out)
    after.save_pretrained(out)


def _baked(step: PromptTokenizer, indicator: bool | None) -> Any:
    """The tokenizer that says the indicator by itself, after it was seen to give the ids that training gave."""
    tokenizer = step.input_tokenizer
    baked = with_indicator(tokenizer, indicator, step.before)
    for task in PROBES:
        text = prompt(f"{task}\n", None, step.before)
        if baked(text)["input_ids"] != tokenizer(prompt(text, indicator, step.before))["input_ids"]:
            raise RecapError(
                f"this tokenizer joins the instruction and the indicator into other tokens ({task!r}), so that nothing "
                "can be appended for it. Fix: use lerobot with recap installed."
            )
    return baked


def export_weights(source: Path, target: Path) -> None:
    """The same file where the disk allows it; it was opened before, or another file of its name would go out."""
    names_of(source)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk
        shutil.copyfile(source, target)
