"""Packages whose `__init__` imports far more than is used here: it runs when a name of it is asked for, not before.

Their modules are imported one by one meanwhile. Whoever asks for a name of the package gets all of it, as ever.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import ModuleType
from typing import Any

_lock = RLock()


def later(*packages: str) -> None:
    """Those that are imported already stay as they are."""
    sys.meta_path.insert(0, _Finder(packages))


class _Finder(MetaPathFinder):
    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in self.packages else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, own: Loader) -> None:
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Package(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Not yet."""


class _Package(ModuleType):
    def __getattr__(self, name: str) -> Any:
        """Of what is not there yet."""
        spec = self.__spec__
        if spec is not None and not name.startswith("__"):  # those are how Python looks at modules
            with _lock:  # a second thread waits until all of it is there
                if isinstance(spec.loader, _Loader):
                    spec.loader = self.__loader__ = spec.loader.own
                    spec.loader.exec_module(self)
                if name in vars(self):
                    return vars(self)[name]
        raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'", name=name, obj=self)
