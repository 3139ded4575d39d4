"""From Hydra's plain values to a typed, checked object, with errors that name key, value, choices and nearest key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, fields, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recap.config.checks import problems
from recap.config.names import nearest
from recap.config.schema import (
    Config,
)
from recap.utils import home
from recap.utils.errors import RecapError

HOW_TO_GIVE = {
    "iterations": "say how many: python loop.py experiment=demo +iterations=2",
    "checkpoint": "say which: python eval.py experiment=demo checkpoint=outputs/demo/sft/checkpoints/last",
}

OMEGACONF_SAYS = {
    "converted to Integer": "must be a whole number",
    "converted to Float": "must be a number",
    "not a valid bool": "must be true or false",
    "is not Optional": "must not be null",
    "not a ListConfig, list or tuple": "must be a list: [a, b]",
    "Cannot convert .* to string": "must be text",
}


class ConfigError(RecapError):
    """The configuration is wrong; nothing has been started."""

    def __init__(self, found: list[str]):
        shown = found[:12] + [f"... and {len(found) - 12} more"] * (len(found) > 12)
        super().__init__(shown[0] if len(shown) == 1 else "\n- ".join([f"{len(found)} mistakes", *shown]))


def typed[C: Config](cfg: DictConfig, schema: type[C]) -> C:
    """The composed configuration as an object of the schema.

    Works on a plain copy: a key added with `+` slips through Hydra's schema check, and through a merge of DictConfigs.
    Raises ConfigError for unknown keys, wrong types, wrong choices, missing values and contradictions.
    """
    values = _resolved(cfg, schema)
    found = [*_walk(values, schema, OmegaConf.structured(schema), "", keys(schema))]
    if found:
        raise ConfigError(found)
    result = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), _at_home(values)))
    assert isinstance(result, schema)
    if found := problems(result):
        raise ConfigError(found)
    return result


def plain(cfg: Any) -> dict[str, Any]:
    """A typed configuration as a plain dict for YAML and JSON; `typed(OmegaConf.create(plain(c)), type(c))` is c."""

    def simple(value: Any) -> Any:
        if is_dataclass(value):
            return {f.name: simple(getattr(value, f.name)) for f in fields(value)}
        if isinstance(value, dict):
            return {key: simple(v) for key, v in value.items()}
        if isinstance(value, list):
            return [simple(v) for v in value]
        return value.name if isinstance(value, Enum) else value

    return simple(cfg)


def shared(cfg: Config) -> dict[str, Any]:
    """The plain values of the run as a whole, without those that say what this one job does or reads."""
    own = {f.name for f in fields(Config)}
    values = {k: v for k, v in plain(cfg).items() if k in own}
    del values["data"]["rollouts"]
    return values


def difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """What changed between two plain configurations, one `key: old -> new` a line."""
    lines = []
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, dict) and isinstance(b, dict):
            lines += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines


# ---------------------------------------------------------------------------------------------------- the walk
def _resolved(cfg: DictConfig, schema: type) -> dict[str, Any]:
    """Plain values with `${…}` filled in; Hydra's own node is left out."""
    cfg = OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"])
    try:
        values = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        line = str(error).splitlines()[0]
        wrong = re.search(r"Interpolation key '(.*)' not found", line)
        raise ConfigError(
            [f"{error.full_key}: {line}. {nearest(wrong[1], keys(schema)) if wrong else ''}".rstrip()]
        ) from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _at_home(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values with `~` filled in. Raises ConfigError for somebody's who has no home here."""
    try:
        return {
            key: _at_home(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else home.in_value(f"{prefix}{key}", value)
            for key, value in values.items()
        }
    except RecapError as error:
        raise ConfigError([str(error)]) from None


def _walk(values: dict[str, Any], schema: type, probe: DictConfig, prefix: str, valid: list[str]) -> Iterator[str]:
    """Unknown keys, wrong values and missing values under one node; `probe` is a typed node of OmegaConf to try on."""
    known = {f.name: f for f in fields(schema)}
    hints = get_type_hints(schema)
    for key, value in values.items():
        if key not in known:
            given = "" if isinstance(value, dict) else f"={_shown(value)}"
            yield f"{prefix}{key}{given}: no such key. {nearest(f'{prefix}{key}', valid)}"
    for key, f in known.items():
        full, node, named = f"{prefix}{key}", _node(hints[key]), _named(hints[key])
        value = values.get(key, _default(f))
        if key not in values and "???" in _flat(value):
            yield _missing(full)
        elif named is not None and isinstance(value, dict):
            for name, inside in value.items():
                if isinstance(inside, dict):
                    yield from _walk(inside, named, OmegaConf.structured(named), f"{full}.{name}.", valid)
                else:
                    held = ", ".join(x.name for x in fields(named))
                    yield f"{full}.{name}={_shown(inside)}: holds the keys {held}"
        elif node is None:
            yield from _leaf(full, value, probe, key, hints[key])
        elif isinstance(value, dict):
            inner = probe[key] if probe[key] is not None else OmegaConf.structured(node)
            yield from _walk(value, node, inner, f"{full}.", valid)
        elif value is not None or NoneType not in get_args(hints[key]):
            inside = [x.name for x in fields(node)]
            yield f"{full}={_shown(value)}: holds the keys {', '.join(inside)}. Fix: {full}.{inside[0]}=…"


def _leaf(full: str, value: Any, probe: DictConfig, key: str, hint: Any) -> Iterator[str]:
    if isinstance(value, str) and value == "???":
        yield _missing(full)
        return
    try:
        probe[key] = value
    except OmegaConfBaseException as error:
        choices = _choices(hint)
        text = f"{full}={_shown(value)}: "
        if not choices:
            yield text + _in_our_words(error)
        elif isinstance(value, list) or not _is_list(hint):
            wrong = next((v for v in value if v not in choices), value) if isinstance(value, list) else value
            text += (
                f"choose {'among' if _is_list(hint) else 'one of'} {', '.join(choices)}. {nearest(str(wrong), choices)}"
            )
            yield text + (
                " (YAML reads on, off, yes and no as booleans: quote them)" if isinstance(wrong, bool) else ""
            )
        else:
            yield f"{text}must be a list of {', '.join(choices)}, e.g. {full}=[{choices[0]}]"


def _missing(full: str) -> str:
    return f"{full}: missing. {HOW_TO_GIVE.get(full, f'Give it on the command line: {full}=…')}"


def _shown(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _flat(value: Any) -> list[Any]:
    return [x for v in value.values() for x in _flat(v)] if isinstance(value, dict) else [value]


def _default(f: Field[Any]) -> Any:
    if f.default is not NO_DEFAULT:
        return f.default
    made = f.default_factory() if f.default_factory is not NO_DEFAULT else "???"
    return plain(made) if is_dataclass(made) else made


def _node(hint: Any) -> type | None:
    """The dataclass behind a type hint `D` or `D | None`; None for a leaf."""
    options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return next((o for o in options if is_dataclass(o) and isinstance(o, type)), None)


def _named(hint: Any) -> type | None:
    """The dataclass D of `dict[str, D]`, whose keys are the user's own names."""
    held = get_args(hint)[1] if getattr(hint, "__origin__", None) is dict else None
    return held if is_dataclass(held) and isinstance(held, type) else None


def _is_list(hint: Any) -> bool:
    return getattr(hint, "__origin__", None) is list


def _choices(hint: Any) -> list[str]:
    inner = get_args(hint)[0] if _is_list(hint) or isinstance(hint, UnionType) else hint
    return [m.name for m in inner] if isinstance(inner, type) and issubclass(inner, Enum) else []


def _in_our_words(error: Exception) -> str:
    line = str(error).splitlines()[0]
    for pattern, text in OMEGACONF_SAYS.items():
        if re.search(pattern, line):
            return text
    return line


# ------------------------------------------------------------------------------------------------ the nearest valid key
def keys(schema: type, prefix: str = "") -> list[str]:
    """Every dotted key of a schema, nodes included."""
    hints = get_type_hints(schema)
    result = []
    for f in fields(schema):
        result.append(f"{prefix}{f.name}")
        if node := _node(hints[f.name]):
            result += keys(node, f"{prefix}{f.name}.")
        if node := _named(hints[f.name]):
            result += keys(node, f"{prefix}{f.name}.<name>.")
    return result
