"""Which policies there are: `policy.type` is a folder beside this file, or a package of yours that Python imports.

Either holds config.py with a `PolicyConfig` and adapter.py with an `Adapter` (docs/extending.md). config.py imports no
torch, so that a command line is checked at once.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from recap.utils.errors import RecapError
from recap.utils.nearest import nearest

if TYPE_CHECKING:
    from recap.policies.adapter import Adapter
    from recap.policies.config import NetworkConfig, PolicyConfig

HERE = Path(__file__).parent
_chosen: dict[str, type[PolicyConfig]] = {}  # by type, of this process: whose keys are known


class NoPolicyError(RecapError):
    """There is no such policy, or it cannot be imported; the text follows `policy.type=…: `."""


def known() -> dict[str, type[PolicyConfig]]:
    """The policies of this package, by type, and those of others that were asked for."""
    return {**_own(), **_chosen}


def keys_of(type_: str) -> type[PolicyConfig]:
    """The class of a policy's keys. Raises NoPolicyError."""
    if type_ not in _own():
        _chosen[type_] = _keys(type_)
    return known()[type_]


def adapter_of(keys: NetworkConfig | type[NetworkConfig]) -> Adapter:
    """What adapter.py beside the class of these keys defines. Raises RecapError if it cannot be imported."""
    return _adapter((keys if isinstance(keys, type) else type(keys)).__module__.rpartition(".")[0])


def reader_of(checkpoint_type: str) -> type[NetworkConfig]:
    """The keys of the network that reads checkpoints of this `type` in config.json; a policy's if none does."""
    from recap.policies.value.config import ValueConfig

    every: list[type[NetworkConfig]] = [*known().values(), ValueConfig]
    return next((keys for keys in every if checkpoint_type in keys.checkpoints), every[0])


@cache
def _own() -> dict[str, type[PolicyConfig]]:
    from recap.policies.config import PolicyConfig

    modules = {path.parent.name: import_module(f"{__package__}.{path.parent.name}.config") for path in _folders()}
    found = {name: _defined(module, PolicyConfig) for name, module in modules.items()}
    return {name: keys for name, keys in found.items() if keys is not None}


def _folders() -> list[Path]:
    return sorted(HERE.glob("*/config.py"))


def _keys(type_: str) -> type[PolicyConfig]:
    """Of a package elsewhere."""
    from recap.policies.config import PolicyConfig

    name = f"{type_}.config"
    if not all(part.isidentifier() for part in type_.split(".")):
        raise _unknown(type_)
    try:
        module = import_module(name)
    except Exception as error:  # noqa: BLE001  somebody else's code raises anything
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise _unknown(type_) from None
        raise NoPolicyError(f"{name} cannot be imported ({_said(error)}). Fix: mend it") from None
    if (keys := _defined(module, PolicyConfig)) is None:
        raise NoPolicyError(f"{name} defines no subclass of PolicyConfig. Fix: docs/extending.md has an example")
    return keys


def unusable(type_: str) -> str:
    """Why a policy of lerobot's cannot be used, and which can; "" for any other name."""
    from recap.policies.lerobot.keys import UNUSABLE

    why = UNUSABLE.get(type_)
    return (
        f"lerobot's '{type_}' {why}. Fix: one of {', '.join(_own())}; docs/policies.md says what it takes"
        if why
        else ""
    )


def _unknown(type_: str) -> NoPolicyError:
    own = list(_own())
    choose = f"choose one of {', '.join(own)}, or a package of yours that Python finds (PYTHONPATH)"
    return NoPolicyError(unusable(type_) or f"{choose}. {nearest(type_, own)}")


@cache
def _adapter(package: str) -> Adapter:
    from recap.policies.adapter import Adapter

    name = f"{package}.adapter"
    try:
        module = import_module(name)
    except Exception as error:
        if package.startswith("recap."):
            raise
        raise RecapError(f"policy.type={package}: {name} cannot be imported ({_said(error)}). Fix: mend it") from error
    if (found := _defined(module, Adapter)) is None:
        raise RecapError(f"policy.type={package}: {name} defines no subclass of Adapter. Fix: see docs/extending.md")
    return found()


def _defined[T](module: ModuleType, base: type[T]) -> type[T] | None:
    """The subclass that a module defines itself."""
    own: list[Any] = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, base)]
    return next((one for one in own if one.__module__ == module.__name__), None)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
