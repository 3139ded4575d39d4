"""From composed values to a typed, checked object, with errors that name key, value, choices and nearest key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from recap.config.checks import between, unread_prompts
from recap.config.renamed import renamed
from recap.config.schema import Config
from recap.policies import registry
from recap.policies.config import PolicyConfig
from recap.utils import home
from recap.utils.errors import RecapError
from recap.utils.nearest import nearest
from recap.utils.typed import unset

HOW_TO_GIVE = {
    "iterations": "say how many: python loop.py experiment=demo +iterations=2",
    "checkpoint": "say which: python eval.py experiment=demo checkpoint=outputs/demo/sft/checkpoints/last",
}
# pydantic's kinds of error in our words; `wrong` says it itself (recap.utils.typed)
WORDS = {
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list: [a, b]",
    "dict_type": "must hold keys: {name: value}",
}


class ConfigError(RecapError):
    """The configuration is wrong; nothing has been started."""

    def __init__(self, found: list[str]):
        shown = found[:12] + [f"... and {len(found) - 12} more"] * (len(found) > 12)
        super().__init__(shown[0] if len(shown) == 1 else "\n- ".join([f"{len(found)} mistakes", *shown]))


def typed[C: Config](cfg: DictConfig, schema: type[C]) -> C:
    """The composed configuration as an object of the schema.

    Raises ConfigError for unknown keys, wrong types, wrong choices, missing values and contradictions.
    """
    result, found = _built(_at_home(_resolved(cfg, schema)), schema)
    if result is None:
        raise ConfigError(found)
    if found := _wrong(result):
        raise ConfigError(found)
    return result


def problems(cfg: Config) -> list[str]:
    """Everything wrong with a configuration that was changed, each as one line that names key, value and fix."""
    result, found = _built(plain(cfg), type(cfg))
    return found if result is None else _wrong(result)


def ablated[C: Config](cfg: C, name: str) -> C:
    """The configuration of an ablation: that of the run but for its overrides.

    Raises ConfigError for unknown keys, wrong values and contradictions.
    """
    result, found = _ablated(cfg, name)
    if result is None or found:
        raise ConfigError(found)
    return result


def _ablated[C: Config](cfg: C, name: str) -> tuple[C | None, list[str]]:
    """The configuration of an ablation, and what is wrong in it that is not wrong in the run's."""
    values = plain(cfg)
    for key, value in _dotted(values.pop("ablations")[name]):
        *nodes, last = key.split(".")
        node = values
        for one in nodes:
            node = node.setdefault(one, {})
            if not isinstance(node, dict):
                return None, [f"ablations.{name}.{key}: {unknown(key, type(cfg))}"]
        node[last] = value
    result, found = _built(values, type(cfg))
    if result is not None:
        known = {*_own(cfg), *between(cfg)}
        found = [line for line in (*_own(result), *between(result)) if line not in known]
    return result, [f"ablations.{name}.{line}" for line in found]


