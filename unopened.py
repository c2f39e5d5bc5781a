"""Packages whose __init__ brings far more than we import from them."""

import importlib.util
import sys
from types import ModuleType
from typing import Any


class _Unopened(ModuleType):
    """A package whose __init__ runs when something is asked of it that only this gives."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self.__spec__ is None or self.__spec__.loader is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__class__ = ModuleType  # type: ignore[assignment]
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def leave_unopened(name: str) -> None:
    """Put a package among the imported ones without running its __init__, if it is installed.

    Its subpackages can be imported as ever, and so can all that the __init__ defines: that runs
    it.
    """
    parent, _, child = name.rpartition(".")
    if name in sys.modules or importlib.util.find_spec(parent) is None:
        return
    spec = importlib.util.find_spec(name)
    if spec is not None:
        module = importlib.util.module_from_spec(spec)
        module.__class__ = _Unopened
        sys.modules[name] = module
        setattr(sys.modules[parent], child, module)
