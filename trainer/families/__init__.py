"""Model families: one module each, listed by what lies in this folder.

A family's module can be imported without TensorFlow. docs/add-a-family.md says what it holds;
`bert.py` is the pattern for texts, `inception.py` for pictures.
"""

import difflib
import importlib
import pkgutil
from types import ModuleType

from ...errors import ConfigError


def names() -> list[str]:
    """Return the families' names, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load(name: str) -> ModuleType:
    """Return a family's module. Raises ConfigError with the nearest name if there is none."""
    if name not in names():
        near = difflib.get_close_matches(str(name), names(), 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"model.family: {name!r} is not known.{hint} The families are: {', '.join(names())}."
        )
    return importlib.import_module(f"{__name__}.{name}")
