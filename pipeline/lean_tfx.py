"""To be imported before anything of TFX: it keeps TFX's package of components from bringing all.

Its __init__ imports every component there is, and with them Kubernetes' client, keras-tuner and
Keras 3: 4 of the 10 seconds before a run begins. What we use stands in its subpackages.
"""

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


def _leave_unopened(name: str) -> None:
    """Put a package among the imported ones without running its __init__.

    Its subpackages can be imported as ever, and so can all that the __init__ defines.
    """
    parent, _, child = name.rpartition(".")
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is not None:
        module = importlib.util.module_from_spec(spec)
        module.__class__ = _Unopened
        sys.modules[name] = module
        setattr(sys.modules[parent], child, module)


_leave_unopened("tfx.components")
