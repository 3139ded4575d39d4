"""Which environments there are: `env.type` is a folder beside this file, one of lerobot's, or a package of yours.

Its env.py defines `make(config) -> Env`, and where that helps (docs/extending.md):

    instructions(config)   the tasks in words, without building it; by default it is built
    check(config)          raises RecapError where it cannot run here; by default it is built in a process of its own
    needs()                what it takes from the hub: list of `recap.utils.hub.Need`

demonstrator.py beside it, if there is one, defines `Demonstrator(config, rng)` with `reset(env, task)`, `act(env)`. As
an operator it begins in whatever state a policy has reached, and may have `lost(env, task)`: whether to take over now.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from recap.utils.errors import RecapError
from recap.utils.nearest import nearest

HERE = Path(__file__).parent
LEROBOT = ("aloha", "metaworld", "pusht", "robocasa")  # by lerobot's own names


def known() -> list[str]:
    folders = sorted(path.parent.name for path in HERE.glob("*/env.py"))
    return [*(name for name in folders if name != "lerobot"), *LEROBOT]


def problem(type_: str) -> str | None:
    """Why there is no such environment, as it follows `env.type=…: `; None if there is. Imports nothing."""
    if type_ in known() or (_folder(type_) / "env.py").is_file():
        return None
    own = ", ".join(known())
    return f"choose one of {own}, or a package of yours that Python finds (PYTHONPATH). {nearest(type_, known())}"


def module(type_: str) -> ModuleType:
    """env.py of an environment. Raises RecapError if it cannot be imported."""
    name = f"{_package(type_)}.env"
    try:
        return import_module(name)
    except Exception as error:
        if name.startswith("recap."):
            raise
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RecapError(f"env.type={type_}: {name} cannot be imported ({line}). Fix: mend it") from error


def has_demonstrator(type_: str) -> bool:
    return type_ not in LEROBOT and (_folder(type_) / "demonstrator.py").is_file()


def demonstrator(type_: str) -> Any:
    """The class of the scripted demonstrator. Raises RecapError if there is none."""
    if not has_demonstrator(type_):
        fix = "name recorded demonstrations with +data.sources.mine.root=…, or choose env=moka"
        raise RecapError(f"env={type_} has no scripted demonstrator: {fix}")
    return import_module(f"{_package(type_)}.demonstrator").Demonstrator


def _package(type_: str) -> str:
    if type_ in LEROBOT:
        return "recap.envs.lerobot"
    return f"recap.envs.{type_}" if type_ in known() else type_


def _folder(type_: str) -> Path:
    """Of a package; of one that is not there, a folder that is not there."""
    if type_ in known():
        return HERE / type_
    try:
        spec = find_spec(type_)
    except (ImportError, ValueError):
        spec = None
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places), "")) if places else HERE / "none"
