"""The prompt: instruction, then the advantage indicator I_t as text, then the actions (RECAP, section IV-C)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from lerobot.lerobot_types import EnvTransition, TransitionKey
from lerobot.processor import ProcessorStepRegistry, TokenizerProcessorStep
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from recap.errors import RecapError

BUILTIN = "builtin"  # the name of the tokenizer that needs no download
UNCONDITIONAL_TOKENS = f"{OBS_LANGUAGE_TOKENS}.unconditional"
UNCONDITIONAL_MASK = f"{OBS_LANGUAGE_ATTENTION_MASK}.unconditional"


def prompt(task: str, indicator: bool | None) -> str:
    """The text that the policy reads; `indicator` None gives the unconditional prompt, lerobot's own for π0."""
    text = task if task.endswith("\n") else f"{task}\n"
    return text if indicator is None else f"{text}Advantage: {'positive' if indicator else 'negative'}\n"


@lru_cache
def builtin_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE made on the spot, so that the tiny sizes fetch nothing.

    It is trained on words of instructions only: common words are one token, everything else falls back to bytes. The
    words of the indicator are left out on purpose: a small model from scratch overlooks one token, and reads an
    indicator that is spelt out.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    words = (
        "put the moka pot on the stove\nput both moka pots on the stove\n "
        "push pick place open close turn and in it plate bowl cup mug front left right of to"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([words] * 8, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def load_tokenizer(name: str) -> Any:
    """A tokenizer by name: `builtin`, a folder, or a hub id.

    Raises:
        RecapError: it is neither here nor reachable; the message says how to get it.
    """
    if name == BUILTIN:
        return builtin_tokenizer()
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise RecapError(
            f"tokenizer '{name}' cannot be loaded: {str(error).splitlines()[0]}\n"
            f"Fix: accept its licence on huggingface.co/{name} and run `hf auth login` once, or name a local folder; "
            "size=tiny needs none."
        ) from error


@dataclass
@ProcessorStepRegistry.register(name="recap_prompt")
class PromptTokenizer(TokenizerProcessorStep):
    """lerobot's tokenizer step, preceded by `prompt`.

    The batch may carry `info["indicator"]`, a list of True | False | None per sample (training); without it every
    sample gets `default_indicator` (deployment: positive). With `beta` ≠ 1 the unconditional prompt is tokenized too,
    for guidance. A prompt that does not fit is refused: the indicator stands at its end and would be cut off unseen.

    Raises:
        RecapError: the batch has no `task`, or a prompt is longer than `max_length` tokens.
    """

    default_indicator: bool | None = True
    beta: float = 1.0

    def __post_init__(self) -> None:
        if self.tokenizer is None and self.tokenizer_name == BUILTIN:
            self.input_tokenizer = builtin_tokenizer()
        else:
            super().__post_init__()

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "default_indicator": self.default_indicator, "beta": self.beta}

    def _tokenize_text(self, text: list[str]) -> dict[str, torch.Tensor]:
        result = super()._tokenize_text(text)
        for row in result["attention_mask"].bool().all(dim=1).nonzero().flatten().tolist():
            length = len(self.input_tokenizer(text[row])["input_ids"])
            if length > self.max_length:
                raise RecapError(
                    f"tokenizer_max_length={self.max_length}: the prompt {text[row]!r} has {length} tokens. "
                    f"Fix: tokenizer_max_length={length} or more, and train from SFT on."
                )
        return result

    def _tasks(self, transition: EnvTransition) -> list[str]:
        if (transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}).get(self.task_key) is None:
            raise RecapError("the batch has no `task`. Fix: give every sample its instruction.")
        return super().get_task(transition)

    def get_task(self, transition: EnvTransition) -> list[str]:
        tasks = self._tasks(transition)
        given: Sequence[bool | None] | None = (transition.get(TransitionKey.INFO) or {}).get("indicator")
        indicators = [self.default_indicator] * len(tasks) if given is None else given
        return [prompt(task, indicator) for task, indicator in zip(tasks, indicators, strict=True)]

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        result = super().observation(observation)
        if self.beta != 1.0:
            plain = self._tokenize_text([prompt(task, None) for task in self._tasks(self.transition)])
            device = result[OBS_LANGUAGE_TOKENS].device
            result[UNCONDITIONAL_TOKENS] = plain["input_ids"].to(device)
            result[UNCONDITIONAL_MASK] = plain["attention_mask"].to(device=device, dtype=torch.bool)
        return result
