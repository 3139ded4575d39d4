"""What parts of the configuration are made of: a dataclass that checks its values, and the types that keys have.

    @part
    class GateConfig:
        min_auc: Fraction

A part lies beside the code that reads it. `problems(key)` of a part yields what single values cannot say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import Field, field
from typing import Annotated, Any, dataclass_transform

from pydantic import AfterValidator, BeforeValidator, ConfigDict
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError


@dataclass_transform(kw_only_default=True)
def part[T](cls: type[T]) -> type[T]:
    """A dataclass by keywords that takes no other keys and checks every value."""
    return dataclass(kw_only=True, config=ConfigDict(extra="forbid", coerce_numbers_to_str=True))(cls)  # type: ignore[return-value]


def later(default: Any) -> Any:
    """The default of a key that came when runs had been made already: at it, they are what they would be with the key.

    So `recap.config.plain` leaves the key out there, and with it every stage's identity. default: a value, or a part's
    class for one with the defaults of all its keys.
    """
    make = default if isinstance(default, type) else lambda: default
    return field(default_factory=make, metadata={"later": make})


def unset(key: Field[Any], value: Any) -> bool:
    """Whether a key that came later has its default."""
    return "later" in key.metadata and bool(value == key.metadata["later"]())


def wrong(text: str) -> PydanticCustomError:
    """What is wrong with a value, in the words that follow `key=value: `."""
    return PydanticCustomError("wrong", "{text}", {"text": text})


def must(good: Callable[[Any], bool], text: str) -> AfterValidator:
    def check(value: Any) -> Any:
        if not good(value):
            raise wrong(text)
        return value

    return AfterValidator(check)


def _whole(value: Any) -> int:
    """Also from text, as an environment variable gives it; not from 1e3 or true."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return int(value) if isinstance(value, str) else int("")
    except ValueError:
        raise wrong("must not be null" if value is None else "must be a whole number") from None


def _number(value: Any) -> float:
    try:
        number = float("" if isinstance(value, bool) else value)
    except (TypeError, ValueError):
        raise wrong("must not be null" if value is None else "must be a number") from None
    if not math.isfinite(number):
        raise wrong("must be a finite number")
    return number


Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, BeforeValidator(_number)]

Count = Annotated[Whole, must(lambda x: x >= 1, "must be at least 1")]
Index = Annotated[Whole, must(lambda x: x >= 0, "must be at least 0")]
Amount = Annotated[Number, must(lambda x: x >= 0, "must be at least 0")]
Positive = Annotated[Number, must(lambda x: x > 0, "must be greater than 0")]
Fraction = Annotated[Number, must(lambda x: 0 <= x <= 1, "must lie between 0 and 1")]
Correlation = Annotated[Number, must(lambda x: -1 <= x <= 1, "must lie between -1 and 1")]
