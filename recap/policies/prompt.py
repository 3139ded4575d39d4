"""The prompt: instruction, then the advantage indicator I_t as text, then the actions (RECAP, section IV-C)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from lerobot.lerobot_types import EnvTransition, TransitionKey
from lerobot.processor import ObservationProcessorStep, ProcessorStepRegistry, TokenizerProcessorStep
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from recap.policies.folder import check_tokenizer
from recap.policies.words import BUILTIN, builtin_words, prompt
from recap.utils.errors import RecapError
from recap.utils.hub import find

LENGTHS = 8  # prompts are padded to a multiple of it: few shapes to compile for, little padding to compute
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
INDICATOR = "<indicator>"  # the name of its ids in the post-processor of a tokenizer
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
INDICATOR_NUMBER = "observation.indicator"
UNCONDITIONAL_TOKENS = f"{OBS_LANGUAGE_TOKENS}.unconditional"
UNCONDITIONAL_MASK = f"{OBS_LANGUAGE_ATTENTION_MASK}.unconditional"


@lru_cache
def builtin_tokenizer(*, numbers: bool = False) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=builtin_words(numbers=numbers), pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def load_tokenizer(name: str) -> Any:
    """A tokenizer by name: `builtin`, a folder, or a hub id.

    Raises:
        RecapError: it is neither here nor reachable; the message says how to get it. Or it brings code of its own.
    """
    if name == BUILTIN:
        return builtin_tokenizer()
    if folder := find(name, "model", files=("tokenizer*", "*.json")):
        check_tokenizer(folder)
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise RecapError(
            f"tokenizer '{name}' cannot be loaded: {str(error).splitlines()[0]}\n"
            f"Fix: accept its licence on huggingface.co/{name} and run `hf auth login` once, or name a local folder; "
            "size=tiny needs none."
        ) from error


def same_tokenizer(tokenizer: Any, **parts: Any) -> PreTrainedTokenizerFast:
    """A copy that holds nothing but the tokenizer: no padding and truncation left over from its last use.

    parts: in the place of its own, as in tokenizer.json: post_processor, normalizer.
    """
    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    if parts:
        copy = Tokenizer.from_str(json.dumps({**json.loads(copy.to_str()), **parts}))
    names = {name: getattr(tokenizer, name) for name in SPECIAL if getattr(tokenizer, name) is not None}
    return PreTrainedTokenizerFast(tokenizer_object=copy, **names)


def with_indicator(tokenizer: Any, indicator: bool | None, before: str = "") -> PreTrainedTokenizerFast:
    """A tokenizer that puts the indicator behind every text by itself, or (None) no longer does.

    The ids are part of its post-processor, so whoever tokenizes an instruction with it needs to know nothing of RECAP.
    Where the indicator stands in front of the text's end (`before`), the normalizer puts it there.
    """
    if before:
        return _inserting(tokenizer, indicator, before)
    post = json.loads(tokenizer.backend_tokenizer.to_str())["post_processor"]
    parts = post["processors"] if post and post["type"] == "Sequence" else [post] if post else []
    template = next((part for part in parts if part["type"] == "TemplateProcessing"), None)
    if template is None:
        template = {"type": "TemplateProcessing", "single": [TEXT], "pair": [TEXT], "special_tokens": {}}
        parts.append(template)
    template["single"] = [p for p in template["single"] if p.get("SpecialToken", {}).get("id") != INDICATOR]
    template["special_tokens"].pop(INDICATOR, None)
    if indicator is not None:
        text = prompt("", indicator).removeprefix("\n")
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        template["single"].append({"SpecialToken": {"id": INDICATOR, "type_id": 0}})
        template["special_tokens"][INDICATOR] = {"id": INDICATOR, "ids": ids, "tokens": [text] * len(ids)}
    return same_tokenizer(tokenizer, post_processor={"type": "Sequence", "processors": parts})


def _inserting(tokenizer: Any, indicator: bool | None, before: str) -> PreTrainedTokenizerFast:
    kept = [part for part in _normalizers(tokenizer) if not _says(part)]
    if indicator is not None:
        pattern = {"Regex": rf"{re.escape(before)}\z"}
        kept = [{"type": "Replace", "pattern": pattern, "content": prompt(before, indicator, before)}, *kept]
    return same_tokenizer(tokenizer, normalizer={"type": "Sequence", "normalizers": kept} if kept else None)


def _normalizers(tokenizer: Any) -> list[dict[str, Any]]:
    own = json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"]
    found: list[dict[str, Any]] = own["normalizers"] if own and own["type"] == "Sequence" else [own] if own else []
    return found


def _says(normalizer: dict[str, Any]) -> bool:
    return str(normalizer.get("content")).startswith("Advantage: ")


def own_indicator(tokenizer: Any) -> bool | None:
    """What a tokenizer says by itself, behind every text or in front of its end."""
    text = tokenizer.backend_tokenizer.to_str()
    if said := [part["content"] for part in _normalizers(tokenizer) if _says(part)]:
        return "Advantage: positive" in said[0]
    if f'"{INDICATOR}"' not in text:
        return None
    return "Advantage: positive" in json.dumps(json.loads(text)["post_processor"])


@dataclass
class IndicatorStep:
    """What of a preprocessor tells the policy I_t.

    The batch may carry `info["indicator"]`, a list of True | False | None per sample (training); without it every
    sample gets `default_indicator` (deployment: positive).
    """

    default_indicator: bool | None = True
    beta: float = 1.0
    of: str = field(default="policy", init=False, repr=False)  # the network's part of the configuration, for messages

    def indicators(self, transition: EnvTransition, samples: int) -> Sequence[bool | None]:
        """I_t of each sample."""
        given: Sequence[bool | None] | None = (transition.get(TransitionKey.INFO) or {}).get("indicator")
        return [self.default_indicator] * samples if given is None else given


@dataclass
@ProcessorStepRegistry.register(name="recap_indicator")
class IndicatorNumber(IndicatorStep, ObservationProcessorStep):
    """I_t as a number, for a policy that reads no text: float32 [B]; 1 positive, -1 negative, 0 none."""

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        state = observation[OBS_STATE]
        numbers = [0.0 if one is None else 2.0 * one - 1.0 for one in self.indicators(self.transition, len(state))]
        return {**observation, INDICATOR_NUMBER: torch.tensor(numbers, device=state.device)}

    def get_config(self) -> dict[str, Any]:
        return {"default_indicator": self.default_indicator, "beta": self.beta}

    def transform_features(self, features: Any) -> Any:
        return features


@dataclass
@ProcessorStepRegistry.register(name="recap_prompt")
class PromptTokenizer(IndicatorStep, TokenizerProcessorStep):
    """lerobot's tokenizer step, preceded by `prompt`.

    With `beta` ≠ 1 the unconditional prompt is tokenized too, for guidance. A prompt that does not fit is refused: the
    indicator stands at its end and would be cut off unseen. before: see `prompt`.

    Raises:
        RecapError: the batch has no `task`, or a prompt is longer than `max_length` tokens.
    """

    before: str = ""

    def __post_init__(self) -> None:
        if self.tokenizer is not None:
            self.input_tokenizer = same_tokenizer(self.tokenizer)

    def get_config(self) -> dict[str, Any]:
        place = {"before": self.before} if self.before else {}
        return {**super().get_config(), "default_indicator": self.default_indicator, "beta": self.beta, **place}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The tokenizer itself, so that it travels with the checkpoint and nothing is fetched at run time."""
        names = {name: getattr(self.input_tokenizer, name) for name in SPECIAL}
        text = json.dumps([same_tokenizer(self.input_tokenizer).backend_tokenizer.to_str(), names])
        return {"tokenizer": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        text, names = json.loads(bytes(state["tokenizer"].cpu().numpy()).decode())
        given = {name: names[name] for name in SPECIAL if isinstance(names.get(name), str)}
        self.input_tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), **given)

    def _tokenize_text(self, text: list[str]) -> dict[str, torch.Tensor]:
        rows = {one: row for row, one in enumerate(dict.fromkeys(text))}  # a batch has few instructions
        result = {key: value[[rows[one] for one in text]] for key, value in super()._tokenize_text(list(rows)).items()}
        for row in result["attention_mask"].bool().all(dim=1).nonzero().flatten().tolist():
            length = len(self.input_tokenizer(text[row])["input_ids"])
            if length > self.max_length:
                key = f"{self.of}.tokenizer_max_length"
                raise RecapError(
                    f"{key}={self.max_length}: the prompt {text[row]!r} has {length} tokens. "
                    f"Fix: {key}={length} or more, and train from SFT on."
                )
        length = int(result["attention_mask"].sum(dim=1).max())
        return {key: value[:, : -(-length // LENGTHS) * LENGTHS] for key, value in result.items()}

    def _tasks(self, transition: EnvTransition) -> list[str]:
        if (transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}).get(self.task_key) is None:
            raise RecapError("the batch has no `task`. Fix: give every sample its instruction.")
        return super().get_task(transition)

    def get_task(self, transition: EnvTransition) -> list[str]:
        tasks = self._tasks(transition)
        indicators = self.indicators(transition, len(tasks))
        return [prompt(task, indicator, self.before) for task, indicator in zip(tasks, indicators, strict=True)]

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        result = super().observation(observation)
        if self.beta != 1.0:
            plain = self._tokenize_text([prompt(task, None, self.before) for task in self._tasks(self.transition)])
            device = result[OBS_LANGUAGE_TOKENS].device
            result[UNCONDITIONAL_TOKENS] = plain["input_ids"].to(device)
            result[UNCONDITIONAL_MASK] = plain["attention_mask"].to(device=device, dtype=torch.bool)
        return result