def _dotted(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of {a.b: value} and of {a: {b: value}}."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _wrong(cfg: Config) -> list[str]:
    """What is wrong with a configuration whose keys and types are right."""
    ablations = (line for name in cfg.ablations for line in _ablated(cfg, name)[1])
    return [*_own(cfg), *between(cfg), *unread_prompts(cfg), *ablations]


def plain(cfg: Any) -> dict[str, Any]:
    """A typed configuration as a plain dict for YAML and JSON; `typed(OmegaConf.create(plain(c)), type(c))` is c.

    Keys that came `later` are left out at their default, so that a run of before them stays the same.
    """

    def simple(value: Any) -> Any:
        if is_dataclass(value):
            held = {f.name: getattr(value, f.name) for f in fields(value) if not unset(f, getattr(value, f.name))}
            return {key: simple(one) for key, one in held.items()}
        if isinstance(value, dict):
            return {key: simple(v) for key, v in value.items()}
        if isinstance(value, list):
            return [simple(v) for v in value]
        return value.value if isinstance(value, Enum) else value

    return simple(cfg)


def shared(cfg: Config) -> dict[str, Any]:
    """The plain values of the run as a whole, without those that say what this one job does or reads."""
    own = {f.name for f in fields(Config)}
    values = {k: v for k, v in plain(cfg).items() if k in own}
    del values["data"]["rollouts"]
    return values


def unknown(key: str, schema: type) -> str:
    """What to say of a key that there is not."""
    if now := renamed(key):
        known = [re.escape(one).replace("<name>", r"[^.]+") for one in keys(schema)]
        there = "." not in now or any(re.fullmatch(one, now) for one in known)
        return f"renamed to {now}" if there else f"no such key. {nearest(now, keys(schema))}"
    if key == "role":
        return "chooses what train.py trains, as policy=value does; this command has no such choice. Fix: leave it out"
    return f"no such key. {nearest(key, [*keys(schema), 'experiment'])}"


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything under a part that is not one itself."""
    for f in fields(node):
        value = getattr(node, f.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{f.name}.")
        elif isinstance(value, dict):
            for name, one in value.items():
                key = f"{prefix}{f.name}.{name}"
                yield from leaves(one, f"{key}.") if is_dataclass(one) else [(key, one)]
        else:
            yield f"{prefix}{f.name}", value


def keys(schema: type, prefix: str = "") -> list[str]:
    """Every dotted key of a schema, nodes included; of the policy those of every known type."""
    hints = get_type_hints(schema)
    result = []
    for f in fields(schema):
        result.append(f"{prefix}{f.name}")
        held, named = _held(hints[f.name])
        for part in registry.known().values() if held is PolicyConfig else [held] if held else []:
            result += keys(part, f"{prefix}{f.name}.{'<name>.' if named else ''}")
    return list(dict.fromkeys(result))


# ---------------------------------------------------------------------------------------------------- parts of it
def _resolved(cfg: DictConfig, schema: type) -> dict[str, Any]:
    """Plain values with `${…}` filled in; Hydra's own node and what nobody gave (???) are left out."""
    cfg = OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"])
    try:
        values = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        line = str(error).splitlines()[0]
        wrong = re.search(r"Interpolation key '(.*)' not found", line)
        raise ConfigError(
            [f"{error.full_key}: {line}. {nearest(wrong[1], keys(schema)) if wrong else ''}".rstrip()]
        ) from None

    def given(node: Any) -> Any:
        return {str(k): given(v) for k, v in node.items() if v != "???"} if isinstance(node, dict) else node

    return given(values)


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


def _built[C: Config](values: dict[str, Any], schema: type[C]) -> tuple[C | None, list[str]]:
    try:
        return TypeAdapter(schema).validate_python(values), []
    except ValidationError as error:
        found: dict[str, str] = {}  # one line a key, of a list the first element that is wrong
        for one in error.errors(include_url=False):
            path = [part for part in one["loc"] if isinstance(part, str)]
            found.setdefault(".".join(path), _line(one, values, path, schema))
        return None, [*found.values()]


def _own(node: Any, prefix: str = "") -> Iterator[str]:
    """What the parts themselves find wrong."""
    if prefix and hasattr(node, "problems"):
        yield from node.problems(prefix)
    for f in fields(node):
        value, key = getattr(node, f.name), f"{prefix}.{f.name}".lstrip(".")
        for name, one in value.items() if isinstance(value, dict) else [("", value)]:
            if is_dataclass(one):
                yield from _own(one, f"{key}.{name}".rstrip("."))


def _line(error: Any, values: dict[str, Any], path: list[str], schema: type) -> str:
    """`key=value: what is wrong. Fix`."""
    key, kind, given = ".".join(path), error["type"], error["input"]
    whole: Any = values
    for part in path if kind != "missing" else []:
        whole = whole.get(part) if isinstance(whole, dict) else None
    if kind == "missing":
        return f"{key}: missing. {HOW_TO_GIVE.get(key, f'Give it on the command line: {key}=…')}"
    if kind == "unexpected_keyword_argument":
        value = "" if isinstance(given, dict) else f"={_shown(given)}"
        elsewhere = "" if renamed(key) else _of_another(key, values)
        return f"{key}{value}: {elsewhere or unknown(key, schema)}"
    text = f"{key}={_shown(whole)}: "
    hint = _hint(schema, path, values)
    if kind == "dataclass_type":
        inside = [f.name for f in fields(_held(hint)[0] or schema)]
        return f"{text}holds the keys {', '.join(inside)}. Fix: {key}.{inside[0]}=…"
    choices = _choices(hint)
    if kind == "enum" or (choices and kind == "list_type"):
        if kind == "list_type":
            return f"{text}must be a list of {', '.join(choices)}, e.g. {key}=[{choices[0]}]"
        among = "among" if isinstance(whole, list) else "one of"
        return f"{text}choose {among} {', '.join(choices)}. {nearest(str(given), choices)}"
    if given is None:
        return f"{text}must not be null"
    return text + (error["msg"] if kind == "wrong" else WORDS.get(kind, error["msg"]))


def _shown(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    if isinstance(value, str) and not value.strip():
        return repr(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _of_another(key: str, values: dict[str, Any]) -> str:
    """What to say of a key that another policy has; "" if none does."""
    given = values.get("policy")
    chosen = given.get("type") if isinstance(given, dict) else None
    others = {name: one for name, one in registry.known().items() if name != chosen}
    for name, one in others.items():
        if key in keys(one, "policy."):
            return f"is a key of policy.type={name}, not of {chosen}. Fix: leave it out, or policy=<a file of its own>"
    return ""


def _hint(schema: type, path: list[str], values: dict[str, Any]) -> Any:
    """The type of a dotted key."""
    hint: Any = schema
    for name in path:
        held, named = _held(hint)
        if held is PolicyConfig:
            held = registry.known().get(values["policy"]["type"], PolicyConfig)
        hint = held if named else get_type_hints(held)[name] if held else None
    return hint


def _held(hint: Any) -> tuple[type | None, bool]:
    """The part behind a type `D`, `D | None` or `dict[str, D]`, and whether names of the user's lead to it."""
    if isinstance(hint, type) and is_dataclass(hint):
        return hint, False
    named = getattr(hint, "__origin__", None) is dict
    return next((one for one in get_args(hint) if isinstance(one, type) and is_dataclass(one)), None), named


def _choices(hint: Any) -> list[str]:
    found = [hint, *get_args(hint)]
    return [m.value for one in found if isinstance(one, type) and issubclass(one, Enum) for m in one]
