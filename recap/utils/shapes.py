"""What a file of a run has to hold, said as plain data, and where a damaged or edited one holds something else."""

from __future__ import annotations

import math
from typing import Any

# A shape is a type; COUNT or POSITIVE; [shape] for a list; {str: shape} for a mapping with keys of its own;
# {"key": shape, "key?": shape} for an object, which may have further keys; or a tuple of alternatives.
COUNT, POSITIVE = "a whole number from 0 on", "a number above 0"
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "an object",
    list: "a list",
}
SHOWN = 40  # characters of a wrong value


def misfit(value: Any, shape: Any, where: str = "") -> str:
    """The first place where a value has another shape, as `checks[0].limit is 7 instead of text`; "" for none."""
    if isinstance(shape, tuple):
        found = [misfit(value, one, where) for one in shape]
        inside = (text for text in found if not text.startswith(f"{where.removeprefix('.') or 'it'} is "))
        return next(inside, found[0]) if all(found) else ""
    if isinstance(shape, list) and isinstance(value, list):
        return next(filter(None, (misfit(one, shape[0], f"{where}[{i}]") for i, one in enumerate(value))), "")
    if isinstance(shape, dict) and isinstance(value, dict):
        return next(filter(None, _inside(value, shape, where)), "")
    if _fits(value, shape):
        return ""
    text = repr(value)
    shown = "null" if value is None else text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    wanted = shape if isinstance(shape, str) else WORDS.get(shape if isinstance(shape, type) else type(shape), "null")
    return f"{where.removeprefix('.') or 'it'} is {shown} instead of {wanted}"


def _inside(value: dict[str, Any], shape: dict[Any, Any], where: str) -> list[str]:
    if str in shape:
        return [misfit(one, shape[str], f"{where}.{key}") for key, one in value.items()]
    found = []
    for name, inner in shape.items():
        key = name.removesuffix("?")
        if key in value:
            found.append(misfit(value[key], inner, f"{where}.{key}"))
        elif key == name:
            found.append(f"{where}.{key} is missing".removeprefix("."))
    return found


def _fits(value: Any, shape: Any) -> bool:
    if shape is None or isinstance(value, bool):
        return value is None if shape is None else shape is bool
    if shape == COUNT:
        return isinstance(value, int) and value >= 0
    if shape is float or shape == POSITIVE:
        return isinstance(value, int | float) and math.isfinite(value) and (shape is float or value > 0)
    return isinstance(shape, type) and isinstance(value, shape)
