"""Keys that networks have in common, and what is known of a network before torch is imported.

A policy of its own kind adds its keys to `PolicyConfig`, in config.py of its folder or package: docs/extending.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, TypeAdapter, WrapValidator
from tokenizers import Tokenizer

from recap.policies import registry
from recap.policies.memory import FULL, HALF
from recap.policies.sizes import Backbone
from recap.policies.words import BUILTIN, builtin_words, prompt
from recap.training.config import PolicyTrainConfig, TrainConfig
from recap.utils.typed import Count, Number, must, part, wrong

if TYPE_CHECKING:
    from recap.policies.folder import Held

Dropout = Annotated[
    Number, must(lambda x: 0 <= x < 1, "must be at least 0 and below 1 (at 1 no indicator is ever read)")
]


def _auto_or(good: Callable[[Any], bool], text: str) -> BeforeValidator:
    """auto, or what is good."""

    def check(value: Any) -> Any:
        if value == "auto" or good(value):
            return value
        raise wrong(f"must be auto, {text}")

    return BeforeValidator(check)


def _share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


Compiled = Annotated[bool | Literal["auto"], _auto_or(lambda value: isinstance(value, bool), "true or false")]
Memory = Annotated[float | Literal["auto"], _auto_or(_share, "or a number between 0 and 1")]


def _known(type_: str) -> str:
    try:
        registry.keys_of(type_)
    except registry.NoPolicyError as error:
        raise wrong(str(error)) from None
    return type_


@part
class NetworkConfig:
    """A network that is trained: a policy or the value function. Class variables and methods may be overridden."""

    checkpoints: ClassVar[tuple[str, ...]] = ()  # `type` in config.json of the checkpoints that it can start from
    readable: ClassVar[str] = "a checkpoint of a run"  # these in words, for messages
    named: ClassVar[str] = "the network"  # the network in words, for messages
    has_adapters: ClassVar[bool] = False  # whether a checkpoint may hold LoRA adapters instead of whole weights
    lora_targets: ClassVar[tuple[str, ...]] = ()  # patterns of the layers that these may be for
    extra_steps: ClassVar[tuple[str, ...]] = ()  # processor steps of such checkpoints, beside those of every policy
    smaller: ClassVar[str] = "size=tiny"  # overrides that take less GPU memory

    pretrained: str | None = None
    sft: TrainConfig
    finetune: TrainConfig

    def problems(self, key: str) -> Iterator[str]:
        """What is wrong with the keys together, each as `key=value: why. Fix: …`; key: policy or value."""
        yield from ()

    def needs(self) -> Iterator[tuple[str, str]]:
        """(key below this part, hub id) of weights that it starts from, beside `pretrained`."""
        yield from ()

    def start_problems(self, key: str, name: str, holds: Held) -> Iterator[str]:
        """What is wrong with starting from `pretrained`, which holds this; `key=name` as it is in the configuration."""
        yield from ()

    def too_small(self, key: str, found: Sequence[tuple[str, int, int]]) -> Iterator[str]:
        """What of the data does not fit; found: (its name, numbers of the state, of the action)."""
        yield from ()

    def weights(self) -> tuple[int, int]:
        """How many weights learn, in float32, and how many do not, in bfloat16. Small networks need not count them."""
        return 0, 0

    def saved_bytes(self) -> float:
        """Disk that a checkpoint takes."""
        learned, frozen = self.weights()
        return learned * FULL + frozen * HALF

    def activations(self, batch: float, cameras: int) -> tuple[float, float]:
        """Memory of a device that a training's activations take, at least and where nothing is computed again."""
        return 0.0, 0.0

    def sample_bytes(self, read: float, cameras: int) -> float:
        """Memory that a sample of a training batch takes without a GPU; read: bytes of its images."""
        return read


@part
class ReadsText(NetworkConfig):
    """A network that reads the prompt: the instruction, and the indicator behind it."""

    tokenizer: str
    tokenizer_max_length: Count

    def longest(self, task: str, indicator: bool | None, state: int) -> str:
        """The longest text that it reads for an instruction; state: how many numbers the robot's state has."""
        return prompt(task, indicator)

    def builtin(self) -> Tokenizer:
        """Its built-in tokenizer."""
        return builtin_words()

    def vocabulary(self, published: int) -> int:
        """How many embeddings there are; published: of any other tokenizer than the built-in one."""
        return self.builtin().get_vocab_size() if self.tokenizer == BUILTIN else published


@part
class PolicyConfig(NetworkConfig):
    """What any policy that acts has. One that is no `ReadsText` gets the indicator as a number."""

    readable: ClassVar[str] = "a policy of a run (…/sft or …/policy)"
    named: ClassVar[str] = "the policy"
    has_guidance: ClassVar[bool] = False  # whether beta other than 1 changes what it does
    shardable: ClassVar[bool] = True  # whether sharding=fsdp can share out its layers

    type: Annotated[str, AfterValidator(_known)]
    chunk_size: Count
    n_action_steps: Count
    indicator_dropout: Dropout
    sft: PolicyTrainConfig
    finetune: PolicyTrainConfig

    def problems(self, key: str) -> Iterator[str]:
        if self.n_action_steps > self.chunk_size:
            yield (
                f"{key}.n_action_steps={self.n_action_steps}: only {key}.chunk_size={self.chunk_size} actions are "
                f"predicted. Fix: {key}.n_action_steps={self.chunk_size}"
            )

    def acting(self) -> dict[str, Any]:
        """The keys that change what a trained policy does: another value is another rollout."""
        return {"n_action_steps": self.n_action_steps}

    def backbone(self, folder: Path | None = None) -> Backbone | None:
        """What a value function with `value.backbone=policy` starts from; None: it has nothing of the kind.

        folder: the policy's checkpoint; None before there is one, when sizes may be estimated.
        """
        return None


def _of_its_type(values: Any, as_any: Callable[[Any], PolicyConfig]) -> PolicyConfig:
    """Values as the keys of their `type`; where there is no such policy, what can be said of the keys of any."""
    if not isinstance(values, dict) or not isinstance(values.get("type"), str):
        return as_any(values)
    try:
        keys = registry.keys_of(values["type"])
    except registry.NoPolicyError:
        defaults = {"chunk_size": 1, "n_action_steps": 1}  # as its own keys may have
        return as_any(defaults | {f.name: values[f.name] for f in fields(PolicyConfig) if f.name in values})
    return TypeAdapter(keys).validate_python(values)


AnyPolicy = Annotated[PolicyConfig, WrapValidator(_of_its_type)]
