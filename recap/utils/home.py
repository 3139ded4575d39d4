"""`~` in a path that a person typed, wherever it was typed: the shell leaves it alone in `key=~/x` and in quotes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from recap.utils.errors import RecapError

# Keys that hold a path, or a path or hub id; by the last part of the key.
PATHS = {"output", "checkpoint", "result", "root", "pretrained", "pretrained_vision", "pretrained_text", "tokenizer"}
COMMANDS = {"python", "options"}  # keys with a path somewhere in them
BEGINS = r"~(?=[\w./,\]\s-]|$)[^/,\]\s]*"  # `~` or `~name` where a word begins
TYPED = re.compile(rf"(?<=[=,\[]){BEGINS}")  # in an argument
WORD = re.compile(rf"(?<![^\s=]){BEGINS}")  # in a command line, or in the value of an option


def path(typed: str) -> Path:
    """The path that an argument of a command names. Raises RecapError for the home of a user that is not here."""
    return Path(_home(typed, typed) if typed.startswith("~") else typed)


def in_argument(typed: str) -> str:
    """`output=~/x` as Hydra can read it, whose grammar has no `~` in a value; quoted ones are left to `in_value`."""
    if re.search(r"""["']""", typed) or not TYPED.search(typed):
        return typed
    return TYPED.sub(lambda found: re.sub(r"([\\()\[\]{}:=, \t'\"])", r"\\\1", _home(found[0], typed)), typed)


def in_value(key: str, value: Any) -> Any:
    """The value of a key of the configuration, `~` filled in where it holds a path."""
    word = key.rpartition(".")[2]
    if word in COMMANDS and isinstance(value, list):
        return [in_value(key, one) for one in value]
    if not isinstance(value, str) or "~" not in value:
        return value
    if word in COMMANDS:
        quote = shlex.quote if word == "python" else str  # the one is words of a shell, the other no shell sees
        return WORD.sub(lambda found: quote(_home(found[0], f"{key}={value}")), value)
    return _home(value, f"{key}={value}") if word in PATHS and value.startswith("~") else value


def _home(text: str, typed: str) -> str:
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        raise RecapError(f"{typed}: {text.partition('/')[0]} is nobody's home here. Fix: the whole path.") from None
